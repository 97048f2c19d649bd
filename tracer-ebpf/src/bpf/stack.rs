//! Complete stacks by `.eh_frame` rows, each different one once.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_RING_SIZE, pt_regs},
    helpers::generated,
};
use tracer_ebpf::{
    abi::{
        Control, FRAME_SLOTS, KNOWN_STACKS, KnownStack, MAPSET_SLOTS, MAX_FRAMES, MAX_PENDING, NO_STACK,
        Process, ROW_CACHE_SLOTS, StackHeader, StackKey, Task, Walk,
    },
    counters::Counter,
    lookup::{PAGE_BITS, find_range, find_row, opaque},
    trail::{Fresh, mixed},
    unwind::{Registers, Row, RowInfo, WalkEnd, step},
};

use crate::bpf::{
    maps::{
        MAPSETS, NEW_STACKS, PAGES, ROW_CACHE, ROWS, STACK_TOTALS, STACKS, count, count_many, next_stack,
    },
    read::{self, AtHand, Stack, open_window},
    task,
};

const FRAME_MASK: u64 = FRAME_SLOTS as u64 - 1;

/// The id of the stack that called `function`, as it stands when the call returns.
#[inline(always)]
pub(crate) fn id(
    control: *mut Control,
    process: *mut Process,
    task: *mut Task,
    function: u64,
    regs: &pt_regs,
) -> u32 {
    let caller = Registers { pc: regs.rip, sp: regs.rsp, bp: regs.rbp, is_return: 1 };
    of_caller(control, process, task, function, caller)
}

/// The id of the stack that calls `function`, which begins: `regs` are those at its probe, where
/// the return address is on top of the stack.
#[inline(always)]
pub(crate) fn id_at_entry(
    control: *mut Control,
    process: *mut Process,
    task: *mut Task,
    function: u64,
    regs: &pt_regs,
) -> u32 {
    let sp = read::sp(regs);
    let Some(return_address) = read::word(sp) else {
        count(Counter::ReturnAddressUnreadable);
        return NO_STACK;
    };
    let sp = sp.wrapping_add(8);
    let caller = Registers { pc: return_address, sp, bp: regs.rbp, is_return: 1 };
    of_caller(control, process, task, function, caller)
}

#[inline(always)]
fn of_caller(
    control: *mut Control,
    process: *mut Process,
    task: *mut Task,
    function: u64,
    caller: Registers,
) -> u32 {
    walk(control, process, task, function, caller);
    // SAFETY: a map value that only this task uses.
    let walk = unsafe { &(*task).walk };
    count(Counter::StacksWalked);
    count_many(Counter::FramesWalked, u64::from(walk.fresh));
    count_many(Counter::FramesReused, u64::from(walk.met));
    count_end(walk.end);
    // SAFETY: as above; the index is masked.
    let known = unsafe {
        let slot = (opaque(walk.key.a) & (KNOWN_STACKS as u64 - 1)) as usize;
        &mut *(&raw mut (*task).known_stacks[slot])
    };
    if known.id != 0 && known.key.a == walk.key.a && known.key.b == walk.key.b {
        return known.id as u32;
    }
    let id = match STACKS.get_ptr(&walk.key) {
        // SAFETY: a map value; ids are never changed.
        Some(id) => unsafe { *id },
        None => publish(control, task),
    };
    if id != NO_STACK {
        *known = KnownStack { key: walk.key, id: u64::from(id) };
    }
    id
}

/// Gives a new stack an id and sends it to user space.
#[inline(always)]
fn publish(control: *mut Control, task: *mut Task) -> u32 {
    // SAFETY: map values; an aligned word.
    let (next, walk) = unsafe { (core::ptr::read_volatile(&raw const (*control).next_stack), &(*task).walk) };
    // Nothing is used up by a stack that cannot be kept.
    if STACK_TOTALS.get(next as u32).is_none() {
        count(Counter::StacksFull);
        return NO_STACK;
    }
    if !has_room() {
        count(Counter::StackRingFull);
        return NO_STACK;
    }
    let id = next_stack(control);
    let mut local = task;
    let frames = opaque(u64::from(walk.count)) & FRAME_MASK;
    // SAFETY: a map value that only this task uses. Header and frames are neighbours in `Task`,
    // and at most FRAME_SLOTS − 1 frames are sent, so the record ends inside of it.
    let sent = unsafe {
        generated::bpf_loop(walk.count, copy_frame as *mut c_void, (&raw mut local).cast(), 0);
        (*task).header = StackHeader { id, count: walk.count, end: walk.end, mapset: walk.mapset };
        generated::bpf_ringbuf_output(
            (&raw const NEW_STACKS).cast_mut().cast(),
            (&raw mut (*task).header).cast(),
            size_of::<StackHeader>() as u64 + frames * 8,
            0,
        )
    };
    if sent != 0 {
        count(Counter::StackRingFull);
        return NO_STACK;
    }
    // As many keys fit as there are ids, so this cannot fail for want of room.
    let _ = STACKS.insert(&walk.key, &id, 0);
    count(Counter::StacksNew);
    id
}

/// Whether the ring has room for the longest stack.
#[inline(always)]
fn has_room() -> bool {
    let ring: *mut c_void = (&raw const NEW_STACKS).cast_mut().cast();
    // SAFETY: the helper takes a ring (Linux 5.8).
    let (used, size) = unsafe {
        (
            generated::bpf_ringbuf_query(ring, u64::from(BPF_RB_AVAIL_DATA)),
            generated::bpf_ringbuf_query(ring, u64::from(BPF_RB_RING_SIZE)),
        )
    };
    // A record has a header of 8 bytes.
    used + (8 + size_of::<StackHeader>() + FRAME_SLOTS * 8) as u64 <= size
}

/// Puts a frame where it is sent from: innermost first, while the trail has the root first.
pub(crate) unsafe extern "C" fn copy_frame(index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `context` is the address of a task pointer on the stack of `publish`.
    let task = unsafe { &mut **context.cast::<*mut Task>() };
    let pc = if index == 0 {
        task.walk.function
    } else {
        task.trail.at((task.walk.count - 1).wrapping_sub(index)).pc
    };
    task.frames[(opaque(u64::from(index)) & FRAME_MASK) as usize] = pc;
    0
}

/// Walks the stack: first it is seen how much of the last one still stands, then frame by frame
/// from the innermost until one of those is met, then both are put together.
#[inline(always)]
pub(crate) fn walk(
    control: *mut Control,
    process: *mut Process,
    task: *mut Task,
    function: u64,
    regs: Registers,
) {
    // SAFETY: map values; the words of both records are aligned, and user space switches
    // `mapset` at any time.
    unsafe {
        let mapset = core::ptr::read_volatile(&raw const (*process).mapset);
        let anew = core::ptr::read_volatile(&raw const (*control).walk_anew);
        let last = (*task).walk;
        // The mapping of the last walk's last frame is mostly that of this one's first.
        let hi = if last.mapset == mapset { last.hi } else { 0 };
        // See `chunk::pending`.
        let none = opaque(0);
        (*task).walk = Walk {
            regs,
            lo: last.lo,
            hi,
            bias: last.bias,
            first_page: last.first_page,
            page_count: last.page_count,
            key: StackKey { a: none, b: none },
            function,
            count: none as u32,
            end: none as u32,
            mapset,
            depth: (*task).depth,
            fresh: none as u32,
            met: none as u32,
            valid: none as u32,
            pad: none as u32,
            trampoline_start: (*process).trampoline_start,
            trampoline_end: (*process).trampoline_end,
        };
        let mut local = task;
        let context: *mut c_void = (&raw mut local).cast();
        let known = if anew == 0 && (*task).trail.mapset == mapset { (*task).trail.len } else { 0 };
        (*task).window.bytes = 0;
        if known != 0 {
            open_window(&raw mut (*task).window, regs.sp, (*task).trail.at(0).sp);
            let calls = known.div_ceil(CHECKED_A_CALL);
            generated::bpf_loop(calls, check_frames as *mut c_void, context, 0);
        }
        (*task).trail.mapset = mapset;
        generated::bpf_loop(MAX_FRAMES as u32, next_frame as *mut c_void, context, 0);
        if (*task).walk.end == 0 {
            (*task).walk.end = WalkEnd::Truncated as u32;
        }
        let calls = (*task).walk.fresh.div_ceil(APPENDED_A_CALL);
        generated::bpf_loop(calls, append_frames as *mut c_void, context, 0);
        let walk = &mut (*task).walk;
        let frames = walk.met + walk.fresh;
        walk.count = frames + 1;
        walk.key = mixed((*task).trail.at(frames.wrapping_sub(1)).key, function);
        // Only a whole stack is a trail: what is missing of another one is not known.
        (*task).trail.len = if walk.end == WalkEnd::Bottom as u32 { frames } else { 0 };
    }
}

/// A callback returns by way of the kernel's return thunk, which on many processors takes as long
/// as checking a frame; so where little is done for a frame, each call of one does several.
const CHECKED_A_CALL: u32 = 8;
const APPENDED_A_CALL: u32 = 4;

/// Index of the `number`th frame of a call of a callback. Hidden from LLVM, which would count the
/// index instead of the number, and the verifier sees an end of that only for the number.
#[inline(always)]
fn nth(call: u32, frames_a_call: u32, number: u32) -> u32 {
    (u64::from(call * frames_a_call) + opaque(u64::from(number))) as u32
}

/// Whether some more frames of the last walk are as they were; 1 ends the look.
unsafe extern "C" fn check_frames(call: u32, context: *mut c_void) -> i64 {
    // SAFETY: `context` is the address of a task pointer on the stack of `walk`.
    let task = unsafe { &mut **context.cast::<*mut Task>() };
    for number in 0..CHECKED_A_CALL {
        let index = nth(call, CHECKED_A_CALL, number);
        let stands = index < task.trail.len
            && task.trail.at(index).sp >= task.walk.regs.sp
            && task.trail.still_leads_on(index, &mut AtHand(&raw mut task.window));
        if !stands {
            return 1;
        }
        task.walk.valid = index + 1;
    }
    0
}

/// One frame, for `bpf_loop` (Linux 5.17): 1 ends the walk.
unsafe extern "C" fn next_frame(_index: u32, context: *mut c_void) -> i64 {
    // SAFETY: as above.
    let task = unsafe { &mut **context.cast::<*mut Task>() };
    match frame(task) {
        Ok(()) => 0,
        Err(end) => {
            task.walk.end = end as u32;
            1
        }
    }
}

/// Puts new frames behind the frames that were met, outermost first.
unsafe extern "C" fn append_frames(call: u32, context: *mut c_void) -> i64 {
    // SAFETY: as above.
    let task = unsafe { &mut **context.cast::<*mut Task>() };
    for number in 0..APPENDED_A_CALL {
        let index = nth(call, APPENDED_A_CALL, number);
        if index >= task.walk.fresh {
            return 1;
        }
        let from = task.walk.fresh.wrapping_sub(index + 1);
        let fresh = task.new_frames[(opaque(u64::from(from)) & FRAME_MASK) as usize];
        task.trail.append(task.walk.met + index, &fresh);
    }
    0
}

#[inline(always)]
fn frame(task: &mut Task) -> Result<(), WalkEnd> {
    // The frame of the allocator itself is not walked, and counts.
    if task.walk.fresh as usize + 1 >= MAX_FRAMES {
        return Err(WalkEnd::Truncated);
    }
    if let Some(index) = task.trail.meets(task.walk.valid, &task.walk.regs)
        // A stack that is cut is cut where a full walk would cut it.
        && ((task.walk.fresh + index) as usize + 1) < MAX_FRAMES
    {
        task.walk.met = index + 1;
        return Err(WalkEnd::Bottom);
    }
    let mut pc = task.walk.regs.pc.wrapping_sub(task.walk.regs.is_return);
    if pc < task.walk.lo || pc >= task.walk.hi {
        if !enter_mapping(task, pc) {
            uncover_return_address(task);
            pc = task.walk.regs.pc.wrapping_sub(task.walk.regs.is_return);
            if !enter_mapping(task, pc) {
                let hidden = task.walk.regs.pc >= task.walk.trampoline_start
                    && task.walk.regs.pc < task.walk.trampoline_end;
                keep(task, RowInfo::NONE);
                return Err(if hidden { WalkEnd::LostReturn } else { WalkEnd::UnknownMapping });
            }
        }
    }
    let info = row_at(&task.walk, pc);
    keep(task, info);
    step(info, &mut task.walk.regs, &mut Stack(&raw mut task.window))
}

#[inline(always)]
fn keep(task: &mut Task, info: RowInfo) {
    let index = (opaque(u64::from(task.walk.fresh)) & FRAME_MASK) as usize;
    task.new_frames[index] = Fresh::new(&task.walk.regs, info);
    task.walk.fresh += 1;
}

#[inline(always)]
fn enter_mapping(task: &mut Task, pc: u64) -> bool {
    let Some(set) = MAPSETS.get(task.walk.mapset & (MAPSET_SLOTS - 1)) else { return false };
    let range = &set.ranges[find_range(set, pc)];
    if pc < range.start || pc >= range.end {
        return false;
    }
    let walk = &mut task.walk;
    walk.lo = range.start;
    walk.hi = range.end;
    walk.bias = range.bias;
    walk.first_page = range.first_page;
    walk.page_count = range.page_count;
    true
}

/// A return probe puts the address of its trampoline where a function's return address was. If
/// the call is one of ours, the address was saved when it began.
#[inline(always)]
fn uncover_return_address(task: &mut Task) {
    let slot = task.walk.regs.sp.wrapping_sub(8);
    let depth = task.walk.depth;
    // Every open call may be the one: MAX_PENDING rounds.
    for index in 0..MAX_PENDING as u32 {
        if index >= depth {
            break;
        }
        // SAFETY: the index is masked; a map value that only this task uses.
        let call = unsafe { &*task::at(task, index) };
        if call.sp == slot && call.return_address != 0 {
            task.walk.regs.pc = call.return_address;
        }
    }
}

#[inline(always)]
fn row_at(walk: &Walk, pc: u64) -> RowInfo {
    let offset = pc.wrapping_sub(walk.bias);
    // An address past an object's last page, or in a mapping without a table, would share its
    // tag with code of another object.
    if offset >> PAGE_BITS >= u64::from(walk.page_count) {
        return RowInfo::NONE;
    }
    // Unique over all objects: each has its own pages (user space sees to it).
    let tag = (offset as u32).wrapping_add(walk.first_page << PAGE_BITS);
    let slot = (tag.wrapping_mul(0x9e37_79b1)) >> (32 - ROW_CACHE_SLOTS.trailing_zeros());
    let Some(cached) = ROW_CACHE.get_ptr_mut(slot) else { return RowInfo::NONE };
    // SAFETY: a map value; one aligned word, so that tag and row always belong together.
    let word = unsafe { core::ptr::read_volatile(cached) };
    if word as u32 == tag && word != 0 {
        return RowInfo((word >> 32) as u32);
    }
    count(Counter::RowCacheMiss);
    let info = find(walk, offset).map_or(RowInfo::NONE, Row::info);
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(cached, u64::from(tag) | u64::from(info.0) << 32) };
    info
}

#[inline(always)]
fn find(walk: &Walk, offset: u64) -> Option<Row> {
    let page = (offset >> PAGE_BITS) as u32;
    let lo = *PAGES.get(walk.first_page + page)?;
    let hi = *PAGES.get(walk.first_page + page + 1)?;
    find_row(lo, hi, offset, |index| ROWS.get(index).map(|row| Row(*row)))
}

#[inline(always)]
fn count_end(end: u32) {
    const BOTTOM: u32 = WalkEnd::Bottom as u32;
    const UNKNOWN_MAPPING: u32 = WalkEnd::UnknownMapping as u32;
    const NO_ROW: u32 = WalkEnd::NoRow as u32;
    const UNSUPPORTED: u32 = WalkEnd::Unsupported as u32;
    const READ: u32 = WalkEnd::Read as u32;
    const TRUNCATED: u32 = WalkEnd::Truncated as u32;
    const BAD_SP: u32 = WalkEnd::BadSp as u32;
    count(match end {
        BOTTOM => Counter::WalkBottom,
        UNKNOWN_MAPPING => Counter::WalkUnknownMapping,
        NO_ROW => Counter::WalkNoRow,
        UNSUPPORTED => Counter::WalkUnsupported,
        READ => Counter::WalkRead,
        TRUNCATED => Counter::WalkTruncated,
        BAD_SP => Counter::WalkBadSp,
        _ => Counter::WalkLostReturn,
    });
}
