//! Chunks that change their size.

use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use tracer_ebpf::{
    abi::{
        ChunkKey, Control, Live, NO_STACK, PENDING_INNER, PENDING_OLD_KNOWN, Pending, Phase, Process, Task,
        key,
    },
    counters::Counter,
    site::{Site, packed_context_at, size_before},
};

use crate::bpf::{
    call::{begin, entered, held_bytes, return_address, returned, returned_pointer, sizes, within_deadline},
    chunk::free,
    context, foresee,
    maps::{PARTS, count, count_own, phase},
    process, read,
    record::{add_allocated, end, find, give_back, grow, put, settle_in},
    sampling, stack, task,
};

/// A call that will resize a chunk begins.
#[inline(always)]
pub(crate) fn realloc_enter<const OUTSIDE: bool>(ctx: &ProbeContext) {
    // SAFETY: the registers are the program's own context.
    let regs = unsafe { &*ctx.regs };
    let sp = read::sp(regs);
    let Some((cookie, phase, process)) = entered::<true, OUTSIDE>(ctx) else { return };
    let Some(task) = task::current_or_new(process) else { return };
    task::drop_left(task, sp);
    if !OUTSIDE && foresee::concerns(cookie) {
        foresee::unsettle(task);
    }
    let is_inner = OUTSIDE && task::innermost(task, sp).is_some();
    let Some(call) = task::next(task) else { return };
    begin::<OUTSIDE>(call, regs, sp, cookie);
    call.return_address = return_address(sp);
    call.function = regs.rip.wrapping_sub(Site::skew_of(cookie));
    if is_inner {
        call.flags = PENDING_INNER;
    } else if phase == Phase::Record as u32 {
        remember_old::<OUTSIDE>(call, cookie);
    }
    task::push(task);
}

/// What the chunk was, should nobody know it: the call overwrites its header.
#[inline(always)]
fn remember_old<const OUTSIDE: bool>(call: &mut Pending, cookie: u64) {
    let header = Site::header_of(cookie);
    if OUTSIDE && call.pointer == 0 {
        // realloc(NULL, size) is malloc(size).
        call.flags |= PENDING_OLD_KNOWN;
        return;
    }
    let before = size_before(header);
    if OUTSIDE && before == 0 {
        return;
    }
    let Some(word) = read::word(call.pointer.wrapping_sub(before)) else { return };
    if let Some((usable, held)) = sizes(header, call.pointer, word) {
        call.old_usable = usable;
        call.old_held = held;
        call.flags |= PENDING_OLD_KNOWN;
    }
    // Where no argument is the context, the header of one word leads to it.
    if !OUTSIDE && call.context == 0 {
        call.context = read::word(packed_context_at(header, call.pointer, word)).unwrap_or(0);
    }
}

/// The call returns.
#[inline(always)]
pub(crate) fn realloc_exit<const OUTSIDE: bool>(ctx: &RetProbeContext) {
    let Some((control, process, task, call, regs)) = returned(ctx) else { return };
    let number = process::number(process);
    let old_key = key(number, call.pointer);
    if OUTSIDE && call.flags & PENDING_INNER != 0 {
        count(Counter::NestedInAllocator);
        return;
    }
    let Some(pointer) = returned_pointer::<OUTSIDE>(regs) else {
        // realloc(p, 0) is free(p); other failures leave the chunk as it was.
        if OUTSIDE
            && call.size == 0
            && let Some(record) = find::<true>(old_key)
        {
            // SAFETY: a map value; copied because its slot is used again as soon as it is removed.
            let live = unsafe { *record };
            free::<true>(Some(task), (old_key, record), &live);
        }
        count(Counter::NullReturn);
        return;
    };
    // Of contexts, only those whose chunks have a size can resize them.
    let held = if OUTSIDE {
        held_bytes::<false>(call, pointer, call.size)
    } else {
        held_bytes::<true>(call, pointer, call.size)
    };
    // A chunk that is known is followed whatever the hour; growth after recording has ended, or
    // while user space is not well, belongs to nobody new.
    let now = within_deadline(control, task);
    let recording = now.is_some() && phase() == Some(Phase::Record as u32);
    let now = now.unwrap_or(0);
    // SAFETY: a map value that only this task uses.
    unsafe {
        core::ptr::write_volatile(&raw mut (*task).held, held);
        core::ptr::write_volatile(&raw mut (*task).is_recording, u64::from(recording));
    }
    if !remember::<OUTSIDE>(task, old_key)
        && !(recording && begin_unknown::<OUTSIDE>(control, process, task, call))
    {
        return;
    }
    // What was found out is in the task's memory, of which the verifier knows nothing: so it looks at the
    // walk once, and not once for each way here.
    // SAFETY: a map value that only this task uses.
    let (live, held, recording) = unsafe {
        (
            &mut (*task).resized,
            core::ptr::read_volatile(&raw const (*task).held),
            core::ptr::read_volatile(&raw const (*task).is_recording) != 0,
        )
    };
    let old = (live.full_requested, live.full_held);
    let growth = (call.size.saturating_sub(old.0), held.saturating_sub(old.1));
    let grows = growth.0 | growth.1 != 0;
    if !is_followed(task) && (!grows || sampling::leaves_out(task, call.size, growth.0)) {
        return;
    }
    let stack =
        if grows && recording { stack::id(control, process, task, call.function, regs) } else { NO_STACK };
    live.full_requested = call.size;
    live.full_held = held;
    // Asked again: what the verifier has seen of the first answer would be two ways through the walk.
    if !is_followed(task) {
        live.sampled = sampling::sampled(growth.0);
        (live.requested, live.held) = growth;
        (live.born_ns, live.stack) = (now, stack);
        if put::<OUTSIDE>(Some(task), key(number, pointer), live) {
            count(Counter::ReallocGrown);
            add_allocated(stack, live.sampled, 1, growth.0, growth.1);
        }
        return;
    }
    let loss = (old.0.saturating_sub(call.size), old.1.saturating_sub(held));
    if loss.0 | loss.1 != 0 {
        give_back(live, old_key, loss);
        count(Counter::ReallocShrunk);
    }
    if grows {
        count(Counter::ReallocGrown);
        let (owner, born_ns) = if recording { (stack, now) } else { (live.stack, live.born_ns) };
        grow(task, live, old_key, owner, growth, born_ns);
    } else if loss.0 | loss.1 == 0 {
        count(Counter::ReallocSame);
    }
    settle_in::<OUTSIDE>(task, old_key, key(number, pointer), live);
}

/// Whether the chunk that is resized was known.
#[inline(always)]
fn is_followed(task: *mut Task) -> bool {
    // SAFETY: a map value that only this task uses.
    unsafe { core::ptr::read_volatile(&raw const (*task).is_followed) != 0 }
}

/// Puts what is known of a chunk that is alive into the task's memory; what is known of a dead one goes.
#[inline(always)]
fn remember<const OUTSIDE: bool>(task: *mut Task, chunk: ChunkKey) -> bool {
    let Some(record) = find::<OUTSIDE>(chunk) else { return false };
    // SAFETY: a map value; copied because its slot may be given up.
    let live = unsafe { *record };
    if OUTSIDE || context::has_its_epoch(&live) {
        // SAFETY: a map value that only this task uses.
        unsafe {
            (*task).resized = live;
            core::ptr::write_volatile(&raw mut (*task).is_followed, 1);
        }
        return true;
    }
    if live.has_parts != 0 {
        let _ = PARTS.remove(&chunk);
    }
    end::<OUTSIDE>(chunk, record);
    count_own(Some(task), Counter::FreeDead, 1);
    false
}

/// The same for a chunk that nobody knew, by what its header said before the call. A function of its own, which
/// the verifier prefers.
#[inline(never)]
fn begin_unknown<const OUTSIDE: bool>(
    control: *mut Control,
    process: *mut Process,
    task: *mut Task,
    call: &Pending,
) -> bool {
    count(Counter::ReallocUnknown);
    if call.flags & PENDING_OLD_KNOWN == 0 || call.context == 0 {
        count(Counter::GrowthUnknown);
        return false;
    }
    let context = if OUTSIDE {
        (call.context, 0)
    } else {
        let Some(context) = context::epoch(control, process, task, call.context) else { return false };
        context
    };
    // SAFETY: a map value that only this task uses.
    unsafe {
        (*task).resized = Live::new(context, (call.old_usable, call.old_held), 0, NO_STACK);
        core::ptr::write_volatile(&raw mut (*task).is_followed, 0);
    }
    true
}
