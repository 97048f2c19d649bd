//! Complete stacks by `.eh_frame` rows, each different one once.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_RING_SIZE, pt_regs},
    helpers::generated,
};
use tracer_ebpf::{
    abi::{
        Control, FRAME_SLOTS, KNOWN_STACKS, KnownStack, MAPSET_SLOTS, MAX_FRAMES, MAX_PENDING, NO_STACK,
        Process, ROW_CACHE_SLOTS, StackHeader, Task, Walk,
    },
    counters::Counter,
    lookup::{PAGE_BITS, find_range, find_row, opaque},
    site::Site,
    trail::{Fresh, mixed},
    unwind::{Registers, Row, RowInfo, StackReader as _, WalkEnd, step},
};

use crate::bpf::{
    maps::{MAPSETS, NEW_STACKS, PAGES, ROW_CACHE, ROWS, STACK_TOTALS, STACKS, count, count_own, next_stack},
    process,
    read::{AtHand, Stack, anew, open_window},
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
    open(control, process, task, caller.sp);
    of_caller::<NOT_IN_LINE>(control, task, function, caller)
}

/// The id of the stack that calls a function, which begins, and the return address: `regs` are those at
/// its probe, where the return address is on top of the stack. 0 if that cannot be read. `IN_LINE`: [`IN_LINE`] or
/// [`NOT_IN_LINE`].
#[inline(always)]
pub(crate) fn id_at_entry<const IN_LINE: u32>(
    control: *mut Control,
    process: *mut Process,
    task: *mut Task,
    cookie: u64,
    (regs, sp): (&pt_regs, u64),
) -> (u32, u64) {
    open(control, process, task, sp);
    // SAFETY: a map value that only this task uses.
    let Some(return_address) = Stack(unsafe { &raw mut (*task).window }).read_word(sp) else {
        count(Counter::ReturnAddressUnreadable);
        return (NO_STACK, 0);
    };
    let caller = Registers { pc: return_address, sp: sp.wrapping_add(8), bp: regs.rbp, is_return: 1 };
    let function = regs.rip.wrapping_sub(Site::skew_of(cookie));
    (of_caller::<IN_LINE>(control, task, function, caller), return_address)
}

#[inline(always)]
fn of_caller<const IN_LINE: u32>(
    control: *mut Control,
    task: *mut Task,
    function: u64,
    caller: Registers,
) -> u32 {
    walk_on::<IN_LINE>(task, function, caller);
    // SAFETY: a map value that only this task uses.
    let walk = unsafe { &(*task).walk };
    count_own(Some(task), Counter::StacksWalked, 1);
    count_own(Some(task), Counter::FramesWalked, u64::from(walk.fresh));
    count_own(Some(task), Counter::FramesReused, u64::from(walk.met));
    if walk.end == WalkEnd::Bottom as u32 {
        count_own(Some(task), Counter::WalkBottom, 1);
    } else {
        count_cut(walk.end);
    }
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
    // SAFETY: a map value that only this task uses. Header and frames are neighbours in `Task`,
    // and at most FRAME_SLOTS − 1 frames are sent, so the record ends inside of it.
    let sent = unsafe {
        generated::bpf_loop(walk.count, copy_frame as *mut c_void, (&raw mut local).cast(), 0);
        (*task).header = StackHeader { id, count: walk.count, end: walk.end, mapset: walk.mapset };
        // See `read::through`.
        let frames =
            opaque(u64::from(core::ptr::read_volatile(&raw const (*task).header.count))) & FRAME_MASK;
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
///
/// All of that is done in line as long as it is of the usual kind. What is not is done by callbacks of
/// `bpf_loop`, which are verified once, however many frames there are; but a callback returns by way of the
/// kernel's return thunk, which on many processors takes longer than a frame.
#[inline(always)]
pub(crate) fn walk(
    control: *mut Control,
    process: *mut Process,
    task: *mut Task,
    function: u64,
    regs: Registers,
) {
    open(control, process, task, regs.sp);
    walk_on::<IN_LINE>(task, function, regs);
}

/// Reads the stack from `sp` on, and looks how much of the last walk still stands.
#[inline(always)]
fn open(control: *mut Control, process: *mut Process, task: *mut Task, sp: u64) {
    // SAFETY: map values; the words of both records are aligned, and user space switches
    // `mapset` at any time.
    unsafe {
        let mapset = core::ptr::read_volatile(&raw const (*process).mapset);
        let is_anew = core::ptr::read_volatile(&raw const (*control).walk_anew) != 0;
        let walk = &mut (*task).walk;
        // The mapping of the last walk's last frame is mostly that of this one's first.
        if walk.mapset != mapset {
            walk.hi = 0;
        }
        walk.mapset = mapset;
        let known = if !is_anew && (*task).trail.mapset == mapset { (*task).trail.len } else { 0 };
        (*task).trail.mapset = mapset;
        (*task).window.bytes = 0;
        (*task).walk.valid = known;
        if known == 0 {
            return;
        }
        open_window(&raw mut (*task).window, sp, (*task).trail.at((*task).trail.base).sp);
        let task = anew(task);
        (*task).walk.valid =
            (*task).trail.standing::<STANDING_IN_LINE, _>(known, &mut AtHand(&raw mut (*task).window));
        let looked_at = STANDING_IN_LINE as u32 + (*task).trail.base;
        if (*task).walk.valid == looked_at {
            let mut local = task;
            generated::bpf_loop(
                known.wrapping_sub(looked_at),
                stands as *mut c_void,
                (&raw mut local).cast(),
                0,
            );
        }
    }
}

/// Whether one more frame of the last walk stands.
unsafe extern "C" fn stands(_index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `context` is the address of a task pointer on the stack of `open`.
    let task = unsafe { &mut **context.cast::<*mut Task>() };
    let differs =
        task.trail.differs::<true, _>(u64::from(task.walk.valid), &mut AtHand(&raw mut task.window));
    if differs != 0 {
        return 1;
    }
    task.walk.valid += 1;
    0
}

/// The rest of [`walk`], up to `IN_LINE` frames of it in line.
#[inline(always)]
fn walk_on<const IN_LINE: u32>(task: *mut Task, function: u64, regs: Registers) {
    // SAFETY: a map value that only this task uses.
    unsafe {
        let walk = &mut (*task).walk;
        // See `call::begin`.
        let none = opaque(0) as u32;
        (walk.regs, walk.function) = (regs, function);
        (walk.end, walk.fresh, walk.met) = (none, none, none);
        for _ in 0..IN_LINE {
            if !plain_frame(&mut *anew(task)) {
                break;
            }
        }
        let mut local = anew(task);
        let context: *mut c_void = (&raw mut local).cast();
        if (*task).walk.end == 0 {
            generated::bpf_loop(MAX_FRAMES as u32, next_frame as *mut c_void, context, 0);
        }
        if (*task).walk.end == 0 {
            (*task).walk.end = WalkEnd::Truncated as u32;
        }
        for number in 0..IN_LINE {
            if !append(&mut *anew(task), number) {
                break;
            }
        }
        let task = anew(task);
        if (*task).walk.fresh > IN_LINE {
            let calls = ((*task).walk.fresh - IN_LINE).div_ceil(APPENDED_A_CALL);
            generated::bpf_loop(calls, append_frames::<IN_LINE> as *mut c_void, context, 0);
        }
        let walk = &mut (*task).walk;
        let frames = walk.met + walk.fresh;
        walk.count = frames + 1;
        walk.key = mixed((*task).trail.at(frames.wrapping_sub(1)).key, function);
        // Only a whole stack is a trail: what is missing of another one is not known.
        let is_whole = walk.end == WalkEnd::Bottom as u32 && (*task).trail.is_rooted();
        (*task).trail.len = if is_whole { frames } else { 0 };
        if (*task).walk.met <= (*task).trail.base {
            find_base(task);
        }
    }
}

/// Looks for the server's main loop among the frames of the trail. A function of its own: it is called when a task is
/// first seen, and nearly never after.
#[inline(never)]
fn find_base(task: *mut Task) -> u64 {
    // SAFETY: a map value that only this task uses.
    let (mapset, frames) = unsafe {
        (*task).trail.base = 0;
        ((*task).walk.mapset, (*task).trail.len)
    };
    let Some(set) = MAPSETS.get(mapset & (MAPSET_SLOTS - 1)) else { return 0 };
    let mut search = Search { task, range: (set.loop_start, set.loop_end) };
    // SAFETY: the callback takes what it is given.
    unsafe { generated::bpf_loop(frames, is_base as *mut c_void, (&raw mut search).cast(), 0) as u64 }
}

/// What [`is_base`] is given.
struct Search {
    task: *mut Task,
    range: (u64, u64),
}

unsafe extern "C" fn is_base(index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `context` is the address of a search on the stack of `find_base`; a map value that only its task uses.
    let (task, range) = unsafe {
        let search = &*context.cast::<Search>();
        (&mut *search.task, search.range)
    };
    if !task.trail.is_of(index, range) {
        return 0;
    }
    task.trail.base = index;
    1
}

/// Frames that are done in line in programs that are hit often.
pub(crate) const IN_LINE: u32 = 8;
/// The same in others: what is in line is verified for each way that leads to it.
pub(crate) const NOT_IN_LINE: u32 = 0;
/// Frames of the last walk that are looked at in line.
const STANDING_IN_LINE: u64 = 32;
/// Frames that one call of a callback appends.
const APPENDED_A_CALL: u32 = 4;

/// Walks a frame whose mapping is at hand, whose row is in the cache, and that reads nothing but what is at hand.
/// False if the walk is over, or this is another frame: it is as it was then.
#[inline(always)]
fn plain_frame(task: &mut Task) -> bool {
    if let Some(index) = met(task) {
        task.walk.met = index + 1;
        task.walk.end = WalkEnd::Bottom as u32;
        return false;
    }
    let pc = task.walk.regs.pc.wrapping_sub(task.walk.regs.is_return);
    if pc < task.walk.lo || pc >= task.walk.hi {
        return false;
    }
    let Some(info) = cached_row(&task.walk, pc).filter(|info| info.is_simple()) else { return false };
    let mut regs = task.walk.regs;
    if step(info, &mut regs, &mut AtHand(&raw mut task.window)).is_err() {
        return false;
    }
    keep(task, info);
    task.walk.regs = regs;
    true
}

/// The index of the frame of the last walk that this one has come to.
#[inline(always)]
fn met(task: &Task) -> Option<u32> {
    let index = task.trail.meets(task.walk.valid, &task.walk.regs)?;
    // A stack that is cut is cut where a full walk would cut it.
    (((task.walk.fresh + index) as usize) + 1 < MAX_FRAMES).then_some(index)
}

/// One frame, for `bpf_loop` (Linux 5.17): 1 ends the walk.
unsafe extern "C" fn next_frame(_index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `context` is the address of a task pointer on the stack of `walk`.
    let task = unsafe { &mut **context.cast::<*mut Task>() };
    match frame(task) {
        Ok(()) => 0,
        Err(end) => {
            task.walk.end = end as u32;
            1
        }
    }
}

/// Puts some more new frames behind the frames that were met, those in line excepted.
unsafe extern "C" fn append_frames<const IN_LINE: u32>(call: u32, context: *mut c_void) -> i64 {
    // SAFETY: as above.
    let task = unsafe { &mut **context.cast::<*mut Task>() };
    for number in 0..APPENDED_A_CALL {
        // Hidden from LLVM, which would count the sum instead of the number, and the verifier sees an end of that
        // only for the number.
        let number = opaque(u64::from(number)) as u32;
        if !append(task, IN_LINE + call * APPENDED_A_CALL + number) {
            return 1;
        }
    }
    0
}

/// Puts a new frame behind the frames that were met, outermost first; false if there are no more.
#[inline(always)]
fn append(task: &mut Task, number: u32) -> bool {
    if number >= task.walk.fresh {
        return false;
    }
    let from = task.walk.fresh.wrapping_sub(number + 1);
    let fresh = task.new_frames[(opaque(u64::from(from)) & FRAME_MASK) as usize];
    task.trail.append(task.walk.met + number, &fresh);
    true
}

#[inline(always)]
fn frame(task: &mut Task) -> Result<(), WalkEnd> {
    // The frame of the allocator itself is not walked, and counts.
    if task.walk.fresh as usize + 1 >= MAX_FRAMES {
        return Err(WalkEnd::Truncated);
    }
    if let Some(index) = met(task) {
        task.walk.met = index + 1;
        return Err(WalkEnd::Bottom);
    }
    let mut pc = task.walk.regs.pc.wrapping_sub(task.walk.regs.is_return);
    if pc < task.walk.lo || pc >= task.walk.hi {
        if !enter_mapping(task, pc) {
            uncover_return_address(task);
            pc = task.walk.regs.pc.wrapping_sub(task.walk.regs.is_return);
            if !enter_mapping(task, pc) {
                keep(task, RowInfo::NONE);
                return Err(if is_in_trampoline(task) {
                    WalkEnd::LostReturn
                } else {
                    WalkEnd::UnknownMapping
                });
            }
        }
    }
    let info = row_at(&task.walk, pc);
    keep(task, info);
    step(info, &mut task.walk.regs, &mut Stack(&raw mut task.window))
}

/// Whether a walk has come to where return probes return to.
#[inline(always)]
fn is_in_trampoline(task: &mut Task) -> bool {
    let pc = task.walk.regs.pc;
    let Some(process) = process::of(task) else { return false };
    // SAFETY: a map value; aligned words.
    let (start, end) = unsafe { ((*process).trampoline_start, (*process).trampoline_end) };
    pc >= start && pc < end
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
    let depth = task.depth;
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

/// Offset of an address in its object, a tag that no other address of any object has, and the two places where the cache
/// may have its row: neighbours in code are neighbours there, since what is called in turn is near.
#[inline(always)]
fn cache_slot(walk: &Walk, pc: u64) -> Option<(u64, u32, *mut [u64; 2])> {
    let offset = pc.wrapping_sub(walk.bias);
    // An address past an object's last page, or in a mapping without a table, would share its
    // tag with code of another object.
    if offset >> PAGE_BITS >= u64::from(walk.page_count) {
        return None;
    }
    // Unique over all objects: each has its own pages (user space sees to it).
    let tag = (offset as u32).wrapping_add(walk.first_page << PAGE_BITS);
    Some((offset, tag, ROW_CACHE.get_ptr_mut(tag >> 3 & (ROW_CACHE_SLOTS - 1))?))
}

/// The row in one of two places of the cache, if it is that of the tag.
#[inline(always)]
fn cached(tag: u32, slot: *mut [u64; 2]) -> Option<RowInfo> {
    // SAFETY: a map value; aligned words, so that tag and row always belong together.
    let [first, second] = unsafe { slot.read_volatile() };
    let word = if first as u32 == tag { first } else { second };
    (word as u32 == tag && word != 0).then_some(RowInfo((word >> 32) as u32))
}

#[inline(always)]
fn cached_row(walk: &Walk, pc: u64) -> Option<RowInfo> {
    let (_, tag, slot) = cache_slot(walk, pc)?;
    cached(tag, slot)
}

#[inline(always)]
fn row_at(walk: &Walk, pc: u64) -> RowInfo {
    let Some((offset, tag, slot)) = cache_slot(walk, pc) else { return RowInfo::NONE };
    if let Some(info) = cached(tag, slot) {
        return info;
    }
    count(Counter::RowCacheMiss);
    let info = find(walk, offset).map_or(RowInfo::NONE, Row::info);
    // SAFETY: as in `cached`.
    unsafe { slot.write_volatile([u64::from(tag) | u64::from(info.0) << 32, (*slot)[0]]) };
    info
}

#[inline(always)]
fn find(walk: &Walk, offset: u64) -> Option<Row> {
    let page = (offset >> PAGE_BITS) as u32;
    let lo = *PAGES.get(walk.first_page + page)?;
    let hi = *PAGES.get(walk.first_page + page + 1)?;
    find_row(lo, hi, offset, |index| ROWS.get(index).map(|row| Row(*row)))
}

/// Counts a stack that did not reach the bottom.
#[inline(always)]
fn count_cut(end: u32) {
    const UNKNOWN_MAPPING: u32 = WalkEnd::UnknownMapping as u32;
    const NO_ROW: u32 = WalkEnd::NoRow as u32;
    const UNSUPPORTED: u32 = WalkEnd::Unsupported as u32;
    const READ: u32 = WalkEnd::Read as u32;
    const TRUNCATED: u32 = WalkEnd::Truncated as u32;
    const BAD_SP: u32 = WalkEnd::BadSp as u32;
    count(match end {
        UNKNOWN_MAPPING => Counter::WalkUnknownMapping,
        NO_ROW => Counter::WalkNoRow,
        UNSUPPORTED => Counter::WalkUnsupported,
        READ => Counter::WalkRead,
        TRUNCATED => Counter::WalkTruncated,
        BAD_SP => Counter::WalkBadSp,
        _ => Counter::WalkLostReturn,
    });
}
