//! Contexts of other kinds than AllocSet, of each major version: where they and their blocks keep
//! what is read from outside.
//!
//! Read in `generation.c`, `slab.c` and `bump.c` of `src/backend/utils/mmgr`, and checked against
//! what a server of each major from 14 on logs of such contexts (`pg_log_backend_memory_contexts`).

/// Contexts of other kinds than AllocSet. All offsets are in bytes, from the start of the context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OtherKinds {
    /// Generation.
    pub generation: ListedBlocks,
    /// Slab.
    pub slab: SlabFields,
    /// Bump, from 17 on.
    pub bump: Option<ListedBlocks>,
}

/// A context that has all its blocks in one list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedBlocks {
    /// The list of blocks (`dlist_head`).
    pub list: u64,
    /// Bytes of the context, as the server adds them to its total.
    pub header: u64,
    /// Bytes of a block's header, of which the link in the list is the first field.
    pub block_header: u64,
    /// Where a block has the count of its freed chunks (`int`), if it counts them.
    pub freed: Option<u64>,
    /// Where a block has its `freeptr`; `endptr` follows.
    pub free_at: u64,
}

/// A context of chunks of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlabFields {
    /// The size of a chunk with its header.
    pub chunk: Field,
    /// The size of a block.
    pub block: Field,
    /// The number of chunks of a block.
    pub per_block: Field,
    /// The lists of blocks.
    pub lists: SlabLists,
    /// Bytes of a block's header.
    pub block_header: u64,
    /// Where a block has the count of its free chunks (`int`).
    pub free: u64,
    /// Where a block has its link in the list.
    pub link: u64,
}

/// How a slab sorts its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlabLists {
    /// A list (`dlist_head`) for each number of free chunks, from this offset on; the size of the
    /// context is a field of its own.
    ByFreeChunks {
        /// The first list.
        lists: u64,
        /// The size of the context, with its lists.
        header: Field,
    },
    /// One list of empty blocks, then three of others.
    Partitioned {
        /// The empty ones (`dclist_head`, whose list is its first field).
        empty: u64,
        /// The others (`dlist_head`).
        lists: u64,
        /// Bytes of the context.
        header: u64,
    },
}

/// A number of a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// `Size`, at this offset.
    Size(u64),
    /// `int32` or `uint32`, at this offset.
    Int(u64),
}

/// Partitions of a slab's blocks (`SLAB_BLOCKLIST_COUNT`).
pub const SLAB_PARTITIONS: u64 = 3;

/// The kinds of a major version; `fields` is where the fields of a kind begin.
pub(super) const fn other_kinds(major: u32, fields: u64) -> OtherKinds {
    OtherKinds {
        generation: generation_fields(major, fields),
        slab: slab_fields(major, fields),
        bump: if major < 17 { None } else { Some(bump_fields(fields)) },
    }
}

/// 15 added sizes of blocks that grow and two blocks at hand; 17 halved the sizes and dropped one of these.
const fn generation_fields(major: u32, fields: u64) -> ListedBlocks {
    let list = fields
        + match major {
            ..=14 => 16,
            15 | 16 => 56,
            _ => 32,
        };
    // 16 added the context to a block.
    let block = if major < 16 { 16 } else { 24 };
    ListedBlocks {
        list,
        header: list + 16,
        block_header: block + 32,
        freed: Some(block + 12),
        free_at: block + 16,
    }
}

const fn bump_fields(fields: u64) -> ListedBlocks {
    // The server does not count the context itself.
    ListedBlocks { list: fields + 16, header: 0, block_header: 32, freed: None, free_at: 16 }
}

const fn slab_fields(major: u32, fields: u64) -> SlabFields {
    if major < 16 {
        let header = Field::Size(fields + 24);
        return SlabFields {
            chunk: Field::Size(fields + 8),
            block: Field::Size(fields + 16),
            per_block: Field::Int(fields + 32),
            lists: SlabLists::ByFreeChunks { lists: fields + 48, header },
            block_header: 24,
            free: 16,
            link: 0,
        };
    }
    // 17 halved the sizes.
    let (chunk, block, per_block, empty) = if major == 16 {
        (Field::Size(fields + 8), Field::Size(fields + 16), Field::Int(fields + 24), fields + 40)
    } else {
        (Field::Int(fields + 4), Field::Int(fields + 8), Field::Int(fields + 12), fields + 24)
    };
    let lists = empty + 24;
    let header = lists + SLAB_PARTITIONS * 16;
    SlabFields {
        chunk,
        block,
        per_block,
        lists: SlabLists::Partitioned { empty, lists, header },
        block_header: 48,
        free: 8,
        link: 32,
    }
}
