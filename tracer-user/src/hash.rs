//! Maps by addresses and numbers that the kernel has handed out: there are millions, and nobody chooses them to
//! collide, so that they need no keyed hash.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasherDefault, Hasher},
};

/// A map by small keys of this process's own making.
pub(crate) type FastMap<K, V> = HashMap<K, V, BuildHasherDefault<Fold>>;
/// The same as a set.
pub(crate) type FastSet<K> = HashSet<K, BuildHasherDefault<Fold>>;

/// An odd number without a pattern: the fraction of the golden ratio.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// Multiplies word by word, and mixes at the end as SplitMix64 does: addresses differ in few bits, and the table takes
/// its place from the lowest and its tag from the highest.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fold(u64);

impl Fold {
    fn add(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(FACTOR);
    }
}

impl Hasher for Fold {
    fn finish(&self) -> u64 {
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.add(u64::from_le_bytes(word));
        }
    }

    fn write_u32(&mut self, word: u32) {
        self.add(u64::from(word));
    }

    fn write_u64(&mut self, word: u64) {
        self.add(word);
    }

    fn write_usize(&mut self, word: usize) {
        self.add(word as u64);
    }

    fn write_isize(&mut self, word: isize) {
        self.add(word as u64);
    }
}

#[cfg(test)]
mod tests {
    use std::hash::Hash as _;

    use super::*;

    fn hash(words: &[u64]) -> u64 {
        let mut fold = Fold::default();
        words.iter().for_each(|word| word.hash(&mut fold));
        fold.finish()
    }

    #[test]
    fn neighbouring_chunks_are_spread_over_a_table() {
        const SLOTS: usize = 1 << 16;
        for step in [16, 64, 4096, 1 << 20, 1 << 32] {
            let (mut low, mut high) = (vec![0u32; SLOTS], HashSet::new());
            for number in 0..SLOTS as u64 {
                let hash = hash(&[0x55d0_c000_0000 + number * step]);
                low[hash as usize % SLOTS] += 1;
                high.insert(hash >> 57);
            }
            // By chance, 63 % of the slots are taken, and the fullest holds about eight.
            let taken = low.iter().filter(|count| **count > 0).count();
            assert!(taken > SLOTS * 55 / 100, "{step}: {taken} of {SLOTS} slots");
            assert!(low.iter().all(|count| *count <= 16), "{step}: {:?}", low.iter().max());
            assert_eq!(high.len(), 128, "{step}");
        }
    }

    #[test]
    fn order_counts() {
        assert_ne!(hash(&[1, 2]), hash(&[2, 1]));
    }
}
