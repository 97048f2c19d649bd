//! Complete stacks by `.eh_frame` rows, each different one once.

use core::ffi::c_void;

use aya_ebpf::{bindings::pt_regs, helpers::generated};
use tracer_ebpf::{
    abi::{
        Control, FRAME_SLOTS, MAX_FRAMES, MAX_PENDING, NO_STACK, ROW_CACHE_SLOTS, StackHeader, StackKey,
        Task, Walk,
    },
    counters::Counter,
    lookup::{PAGE_BITS, find_range, find_row, opaque},
    unwind::{Registers, Row, RowInfo, WalkEnd, step},
};

use crate::bpf::{
    maps::{MAPSETS, NEW_STACKS, PAGES, ROW_CACHE, ROWS, STACK_TOTALS, STACKS, count, count_many},
    read::Faulting,
    task,
};

const FRAME_MASK: u64 = FRAME_SLOTS as u64 - 1;
/// Two odd constants far apart: the fractional parts of the golden ratio and of √3.
const MIX_A: u64 = 0x9e37_79b9_7f4a_7c15;
const MIX_B: u64 = 0xbb67_ae85_84ca_a73b;

/// The id of the stack that called `function`, as it stands when the call returns.
#[inline(always)]
pub(crate) fn id(control: *mut Control, task: *mut Task, function: u64, regs: &pt_regs) -> u32 {
    walk(control, task, function, regs);
    // SAFETY: a map value that only this task uses.
    let walk = unsafe { &(*task).walk };
    count(Counter::StacksWalked);
    count_many(Counter::FramesWalked, u64::from(walk.count));
    count_end(walk.end);
    if let Some(id) = STACKS.get_ptr(&walk.key) {
        // SAFETY: a map value; ids are never changed.
        return unsafe { *id };
    }
    publish(control, task)
}

/// Gives a new stack an id and sends it to user space.
#[inline(always)]
fn publish(control: *mut Control, task: *mut Task) -> u32 {
    // SAFETY: map values; `next_stack` is only moved here, by the one task that allocates.
    let (id, walk) = unsafe { ((*control).next_stack, &(*task).walk) };
    if STACK_TOTALS.get(id).is_none() {
        count(Counter::StacksFull);
        return NO_STACK;
    }
    let frames = opaque(u64::from(walk.count)) & FRAME_MASK;
    // SAFETY: a map value that only this task uses. Header and frames are neighbours in `Task`,
    // and at most FRAME_SLOTS − 1 frames are sent, so the record ends inside of it.
    let sent = unsafe {
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
    // SAFETY: as above.
    unsafe { (*control).next_stack = id + 1 };
    // As many keys fit as there are ids, so this cannot fail for want of room.
    let _ = STACKS.insert(&walk.key, &id, 0);
    count(Counter::StacksNew);
    id
}

#[inline(always)]
fn walk(control: *mut Control, task: *mut Task, function: u64, regs: &pt_regs) {
    // SAFETY: map values; `mapset` is an aligned word that user space switches at any time.
    unsafe {
        let mapset = core::ptr::read_volatile(&raw const (*control).mapset);
        let walk = &mut (*task).walk;
        *walk = Walk {
            regs: Registers { pc: regs.rip, sp: regs.rsp, bp: regs.rbp, is_return: 1 },
            lo: 1,
            hi: 0,
            bias: 0,
            first_page: 0,
            page_count: 0,
            key: StackKey { a: u64::from(mapset), b: 0 },
            count: 0,
            end: 0,
            mapset,
            depth: (*task).depth,
            trampoline_start: (*control).trampoline_start,
            trampoline_end: (*control).trampoline_end,
        };
        record(&mut *task, 0, function);
        let mut local = task;
        generated::bpf_loop(MAX_FRAMES as u32, next_frame as *mut c_void, (&raw mut local).cast(), 0);
        let walk = &mut (*task).walk;
        if walk.end == 0 {
            walk.end = WalkEnd::Truncated as u32;
        }
    }
}

/// One frame, for `bpf_loop` (Linux 5.17): 1 ends the walk.
unsafe extern "C" fn next_frame(index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `context` is the address of a task pointer on the stack of `walk`.
    let task = unsafe { &mut **context.cast::<*mut Task>() };
    match frame(index, task) {
        Ok(()) => 0,
        Err(end) => {
            task.walk.end = end as u32;
            1
        }
    }
}

#[inline(always)]
fn frame(index: u32, task: &mut Task) -> Result<(), WalkEnd> {
    // Frame 0 is the allocator itself.
    let slot = index + 1;
    if slot as usize >= MAX_FRAMES {
        return Err(WalkEnd::Truncated);
    }
    let mut pc = task.walk.regs.pc.wrapping_sub(task.walk.regs.is_return);
    if pc < task.walk.lo || pc >= task.walk.hi {
        if !enter_mapping(task, pc) {
            uncover_return_address(task);
            pc = task.walk.regs.pc.wrapping_sub(task.walk.regs.is_return);
            if !enter_mapping(task, pc) {
                let hidden = task.walk.regs.pc >= task.walk.trampoline_start
                    && task.walk.regs.pc < task.walk.trampoline_end;
                record(task, slot, task.walk.regs.pc);
                return Err(if hidden { WalkEnd::LostReturn } else { WalkEnd::UnknownMapping });
            }
        }
    }
    record(task, slot, task.walk.regs.pc);
    let info = row_at(&task.walk, pc);
    step(info, &mut task.walk.regs, &mut task.buffer, &mut Faulting)
}

#[inline(always)]
fn record(task: &mut Task, slot: u32, pc: u64) {
    task.frames[(opaque(u64::from(slot)) & FRAME_MASK) as usize] = pc;
    let walk = &mut task.walk;
    walk.count = slot + 1;
    walk.key.a = mix(walk.key.a, pc, MIX_A);
    walk.key.b = mix(walk.key.b, pc, MIX_B);
}

#[inline(always)]
fn mix(hash: u64, value: u64, by: u64) -> u64 {
    let hash = (hash ^ value).wrapping_mul(by);
    hash ^ (hash >> 29)
}

#[inline(always)]
fn enter_mapping(task: &mut Task, pc: u64) -> bool {
    let Some(set) = MAPSETS.get(task.walk.mapset) else { return false };
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
