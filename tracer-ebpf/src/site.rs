//! What the cookie of a probe says: which allocator, which role, and where the arguments are.
//!
//! The eBPF programs know roles, never allocators: a new allocator or PostgreSQL version is a
//! catalog row in user space that is packed into this cookie.

/// What a probed function does to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Role {
    /// Returns a new chunk of a context.
    Alloc = 0,
    /// Gives one chunk back.
    Free = 1,
    /// Changes the size of a chunk, and perhaps its address.
    Realloc = 2,
    /// Gives back every chunk of one context and keeps the context.
    Reset = 3,
    /// Gives back every chunk of one context, and the context.
    Delete = 4,
    /// Makes a context: every constructor calls it, with the memory that the context lies in.
    Create = 5,
    /// As [`Self::Alloc`], but the pointer is written to where the pointer argument points, and what
    /// is returned is 0 (`posix_memalign`).
    AllocInto = 6,
}

impl Role {
    /// The roles of an allocator's methods, in the order of their codes.
    pub const METHODS: [Self; 5] = [Self::Alloc, Self::Free, Self::Realloc, Self::Reset, Self::Delete];

    /// Whether the programs need the function's return value, and so a return probe.
    pub const fn needs_return(self) -> bool {
        matches!(self, Self::Alloc | Self::AllocInto | Self::Realloc)
    }

    /// Whether the function returns a new chunk, one way or the other.
    pub const fn is_alloc(self) -> bool {
        matches!(self, Self::Alloc | Self::AllocInto)
    }
}

/// Memory that is in no context. What stands for its context is the number of its pool, which is
/// never reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Pool {
    /// `malloc` and its like.
    Malloc = 1,
    /// `mmap`.
    Mmap = 2,
}

impl Pool {
    /// The pool that a number stands for; the address of a context stands for none.
    pub const fn of(context: u64) -> Option<Self> {
        match context {
            1 => Some(Self::Malloc),
            2 => Some(Self::Mmap),
            _ => None,
        }
    }
}

/// Whether this is the number of a pool and not the address of a context.
#[inline(always)]
pub const fn is_pool(context: u64) -> bool {
    context.wrapping_sub(1) < 2
}

/// What precedes a chunk (PostgreSQL, `aset.c`, `generation.c`, `slab.c` and `bump.c` in
/// `src/backend/utils/mmgr`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ChunkHeader {
    /// AllocSet of 12 to 15, Greenplum 7: usable size at `ptr - 16`, owning context at `ptr - 8`.
    SizeContext = 0,
    /// AllocSet of 16: eight bytes at `ptr - 8`, method id in bits 0–2, external flag in bit 3,
    /// index of the free list from bit 4, block offset from bit 34.
    Packed16 = 1,
    /// AllocSet of 17 and later: method id in bits 0–3, external flag in bit 4, index of the free
    /// list from bit 5, block offset from bit 34.
    Packed17 = 2,
    /// AllocSet of 9.4 and Greenplum 6: owning context (or a shared header) at `ptr - 16`, size at
    /// `ptr - 8`.
    ContextSize = 3,
    /// Generation of 12 to 15: usable size at `ptr - 24`, block at `ptr - 16`, owning context at
    /// `ptr - 8`.
    SizeBlockContext = 4,
    /// Generation of 16: as [`Self::Packed16`], with the usable size for the index.
    SizePacked16 = 5,
    /// Generation of 17 and later: as [`Self::Packed17`], with the usable size for the index.
    SizePacked17 = 6,
    /// Slab of 12 to 15: block and owning context, no size.
    BlockContext = 7,
    /// Slab of 16 and later: eight bytes, no size.
    Unsized = 8,
    /// Bump, and allocators that are not known: nothing.
    None = 9,
    /// glibc's malloc: the whole size at `ptr - 8`, with flags in bits 0–2 (`malloc_chunk` in
    /// `malloc/malloc.c`).
    Glibc = 10,
    /// Whole pages (`mmap`).
    Pages = 11,
}

impl ChunkHeader {
    const ALL: [Self; 12] = [
        Self::SizeContext,
        Self::Packed16,
        Self::Packed17,
        Self::ContextSize,
        Self::SizeBlockContext,
        Self::SizePacked16,
        Self::SizePacked17,
        Self::BlockContext,
        Self::Unsized,
        Self::None,
        Self::Glibc,
        Self::Pages,
    ];

    /// Words that the header takes.
    const fn words(self) -> u64 {
        match self {
            Self::SizeContext | Self::ContextSize | Self::BlockContext => 2,
            Self::Packed16
            | Self::Packed17
            | Self::SizePacked16
            | Self::SizePacked17
            | Self::Unsized
            | Self::Glibc => 1,
            Self::SizeBlockContext => 3,
            Self::None | Self::Pages => 0,
        }
    }

    /// How many words before the pointer the size stands; 0 if it stands nowhere.
    const fn size_word(self) -> u64 {
        match self {
            Self::SizeContext => 2,
            Self::Packed16
            | Self::Packed17
            | Self::ContextSize
            | Self::SizePacked16
            | Self::SizePacked17
            | Self::Glibc => 1,
            Self::SizeBlockContext => 3,
            Self::BlockContext | Self::Unsized | Self::None | Self::Pages => 0,
        }
    }
}

/// A number below 16 for each header in one word, so that the programs look it up by a shift.
const fn by_header(words: bool) -> u64 {
    let (mut table, mut index) = (0, 0);
    while index < ChunkHeader::ALL.len() {
        let header = ChunkHeader::ALL[index];
        table |= (if words { header.words() } else { header.size_word() }) << (4 * header as u64);
        index += 1;
    }
    table
}

const HEADER_WORDS: u64 = by_header(true);
const SIZE_WORD: u64 = by_header(false);

/// A function argument's position, counted from zero, or none.
pub const NO_ARG: u8 = 7;

/// Node tags of the kinds of contexts that are followed. Those of one major are neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tags {
    /// The first, below 4096.
    pub first: u16,
    /// Which of the four from it on: a bit each.
    pub followed: u8,
}

impl Tags {
    /// None.
    pub const NONE: Self = Self { first: 0, followed: 0 };

    /// The tags of a list; `None` if they are too far apart, or too large for a cookie.
    pub fn of(tags: &[u32]) -> Option<Self> {
        let first = *tags.iter().min()?;
        let followed = tags.iter().try_fold(0, |followed, tag| {
            let distance = tag - first;
            (distance < 4).then_some(followed | 1 << distance)
        })?;
        (first < 1 << 12).then_some(Self { first: first as u16, followed })
    }
}

/// A probe cookie, unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Site {
    /// What the function does.
    pub role: Role,
    /// How its chunks describe themselves.
    pub header: ChunkHeader,
    /// Position of the `MemoryContext` argument, or [`NO_ARG`].
    pub context_arg: u8,
    /// Position of the chunk pointer argument, or [`NO_ARG`].
    pub pointer_arg: u8,
    /// Position of the size argument, or [`NO_ARG`].
    pub size_arg: u8,
    /// Position of the argument that is a context's name, or [`NO_ARG`].
    pub name_arg: u8,
    /// Position of the argument that is a context's node tag, or [`NO_ARG`] if it does not matter.
    pub tag_arg: u8,
    /// The node tags of the contexts that are followed, where there is such an argument.
    pub tags: Tags,
    /// Position of the argument that the size is to be multiplied by (`calloc`), or [`NO_ARG`].
    pub factor_arg: u8,
    /// Where the memory is that is in no context.
    pub pool: Option<Pool>,
    /// Index of the site in the capture's plan: the hit counters are kept by it. Below
    /// [`crate::abi::MAX_SITES`].
    pub index: u8,
    /// Byte offset of the probed instruction from the function's first one, so that a stack
    /// starts with the function and not with wherever the probe sits.
    pub skew: u8,
}

impl Site {
    /// A function without arguments.
    pub const PLAIN: Self = Self {
        role: Role::Alloc,
        header: ChunkHeader::SizeContext,
        context_arg: NO_ARG,
        pointer_arg: NO_ARG,
        size_arg: NO_ARG,
        name_arg: NO_ARG,
        tag_arg: NO_ARG,
        tags: Tags::NONE,
        factor_arg: NO_ARG,
        pool: None,
        index: 0,
        skew: 0,
    };

    /// The cookie handed to the kernel with the probe.
    pub const fn pack(self) -> u64 {
        (self.role as u64)
            | (self.header as u64) << 4
            | (self.context_arg as u64 & 7) << ArgField::Context as u64
            | (self.pointer_arg as u64 & 7) << ArgField::Pointer as u64
            | (self.size_arg as u64 & 7) << ArgField::Size as u64
            | (self.name_arg as u64 & 7) << ArgField::Name as u64
            | (self.tag_arg as u64 & 7) << ArgField::Tag as u64
            | (self.factor_arg as u64 & 7) << ArgField::Factor as u64
            | (match self.pool {
                Some(pool) => pool as u64,
                None => 0,
            }) << 26
            | (self.index as u64) << 28
            | (self.skew as u64) << 36
            | (self.tags.first as u64 & 0xfff) << 44
            | (self.tags.followed as u64 & 0xf) << 56
    }

    /// The position fields of a cookie, without a look at the role.
    #[inline(always)]
    pub const fn arg_of(cookie: u64, field: ArgField) -> u64 {
        (cookie >> field as u64) & 7
    }

    /// The role's code in a cookie.
    #[inline(always)]
    pub const fn role_of(cookie: u64) -> u64 {
        cookie & 0xf
    }

    /// The chunk header code of a cookie.
    #[inline(always)]
    pub const fn header_of(cookie: u64) -> u64 {
        (cookie >> 4) & 0xf
    }

    /// The number of a cookie's [`Pool`], 0 for memory in contexts.
    #[inline(always)]
    pub const fn pool_of(cookie: u64) -> u64 {
        (cookie >> 26) & 3
    }

    /// The site index of a cookie.
    #[inline(always)]
    pub const fn index_of(cookie: u64) -> u32 {
        (cookie >> 28) as u32 & 0xff
    }

    /// The probe's distance from the function's first instruction.
    #[inline(always)]
    pub const fn skew_of(cookie: u64) -> u64 {
        (cookie >> 36) & 0xff
    }

    /// Whether contexts with this node tag are followed.
    #[inline(always)]
    pub const fn follows(cookie: u64, tag: u32) -> bool {
        let distance = (tag as u64).wrapping_sub((cookie >> 44) & 0xfff);
        distance < 4 && (cookie >> (56 + distance)) & 1 != 0
    }
}

/// Where in a cookie an argument position stands.
#[derive(Clone, Copy, Debug)]
#[repr(u64)]
pub enum ArgField {
    /// [`Site::context_arg`].
    Context = 8,
    /// [`Site::pointer_arg`].
    Pointer = 11,
    /// [`Site::size_arg`].
    Size = 14,
    /// [`Site::name_arg`].
    Name = 17,
    /// [`Site::tag_arg`].
    Tag = 20,
    /// [`Site::factor_arg`].
    Factor = 23,
}

/// What a chunk header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkSize {
    /// The chunk's usable bytes.
    Usable(u64),
    /// The chunk is a block of its own; its bytes end at the address stored at `block_end_at`.
    Block {
        /// Address of the block's `endptr` field.
        block_end_at: u64,
    },
}

/// Bytes that a chunk's header takes beside its usable ones. Together they are what the server's
/// `GetMemoryChunkSpace` says; the header of a block is in neither, even if the chunk has one of
/// its own.
#[inline(always)]
pub const fn header_bytes(header: u64) -> u64 {
    (HEADER_WORDS >> (4 * header) & 0xf) * 8
}

/// How far before the pointer the word with the size stands; 0 if a chunk takes what it was asked
/// for, rounded up ([`rounded`]).
#[inline(always)]
pub const fn size_before(header: u64) -> u64 {
    (SIZE_WORD >> (4 * header) & 0xf) * 8
}

/// Usable bytes of a chunk without a size: all of a slab have room for a pointer, which links the
/// free ones.
#[inline(always)]
pub const fn rounded(header: u64, requested: u64) -> u64 {
    if header == ChunkHeader::Pages as u64 {
        return requested.wrapping_add(PAGE_BYTES - 1) & !(PAGE_BYTES - 1);
    }
    let bytes = requested.wrapping_add(7) & !7;
    if bytes == 0 && header != ChunkHeader::None as u64 { 8 } else { bytes }
}

const PAGE_BYTES: u64 = 4096;

/// Whether chunks with that header are of an AllocSet.
#[inline(always)]
pub const fn is_set(header: u64) -> bool {
    header == ChunkHeader::SizeContext as u64
        || header == ChunkHeader::Packed16 as u64
        || header == ChunkHeader::Packed17 as u64
}

/// All that a small chunk of an AllocSet takes, without a look at its header: powers of two up to what is small
/// for every set. A set with the smallest blocks there are, of 1 KiB, calls 128 bytes small (`allocChunkLimit` in
/// `aset.c`: a quarter of a block has room for one).
#[inline(always)]
pub const fn small_held(header: u64, requested: u64) -> Option<u64> {
    const SMALL: u64 = 128;
    if !is_set(header) || requested > SMALL {
        return None;
    }
    // The next power of two, and at least 8.
    let mut below = requested.wrapping_sub((requested != 0) as u64) | 7;
    below |= below >> 1;
    below |= below >> 2;
    below |= below >> 4;
    Some(below + 1 + header_bytes(header))
}

/// Distance from the context's pointer in a block's header to the pointer of the block's only
/// chunk, for a chunk of 16 or later that is a block of its own: the same in `AllocBlockData`
/// (aset, prev, next, freeptr, endptr) and `GenerationBlock` (node, context, blksize, counts,
/// freeptr, endptr).
const LONE_CHUNK_CONTEXT: u64 = 48;
/// The same for `endptr`: the last field of both.
const LONE_CHUNK_END: u64 = 16;

#[inline(always)]
const fn is_16(header: u64) -> bool {
    header == ChunkHeader::Packed16 as u64 || header == ChunkHeader::SizePacked16 as u64
}

#[inline(always)]
const fn is_generation(header: u64) -> bool {
    header == ChunkHeader::SizePacked16 as u64 || header == ChunkHeader::SizePacked17 as u64
}

#[inline(always)]
const fn method_bits(header: u64) -> u64 {
    if is_16(header) { 3 } else { 4 }
}

/// Decodes the word that is [`size_before`] the pointer.
#[inline(always)]
pub fn chunk_size(header: u64, pointer: u64, word: u64) -> ChunkSize {
    let plain = header == ChunkHeader::SizeContext as u64
        || header == ChunkHeader::ContextSize as u64
        || header == ChunkHeader::SizeBlockContext as u64;
    if plain {
        return ChunkSize::Usable(word);
    }
    if header == ChunkHeader::Glibc as u64 {
        return ChunkSize::Usable((word & !7).wrapping_sub(8));
    }
    let method_bits = method_bits(header);
    if word >> method_bits & 1 != 0 {
        return ChunkSize::Block { block_end_at: pointer - LONE_CHUNK_END };
    }
    let value = word >> (method_bits + 1);
    // `MEMORYCHUNK_MAX_VALUE`: 30 bits.
    if is_generation(header) {
        return ChunkSize::Usable(value & 0x3fff_ffff);
    }
    // An AllocSet chunk's value is the index of its free list: 8 << index bytes. Eleven lists
    // exist (ALLOCSET_NUM_FREELISTS); the mask keeps a torn header from shifting too far.
    ChunkSize::Usable(8 << (value & 0xf))
}

/// The address that holds the owning context, for a chunk of 16 or later whose header is `word`.
#[inline(always)]
pub fn packed_context_at(header: u64, pointer: u64, word: u64) -> u64 {
    if word >> method_bits(header) & 1 != 0 {
        return pointer - LONE_CHUNK_CONTEXT;
    }
    // An AllocSet's is the first field of its block, a Generation's the third. The value's highest
    // bit may be the lowest of the offset, which is a multiple of eight (17).
    let field = if is_generation(header) { 16 } else { 0 };
    pointer - 8 - (word >> 34 & !7) + field
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_chunks_of_sets_are_powers_of_two() {
        for (header, bytes) in
            [(ChunkHeader::SizeContext, 16), (ChunkHeader::Packed16, 8), (ChunkHeader::Packed17, 8)]
        {
            for (requested, usable) in [
                (0, 8),
                (1, 8),
                (8, 8),
                (9, 16),
                (16, 16),
                (17, 32),
                (33, 64),
                (64, 64),
                (65, 128),
                (128, 128),
            ] {
                assert_eq!(small_held(header as u64, requested), Some(usable + bytes), "{requested}");
            }
            assert_eq!(small_held(header as u64, 129), None);
        }
        assert_eq!(small_held(ChunkHeader::SizePacked17 as u64, 8), None);
        assert_eq!(small_held(ChunkHeader::Glibc as u64, 8), None);
    }

    #[test]
    fn a_cookie_keeps_every_field() {
        let site = Site {
            role: Role::Realloc,
            header: ChunkHeader::Packed17,
            context_arg: NO_ARG,
            pointer_arg: 0,
            size_arg: 1,
            name_arg: 4,
            tag_arg: 1,
            tags: Tags { first: 0x1da, followed: 0b1011 },
            factor_arg: 2,
            pool: Some(Pool::Mmap),
            index: 200,
            skew: 16,
        };
        let cookie = site.pack();
        assert_eq!(cookie & 0xf, Role::Realloc as u64);
        assert_eq!(Site::header_of(cookie), ChunkHeader::Packed17 as u64);
        assert_eq!(Site::arg_of(cookie, ArgField::Context), u64::from(NO_ARG));
        assert_eq!(Site::arg_of(cookie, ArgField::Pointer), 0);
        assert_eq!(Site::arg_of(cookie, ArgField::Size), 1);
        assert_eq!(Site::arg_of(cookie, ArgField::Name), 4);
        assert_eq!(Site::arg_of(cookie, ArgField::Tag), 1);
        assert_eq!(Site::arg_of(cookie, ArgField::Factor), 2);
        assert_eq!(Pool::of(Site::pool_of(cookie)), Some(Pool::Mmap));
        assert_eq!(Site::pool_of(Site::PLAIN.pack()), 0);
        let followed: [bool; 6] = core::array::from_fn(|at| Site::follows(cookie, 0x1d9 + at as u32));
        assert_eq!(followed, [false, true, true, false, true, false]);
        assert_eq!(Site::index_of(cookie), 200);
        assert_eq!(Site::skew_of(cookie), 16);
    }

    #[test]
    fn tags_that_are_neighbours_fit() {
        assert_eq!(Tags::of(&[223, 225, 224]), Some(Tags { first: 223, followed: 0b111 }));
        assert_eq!(Tags::of(&[474]), Some(Tags { first: 474, followed: 1 }));
        assert_eq!(Tags::of(&[]), None);
        assert_eq!(Tags::of(&[474, 478]), None, "too far apart");
        assert_eq!(Tags::of(&[4096]), None, "too large");
    }

    #[test]
    fn chunk_headers_of_every_kind() {
        let ptr = 0x5000;
        let size = |header: ChunkHeader, word| chunk_size(header as u64, ptr, word);
        let context = |header: ChunkHeader, word| packed_context_at(header as u64, ptr, word);
        let layout = |header: ChunkHeader| (header_bytes(header as u64), size_before(header as u64));
        assert_eq!(layout(ChunkHeader::SizeContext), (16, 16));
        assert_eq!(size(ChunkHeader::SizeContext, 64), ChunkSize::Usable(64));
        assert_eq!(layout(ChunkHeader::ContextSize), (16, 8));
        assert_eq!(size(ChunkHeader::ContextSize, 64), ChunkSize::Usable(64));
        assert_eq!(layout(ChunkHeader::SizeBlockContext), (24, 24));
        assert_eq!(size(ChunkHeader::SizeBlockContext, 104), ChunkSize::Usable(104));
        // 16: method 3, freelist index 4, block offset 0x30.
        let word = 3 | 4 << 4 | 0x30 << 34;
        assert_eq!(layout(ChunkHeader::Packed16), (8, 8));
        assert_eq!(size(ChunkHeader::Packed16, word), ChunkSize::Usable(128));
        assert_eq!(context(ChunkHeader::Packed16, word), ptr - 8 - 0x30);
        // 17: method 3, freelist index 10.
        let word = 3 | 10 << 5 | 0x58 << 34;
        assert_eq!(size(ChunkHeader::Packed17, word), ChunkSize::Usable(8192));
        // 17: a block of its own, in both kinds.
        let word = 3 | 1 << 4;
        for header in [ChunkHeader::Packed17, ChunkHeader::SizePacked17] {
            assert_eq!(size(header, word), ChunkSize::Block { block_end_at: ptr - 16 });
            assert_eq!(context(header, word), ptr - 48);
        }
        // glibc's: 0x70 bytes, the chunk before is in use.
        assert_eq!(
            (layout(ChunkHeader::Glibc), size(ChunkHeader::Glibc, 0x71)),
            ((8, 8), ChunkSize::Usable(0x68))
        );
        // A Generation's, method 4: 200 bytes in a block that begins 0x78 bytes before the header.
        let word = 4 | 200 << 4 | 0x78 << 34;
        assert_eq!(size(ChunkHeader::SizePacked16, word), ChunkSize::Usable(200));
        let word = 4 | 200 << 5 | 0x78 << 34;
        assert_eq!(size(ChunkHeader::SizePacked17, word), ChunkSize::Usable(200));
        assert_eq!(context(ChunkHeader::SizePacked17, word), ptr - 8 - 0x78 + 16);
    }

    #[test]
    fn chunks_without_a_size_are_rounded() {
        let held = |header: ChunkHeader, requested| {
            assert_eq!(size_before(header as u64), 0);
            rounded(header as u64, requested) + header_bytes(header as u64)
        };
        assert_eq!([1, 8, 41].map(|size| held(ChunkHeader::BlockContext, size)), [24, 24, 64]);
        assert_eq!([1, 8, 41].map(|size| held(ChunkHeader::Unsized, size)), [16, 16, 56]);
        assert_eq!([0, 1, 41].map(|size| held(ChunkHeader::None, size)), [0, 8, 48]);
        assert_eq!([1, 4096, 4097].map(|size| held(ChunkHeader::Pages, size)), [4096, 4096, 8192]);
    }
}
