//! The chunk that `AllocSetAlloc` is about to return, from what its context holds when it is called.
//!
//! Nearly every allocation takes the first chunk of a free list, or the next one of the first block (`AllocSetAlloc` in
//! `src/backend/utils/mmgr/aset.c`, the same from 12 to 18). Both can be told before: then the call needs no return
//! probe, which costs nearly as much as the probe at its entry. What needs a new block, or one of its own, cannot.

use crate::{lookup::opaque, site::header_bytes};

/// Words of a set that are read: the first block, eleven free lists, and what sets how large chunks of a block may be.
pub const SET_WORDS: usize = 16;

/// Where the first block keeps its free part: `freeptr` and `endptr` of `AllocBlockData`, behind the owner and two links.
pub const BLOCK_FREE: u64 = 24;

/// Where an AllocSet keeps what decides where a chunk comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetFields {
    /// Offset of `AllocSetContext.blocks`, behind which the free lists are.
    pub start: u64,
    /// Which word from there on has `allocChunkLimit`.
    pub limit_word: u64,
    /// How far it is to be shifted down.
    pub limit_shift: u64,
}

/// Where a chunk will come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// It is this one.
    FreeList(u64),
    /// It is carved from the block at this address, if that has as many bytes left.
    Block {
        /// The block.
        at: u64,
        /// Bytes that the chunk takes.
        bytes: u64,
    },
    /// It has, or begins, a block of its own.
    NewBlock,
}

/// Where a chunk of `size` bytes will come from, and how many bytes it takes with its header.
#[inline(always)]
pub fn source(words: &[u64; SET_WORDS], fields: SetFields, header: u64, size: u64) -> (Source, u64) {
    let limit = word(words, fields.limit_word) >> fields.limit_shift;
    let class = class_of(size);
    let bytes = (8 << class) + header_bytes(header);
    if size > limit || class > LAST_CLASS {
        return (Source::NewBlock, bytes);
    }
    let chunk = word(words, 1 + class);
    if chunk != 0 {
        return (Source::FreeList(chunk.wrapping_add(header_bytes(header))), bytes);
    }
    if words[0] == 0 { (Source::NewBlock, bytes) } else { (Source::Block { at: words[0], bytes }, bytes) }
}

/// The chunk that is carved from a block whose free part is that; `None` if it has no room for it.
#[inline(always)]
pub fn carved(free: [u64; 2], header: u64, bytes: u64) -> Option<u64> {
    let left = free[1].wrapping_sub(free[0]);
    // A block that ends before its free part begins is none.
    (left >= bytes && left >> 63 == 0).then_some(free[0].wrapping_add(header_bytes(header)))
}

#[inline(always)]
fn word(words: &[u64; SET_WORDS], index: u64) -> u64 {
    words[(opaque(index) & (SET_WORDS as u64 - 1)) as usize]
}

/// The last free list.
const LAST_CLASS: u64 = 10;

/// The free list of a size (`AllocSetFreeIndex`): chunks of 8 << class bytes.
#[inline(always)]
fn class_of(size: u64) -> u64 {
    let most = size.wrapping_sub((size != 0) as u64) >> 3;
    64 - u64::from(most.leading_zeros())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::site::ChunkHeader;

    const TO_16: SetFields = SetFields { start: 80, limit_word: 15, limit_shift: 0 };
    const FROM_17: SetFields = SetFields { start: 80, limit_word: 13, limit_shift: 32 };

    fn set(limit_at: SetFields, limit: u64, block: u64) -> [u64; SET_WORDS] {
        let mut words = [0; SET_WORDS];
        words[0] = block;
        words[limit_at.limit_word as usize] = limit << limit_at.limit_shift | limit_at.limit_shift;
        words
    }

    #[test]
    fn sizes_have_the_free_lists_of_the_server() {
        for (size, class) in
            [(0, 0), (1, 0), (8, 0), (9, 1), (16, 1), (17, 2), (8191, 10), (8192, 10), (8193, 11)]
        {
            assert_eq!(class_of(size), class, "{size}");
        }
    }

    #[test]
    fn a_chunk_of_a_free_list_comes_first() {
        let header = ChunkHeader::SizeContext as u64;
        let mut words = set(TO_16, 8192, 0x1000);
        words[1 + 2] = 0x5000;
        assert_eq!(source(&words, TO_16, header, 20), (Source::FreeList(0x5010), 48));
        assert_eq!(source(&words, TO_16, header, 32), (Source::FreeList(0x5010), 48));
        assert_eq!(source(&words, TO_16, header, 33), (Source::Block { at: 0x1000, bytes: 80 }, 80));
        let header = ChunkHeader::Packed17 as u64;
        let words = set(FROM_17, 1024, 0x1000);
        assert_eq!(source(&words, FROM_17, header, 1024), (Source::Block { at: 0x1000, bytes: 1032 }, 1032));
        assert_eq!(source(&words, FROM_17, header, 1025).0, Source::NewBlock);
        assert_eq!(source(&set(FROM_17, 1024, 0), FROM_17, header, 8).0, Source::NewBlock);
        // What is no set says nothing.
        assert_eq!(source(&[u64::MAX; SET_WORDS], TO_16, header, 1 << 20).0, Source::NewBlock);
    }

    #[test]
    fn a_block_has_room_or_not() {
        let header = ChunkHeader::Packed16 as u64;
        assert_eq!(carved([0x2000, 0x2018], header, 24), Some(0x2008));
        assert_eq!(carved([0x2000, 0x2018], header, 40), None);
        assert_eq!(carved([0x2018, 0x2000], header, 24), None);
    }
}
