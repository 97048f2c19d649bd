//! The chunk that `AllocSetAlloc` is about to return, from what its context holds when it is called.
//!
//! Nearly every allocation takes the first chunk of a free list, or the next one of the first block (`AllocSetAlloc` in
//! `src/backend/utils/mmgr/aset.c`, the same from 12 to 18). Both can be told before: then the call needs no return
//! probe, which costs nearly as much as the probe at its entry. What needs a new block, or one of its own, cannot.

use crate::{lookup::opaque, site::header_bytes};

/// Words of a set that are read: the first block, eleven free lists, what sets how large chunks of a block may be; and
/// behind it the header of the block that was made with the set, which is the first one of most. No set is so small
/// that less than that belongs to it (1 KiB, `AllocSetContextCreateInternal`).
pub const SET_WORDS: usize = 32;

/// What a set was found to hold, and has given out since. As long as every call that may change it is seen, what it gives
/// out next follows from that, and nothing has to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Known {
    /// [`crate::abi::Task::changes`] when that was so; 0 if nothing is known.
    pub changes: u64,
    /// Where the free part of the first block begins, and where it ends; the same if that is not known.
    pub free: [u64; 2],
    /// The largest chunk of a block.
    pub limit: u32,
    /// The free lists that are empty, a bit each.
    pub empty: u32,
    /// The head of one of the others, 0 if none is known.
    pub head: Head,
}

/// The first chunk of a free list: its address; above that the list's class, and whether it is the only one there.
pub type Head = u64;

const HEAD_CLASS: u32 = 56;
const HEAD_ALONE: Head = 1 << 63;

#[inline(always)]
const fn head(pointer: u64, class: u64, alone: u64) -> Head {
    pointer & ((1 << HEAD_CLASS) - 1) | class << HEAD_CLASS | alone << 63
}

#[inline(always)]
const fn head_class(head: Head) -> u64 {
    (head & !HEAD_ALONE) >> HEAD_CLASS
}

#[inline(always)]
const fn head_pointer(head: Head) -> u64 {
    head & ((1 << HEAD_CLASS) - 1)
}

impl Known {
    /// Nothing.
    pub const NOTHING: Self = Self { changes: 0, free: [0; 2], limit: 0, empty: 0, head: 0 };

    /// The chunk that the next allocation of `size` bytes is given, and the bytes that it takes; `None` if the set has to
    /// be looked at.
    #[inline(always)]
    pub fn next(&mut self, header: u64, size: u64) -> Option<(u64, u64)> {
        let class = class_of(size);
        if size > u64::from(self.limit) {
            return None;
        }
        let bytes = (8 << class) + header_bytes(header);
        if self.is_empty(class) != 0 {
            let pointer = carved(self.free, header, bytes)?;
            self.free[0] = self.free[0].wrapping_add(bytes);
            return Some((pointer, bytes));
        }
        if self.head == 0 || head_class(self.head) != class {
            return None;
        }
        let pointer = head_pointer(self.head);
        self.empty |= ((self.head >> 63) as u32) << (class & 31);
        self.head = 0;
        Some((pointer, bytes))
    }

    #[inline(always)]
    fn is_empty(&self, class: u64) -> u32 {
        self.empty >> (class & 31) & 1
    }

    /// Whether what a set holds now is what it should, if nothing but what was seen has happened to it.
    #[inline(always)]
    pub fn agrees(&self, words: &[u64; SET_WORDS], free: [u64; 2], header: u64) -> bool {
        let first = word(words, 1 + head_class(self.head));
        (self.free[1] == 0 || self.free == free)
            && self.empty & !empty_lists(words) == 0
            && (self.head == 0 || first.wrapping_add(header_bytes(header)) == head_pointer(self.head))
    }

    /// A chunk that took so many bytes with its header is freed: it becomes the head of its free list, or takes its block
    /// with it, which may be anyone.
    #[inline(always)]
    pub fn freed(&mut self, header: u64, pointer: u64, held: u64) {
        let size = held.wrapping_sub(header_bytes(header));
        let class = class_of(size);
        if size > u64::from(self.limit) || size & size.wrapping_sub(1) != 0 {
            self.changes = 0;
        }
        let alone = self.is_empty(class);
        self.head = head(pointer, class, u64::from(alone));
        self.empty &= !(1 << (class & 31));
    }
}

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
    /// It is carved from the block at this address, if that has room for it.
    Block(u64),
    /// It has, or begins, a block of its own.
    NewBlock,
}

/// The free lists that are empty, a bit each.
#[inline(always)]
pub fn empty_lists(words: &[u64; SET_WORDS]) -> u32 {
    let mut empty = 0;
    for class in 0..=LAST_CLASS as usize {
        empty |= u32::from(words[1 + class] == 0) << class;
    }
    empty
}

/// The largest chunk of a block.
#[inline(always)]
pub fn limit(words: &[u64; SET_WORDS], fields: SetFields) -> u64 {
    word(words, fields.limit_word) >> fields.limit_shift
}

/// Where a chunk of `size` bytes will come from, and how many bytes it takes with its header.
#[inline(always)]
pub fn source(words: &[u64; SET_WORDS], fields: SetFields, header: u64, size: u64) -> (Source, u64) {
    let class = class_of(size);
    let bytes = (8 << class) + header_bytes(header);
    if size > limit(words, fields) || class > LAST_CLASS {
        return (Source::NewBlock, bytes);
    }
    let chunk = word(words, 1 + class);
    if chunk != 0 {
        return (Source::FreeList(chunk.wrapping_add(header_bytes(header))), bytes);
    }
    (if words[0] == 0 { Source::NewBlock } else { Source::Block(words[0]) }, bytes)
}

/// Which of the words, which are those at `address`, begin the free part of the block at `block`, if they are among
/// them.
#[inline(always)]
pub fn free_word(address: u64, block: u64) -> Option<u64> {
    let offset = block.wrapping_add(BLOCK_FREE).wrapping_sub(address);
    // Both of them; an address less than that of the set is far behind its end.
    (offset <= (SET_WORDS as u64 - 2) * 8 && offset & 7 == 0).then_some(offset >> 3)
}

/// The chunk that is carved from a block whose free part is that; `None` if it has no room for it.
#[inline(always)]
pub fn carved(free: [u64; 2], header: u64, bytes: u64) -> Option<u64> {
    let left = free[1].wrapping_sub(free[0]);
    // A block that ends before its free part begins is none.
    (left >= bytes && left >> 63 == 0).then_some(free[0].wrapping_add(header_bytes(header)))
}

/// One of the words, which are as many as the mask of an index has.
#[inline(always)]
pub fn word(words: &[u64; SET_WORDS], index: u64) -> u64 {
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
        assert_eq!(source(&words, TO_16, header, 33), (Source::Block(0x1000), 80));
        let header = ChunkHeader::Packed17 as u64;
        let words = set(FROM_17, 1024, 0x1000);
        assert_eq!(source(&words, FROM_17, header, 1024), (Source::Block(0x1000), 1032));
        assert_eq!(source(&words, FROM_17, header, 1025).0, Source::NewBlock);
        assert_eq!(source(&set(FROM_17, 1024, 0), FROM_17, header, 8).0, Source::NewBlock);
        // What is no set says nothing.
        assert_eq!(source(&[u64::MAX; SET_WORDS], TO_16, header, 1 << 20).0, Source::NewBlock);
    }

    #[test]
    fn what_is_known_of_a_set_goes_on_until_it_has_to_be_looked_at() {
        let header = ChunkHeader::SizeContext as u64;
        let mut words = set(TO_16, 8192, 0x1000);
        words[1 + 2] = 0x5000;
        let empty = empty_lists(&words);
        assert_eq!(empty, 0b111_1111_1011);
        let limit = limit(&words, TO_16) as u32;
        let mut known = Known { changes: 1, free: [0x2000, 0x2060], limit, empty, head: 0 };
        assert_eq!(known.next(header, 20), None, "a free list has one");
        assert_eq!(known.next(header, 33), Some((0x2010, 80)));
        assert_eq!(known.next(header, 8), None, "no room");
        assert_eq!(known.free, [0x2050, 0x2060]);
        assert!(known.agrees(&words, [0x2050, 0x2060], header), "as it was seen");
        assert!(!known.agrees(&words, [0x2040, 0x2060], header), "an allocation that was not seen");
        let mut others = words;
        others[1 + 2] = 0;
        assert!(
            known.agrees(&others, [0x2050, 0x2060], header),
            "a list was emptied, which is not looked at"
        );
        others[1] = 0x2000;
        assert!(!known.agrees(&others, [0x2050, 0x2060], header), "a free that was not seen");
        known.free[1] = 0x10_0000;
        assert_eq!(known.next(header, 8), Some((0x2060, 24)));
        assert_eq!(known.next(header, 8192), Some((0x2078, 8208)));
        assert_eq!(known.next(header, 8193), None, "a block of its own");
        let mut nothing = Known::NOTHING;
        assert_eq!(nothing.next(header, 0), None);
        known.freed(header, 0x6010, 10_016);
        assert_eq!(known.changes, 0, "a block of its own is no more");
    }

    #[test]
    fn a_chunk_that_was_freed_last_is_given_out_first() {
        let header = ChunkHeader::SizeContext as u64;
        let mut known = Known { changes: 1, free: [0x2000, 0x10_0000], limit: 8192, empty: 0x7ff, head: 0 };
        known.freed(header, 0x5010, 24);
        let mut words = set(TO_16, 8192, 0x1000);
        words[1] = 0x5000;
        assert!(known.agrees(&words, [0x2000, 0x10_0000], header));
        words[1] = 0x5100;
        assert!(!known.agrees(&words, [0x2000, 0x10_0000], header), "another chunk was freed after it");
        assert_eq!(known.next(header, 9), Some((0x2010, 32)), "of another size");
        assert_eq!(known.next(header, 8), Some((0x5010, 24)));
        assert_eq!(known.next(header, 8), Some((0x2030, 24)), "it was alone in its list");
        // Two in one list: of the second nothing is known any more.
        known.freed(header, 0x5010, 24);
        known.freed(header, 0x5110, 24);
        assert_eq!(known.next(header, 1), Some((0x5110, 24)));
        assert_eq!(known.next(header, 1), None);
        // One of another list takes its place.
        known.freed(header, 0x7010, 8208);
        known.freed(header, 0x5210, 24);
        assert_eq!((known.changes, known.next(header, 8192)), (1, None));
        assert_eq!(known.next(header, 0), Some((0x5210, 24)));
    }

    #[test]
    fn the_block_that_was_made_with_the_set_is_behind_it() {
        // 15: 80 bytes of the set stand before the words, and 144 of them are its own.
        assert_eq!(free_word(0x1050, 0x10e0), Some(21));
        assert_eq!(free_word(0x1050, 0x1050 + 30 * 8 - BLOCK_FREE), Some(30));
        assert_eq!(free_word(0x1050, 0x1050 + 31 * 8 - BLOCK_FREE), None);
        assert_eq!(free_word(0x1050, 0x10e4), None);
        assert_eq!(free_word(0x1050, 0x1000), None);
    }

    #[test]
    fn a_block_has_room_or_not() {
        let header = ChunkHeader::Packed16 as u64;
        assert_eq!(carved([0x2000, 0x2018], header, 24), Some(0x2008));
        assert_eq!(carved([0x2000, 0x2018], header, 40), None);
        assert_eq!(carved([0x2018, 0x2000], header, 24), None);
    }
}
