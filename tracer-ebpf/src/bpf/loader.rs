//! Libraries that are loaded while the process is traced.
//!
//! Before the first instruction of a library runs, the dynamic loader calls a function that does
//! nothing, for debuggers to break on (`_dl_debug_state`; glibc, `elf/dl-debug.c`). Here it is
//! where the process waits a moment until user space knows the library and its unwind table, so
//! that not even the first stack through it is cut.

use core::ffi::c_void;

use aya_ebpf::{
    helpers::{bpf_ktime_get_ns, generated},
    programs::ProbeContext,
};
use tracer_ebpf::{abi::Process, counters::Counter};

use crate::bpf::{
    maps::{LOADS, count, phase},
    process,
};

/// The process waits no longer than this.
const PATIENCE_NS: u64 = 10_000_000;
/// Looks of a few hundred nanoseconds each: more than fit into that time.
const LOOKS: u32 = 1 << 18;

/// What a look needs.
struct Wait {
    process: *mut Process,
    load: u32,
    until_ns: u64,
    sp: u64,
}

/// The loader has mapped something, or is about to.
#[inline(always)]
pub(crate) fn enter(ctx: &ProbeContext) {
    if phase().is_none() {
        return;
    }
    let Some(process) = process::current::<true>() else { return };
    let event = process::number(process);
    // SAFETY: a map value; aligned words, this one written by the only task that loads. The
    // registers are the program's own context.
    unsafe {
        let load = core::ptr::read_volatile(&raw const (*process).loads).wrapping_add(1);
        core::ptr::write_volatile(&raw mut (*process).loads, load);
        let sent = generated::bpf_ringbuf_output(
            (&raw const LOADS).cast_mut().cast(),
            (&raw const event).cast_mut().cast(),
            size_of::<u32>() as u64,
            0,
        );
        if sent != 0 {
            count(Counter::LoadsLate);
            return;
        }
        let until_ns = bpf_ktime_get_ns() + PATIENCE_NS;
        let mut wait = Wait { process, load, until_ns, sp: (*ctx.regs).rsp };
        generated::bpf_loop(LOOKS, look as *mut c_void, (&raw mut wait).cast(), 0);
        let known = core::ptr::read_volatile(&raw const (*process).loads_known);
        count(if known == load { Counter::LoadsAwaited } else { Counter::LoadsLate });
    }
}

/// 1 ends the waiting.
unsafe extern "C" fn look(_index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `context` is on the stack of `enter`; the process is a map value.
    unsafe {
        let wait = &*context.cast::<Wait>();
        if core::ptr::read_volatile(&raw const (*wait.process).loads_known) == wait.load
            || bpf_ktime_get_ns() > wait.until_ns
        {
            return 1;
        }
        // Of no use but that it may sleep: who makes the table may need this processor.
        let mut word: u64 = 0;
        generated::bpf_copy_from_user((&raw mut word).cast(), 8, wait.sp as *const _);
    }
    0
}
