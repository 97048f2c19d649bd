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
}

impl Role {
    /// The roles of an allocator's methods, in the order of their codes.
    pub const METHODS: [Self; 5] = [Self::Alloc, Self::Free, Self::Realloc, Self::Reset, Self::Delete];

    /// Whether the programs need the function's return value, and so a return probe.
    pub const fn needs_return(self) -> bool {
        matches!(self, Self::Alloc | Self::Realloc)
    }
}

/// How the chunk header says what a chunk holds (PostgreSQL, `src/backend/utils/mmgr/aset.c`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ChunkHeader {
    /// 12 to 15, Greenplum 7: usable size at `ptr - 16`, owning context at `ptr - 8`.
    SizeContext = 0,
    /// 16: eight bytes at `ptr - 8`, method id in bits 0–2, external flag in bit 3, value from
    /// bit 4, block offset from bit 34.
    Packed16 = 1,
    /// 17 and later: method id in bits 0–3, external flag in bit 4, value from bit 5, block
    /// offset from bit 34.
    Packed17 = 2,
    /// 9.4 and Greenplum 6: owning context (or a shared header) at `ptr - 16`, size at `ptr - 8`.
    ContextSize = 3,
}

/// A function argument's position, counted from zero, or none.
pub const NO_ARG: u8 = 0xf;

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
    /// Position of the argument that is a context's node tag, or [`NO_ARG`].
    pub tag_arg: u8,
    /// The node tag of the contexts that are followed, where there is such an argument.
    pub tag: u16,
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
        tag: 0,
        index: 0,
        skew: 0,
    };

    /// The cookie handed to the kernel with the probe.
    pub const fn pack(self) -> u64 {
        (self.role as u64)
            | (self.header as u64) << 4
            | (self.context_arg as u64 & 0xf) << 8
            | (self.pointer_arg as u64 & 0xf) << 12
            | (self.size_arg as u64 & 0xf) << 16
            | (self.name_arg as u64 & 0xf) << 20
            | (self.index as u64) << 24
            | (self.skew as u64) << 32
            | (self.tag as u64) << 40
            | (self.tag_arg as u64 & 0xf) << 56
    }

    /// The position fields of a cookie, without a look at the role.
    #[inline(always)]
    pub const fn arg_of(cookie: u64, field: ArgField) -> u64 {
        (cookie >> field as u64) & 0xf
    }

    /// The role's code in a cookie.
    #[inline(always)]
    pub const fn role_of(cookie: u64) -> u64 {
        cookie & 0xf
    }

    /// The site index of a cookie.
    #[inline(always)]
    pub const fn index_of(cookie: u64) -> u32 {
        (cookie >> 24) as u32 & 0xff
    }

    /// The probe's distance from the function's first instruction.
    #[inline(always)]
    pub const fn skew_of(cookie: u64) -> u64 {
        (cookie >> 32) & 0xff
    }

    /// The node tag of a cookie.
    #[inline(always)]
    pub const fn tag_of(cookie: u64) -> u64 {
        (cookie >> 40) & 0xffff
    }

    /// The chunk header code of a cookie.
    #[inline(always)]
    pub const fn header_of(cookie: u64) -> u64 {
        (cookie >> 4) & 0xf
    }
}

/// Where in a cookie an argument position stands.
#[derive(Clone, Copy, Debug)]
#[repr(u64)]
pub enum ArgField {
    /// [`Site::context_arg`].
    Context = 8,
    /// [`Site::pointer_arg`].
    Pointer = 12,
    /// [`Site::size_arg`].
    Size = 16,
    /// [`Site::name_arg`].
    Name = 20,
    /// [`Site::tag_arg`].
    Tag = 56,
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
    if header == ChunkHeader::Packed16 as u64 || header == ChunkHeader::Packed17 as u64 { 8 } else { 16 }
}

/// Size of `AllocBlockData` of 16 and later: aset, prev, next, freeptr, endptr.
const BLOCK_HEADER_BYTES: u64 = 40;
/// Offset of `endptr` in `AllocBlockData`.
const BLOCK_END_OFFSET: u64 = 32;

/// Decodes the 16 bytes before `pointer` (`before[0]` at `pointer - 16`).
#[inline(always)]
pub fn chunk_size(header: u64, pointer: u64, before: [u64; 2]) -> ChunkSize {
    if header == ChunkHeader::SizeContext as u64 {
        return ChunkSize::Usable(before[0]);
    }
    if header == ChunkHeader::ContextSize as u64 {
        return ChunkSize::Usable(before[1]);
    }
    let word = before[1];
    let method_bits = if header == ChunkHeader::Packed16 as u64 { 3 } else { 4 };
    if word >> method_bits & 1 != 0 {
        return ChunkSize::Block { block_end_at: pointer - 8 - BLOCK_HEADER_BYTES + BLOCK_END_OFFSET };
    }
    // An AllocSet chunk's value is the index of its free list: 8 << index bytes. Eleven lists
    // exist (ALLOCSET_NUM_FREELISTS); the mask keeps a torn header from shifting too far.
    ChunkSize::Usable(8 << (word >> (method_bits + 1) & 0xf))
}

/// The address that holds the owning context, for a chunk of 16 or later: the first word of its
/// block.
#[inline(always)]
pub fn packed_block_of(header: u64, pointer: u64, word: u64) -> u64 {
    let method_bits = if header == ChunkHeader::Packed16 as u64 { 3 } else { 4 };
    let chunk = pointer - 8;
    if word >> method_bits & 1 != 0 { chunk - BLOCK_HEADER_BYTES } else { chunk - (word >> 34) }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            tag: 0x1da,
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
        assert_eq!(Site::tag_of(cookie), 0x1da);
        assert_eq!(Site::index_of(cookie), 200);
        assert_eq!(Site::skew_of(cookie), 16);
    }

    #[test]
    fn chunk_headers_of_every_kind() {
        let ptr = 0x5000;
        assert_eq!(chunk_size(ChunkHeader::SizeContext as u64, ptr, [64, 0xc0]), ChunkSize::Usable(64));
        assert_eq!(chunk_size(ChunkHeader::ContextSize as u64, ptr, [0xc0, 64]), ChunkSize::Usable(64));
        // 16: method 3, freelist index 4, block offset 0x30.
        let word = 3 | 4 << 4 | 0x30 << 34;
        assert_eq!(chunk_size(ChunkHeader::Packed16 as u64, ptr, [0, word]), ChunkSize::Usable(128));
        assert_eq!(packed_block_of(ChunkHeader::Packed16 as u64, ptr, word), ptr - 8 - 0x30);
        // 17: method 3, freelist index 10.
        let word = 3 | 10 << 5 | 0x58 << 34;
        assert_eq!(chunk_size(ChunkHeader::Packed17 as u64, ptr, [0, word]), ChunkSize::Usable(8192));
        // 17: external.
        let word = 3 | 1 << 4;
        assert_eq!(
            chunk_size(ChunkHeader::Packed17 as u64, ptr, [0, word]),
            ChunkSize::Block { block_end_at: ptr - 8 - 40 + 32 }
        );
        assert_eq!(packed_block_of(ChunkHeader::Packed17 as u64, ptr, word), ptr - 48);
    }
}
