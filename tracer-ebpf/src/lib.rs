//! The contract between the eBPF programs and user space.
//!
//! Everything here is `no_std`, knows nothing of `aya`, and compiles for both sides: the layouts
//! of map keys and values, what a probe's cookie says, the counters, and the pure parts of the
//! programs (row search, unwind step, realloc bookkeeping), so that user-space tests run the very
//! source that runs in the kernel.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod abi;
pub mod counters;
pub mod foresee;
pub mod growth;
pub mod lookup;
pub mod sample;
pub mod sampling;
pub mod site;
pub mod trail;
pub mod unwind;
