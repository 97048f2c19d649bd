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
