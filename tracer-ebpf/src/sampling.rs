//! Which allocations are recorded by their size, and what those that are stand for.
//!
//! Sampling is a Poisson process over the bytes that are asked for: points lie on them at exponential distances, one
//! each [`Selection::sample`] bytes on average, and an allocation is recorded if one lies on it. So each is recorded
//! with probability p = 1 − exp(−size / sample), independently of all others, and stands for 1 / p like it
//! (Horvitz and Thompson): sums over what was recorded, weighted so, are right on average whatever the sizes are.

/// Which allocations are recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Only those of at least so many bytes.
    pub min_size: u64,
    /// Of these, one each so many bytes on average; 0 for all.
    pub sample: u64,
}

impl Selection {
    /// Whether some are left out.
    pub const fn is_partial(self) -> bool {
        self.min_size > 1 || self.is_sampled()
    }

    /// Whether those that are recorded stand for others.
    pub const fn is_sampled(self) -> bool {
        self.sample != 0
    }
}

/// Distances to choose from: the middles of as many equal parts of the distribution.
pub const DISTANCES: u32 = 1 << 16;

/// Entries of the table of weights ([`weight`]).
pub const WEIGHTS: u32 = 1 << 12;

/// A weight of one. Weights, and sums that are weighted by them, have 16 bits of fraction.
pub const ONE: u64 = 1 << 16;

/// Larger allocations weigh as much as one of so many bytes.
const MOST_BYTES: u64 = (1 << 31) - 1;

/// The largest distance on average: 32 of them fit in `MOST_BYTES`, and what is that large is recorded for sure.
pub const MOST_SAMPLE: u64 = 1 << 26;

/// Cells of the table of weights in each power of two.
const CELLS_BITS: u32 = 7;

/// Bytes that an allocation counts: one that asks for nothing is as likely as one of a byte.
#[inline(always)]
pub const fn bytes(size: u64) -> u64 {
    if size == 0 { 1 } else { size }
}

/// The first size of a cell of the table.
pub const fn size_of_cell(cell: u32) -> u64 {
    let octave = cell >> CELLS_BITS;
    if octave < 2 { cell as u64 } else { ((cell - ((octave - 1) << CELLS_BITS)) as u64) << (octave - 1) }
}

/// What an allocation of that size stands for, by [`ONE`]: exact below 256 bytes, beyond that as straight lines through
/// 128 points in each power of two, which is off by some millionths. `at` is the table: the weight of
/// [`size_of_cell`] for each cell.
#[inline(always)]
pub fn weight(size: u64, at: impl Fn(u32) -> u64) -> u64 {
    let size = if size > MOST_BYTES { MOST_BYTES } else { bytes(size) };
    // Sizes of one byte and more have a highest bit.
    let top = 63 - size.leading_zeros();
    let shift = top.saturating_sub(CELLS_BITS);
    let cell = (shift << CELLS_BITS) + (size >> shift) as u32;
    let (this, next) = (at(cell), at(cell + 1));
    let rest = size & ((1 << shift) - 1);
    // Weights get smaller with size.
    this.wrapping_sub(this.wrapping_sub(next).wrapping_mul(rest) >> shift)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    /// Of a mean distance of 4096.
    fn exact(size: u64) -> f64 {
        1.0 / -(-(size as f64) / 4096.0).exp_m1()
    }

    #[test]
    fn cells_are_neighbours_and_each_size_has_one() {
        for (cell, size) in [(0, 0), (1, 1), (255, 255), (256, 256), (257, 258), (383, 510), (384, 512)] {
            assert_eq!(size_of_cell(cell), size, "{cell}");
        }
        for cell in 1..WEIGHTS - 1 {
            let size = size_of_cell(cell);
            if size > MOST_BYTES {
                break;
            }
            assert!(size < size_of_cell(cell + 1));
            assert_eq!(weight(size, u64::from), u64::from(cell), "{size}");
        }
    }

    #[test]
    fn weights_are_those_of_the_sizes() {
        let table = |cell| (exact(size_of_cell(cell).max(1)) * ONE as f64).round() as u64;
        for size in [0, 1, 8, 40, 255, 256, 1000, 4095, 4097, 10_000, 65_000, 1 << 30, u64::MAX] {
            let (is, should) = (weight(size, table) as f64 / ONE as f64, exact(size.max(1)));
            assert!((is / should - 1.0).abs() < 2e-5, "{size}: {is}, {should}");
        }
    }
}
