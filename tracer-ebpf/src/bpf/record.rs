//! The records of live chunks: written, moved, grown, removed, swept; and the totals of stacks.

use tracer_ebpf::{
    abi::{
        ChunkKey, DOOMED_A_CALL, Live, MAX_PARTS, Part, Parts, Process, Task, Young, key_process,
        nursery_slot,
    },
    counters::Counter,
    growth,
    site::is_pool,
};

use crate::bpf::{
    context,
    maps::{
        DOOMED, LIVE, NURSERY, PARTS, STACK_TOTALS, add, add_alone, are_several, control, count, count_own,
    },
    process,
    read::anew,
    sampling::{is_sampled, weighed},
};

/// The place of a chunk in the nursery, whoever has it; `None` in a capture of several processes, which has none.
#[inline(always)]
fn place(key: ChunkKey) -> Option<*mut Young> {
    if are_several() { None } else { NURSERY.get_ptr_mut(nursery_slot(key)) }
}

/// The same, if the chunk has it.
#[inline(always)]
fn young(key: ChunkKey) -> Option<*mut Live> {
    // SAFETY: a map value; an aligned word.
    let place = place(key).filter(|place| unsafe { (**place).key } == key)?;
    // SAFETY: an address computation inside of the record.
    Some(unsafe { &raw mut (*place).live })
}

/// The record of a chunk that was not freed; its context may have been reset or deleted. `OUTSIDE`: it is of memory in no
/// context, which has no nursery, because any thread may allocate it; what the nursery has at its address is of a chunk
/// that is no more.
#[inline(always)]
pub(crate) fn find<const OUTSIDE: bool>(key: ChunkKey) -> Option<*mut Live> {
    let young = if OUTSIDE { None } else { young(key) };
    young.or_else(|| LIVE.get_ptr_mut(key)).filter(|live| !is_freed(*live))
}

#[inline(always)]
fn is_freed(record: *mut Live) -> bool {
    // SAFETY: a map value; an aligned word.
    unsafe { core::ptr::read_volatile(&raw const (*record).context) == Live::FREED }
}

/// Writes a record. A record that is there already is overwritten in place. `OUTSIDE`: see [`find`].
#[inline(always)]
pub(crate) fn put<const OUTSIDE: bool>(task: Option<*mut Task>, key: ChunkKey, live: &Live) -> bool {
    if !OUTSIDE && let Some(place) = place(key) {
        return put_young(task, place, key, live);
    }
    if let Some(old) = LIVE.get_ptr_mut(&key) {
        if !is_freed(old) {
            overwritten(task, key, old, live);
            bury(old);
        }
        fill(old, live);
        return true;
    }
    insert(&key, live)
}

/// Writes the record of a new chunk into the nursery.
#[inline(always)]
fn put_young(task: Option<*mut Task>, place: *mut Young, key: ChunkKey, live: &Live) -> bool {
    // SAFETY: a map value; contexts are worked in by one thread.
    let (owner, record) = unsafe { (&raw mut (*place).key, &raw mut (*place).live) };
    // SAFETY: as above; an aligned word.
    let was = unsafe { *owner };
    if was == key {
        if !is_freed(record) {
            overwritten(task, key, record, live);
            bury(record);
        }
        fill(record, live);
        return true;
    }
    if was != 0 && !is_freed(record) {
        if !grow_up(task, owner, record) {
            return false;
        }
        bury(record);
    }
    // What was at this address before may have grown up.
    if let Some(old) = LIVE.get_ptr_mut(&key)
        && !is_freed(old)
    {
        overwritten(task, key, old, live);
        bury(old);
    }
    // SAFETY: as above; buried before, also in LLVM's eyes.
    unsafe { core::ptr::write_volatile(anew(owner), key) };
    fill(record, live);
    true
}

/// Another chunk wants the place of one in the nursery: if that one is alive, its record goes into the map of live
/// chunks; false if there is no room.
#[inline(always)]
fn grow_up(task: Option<*mut Task>, key: *const ChunkKey, record: *mut Live) -> bool {
    // SAFETY: map values of this process alone.
    let (key, live) = unsafe { (&*key, &*record) };
    if !context::is_alive_to(task, live) {
        count_own(task, Counter::OverwroteDead, 1);
        if live.has_parts != 0 {
            let _ = PARTS.remove(key);
        }
        return true;
    }
    let has_room = match LIVE.get_ptr_mut(key) {
        Some(dead) => {
            fill(dead, live);
            true
        }
        None => insert(key, live),
    };
    count_own(task, Counter::GrownUp, u64::from(has_room));
    has_room
}

/// The record of a chunk that was not freed is written over.
#[inline(always)]
fn overwritten(task: Option<*mut Task>, key: ChunkKey, old: *mut Live, live: &Live) {
    // SAFETY: a map value; the target's allocations are made by one thread at a time.
    let was = unsafe { &*old };
    // Mostly it is the same context, whose epoch is at hand.
    let is_alive =
        if was.context == live.context { was.epoch == live.epoch } else { context::is_alive_to(task, was) };
    if is_alive {
        count(Counter::OverwroteLive);
    } else {
        count_own(task, Counter::OverwroteDead, 1);
    }
    if was.has_parts != 0 && live.has_parts == 0 {
        let _ = PARTS.remove(&key);
    }
}

#[inline(always)]
fn insert(key: &ChunkKey, live: &Live) -> bool {
    if LIVE.insert(key, live, 0).is_err() {
        count(Counter::LiveFull);
        return false;
    }
    change_entries(1);
    true
}

/// Marks a record as that of a chunk that is no more, and has no growth.
#[inline(always)]
fn bury(record: *mut Live) {
    // SAFETY: a map value; aligned words.
    unsafe {
        core::ptr::write_volatile(&raw mut (*record).context, Live::FREED);
        (*record).has_parts = 0;
    }
}

/// Fills the record of a chunk that is no more. It stays that until all of it is written: user space, which reads from its
/// beginning to its end, may do so at the same time.
#[inline(always)]
fn fill(buried: *mut Live, live: &Live) {
    let record = anew(buried);
    // SAFETY: a map value; an aligned word, written after the others, also in LLVM's eyes.
    unsafe {
        *record = Live { context: Live::FREED, ..*live };
        core::ptr::write_volatile(&raw mut (*anew(record)).context, live.context);
    }
}

/// Marks the record of a chunk that is no more, for the next chunk at its address: to write over it takes a third of
/// the time of a removal and an insertion. Where the map fills up, it is removed. So is memory that is in no context:
/// several threads of a process may allocate that, and one that sweeps would take away what another is writing over.
#[inline(always)]
pub(crate) fn end<const OUTSIDE: bool>(key: ChunkKey, record: *mut Live) {
    if !OUTSIDE && let Some(record) = young(key) {
        bury(record);
        return;
    }
    if let Some(control) = control()
        // SAFETY: map values; aligned words.
        && unsafe {
            !is_pool((*record).context)
                && core::ptr::read_volatile(&raw const (*control).entries)
                    < core::ptr::read_volatile(&raw const (*control).entries_kept)
        }
    {
        bury(record);
        return;
    }
    remove(key);
}

/// Removes a record.
#[inline(always)]
fn remove(key: ChunkKey) {
    if LIVE.remove(&key).is_ok() {
        change_entries(1_u64.wrapping_neg());
    }
}

#[inline(always)]
fn change_entries(by: u64) {
    if let Some(control) = control() {
        // SAFETY: a map value.
        add(unsafe { &raw mut (*control).entries }, by);
    }
}

/// Stores a resized chunk, at its new address if it has moved.
#[inline(always)]
pub(crate) fn settle_in<const OUTSIDE: bool>(task: *mut Task, old: ChunkKey, new: ChunkKey, live: &mut Live) {
    if old == new {
        if let Some(record) = find::<OUTSIDE>(old) {
            // Only the thread that holds the chunk resizes it.
            bury(record);
            fill(record, live);
        }
        return;
    }
    if live.has_parts != 0 {
        move_parts(task, old, new, live);
    }
    if let Some(record) = find::<OUTSIDE>(old) {
        end::<OUTSIDE>(old, record);
    }
    if !put::<OUTSIDE>(Some(task), new, live) {
        // It is counted as one that there was no room for, and no more as one that is held.
        if live.has_parts != 0 {
            free_parts(new, true);
        }
        add_freed(live.stack, live.sampled, 1, live.requested, live.held);
    }
}

/// Gives the parts of a chunk its new address. The old entry goes first, so that there is room.
#[inline(always)]
fn move_parts(task: *mut Task, old: ChunkKey, new: ChunkKey, live: &mut Live) {
    let Some(parts) = PARTS.get_ptr(old) else {
        live.has_parts = 0;
        return;
    };
    // SAFETY: a map value, and one that only this task uses; too large for the eBPF stack.
    let moved = unsafe {
        (*task).parts = *parts;
        &mut (*task).parts
    };
    let _ = PARTS.remove(old);
    if PARTS.insert(new, &*moved, 0).is_ok() {
        return;
    }
    count(Counter::PartsMapFull);
    live.has_parts = 0;
    // Unused parts hold zero bytes.
    for part in &moved.parts {
        add_freed(part.stack, 0, 0, part.requested, part.held);
        // What stands for itself cannot be a part of what stands for others, and is left out.
        if !is_sampled(live) {
            live.requested += part.requested;
            live.held += part.held;
            add_allocated(live.stack, 0, 0, part.requested, part.held);
        }
    }
}

/// Books growth to `owner`.
#[inline(always)]
pub(crate) fn grow(
    task: *mut Task,
    live: &mut Live,
    key: ChunkKey,
    owner: u32,
    growth: (u64, u64),
    now: u64,
) {
    // What a sample grows by is known, and so stands for itself.
    if owner == live.stack && !is_sampled(live) {
        grow_allocation(live, growth);
    } else if live.has_parts != 0
        && let Some(parts) = PARTS.get_ptr_mut(&key)
    {
        // SAFETY: a map value; only the thread that holds the chunk resizes it.
        let parts = unsafe { &mut *parts };
        let before = parts.count;
        let booked = growth::grow(parts, owner, growth.0, growth.1, now);
        if booked != owner {
            count(Counter::PartsFull);
        }
        add_allocated(booked, 0, u64::from(parts.count.wrapping_sub(before)), growth.0, growth.1);
    } else {
        first_part(task, live, key, owner, growth, now);
    }
}

/// Growth that belongs to the stack of the allocation itself.
#[inline(always)]
fn grow_allocation(live: &mut Live, growth: (u64, u64)) {
    live.requested += growth.0;
    live.held += growth.1;
    add_allocated(live.stack, live.sampled, 0, growth.0, growth.1);
}

#[inline(always)]
fn first_part(task: *mut Task, live: &mut Live, key: ChunkKey, owner: u32, growth: (u64, u64), now: u64) {
    // SAFETY: a map value that only this task uses; too large for the eBPF stack.
    let fresh = unsafe { &mut (*task).parts };
    *fresh = Parts::EMPTY;
    fresh.count = 1;
    fresh.parts[0] = Part { requested: growth.0, held: growth.1, born_ns: now, stack: owner, pad: 0 };
    if PARTS.insert(&key, &*fresh, 0).is_ok() {
        live.has_parts = 1;
        add_allocated(owner, 0, 1, growth.0, growth.1);
        return;
    }
    live.has_parts = 0;
    count(Counter::PartsMapFull);
    // As above.
    if !is_sampled(live) {
        grow_allocation(live, growth);
    }
}

/// Takes bytes off a chunk: what grew last goes first.
#[inline(always)]
pub(crate) fn give_back(live: &mut Live, key: ChunkKey, mut loss: (u64, u64)) {
    if live.has_parts != 0
        && let Some(parts) = PARTS.get_ptr_mut(key)
    {
        // SAFETY: as in `grow`.
        loss = growth::shrink(unsafe { &mut *parts }, loss, |stack, gone| {
            add_freed(stack, 0, 0, gone.0, gone.1)
        });
    }
    // What is left came with the allocation; bytes older than the capture are nobody's.
    let gone = (live.requested.min(loss.0), live.held.min(loss.1));
    live.requested -= gone.0;
    live.held -= gone.1;
    add_freed(live.stack, live.sampled, 0, gone.0, gone.1);
}

#[inline(always)]
pub(crate) fn free_parts(key: ChunkKey, alive: bool) {
    if alive && let Some(parts) = PARTS.get_ptr(&key) {
        // SAFETY: a map value.
        let parts: &Parts = unsafe { &*parts };
        for index in 0..MAX_PARTS {
            if index >= parts.count as usize {
                break;
            }
            let part = &parts.parts[index];
            add_freed(part.stack, 0, 1, part.requested, part.held);
        }
    }
    let _ = PARTS.remove(&key);
}

/// Books chunks to a stack. `sampled`: the bytes that they were sampled by, 0 if they stand for themselves.
#[inline(always)]
pub(crate) fn add_allocated(stack: u32, sampled: u64, chunks: u64, requested: u64, held: u64) {
    add_allocated_by::<true>(stack, sampled, chunks, requested, held);
}

/// The same; `OUTSIDE`: whether any thread may have that stack.
#[inline(always)]
pub(crate) fn add_allocated_by<const OUTSIDE: bool>(
    stack: u32,
    sampled: u64,
    chunks: u64,
    requested: u64,
    held: u64,
) {
    let (chunks, requested, held) = weighed(sampled, (chunks, requested, held));
    if let Some(totals) = STACK_TOTALS.get_ptr_mut(stack) {
        // SAFETY: a map value.
        unsafe {
            add_alone::<OUTSIDE>(&raw mut (*totals).count, chunks);
            add_alone::<OUTSIDE>(&raw mut (*totals).requested, requested);
            add_alone::<OUTSIDE>(&raw mut (*totals).held, held);
        }
    }
}

/// The same for chunks that are no more.
#[inline(always)]
pub(crate) fn add_freed(stack: u32, sampled: u64, chunks: u64, requested: u64, held: u64) {
    let (chunks, requested, held) = weighed(sampled, (chunks, requested, held));
    if let Some(totals) = STACK_TOTALS.get_ptr_mut(stack) {
        // SAFETY: a map value.
        unsafe {
            add(&raw mut (*totals).freed_count, chunks);
            add(&raw mut (*totals).freed_requested, requested);
            add(&raw mut (*totals).freed_held, held);
        }
    }
}

/// Removes some of the records of a process that user space found dead, if they still are. Only in the process itself:
/// it cannot be writing over one of them at the same time.
#[inline(always)]
pub(crate) fn sweep(process: *mut Process) {
    // SAFETY: a map value; aligned words. User space writes both when it has found new ones.
    let (mut next, end) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*process).doomed_next),
            core::ptr::read_volatile(&raw const (*process).doomed_end),
        )
    };
    for _ in 0..DOOMED_A_CALL {
        if next >= end {
            return;
        }
        let Some(key) = DOOMED.get(next) else { return };
        let key = *key;
        // It may have found new ones since the words were read.
        if key_process(key) == process::number(process)
            && let Some(live) = LIVE.get_ptr(&key)
        {
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
        next += 1;
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(&raw mut (*process).doomed_next, next) };
    }
}
