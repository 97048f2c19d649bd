//! What calls of all allocators share: their entries and returns, their sizes, the time.

use aya_ebpf::{
    EbpfContext as _,
    bindings::pt_regs,
    helpers::{
        bpf_ktime_get_ns,
        generated::{bpf_get_attach_cookie, bpf_jiffies64},
    },
    programs::{ProbeContext, RetProbeContext},
};
use tracer_ebpf::{
    abi::{Control, Pending, Phase, Process, Task},
    counters::Counter,
    lookup::opaque,
    site::{ArgField, ChunkSize, NO_ARG, Site, chunk_size, header_bytes, rounded, size_before, small_held},
};

use crate::bpf::{
    maps::{control, count, hit_entry, hit_return, phase},
    process, read, task,
};

/// Whether anything depends on the return of a call that has begun.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Return {
    /// It has to be seen.
    Awaited,
    /// The call may return as it likes.
    NotNeeded,
}

/// What every entry does first: count the hit, if the process is traced. `None` if that was all. `SLEEPS`:
/// whether the program may. `OUTSIDE`: whether any thread may get here.
#[inline(always)]
pub(crate) fn entered<const SLEEPS: bool, const OUTSIDE: bool>(
    ctx: &ProbeContext,
) -> Option<(u64, u32, *mut Process)> {
    let phase = phase()?;
    let process = process::current::<SLEEPS>()?;
    // SAFETY: the helper takes the program's own context (Linux 5.15).
    let cookie = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    hit_entry::<OUTSIDE>(phase, Site::index_of(cookie));
    (phase != Phase::Count as u32).then_some((cookie, phase, process))
}

/// Writes down a call that begins, of which nothing is known but its arguments.
#[inline(always)]
pub(crate) fn begin<const OUTSIDE: bool>(call: &mut Pending, regs: &pt_regs, sp: u64, cookie: u64) {
    // Hidden from LLVM, which would call a memset, byte by byte, for some words.
    let nothing = opaque(0);
    *call = Pending {
        sp,
        return_address: nothing,
        cookie,
        size: size::<OUTSIDE>(regs, cookie),
        pointer: read::argument(regs, cookie, ArgField::Pointer),
        context: if OUTSIDE {
            Site::pool_of(cookie)
        } else {
            read::argument(regs, cookie, ArgField::Context)
        },
        epoch: nothing,
        stack: nothing as u32,
        flags: nothing as u32,
        timed_ns: nothing,
        function: nothing,
        foreseen: nothing,
        old_usable: nothing,
        old_held: nothing,
    };
}

/// The size that is asked for.
#[inline(always)]
pub(crate) fn size<const OUTSIDE: bool>(regs: &pt_regs, cookie: u64) -> u64 {
    if OUTSIDE { size_outside(regs, cookie) } else { read::argument(regs, cookie, ArgField::Size) }
}

/// The size that malloc and its like are asked for.
#[inline(always)]
fn size_outside(regs: &pt_regs, cookie: u64) -> u64 {
    let size = read::argument(regs, cookie, ArgField::Size);
    // One that overflows gets no memory.
    if Site::arg_of(cookie, ArgField::Factor) == u64::from(NO_ARG) {
        size
    } else {
        size.wrapping_mul(read::argument(regs, cookie, ArgField::Factor))
    }
}

/// The return address of a call that begins, 0 if it cannot be read.
#[inline(always)]
pub(crate) fn return_address(sp: u64) -> u64 {
    // Not there yet when the probe's instruction is the function's first: the caller's push
    // is on top of the stack all the same.
    read::word(sp).unwrap_or_else(|| {
        count(Counter::ReturnAddressUnreadable);
        0
    })
}

/// What every return does first: count it and find the call that it ends.
#[inline(always)]
pub(crate) fn returned<'a>(
    ctx: &'a RetProbeContext,
) -> Option<(*mut Control, *mut Process, *mut Task, &'a Pending, &'a pt_regs)> {
    let phase = phase()?;
    let process = process::current::<false>()?;
    let control = control()?;
    // SAFETY: the registers are the program's own context.
    let regs = unsafe { &*ctx.regs };
    let call = match task::current() {
        Some(task) => task::pop(task, read::sp(regs)).map(|call| (task, call)),
        None => None,
    };
    let Some((task, call)) = call else {
        // SAFETY: the helper takes the program's own context (Linux 5.15).
        let cookie = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
        hit_return(phase, Site::index_of(cookie));
        if phase == Phase::Record as u32 {
            count(Counter::ReturnOfUnseenCall);
        }
        return None;
    };
    // SAFETY: a map value that only this task uses.
    hit_return(phase, Site::index_of(unsafe { (*call).cookie }));
    // SAFETY: a map value that only this task uses. The slot is free, but the next call that takes
    // it cannot begin before this program ends.
    Some((control, process, task, unsafe { &*call }, regs))
}

/// What a call has returned, unless it is no address.
#[inline(always)]
pub(crate) fn returned_pointer<const OUTSIDE: bool>(regs: &pt_regs) -> Option<u64> {
    // mmap fails with -1.
    (regs.rax != 0 && !(OUTSIDE && regs.rax == u64::MAX)).then_some(regs.rax)
}

/// The time, unless user space has not been heard of for too long. The clock is looked at once in each tick of the
/// kernel, 1 to 10 ms, and again when contexts have been made or emptied: a look takes as long as one into a map. A
/// statement makes contexts before it allocates what may outlive it, so no birth in it seems to be before it.
#[inline(always)]
pub(crate) fn within_deadline(control: *mut Control, task: *mut Task) -> Option<u64> {
    // SAFETY: a helper without arguments (Linux 5.6), which the kernel replaces by one load; a map value that only
    // this task uses.
    let now_ns = unsafe {
        let tick = bpf_jiffies64();
        let epoch = core::ptr::read_volatile(&raw const (*control).next_epoch);
        if (*task).tick != tick || (*task).tick_epoch != epoch {
            (*task).tick = tick;
            (*task).tick_epoch = epoch;
            (*task).tick_ns = now();
        }
        (*task).tick_ns
    };
    // SAFETY: a map value; an aligned word that user space moves on.
    if now_ns > unsafe { core::ptr::read_volatile(&raw const (*control).deadline_ns) } {
        count(Counter::AfterDeadline);
        return None;
    }
    Some(now_ns)
}

/// `CLOCK_MONOTONIC`.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// Bytes that a chunk takes in its context. `SIZED`: its header says its size.
#[inline(always)]
pub(crate) fn held_bytes<const SIZED: bool>(call: &Pending, pointer: u64, requested: u64) -> u64 {
    let header = Site::header_of(call.cookie);
    if !SIZED && let Some(held) = small_held(header, requested) {
        return held;
    }
    let before = size_before(header);
    if !SIZED && before == 0 {
        return rounded(header, requested).wrapping_add(header_bytes(header));
    }
    match read::word(pointer.wrapping_sub(before)).and_then(|word| sizes(header, pointer, word)) {
        Some((_, held)) => held,
        None => {
            count(Counter::HeaderUnreadable);
            requested
        }
    }
}

/// A chunk's usable bytes and all that it takes, by its header, of which `word` is the one with the
/// size.
#[inline(always)]
pub(crate) fn sizes(header: u64, pointer: u64, word: u64) -> Option<(u64, u64)> {
    let usable = match chunk_size(header, pointer, word) {
        ChunkSize::Usable(bytes) => bytes,
        ChunkSize::Block { block_end_at } => read::word(block_end_at)?.wrapping_sub(pointer),
    };
    Some((usable, usable.wrapping_add(header_bytes(header))))
}
