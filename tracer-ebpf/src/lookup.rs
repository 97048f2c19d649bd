//! Bounded, branch-free searches: mapping by address, row by address.
//!
//! Branch-free because the verifier follows both sides of every branch that depends on data:
//! nine nested decisions, in a loop of 128 frames, exceed its budget.

use crate::abi::{MAX_RANGES, MapSet};
use crate::unwind::Row;

/// Bits of an address below a page of the row index: 1 KiB pages keep the search in a page to
/// nine steps (libLLVM has 300 rows in its fullest page, PostgreSQL 160).
pub const PAGE_BITS: u32 = 10;

/// The most rows that a page may have for [`find_row`] to reach them all: 2^9 − 1.
pub const MAX_ROWS_A_PAGE: u32 = 511;

/// Hides a value from LLVM, which otherwise turns the masks below back into branches, or drops
/// a bound that the verifier has to see. The body must not be empty: an empty one leaves a line
/// record without an instruction, and the kernel refuses the program ("Invalid line_info").
#[inline(always)]
pub fn opaque(value: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut value = value;
        // SAFETY: one register move of the operand to itself; no memory, no other register.
        unsafe { core::arch::asm!("{0} = {0}", inout(reg) value, options(pure, nomem, nostack)) };
        value
    }
    #[cfg(not(target_arch = "bpf"))]
    value
}

/// Index of the last range that starts at or below `address`, or 0 if none does; the caller
/// checks both ends.
#[inline(always)]
pub fn find_range(set: &MapSet, address: u64) -> usize {
    const LAST: u64 = MAX_RANGES as u64 - 1;
    let mut base: u64 = 0;
    let mut width = MAX_RANGES as u64 / 2;
    // Eight steps for 256 ranges; unused slots start at i64::MAX and are never reached.
    while width > 0 {
        let probe = opaque(base + width) & LAST;
        let below = address.wrapping_sub(set.ranges[probe as usize].start) as i64;
        base = opaque(base + (width & !((below >> 63) as u64)));
        width /= 2;
    }
    (opaque(base) & LAST) as usize
}

/// The last of `rows[lo..=hi]` that starts at or below `address`, where `hi - lo` is at most
/// [`MAX_ROWS_A_PAGE`] and row `lo` starts at or below `address`. `row_at` reads one row; `None`
/// when an index is outside of the table, which is a torn or foreign index.
#[inline(always)]
pub fn find_row(lo: u32, hi: u32, address: u64, row_at: impl Fn(u32) -> Option<Row>) -> Option<Row> {
    let mut base = u64::from(lo);
    let hi = u64::from(hi);
    macro_rules! step {
        ($width:literal) => {
            let probe = base + $width;
            // All ones past the end. The last candidate is read there instead: what lies past it
            // may be past the whole table, of which it may be the last row.
            let left = hi.wrapping_sub(probe);
            let past = opaque((left as i64 >> 63) as u64);
            let row = row_at(probe.wrapping_add(left & past) as u32)?;
            // All ones when the row starts above the address.
            let above = (address.wrapping_sub(row.address()) as i64 >> 63) as u64;
            base = opaque(base + ($width & !(above | past)));
        };
    }
    step!(256);
    step!(128);
    step!(64);
    step!(32);
    step!(16);
    step!(8);
    step!(4);
    step!(2);
    step!(1);
    row_at(base as u32)
}
#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;
    use crate::{abi::Range, unwind::RowInfo};

    fn set_of(ranges: &[(u64, u64)]) -> MapSet {
        let mut set = MapSet { ranges: [Range::UNUSED; MAX_RANGES], loop_start: 0, loop_end: 0 };
        for (slot, (start, end)) in set.ranges.iter_mut().zip(ranges) {
            *slot = Range { start: *start, end: *end, ..Range::UNUSED };
        }
        set
    }

    /// The range that holds `address`, as the walk asks for it.
    fn found(set: &MapSet, address: u64) -> Option<u64> {
        let range = set.ranges[find_range(set, address)];
        (address >= range.start && address < range.end).then_some(range.start)
    }

    fn by_looking_at_all(ranges: &[(u64, u64)], address: u64) -> Option<u64> {
        ranges.iter().find(|(start, end)| address >= *start && address < *end).map(|range| range.0)
    }

    #[test]
    fn every_range_is_found_at_its_edges_and_nothing_in_gaps() {
        for count in [0, 1, 2, 3, 127, 128, 129, 255, 256] {
            // Every third touches the one before; the others have a gap of a page or more.
            let mut ranges = Vec::new();
            let mut at = 0x5555_0000_0000;
            for number in 0..count {
                let gap = if number % 3 == 0 { 0 } else { 0x1000 * (number % 7 + 1) };
                let start = at + gap;
                at = start + 0x1000 * (number % 5 + 1);
                ranges.push((start, at));
            }
            let set = set_of(&ranges);
            let edges = ranges.iter().flat_map(|(start, end)| [start - 1, *start, end - 1, *end, end + 1]);
            let far =
                [0, 1, 0x1000, i64::MAX as u64 - 1, i64::MAX as u64, 1 << 63, u64::MAX - 0x1000, u64::MAX];
            for address in edges.chain(far) {
                assert_eq!(
                    found(&set, address),
                    by_looking_at_all(&ranges, address),
                    "{count} ranges, {address:#x}"
                );
            }
        }
    }

    #[test]
    fn rows_are_found_up_to_the_limit_without_reading_others() {
        for count in [1, 2, 3, 255, 256, 257, 510, 511, 512] {
            // Rows 1000 .. 1000 + count, three bytes apart.
            let (lo, hi) = (1000, 1000 + count - 1);
            let row = |index: u32| {
                assert!((lo..=hi).contains(&index), "row {index} is not one of {lo} to {hi}");
                Some(Row::new(0x4000 + (index - lo) * 3, RowInfo(index)))
            };
            for index in lo..=hi {
                let start = u64::from(0x4000 + (index - lo) * 3);
                for address in [start, start + 1, start + 2] {
                    let row = find_row(lo, hi, address, row).expect("a row");
                    assert_eq!(row.info().0, index, "{count} rows, {address:#x}");
                }
            }
            let last = find_row(lo, hi, u64::from(u32::MAX), row).expect("a row");
            assert_eq!(last.info().0, hi, "{count} rows: the last holds to the end");
        }
        assert_eq!(MAX_ROWS_A_PAGE, 511, "as many steps as 2^9 − 1 rows need, and the first");
    }

    #[test]
    fn a_torn_index_gives_a_row_or_none_and_no_more() {
        let rows: Vec<Row> = (0..600).map(|index| Row::new(index * 16, RowInfo(index))).collect();
        let read = |index: u32| rows.get(index as usize).copied();
        assert_eq!(find_row(600, 700, 5, read), None, "outside of the table");
        assert_eq!(find_row(u32::MAX, u32::MAX, 5, read), None);
        assert_eq!(find_row(0, u32::MAX, u64::from(u32::MAX), read).map(|row| row.info().0), Some(511));
        // The end before the start: the first row, whatever it says.
        assert_eq!(find_row(20, 10, 5, read).map(|row| row.info().0), Some(20));
    }
}
