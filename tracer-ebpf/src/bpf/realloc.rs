//! Chunks that change their size.

use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use tracer_ebpf::{
    abi::{Live, PENDING_INNER, PENDING_OLD_KNOWN, Pending, Phase},
    counters::Counter,
    site::{Site, is_pool, packed_context_at, size_before},
};

use crate::bpf::{
    chunk::{entered, free, held_bytes, pending, returned, returned_pointer, sizes, within_deadline},
    context,
    maps::{LIVE, PARTS, control, count, phase},
    read,
    record::{add_allocated, give_back, grow, put, remove, settle_in},
    stack, task,
};

/// A call that will resize a chunk begins.
#[inline(always)]
pub(crate) fn realloc_enter(ctx: &ProbeContext) {
    let Some((cookie, phase)) = entered(ctx) else { return };
    let Some(task) = task::current_or_new() else { return };
    // SAFETY: the registers are the program's own context.
    let regs = unsafe { &*ctx.regs };
    task::drop_left(task, regs.rsp);
    let mut call = pending(regs, cookie);
    if Site::pool_of(cookie) != 0
        && let Some(control) = control()
        && task::innermost(control, task, regs.rsp).is_some()
    {
        call.flags = PENDING_INNER;
    } else if phase == Phase::Record as u32 {
        remember_old(&mut call, cookie);
    }
    task::push(task, call);
}

/// What the chunk was, should nobody know it: the call overwrites its header.
#[inline(always)]
fn remember_old(call: &mut Pending, cookie: u64) {
    let header = Site::header_of(cookie);
    if Site::pool_of(cookie) != 0 && call.pointer == 0 {
        // realloc(NULL, size) is malloc(size).
        call.flags |= PENDING_OLD_KNOWN;
        return;
    }
    let before = size_before(header);
    if before == 0 {
        return;
    }
    let Some(word) = read::word(call.pointer.wrapping_sub(before)) else { return };
    if let Some((usable, held)) = sizes(header, call.pointer, word) {
        call.old_usable = usable;
        call.old_held = held;
        call.flags |= PENDING_OLD_KNOWN;
    }
    // Where no argument is the context, the header of one word leads to it.
    if call.context == 0 {
        call.context = read::word(packed_context_at(header, call.pointer, word)).unwrap_or(0);
    }
}

/// The call returns.
#[inline(always)]
pub(crate) fn realloc_exit(ctx: &RetProbeContext) {
    let Some((control, task, call, regs)) = returned(ctx) else { return };
    if call.flags & PENDING_INNER != 0 {
        count(Counter::NestedInAllocator);
        return;
    }
    let Some(pointer) = returned_pointer(regs) else {
        // realloc(p, 0) is free(p); other failures leave the chunk as it was.
        if call.size == 0
            && is_pool(call.context)
            && let Some(live) = LIVE.get_ptr(&call.pointer)
        {
            // SAFETY: a map value; copied because its slot is used again as soon as it is removed.
            let live = unsafe { *live };
            free(call.pointer, &live);
        }
        count(Counter::NullReturn);
        return;
    };
    let held = held_bytes(call, pointer, call.size);
    // A chunk that is known is followed whatever the hour; growth after recording has ended, or
    // while user space is not well, belongs to nobody new.
    let now = within_deadline(control);
    let recording = now.is_some() && phase() == Some(Phase::Record as u32);
    let now = now.unwrap_or(0);
    let known = match LIVE.get_ptr(&call.pointer) {
        // SAFETY: a map value; copied because its slot may be given up below.
        Some(live) => Some(unsafe { *live }),
        None => None,
    };
    if let Some(mut live) = known {
        if context::is_alive(&live) {
            let old = (live.full_requested, live.full_held);
            live.full_requested = call.size;
            live.full_held = held;
            let growth = (call.size.saturating_sub(old.0), held.saturating_sub(old.1));
            let loss = (old.0.saturating_sub(call.size), old.1.saturating_sub(held));
            if loss.0 | loss.1 != 0 {
                give_back(&mut live, call.pointer, loss);
                count(Counter::ReallocShrunk);
            }
            if growth.0 | growth.1 != 0 {
                count(Counter::ReallocGrown);
                let owner =
                    if recording { stack::id(control, task, call.function, regs) } else { live.stack };
                grow(task, &mut live, call.pointer, owner, growth, now);
            } else if loss.0 | loss.1 == 0 {
                count(Counter::ReallocSame);
            }
            settle_in(task, call.pointer, pointer, &mut live);
            return;
        }
        if live.has_parts != 0 {
            let _ = PARTS.remove(&call.pointer);
        }
        remove(call.pointer);
        count(Counter::FreeDead);
    }
    if !recording {
        return;
    }
    count(Counter::ReallocUnknown);
    if call.flags & PENDING_OLD_KNOWN == 0 || call.context == 0 {
        count(Counter::GrowthUnknown);
        return;
    }
    let growth = (call.size.saturating_sub(call.old_usable), held.saturating_sub(call.old_held));
    if growth.0 | growth.1 == 0 {
        return;
    }
    let Some(epoch) = context::epoch(control, call.context) else { return };
    let stack = stack::id(control, task, call.function, regs);
    let mut live = Live::new((call.context, epoch), growth, now, stack);
    (live.full_requested, live.full_held) = (call.size, held);
    if put(pointer, &live) {
        count(Counter::ReallocGrown);
        add_allocated(stack, 1, growth.0, growth.1);
    }
}
