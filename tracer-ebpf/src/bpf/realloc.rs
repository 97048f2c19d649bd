//! Chunks that change their size.

use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use tracer_ebpf::{
    abi::{Live, PENDING_OLD_KNOWN, Phase},
    counters::Counter,
    site::{Site, packed_context_at, size_before},
};

use crate::bpf::{
    chunk::{entered, held_bytes, pending, returned, sizes, within_deadline},
    context,
    maps::{LIVE, PARTS, count, phase},
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
    if phase == Phase::Record as u32 {
        // The call overwrites the header, so what an unknown chunk had must be read now.
        let header = Site::header_of(cookie);
        if let Some(word) = read::word(call.pointer.wrapping_sub(size_before(header))) {
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
    }
    task::push(task, call);
}

/// The call returns.
#[inline(always)]
pub(crate) fn realloc_exit(ctx: &RetProbeContext) {
    let Some((control, task, call, regs)) = returned(ctx) else { return };
    let pointer = regs.rax;
    if pointer == 0 {
        count(Counter::NullReturn);
        return;
    }
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
        count(Counter::HeaderUnreadable);
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
