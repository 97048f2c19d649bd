//! Chunks: allocated, freed, resized.

use aya_ebpf::{
    EbpfContext as _,
    bindings::pt_regs,
    helpers::{bpf_ktime_get_ns, generated::bpf_get_attach_cookie},
    programs::{ProbeContext, RetProbeContext},
};
use tracer_ebpf::{
    abi::{
        ChunkKey, Control, DOOMED_A_CALL, DOOMED_SLOTS, Live, MAX_PARTS, PENDING_NESTED, PENDING_OLD_KNOWN,
        Part, Parts, Pending, Phase, Task,
    },
    counters::Counter,
    growth,
    site::{ArgField, ChunkSize, Role, Site, chunk_size, header_bytes, packed_block_of},
};

use crate::bpf::{
    context,
    maps::{
        DOOMED, LIVE, PARTS, STACK_TOTALS, add, control, count, count_many, hit_entry, hit_return, phase,
    },
    read, stack, task,
};

/// Role of a cookie.
#[inline(always)]
fn role_of(cookie: u64) -> u64 {
    cookie & 0xf
}

/// What every entry does first: count the hit. `None` if that was all.
#[inline(always)]
fn entered(ctx: &ProbeContext) -> Option<(u64, u32)> {
    let phase = phase()?;
    // SAFETY: the helper takes the program's own context (Linux 5.15).
    let cookie = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    hit_entry(phase, Site::index_of(cookie));
    (phase != Phase::Count as u32).then_some((cookie, phase))
}

#[inline(always)]
fn pending(regs: &pt_regs, cookie: u64) -> Pending {
    Pending {
        sp: regs.rsp,
        // Not there yet when the probe's instruction is the function's first: the caller's push
        // is on top of the stack all the same.
        return_address: match read::word(regs.rsp) {
            Some(address) => address,
            None => {
                count(Counter::ReturnAddressUnreadable);
                0
            }
        },
        function: regs.rip.wrapping_sub(Site::skew_of(cookie)),
        cookie,
        context: read::argument(regs, cookie, ArgField::Context),
        pointer: read::argument(regs, cookie, ArgField::Pointer),
        size: read::argument(regs, cookie, ArgField::Size),
        old_usable: 0,
        old_held: 0,
        flags: 0,
    }
}

/// A call that will return a new chunk begins. Nothing is recorded before it returns: an error
/// may leave it.
#[inline(always)]
pub(crate) fn alloc_enter(ctx: &ProbeContext) {
    let Some((cookie, phase)) = entered(ctx) else { return };
    if phase != Phase::Record as u32 {
        return;
    }
    let Some(control) = control() else { return };
    let Some(task) = task::current_or_new(control) else { return };
    // SAFETY: the registers are the program's own context.
    let regs = unsafe { &*ctx.regs };
    let depth = task::drop_left(task, regs.rsp);
    let mut call = pending(regs, cookie);
    if depth > 0 {
        // SAFETY: a map value that only this task uses.
        let outer = unsafe { &*task::at(task, depth - 1) };
        // A realloc that moves a chunk allocates as much as it was asked for. Anything else that
        // is allocated in it, such as the text of a warning, is an allocation like others.
        if role_of(outer.cookie) == Role::Realloc as u64 && outer.size == call.size {
            call.flags = PENDING_NESTED;
        }
    }
    task::push(task, depth, call);
}

/// The call returns.
#[inline(always)]
pub(crate) fn alloc_exit(ctx: &RetProbeContext) {
    let Some((control, task, call, regs)) = returned(ctx) else { return };
    if call.flags & PENDING_NESTED != 0 {
        count(Counter::NestedInRealloc);
        return;
    }
    let pointer = regs.rax;
    if pointer == 0 {
        count(Counter::NullReturn);
        return;
    }
    let Some(now) = within_deadline(control) else { return };
    let Some(epoch) = context::epoch(control, call.context) else { return };
    let held = held_bytes(&call, pointer, call.size);
    let stack = stack::id(control, task, call.function, regs);
    let live = Live {
        epoch,
        context: call.context,
        requested: call.size,
        held,
        full_requested: call.size,
        full_held: held,
        born_ns: now,
        stack,
        has_parts: 0,
    };
    if put(pointer, &live) {
        count(Counter::Recorded);
        count_many(Counter::RecordedBytes, call.size);
        add_allocated(stack, 1, call.size, held);
    }
    sweep(control);
}

/// One chunk goes.
#[inline(always)]
pub(crate) fn free_enter(ctx: &ProbeContext) {
    let Some((cookie, _)) = entered(ctx) else { return };
    // SAFETY: the registers are the program's own context.
    let regs = unsafe { &*ctx.regs };
    let pointer = read::argument(regs, cookie, ArgField::Pointer);
    if let Some(task) = task::current()
        && let Some(call) = task::innermost(task, regs.rsp)
    {
        // SAFETY: a map value that only this task uses.
        let call = unsafe { &*call };
        if role_of(call.cookie) == Role::Realloc as u64 && call.pointer == pointer {
            count(Counter::NestedInRealloc);
            return;
        }
    }
    let Some(live) = LIVE.get_ptr(&pointer) else {
        count(Counter::FreeUnknown);
        return;
    };
    // SAFETY: a map value; copied because its slot is used again as soon as it is removed.
    let live = unsafe { *live };
    let alive = context::is_alive(&live);
    if live.has_parts != 0 {
        free_parts(pointer, alive);
    }
    remove(pointer);
    if !alive {
        count(Counter::FreeDead);
        return;
    }
    count(Counter::Freed);
    add_freed(live.stack, 1, live.requested, live.held);
}

/// A call that will resize a chunk begins.
#[inline(always)]
pub(crate) fn realloc_enter(ctx: &ProbeContext) {
    let Some((cookie, phase)) = entered(ctx) else { return };
    let Some(control) = control() else { return };
    let Some(task) = task::current_or_new(control) else { return };
    // SAFETY: the registers are the program's own context.
    let regs = unsafe { &*ctx.regs };
    let depth = task::drop_left(task, regs.rsp);
    let mut call = pending(regs, cookie);
    if phase == Phase::Record as u32 {
        // The call overwrites the header, so what an unknown chunk had must be read now.
        let header = Site::header_of(cookie);
        if let Some(before) = read::two_words(call.pointer.wrapping_sub(16)) {
            if let Some((usable, held)) = sizes(header, call.pointer, before) {
                call.old_usable = usable;
                call.old_held = held;
                call.flags |= PENDING_OLD_KNOWN;
            }
            if call.context == 0 {
                call.context = read::word(packed_block_of(header, call.pointer, before[1])).unwrap_or(0);
            }
        }
    }
    task::push(task, depth, call);
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
    let Some(now) = within_deadline(control) else { return };
    let held = held_bytes(&call, pointer, call.size);
    // Growth after recording has ended belongs to nobody new.
    let recording = phase() == Some(Phase::Record as u32);
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
            settle_in(call.pointer, pointer, &live);
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
    let live = Live {
        epoch,
        context: call.context,
        requested: growth.0,
        held: growth.1,
        full_requested: call.size,
        full_held: held,
        born_ns: now,
        stack,
        has_parts: 0,
    };
    if put(pointer, &live) {
        count(Counter::ReallocGrown);
        add_allocated(stack, 1, growth.0, growth.1);
    }
}

/// What every return does first: count it and find the call that it ends.
#[inline(always)]
fn returned<'a>(ctx: &'a RetProbeContext) -> Option<(*mut Control, *mut Task, Pending, &'a pt_regs)> {
    let phase = phase()?;
    // SAFETY: the helper takes the program's own context (Linux 5.15).
    let cookie = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    hit_return(phase, Site::index_of(cookie));
    if phase == Phase::Count as u32 {
        return None;
    }
    let control = control()?;
    // SAFETY: the registers are the program's own context.
    let regs = unsafe { &*ctx.regs };
    let call = match task::current() {
        Some(task) => task::pop(task, regs.rsp).map(|call| (task, call)),
        None => None,
    };
    let Some((task, call)) = call else {
        if phase == Phase::Record as u32 {
            count(Counter::ReturnOfUnseenCall);
        }
        return None;
    };
    // SAFETY: a map value that only this task uses.
    Some((control, task, unsafe { *call }, regs))
}

/// The time, unless user space has not been heard of for too long.
#[inline(always)]
fn within_deadline(control: *mut Control) -> Option<u64> {
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: a map value; an aligned word that user space moves on.
    if now > unsafe { core::ptr::read_volatile(&raw const (*control).deadline_ns) } {
        count(Counter::AfterDeadline);
        return None;
    }
    Some(now)
}

/// A chunk's usable bytes and all that it takes, by its header.
#[inline(always)]
fn sizes(header: u64, pointer: u64, before: [u64; 2]) -> Option<(u64, u64)> {
    let usable = match chunk_size(header, pointer, before) {
        ChunkSize::Usable(bytes) => bytes,
        ChunkSize::Block { block_end_at } => read::word(block_end_at)?.wrapping_sub(pointer),
    };
    Some((usable, usable.wrapping_add(header_bytes(header))))
}

/// Bytes that a chunk takes in its context.
#[inline(always)]
fn held_bytes(call: &Pending, pointer: u64, requested: u64) -> u64 {
    let header = Site::header_of(call.cookie);
    match read::two_words(pointer.wrapping_sub(16)).and_then(|before| sizes(header, pointer, before)) {
        Some((_, held)) => held,
        None => {
            count(Counter::HeaderUnreadable);
            requested
        }
    }
}

/// Writes a record. A record that is there already is overwritten in place.
#[inline(always)]
fn put(key: ChunkKey, live: &Live) -> bool {
    if let Some(old) = LIVE.get_ptr_mut(&key) {
        // SAFETY: a map value; the target's allocations are made by one thread at a time.
        let was = unsafe { *old };
        if context::is_alive(&was) {
            count(Counter::OverwroteLive);
        } else {
            count(Counter::OverwroteDead);
        }
        if was.has_parts != 0 && live.has_parts == 0 {
            let _ = PARTS.remove(&key);
        }
        // SAFETY: as above.
        unsafe { *old = *live };
        return true;
    }
    if LIVE.insert(&key, live, 0).is_err() {
        count(Counter::LiveFull);
        return false;
    }
    count(Counter::LiveInserted);
    true
}

#[inline(always)]
fn remove(key: ChunkKey) {
    if LIVE.remove(&key).is_ok() {
        count(Counter::LiveRemoved);
    }
}

/// Stores a resized chunk, at its new address if it has moved.
#[inline(always)]
fn settle_in(old: ChunkKey, new: ChunkKey, live: &Live) {
    if old == new {
        if let Some(record) = LIVE.get_ptr_mut(old) {
            // SAFETY: a map value; only the thread that holds the chunk resizes it.
            unsafe { *record = *live };
        }
        return;
    }
    if live.has_parts != 0
        && let Some(parts) = PARTS.get_ptr(old)
    {
        // SAFETY: a map value; the helper copies it before the old one is removed.
        if PARTS.insert(new, unsafe { &*parts }, 0).is_err() {
            count(Counter::PartsMapFull);
        }
        let _ = PARTS.remove(old);
    }
    remove(old);
    put(new, live);
}

/// Books growth to `owner`.
#[inline(always)]
fn grow(task: *mut Task, live: &mut Live, key: ChunkKey, owner: u32, growth: (u64, u64), now: u64) {
    if owner == live.stack {
        live.requested += growth.0;
        live.held += growth.1;
        add_allocated(owner, 0, growth.0, growth.1);
        return;
    }
    if live.has_parts == 0 {
        // SAFETY: a map value that only this task uses; too large for the eBPF stack.
        let fresh = unsafe { &mut (*task).parts };
        fresh.count = 1;
        fresh.parts[0] = Part { requested: growth.0, held: growth.1, born_ns: now, stack: owner, pad: 0 };
        if PARTS.insert(&key, &*fresh, 0).is_err() {
            count(Counter::PartsMapFull);
            live.requested += growth.0;
            live.held += growth.1;
            add_allocated(live.stack, 0, growth.0, growth.1);
            return;
        }
        live.has_parts = 1;
        add_allocated(owner, 1, growth.0, growth.1);
        return;
    }
    let Some(parts) = PARTS.get_ptr_mut(&key) else { return };
    // SAFETY: a map value; only the thread that holds the chunk resizes it.
    let parts = unsafe { &mut *parts };
    let before = parts.count;
    if !growth::grow(parts, owner, growth.0, growth.1, now) {
        count(Counter::PartsFull);
    }
    add_allocated(owner, u64::from(parts.count.wrapping_sub(before)), growth.0, growth.1);
}

/// Takes bytes off a chunk: what grew last goes first.
#[inline(always)]
fn give_back(live: &mut Live, key: ChunkKey, mut loss: (u64, u64)) {
    if live.has_parts != 0
        && let Some(parts) = PARTS.get_ptr_mut(&key)
    {
        // SAFETY: as in `grow`.
        let parts = unsafe { &mut *parts };
        for index in 0..MAX_PARTS {
            let part = &parts.parts[MAX_PARTS - 1 - index];
            let gone = (part.requested.min(loss.0), part.held.min(loss.1));
            if gone.0 | gone.1 != 0 {
                add_freed(part.stack, 0, gone.0, gone.1);
            }
            let part = &mut parts.parts[MAX_PARTS - 1 - index];
            part.requested -= gone.0;
            part.held -= gone.1;
            loss = (loss.0 - gone.0, loss.1 - gone.1);
        }
    }
    // What is left came with the allocation; bytes older than the capture are nobody's.
    let gone = (live.requested.min(loss.0), live.held.min(loss.1));
    live.requested -= gone.0;
    live.held -= gone.1;
    add_freed(live.stack, 0, gone.0, gone.1);
}

#[inline(always)]
fn free_parts(key: ChunkKey, alive: bool) {
    if alive && let Some(parts) = PARTS.get_ptr(&key) {
        // SAFETY: a map value.
        let parts: &Parts = unsafe { &*parts };
        for index in 0..MAX_PARTS {
            if index >= parts.count as usize {
                break;
            }
            let part = &parts.parts[index];
            add_freed(part.stack, 1, part.requested, part.held);
        }
    }
    let _ = PARTS.remove(&key);
}

#[inline(always)]
fn add_allocated(stack: u32, chunks: u64, requested: u64, held: u64) {
    if let Some(totals) = STACK_TOTALS.get_ptr_mut(stack) {
        // SAFETY: a map value.
        unsafe {
            add(&raw mut (*totals).count, chunks);
            add(&raw mut (*totals).requested, requested);
            add(&raw mut (*totals).held, held);
        }
    }
}

#[inline(always)]
fn add_freed(stack: u32, chunks: u64, requested: u64, held: u64) {
    if let Some(totals) = STACK_TOTALS.get_ptr_mut(stack) {
        // SAFETY: a map value.
        unsafe {
            add(&raw mut (*totals).freed_count, chunks);
            add(&raw mut (*totals).freed_requested, requested);
            add(&raw mut (*totals).freed_held, held);
        }
    }
}

/// Removes some of the records that user space found dead, if they still are.
#[inline(always)]
fn sweep(control: *mut Control) {
    // SAFETY: a map value; aligned words. User space moves only the head, this only the tail.
    let (head, mut tail) =
        unsafe { (core::ptr::read_volatile(&raw const (*control).doomed_head), (*control).doomed_tail) };
    for _ in 0..DOOMED_A_CALL {
        if tail == head {
            return;
        }
        let Some(key) = DOOMED.get(tail as u32 & (DOOMED_SLOTS - 1)) else { return };
        let key = *key;
        if let Some(live) = LIVE.get_ptr(&key) {
            // SAFETY: a map value.
            let live = unsafe { *live };
            if !context::is_alive(&live) {
                if live.has_parts != 0 {
                    let _ = PARTS.remove(&key);
                }
                remove(key);
                count(Counter::SweptDead);
            }
        }
        tail += 1;
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(&raw mut (*control).doomed_tail, tail) };
    }
}
