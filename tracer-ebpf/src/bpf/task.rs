//! Calls that a task has open, and its scratch memory.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use tracer_ebpf::{
    abi::{MAX_PENDING, Pending, Process, Task},
    counters::Counter,
    lookup::opaque,
    site::{Role, Site},
};

use crate::bpf::{
    maps::{TASKS, count, remember_process, set_if_zero, task_mask},
    process,
    read::word_at_hand,
};

const LAST_PENDING: u64 = MAX_PENDING as u64 - 1;

/// Slots that are looked at for a task.
const ATTEMPTS: u32 = 8;

/// The scratch of the task with that id. An array and not a hash map: the first slot that is looked at is
/// nearly always the one, and takes no hash.
#[inline(always)]
fn find(tid: u32) -> Option<*mut Task> {
    for attempt in 0..ATTEMPTS {
        let task = TASKS.get_ptr_mut(tid.wrapping_add(attempt) & task_mask())?;
        // SAFETY: a map value; an aligned word.
        if unsafe { core::ptr::read_volatile(&raw const (*task).owner) } == u64::from(tid) {
            return Some(task);
        }
    }
    None
}

/// The scratch of the current task, if it has made a call that was followed.
#[inline(always)]
pub(crate) fn current() -> Option<*mut Task> {
    find(bpf_get_current_pid_tgid() as u32)
}

/// The scratch of the current task, of that process; a free one if it has none.
#[inline(always)]
pub(crate) fn current_or_new(process: *mut Process) -> Option<*mut Task> {
    let tid = bpf_get_current_pid_tgid() as u32;
    match find(tid) {
        Some(task) => Some(task),
        None => take(tid, process),
    }
}

#[inline(always)]
fn take(tid: u32, process: *mut Process) -> Option<*mut Task> {
    remember_process();
    for attempt in 0..ATTEMPTS {
        let task = TASKS.get_ptr_mut(tid.wrapping_add(attempt) & task_mask())?;
        // SAFETY: a map value; an aligned word. Whoever sets it has the slot for itself.
        unsafe {
            if set_if_zero(&raw mut (*task).owner, u64::from(tid)) {
                (*task).depth = 0;
                (*task).foresights = 0;
                // Never one that was there before: what another task knew is not known.
                (*task).changes = (*task).changes.wrapping_add(1);
                (*task).is_late = 0;
                // What never changes is of one process.
                (*task).trail.len = 0;
                (*task).process = process::index(process);
                return Some(task);
            }
        }
    }
    count(Counter::TasksFull);
    None
}

/// A task ends.
#[inline(always)]
pub(crate) fn end(tid: u32) {
    if let Some(task) = find(tid) {
        // SAFETY: a map value; an aligned word.
        unsafe { core::ptr::write_volatile(&raw mut (*task).owner, 0) };
    }
}

/// The open call with that index.
#[inline(always)]
pub(crate) fn at(task: *mut Task, index: u32) -> *mut Pending {
    // SAFETY: the index is masked to the array's size.
    unsafe { &raw mut (*task).pending[(opaque(u64::from(index)) & LAST_PENDING) as usize] }
}

/// Forgets calls that an error has left: a call that is still open was entered at a higher stack
/// pointer than anything that runs below it, so an open one at or under `sp` is gone.
#[inline(always)]
pub(crate) fn drop_left(task: *mut Task, sp: u64) -> u32 {
    // SAFETY: a map value that only this task uses.
    let mut depth = unsafe { (*task).depth };
    // Every open call may have been left: MAX_PENDING rounds.
    for _ in 0..MAX_PENDING {
        // SAFETY: as above.
        if depth == 0 || unsafe { (*at(task, depth - 1)).sp } > sp {
            break;
        }
        count(Counter::LeftByError);
        depth -= 1;
    }
    // SAFETY: as above.
    unsafe { (*task).depth = depth };
    depth
}

/// The innermost open call that `sp` is inside of. One that an error has left, and whose frame is
/// higher than what runs now, is told by its return address: while a call is open, the return
/// probe's own address stands in its place.
#[inline(always)]
pub(crate) fn innermost(task: *mut Task, sp: u64) -> Option<*mut Pending> {
    // SAFETY: a map value that only this task uses.
    let depth = unsafe { (*task).depth };
    if depth == 0 {
        return None;
    }
    let top = at(task, depth - 1);
    // SAFETY: as above.
    let call = unsafe { &*top };
    if call.sp <= sp {
        return None;
    }
    if is_open(task, call) {
        return Some(top);
    }
    count(Counter::LeftByError);
    // SAFETY: as above.
    unsafe { (*task).depth = depth - 1 };
    None
}

/// The innermost open call, if it resizes a chunk.
#[inline(always)]
pub(crate) fn innermost_realloc(task: *mut Task, sp: u64) -> Option<*mut Pending> {
    // SAFETY: a map value that only this task uses.
    let depth = unsafe { (*task).depth };
    // Looked at first: the return address of most calls need not be read.
    if depth == 0
        // SAFETY: as above.
        || Site::role_of(unsafe { (*at(task, depth - 1)).cookie }) != Role::Realloc as u64
    {
        return None;
    }
    innermost(task, sp)
}

/// Whether the return probe of a call is still to be hit.
#[inline(always)]
fn is_open(task: *mut Task, call: &Pending) -> bool {
    let Some(word) = word_at_hand(call.sp) else { return true };
    let Some(process) = process::of(task) else { return true };
    // SAFETY: a map value; aligned words.
    let (start, end) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*process).trampoline_start),
            core::ptr::read_volatile(&raw const (*process).trampoline_end),
        )
    };
    if end == 0 { word != call.return_address } else { word >= start && word < end }
}

/// The place of a call that begins inside of those that are open. It is open once [`push`] was called.
#[inline(always)]
pub(crate) fn next<'a>(task: *mut Task) -> Option<&'a mut Pending> {
    // SAFETY: a map value that only this task uses.
    let depth = unsafe { (*task).depth };
    if depth as usize >= MAX_PENDING {
        count(Counter::NestedTooDeep);
        return None;
    }
    // SAFETY: as above; nobody else has a reference to what is not open.
    Some(unsafe { &mut *at(task, depth) })
}

/// The call in the place that [`next`] gave is open.
#[inline(always)]
pub(crate) fn push(task: *mut Task) {
    // SAFETY: a map value that only this task uses.
    unsafe { (*task).depth += 1 };
}

/// Takes the call that returns with stack pointer `sp_after` off, and what an error has left
/// inside of it.
#[inline(always)]
pub(crate) fn pop(task: *mut Task, sp_after: u64) -> Option<*mut Pending> {
    // The return has taken the return address off the stack.
    let sp = sp_after.wrapping_sub(8);
    let depth = drop_left(task, sp.wrapping_sub(8));
    if depth == 0 {
        return None;
    }
    let top = at(task, depth - 1);
    // SAFETY: a map value that only this task uses.
    unsafe {
        if (*top).sp != sp {
            return None;
        }
        (*task).depth = depth - 1;
    }
    Some(top)
}
