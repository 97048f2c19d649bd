//! Allocations that are left out for their size (`--min-size`, `--sample`), before anything is done for them.
//!
//! What decides are constants: where they are zero, the verifier takes all of this out of the programs.

use aya_ebpf::{Global, helpers::bpf_get_prandom_u32, macros::map, maps::Array};
use tracer_ebpf::{
    abi::{Live, Task},
    counters::Counter,
    sampling::{DISTANCES as DISTANCE_COUNT, ONE, bytes, weight},
};

use crate::bpf::maps::count_own;

/// Smaller allocations are left out.
#[unsafe(no_mangle)]
static MIN_SIZE: Global<u64> = Global::new(0);

/// Bytes between two samples on average; 0 if nothing is sampled.
#[unsafe(no_mangle)]
static SAMPLE: Global<u64> = Global::new(0);

/// Distances between samples, all equally likely.
#[map]
static DISTANCES: Array<u32> = Array::with_max_entries(1, 0);
/// What samples stand for ([`weight`]).
#[map]
static WEIGHTS: Array<u64> = Array::with_max_entries(1, 0);

/// Whether what is recorded stands for what is not.
#[inline(always)]
pub(crate) fn is_on() -> bool {
    SAMPLE.load() != 0
}

/// Whether some allocations are left out.
#[inline(always)]
pub(crate) fn is_partial() -> bool {
    is_on() || MIN_SIZE.load() != 0
}

/// Whether an allocation of that size, or growth to that size by some bytes, is left out.
#[inline(always)]
pub(crate) fn leaves_out(task: *mut Task, size: u64, growth: u64) -> bool {
    if !is_partial() {
        return false;
    }
    let is_left_out = size < MIN_SIZE.load() || (is_on() && passes_by(task, bytes(growth)));
    if is_left_out {
        count_own(Some(task), Counter::LeftOut, 1);
    }
    is_left_out
}

/// Counts bytes down to the next sample; whether it is not reached with these. A task that takes the slot of another
/// goes on with its distance: what is left of one is as long as a new one.
#[inline(always)]
fn passes_by(task: *mut Task, bytes: u64) -> bool {
    // SAFETY: a map value that only this task uses.
    unsafe {
        let mut left = (*task).until_sample;
        if left == 0 {
            // The task's first.
            left = distance();
        }
        if bytes < left {
            (*task).until_sample = left - bytes;
            return true;
        }
        (*task).until_sample = distance();
    }
    false
}

/// A distance to the next sample, at least 1.
#[inline(always)]
fn distance() -> u64 {
    // SAFETY: a helper without arguments.
    let index = unsafe { bpf_get_prandom_u32() } & (DISTANCE_COUNT - 1);
    DISTANCES.get(index).map_or(1, |distance| u64::from(*distance))
}

/// What a record is to keep of the size that it was sampled by; 0 if nothing is sampled.
#[inline(always)]
pub(crate) fn sampled(size: u64) -> u64 {
    if is_on() { bytes(size) } else { 0 }
}

/// Whether a record stands for others.
#[inline(always)]
pub(crate) fn is_sampled(live: &Live) -> bool {
    is_on() && live.sampled != 0
}

/// Chunks, bytes asked for and bytes held as they count in sums: those of a record that was `sampled` by its size
/// stand for others, and others (0) for themselves. By [`ONE`] if anything is sampled.
#[inline(always)]
pub(crate) fn weighed(sampled: u64, of: (u64, u64, u64)) -> (u64, u64, u64) {
    if !is_on() {
        return of;
    }
    let weight =
        if sampled == 0 { ONE } else { weight(sampled, |cell| WEIGHTS.get(cell).map_or(ONE, |at| *at)) };
    (of.0.wrapping_mul(weight), of.1.wrapping_mul(weight), of.2.wrapping_mul(weight))
}
