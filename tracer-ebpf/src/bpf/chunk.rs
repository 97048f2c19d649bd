//! Chunks that are allocated and freed.

use aya_ebpf::{
    bindings::pt_regs,
    programs::{ProbeContext, RetProbeContext},
};
use tracer_ebpf::{
    abi::{
        ChunkKey, Control, Live, PENDING_INNER, PENDING_LATE, PENDING_LEFT_OUT, PENDING_NESTED,
        PENDING_NOT_OWN, Pending, Phase, Process, Task, key,
    },
    counters::Counter,
    site::{ArgField, ChunkHeader, Pool, Role, Site, rounded},
};

use crate::bpf::{
    call::{
        Return, begin, entered, held_bytes, now, return_address, returned, returned_pointer, size,
        within_deadline,
    },
    context, foresee,
    maps::{are_several, control, count, count_many, count_own, hit_unawaited, phase, set_fields},
    process, read,
    record::{add_allocated_by, add_freed, end, find, free_parts, put, sweep},
    sampling, stack, task,
};

/// Whether a mapping is of the process alone, and of no file.
#[inline(always)]
fn is_own_memory(regs: &pt_regs) -> bool {
    // MAP_PRIVATE | MAP_ANONYMOUS; the flags are the fourth argument of mmap.
    const OWN: u64 = 0x22;
    regs.rcx & OWN == OWN
}

/// Of so many allocations of a task one is timed: the guard wants to know what recording costs here and now.
const TIMED: u32 = 64;

/// A call that will return a new chunk begins: its stack is taken, while all of it is at hand. It is recorded at once
/// if `FORESEES`, and if its address can be told ([`foresee`]): such a call cannot fail. Else nothing is recorded before
/// it returns: an error may leave it. `OUTSIDE` is memory that is in no context: programs of their own, since what is
/// one branch to the reader is twice as many paths to the verifier.
#[inline(always)]
pub(crate) fn alloc_enter<const OUTSIDE: bool, const FORESEES: bool>(ctx: &ProbeContext) -> Return {
    // SAFETY: the registers are the program's own context.
    let regs = unsafe { &*ctx.regs };
    let sp = read::sp(regs);
    let Some((cookie, phase, process)) = entered::<true, OUTSIDE>(ctx) else {
        // Returns are counted as well; when all is off, nobody's stack is to be cut at a return that nobody wants.
        let counts = phase() == Some(Phase::Count as u32);
        return if counts { Return::Awaited } else { Return::NotNeeded };
    };
    if phase != Phase::Record as u32 {
        return Return::NotNeeded;
    }
    let (Some(control), Some(task)) = (control(), task::current_or_new(process)) else {
        return Return::Awaited;
    };
    task::drop_left(task, sp);
    if FORESEES && foresee::concerns(cookie) {
        foresee::unsettle(task);
    }
    // SAFETY: a map value that only this task uses.
    let is_late = unsafe {
        let number = (*task).allocations.wrapping_add(1);
        (*task).allocations = number;
        let start = if number & (TIMED - 1) == 0 { now() } else { 0 };
        core::ptr::write_volatile(&raw mut (*task).started_ns, start);
        (*task).is_late
    };
    let flags = if is_late != 0 { PENDING_LATE } else { own_flags::<OUTSIDE>(task, regs, sp, cookie) };
    let Some(call) = task::next(task) else { return Return::Awaited };
    begin::<OUTSIDE>(call, regs, sp, cookie);
    call.flags = flags;
    if flags == 0 && sampling::leaves_out(task, call.size, call.size) {
        call.flags = PENDING_LEFT_OUT;
    }
    if !OUTSIDE && call.flags == 0 {
        match context::epoch(control, process, task, call.context) {
            Some((context, epoch)) => (call.context, call.epoch) = (context, epoch),
            None => call.flags = PENDING_LEFT_OUT,
        }
    }
    // Read again: what the verifier does not know it follows once.
    // SAFETY: as `next` gave it.
    let call = unsafe { &mut *read::anew(call) };
    if call.flags == 0 {
        (call.stack, call.return_address) =
            stack::id_at_entry::<{ stack::IN_LINE }>(control, process, task, cookie, (regs, sp));
    }
    if FORESEES && set_fields().is_some() && is_over(control, process, task, call, regs) {
        hit_unawaited(Site::index_of(cookie));
        return Return::NotNeeded;
    }
    if call.flags != 0 {
        call.return_address = return_address(sp);
    }
    // SAFETY: as above.
    let start = unsafe { core::ptr::read_volatile(&raw const (*task).started_ns) };
    if start != 0 {
        // Not 0, which says that it is not timed.
        call.timed_ns = now().wrapping_sub(start) | 1;
    }
    task::push(task);
    Return::Awaited
}

/// Records a call that has just begun as if it had returned, if it is known what it will return; true if nothing
/// depends on its return.
#[inline(always)]
fn is_over(
    control: *mut Control,
    process: *mut Process,
    task: *mut Task,
    call: &mut Pending,
    regs: &pt_regs,
) -> bool {
    // Read again, as above.
    // SAFETY: as `next` gave it.
    let call = unsafe { &mut *read::anew(call) };
    if call.flags != 0 {
        if call.flags == PENDING_NESTED {
            count(Counter::NestedInRealloc);
        }
        // SAFETY: a map value that only this task uses.
        let start = unsafe { core::ptr::read_volatile(&raw const (*task).started_ns) };
        if sampling::is_partial() && start != 0 {
            timed(now().wrapping_sub(start));
        }
        return call.flags != PENDING_LATE;
    }
    let cookie = call.cookie;
    let context = read::argument(regs, cookie, ArgField::Context);
    let Some((pointer, held)) = foresee::chunk(control, task, cookie, (context, call.context), call.size)
    else {
        return false;
    };
    if foresee::is_checked(control, task) {
        call.foreseen = pointer;
        return false;
    }
    let Some(born_ns) = within_deadline(control, task) else {
        // SAFETY: as above.
        unsafe { (*task).is_late = 1 };
        return true;
    };
    count_own(Some(task), Counter::Foreseen, 1);
    record::<false>(process, task, call, (pointer, held), born_ns);
    // SAFETY: as above.
    let start = unsafe { core::ptr::read_volatile(&raw const (*task).started_ns) };
    if start != 0 {
        timed(now().wrapping_sub(start));
    }
    true
}

/// Records a new chunk of that many bytes.
#[inline(always)]
fn record<const OUTSIDE: bool>(
    process: *mut Process,
    task: *mut Task,
    call: &Pending,
    (pointer, held): (u64, u64),
    born_ns: u64,
) {
    let live = Live::new((call.context, call.epoch), (call.size, held), born_ns, call.stack);
    let live = Live { sampled: sampling::sampled(call.size), ..live };
    if put::<OUTSIDE>(Some(task), key(process::number(process), pointer), &live) {
        if are_several() {
            process::note_recorded(process, call.size);
        }
        count_own(Some(task), Counter::Recorded, 1);
        count_own(Some(task), Counter::RecordedBytes, call.size);
        add_allocated_by::<OUTSIDE>(call.stack, live.sampled, 1, call.size, held);
    }
    sweep(process);
}

/// Why a call is part of another one, or not of the process's own memory.
#[inline(always)]
fn own_flags<const OUTSIDE: bool>(task: *mut Task, regs: &pt_regs, sp: u64, cookie: u64) -> u32 {
    if OUTSIDE {
        // What an allocator gets for itself is its caller's, and counted there.
        if task::innermost(task, sp).is_some() {
            return PENDING_INNER;
        }
        if Site::pool_of(cookie) == Pool::Mmap as u64 && !is_own_memory(regs) {
            return PENDING_NOT_OWN;
        }
        return 0;
    }
    // A realloc that moves a chunk allocates as much as it was asked for. Anything else that
    // is allocated in it, such as the text of a warning, is an allocation like others.
    let is_nested = task::innermost_realloc(task, sp)
        // SAFETY: a map value that only this task uses.
        .is_some_and(|outer| unsafe { (*outer).size } == size::<OUTSIDE>(regs, cookie));
    if is_nested { PENDING_NESTED } else { 0 }
}

/// The call returns.
#[inline(always)]
pub(crate) fn alloc_exit<const OUTSIDE: bool>(ctx: &RetProbeContext) {
    let Some((control, process, task, call, regs)) = returned(ctx) else { return };
    if call.flags != 0 {
        match call.flags {
            PENDING_NESTED => count(Counter::NestedInRealloc),
            PENDING_INNER => count(Counter::NestedInAllocator),
            PENDING_NOT_OWN => count(Counter::NotOwnMemory),
            PENDING_LATE => {
                if within_deadline(control, task).is_some() {
                    // User space is heard of again: the next one is recorded.
                    // SAFETY: a map value that only this task uses.
                    unsafe { (*task).is_late = 0 };
                    count(Counter::AfterDeadline);
                }
            }
            // Counted when it began. The guard wants to know what most allocations cost, and most are these.
            _ if sampling::is_partial() && call.timed_ns != 0 => timed(call.timed_ns),
            _ => {}
        }
        return;
    }
    let Some(pointer) = new_chunk::<OUTSIDE>(call, regs) else {
        count(Counter::NullReturn);
        return;
    };
    let Some(born_ns) = within_deadline(control, task) else {
        // SAFETY: as above.
        unsafe { (*task).is_late = 1 };
        return;
    };
    let start = if call.timed_ns == 0 { 0 } else { now() };
    if !OUTSIDE && call.foreseen != 0 {
        foresee::check(control, call.foreseen == pointer);
    }
    let held = held_bytes::<false>(call, pointer, call.size);
    record::<OUTSIDE>(process, task, call, (pointer, held), born_ns);
    if start != 0 {
        timed(call.timed_ns + now().wrapping_sub(start));
    }
}

/// Notes what recording one took.
#[inline(always)]
fn timed(ns: u64) {
    count(Counter::RecordTimed);
    count_many(Counter::RecordNs, ns);
}

/// The chunk that a call returns, unless it has failed.
#[inline(always)]
fn new_chunk<const OUTSIDE: bool>(call: &Pending, regs: &pt_regs) -> Option<u64> {
    if OUTSIDE && Site::role_of(call.cookie) == Role::AllocInto as u64 {
        return if regs.rax == 0 { read::word(call.pointer) } else { None };
    }
    returned_pointer::<OUTSIDE>(regs)
}

/// One chunk goes.
#[inline(always)]
pub(crate) fn free_enter<const OUTSIDE: bool>(ctx: &ProbeContext) {
    let Some((cookie, _, process)) = entered::<false, OUTSIDE>(ctx) else { return };
    // SAFETY: the registers are the program's own context.
    let regs = unsafe { &*ctx.regs };
    let pointer = read::argument(regs, cookie, ArgField::Pointer);
    let chunk = key(process::number(process), pointer);
    let task = task::current();
    let sets = task.filter(|_| !OUTSIDE && foresee::concerns(cookie));
    if let Some(task) = sets {
        foresee::unsettle(task);
    }
    if let Some(task) = task
        && let Some(outer) = task::innermost_realloc(task, read::sp(regs))
        // SAFETY: a map value that only this task uses.
        && unsafe { (*outer).pointer } == pointer
    {
        count(Counter::NestedInRealloc);
        return;
    }
    let Some(record) = find::<OUTSIDE>(chunk) else {
        count_own(task, Counter::FreeUnknown, 1);
        return;
    };
    // SAFETY: a map value; copied because its slot is used again as soon as it is removed.
    let live = unsafe { *record };
    if OUTSIDE && Site::pool_of(cookie) == Pool::Mmap as u64 {
        // munmap may take a part only.
        let length = rounded(ChunkHeader::Pages as u64, read::argument(regs, cookie, ArgField::Size));
        if length < live.full_held {
            unmap_head(
                task,
                (chunk, record),
                key(process::number(process), pointer.wrapping_add(length)),
                &live,
                length,
            );
            return;
        }
    }
    if free::<OUTSIDE>(task, (chunk, record), &live)
        && let Some(task) = sets
    {
        foresee::settle_freed(task, live.context, cookie, (pointer, live.full_held));
    }
}

/// A chunk is no more; whether it was alive until then.
#[inline(always)]
pub(crate) fn free<const OUTSIDE: bool>(
    task: Option<*mut Task>,
    (chunk, record): (ChunkKey, *mut Live),
    live: &Live,
) -> bool {
    let alive = context::is_alive_to(task, live);
    if live.has_parts != 0 {
        free_parts(chunk, alive);
    }
    end::<OUTSIDE>(chunk, record);
    if !alive {
        count_own(task, Counter::FreeDead, 1);
    } else {
        count_own(task, Counter::Freed, 1);
        add_freed(live.stack, live.sampled, 1, live.requested, live.held);
    }
    alive
}

/// A mapping begins later than before. What is cut off at its other end is not noticed.
#[inline(always)]
fn unmap_head(
    task: Option<*mut Task>,
    (chunk, record): (ChunkKey, *mut Live),
    left: ChunkKey,
    live: &Live,
    length: u64,
) {
    let mut rest = *live;
    let gone = (rest.requested.min(length), rest.held.min(length));
    rest.requested -= gone.0;
    rest.held -= gone.1;
    rest.full_requested = rest.full_requested.saturating_sub(length);
    rest.full_held -= length;
    add_freed(rest.stack, rest.sampled, 0, gone.0, gone.1);
    end::<true>(chunk, record);
    put::<true>(task, left, &rest);
}
