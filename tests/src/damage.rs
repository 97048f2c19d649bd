//! Damage that is the same on every run.

use std::ops::Range;

/// Numbers by chance (xorshift), the same on every run.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The beginning.
    #[allow(clippy::new_without_default, reason = "a default would hide that it always begins alike")]
    pub fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    /// Any number.
    #[allow(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// One below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Changes up to eight places of `bytes[range]`: bits, bytes, or words that are on some edge.
    pub fn damage(&mut self, bytes: &mut [u8], range: Range<usize>) {
        const EDGES: [u64; 8] =
            [0, 1, 0x7f, 0xffff_ffff, 0xffff_fffe, 1 << 31, 0x7fff_ffff_ffff_ffff, u64::MAX];
        for _ in 0..=self.below(8) {
            let at = range.start + self.below(range.len());
            let edge = EDGES[self.below(EDGES.len())].to_le_bytes();
            let width = match self.below(4) {
                0 => {
                    bytes[at] ^= 1 << self.below(8);
                    continue;
                }
                1 => {
                    bytes[at] = self.next() as u8;
                    continue;
                }
                2 => 4,
                _ => 8,
            };
            let end = (at + width).min(range.end);
            bytes[at..end].copy_from_slice(&edge[..end - at]);
        }
    }
}
