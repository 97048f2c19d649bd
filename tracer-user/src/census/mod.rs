//! The memory contexts of a live process, read from outside: no probe, no stop, no help of the
//! process.
//!
//! Every read is one `process_vm_readv`, which takes the process's mmap lock for reading and brings
//! pages of it in that were swapped out; nothing is written. The memory changes meanwhile, so no
//! pointer is believed before what it leads to looks right, and what does not is counted.

mod allocset;
mod chunks;
mod find;
mod json;
mod kinds;
mod read;
mod table;
mod text;
mod tree;

use std::{fmt, time::Duration};

pub use chunks::{UsedChunk, used_chunks};
pub use find::{CensusError, Observed};
pub use json::json;
pub use read::{Limits, take, text};
pub use table::{Growth, Line, grown, growth_table, largest, lines, table};
pub use text::masked;

use crate::addr::AbsAddr;
pub use crate::catalog::Kind;

/// The contexts of one process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Parents stand before their children; the first is `TopMemoryContext`.
    pub contexts: Vec<MemoryContext>,
    /// What could not be read.
    pub troubles: Troubles,
    /// How long it took.
    pub took: Duration,
    /// Bytes of the process's memory that were read for it.
    pub read_bytes: u64,
}

/// A context as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryContext {
    /// Where it is.
    pub address: AbsAddr,
    /// Index of its parent in [`Census::contexts`].
    pub parent: Option<usize>,
    /// Its name.
    pub name: String,
    /// What tells it from others of that name: a table, a function, a statement.
    pub ident: Option<String>,
    /// Its allocator.
    pub kind: Kind,
    /// Bytes of its blocks, its own header included, as the server counts them; `None` if 12, which keeps
    /// no count, has blocks that could not be read.
    pub total: Option<u64>,
    /// What is in them; `None` if it could not be read.
    pub usage: Option<Usage>,
}

/// The blocks of a context and what is free in them, as `MemoryContextStats` counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Its blocks.
    pub blocks: Vec<Block>,
    /// Bytes of the context itself, which stands before its first block.
    pub header: u64,
    /// Chunks in its free lists.
    pub free_chunks: u64,
    /// Bytes of these, headers included; 0 for Generation contexts, whose free chunks do not say it.
    pub free_chunk_bytes: u64,
    /// Bytes of blocks that no chunk can have: headers, and what is left over at the end of a slab's.
    pub unusable: u64,
}

/// A block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its first byte, that of its header.
    pub address: AbsAddr,
    /// Bytes.
    pub bytes: u64,
    /// Bytes at its end that were never given out, or not since the last reset.
    pub unused: u64,
}

/// Size of the header of an AllocSet's block: aset, prev, next, freeptr, endptr (`aset.c`, every major).
pub const BLOCK_HEADER_BYTES: u64 = 40;

/// The most bytes of one context: no sum over as many as a census may have leaves an `i64`.
pub(crate) const MOST_BYTES: u64 = 1 << 42;

impl Usage {
    /// Whether it adds up, as it does unless it was read while it changed.
    pub(crate) fn is_sound(&self) -> bool {
        let sum = |of: fn(&Block) -> u64| self.blocks.iter().map(|block| u128::from(of(block))).sum::<u128>();
        let total = u128::from(self.header) + sum(|block| block.bytes);
        let free = u128::from(self.free_chunk_bytes) + sum(|block| block.unused);
        total <= u128::from(MOST_BYTES) && free + u128::from(self.overhead()) <= total
    }

    /// Bytes of all blocks, and of the context itself.
    pub fn total(&self) -> u64 {
        self.header + self.blocks.iter().map(|block| block.bytes).sum::<u64>()
    }

    /// Bytes that are in no chunk that is used, and in no header of a block.
    pub fn free(&self) -> u64 {
        self.free_chunk_bytes + self.blocks.iter().map(|block| block.unused).sum::<u64>()
    }

    /// Bytes that are in no chunk and can be in none.
    pub fn overhead(&self) -> u64 {
        self.header + self.unusable
    }

    /// Bytes of chunks that are used, their headers included.
    pub fn used(&self) -> u64 {
        self.total().saturating_sub(self.free()).saturating_sub(self.overhead())
    }
}

/// Why a census is not whole. All zero: it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Troubles {
    /// Names that could not be read.
    pub unreadable: u64,
    /// Contexts whose children changed each time that they were read; some are missing.
    pub torn: u64,
    /// Contexts whose blocks or free lists changed each time; what is in them is left out.
    pub torn_blocks: u64,
    /// 1 if the time or room that the reader has was over.
    pub cut: u64,
}

impl Troubles {
    /// Whether there were none.
    pub fn none(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Troubles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            (self.unreadable, "names unreadable"),
            (self.torn, "contexts with missing children"),
            (self.torn_blocks, "contexts without what is in them"),
            (self.cut, "cut at the limit of time or size"),
        ];
        let said: Vec<String> = parts
            .into_iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        f.write_str(&said.join(", "))
    }
}
