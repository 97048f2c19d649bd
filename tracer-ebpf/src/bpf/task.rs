//! Calls that a task has open, and its scratch memory.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use tracer_ebpf::{
    abi::{Control, MAX_PENDING, Pending, Task},
    counters::Counter,
    lookup::opaque,
};

use crate::bpf::maps::{TASK_TEMPLATE, TASKS, count};

const LAST_PENDING: u64 = MAX_PENDING as u64 - 1;

/// The scratch of the current task, if it has made a call that was followed.
#[inline(always)]
pub(crate) fn current() -> Option<*mut Task> {
    TASKS.get_ptr_mut(bpf_get_current_pid_tgid() as u32)
}

/// The scratch of the current task; made if there is none.
#[inline(always)]
pub(crate) fn current_or_new(control: *mut Control) -> Option<*mut Task> {
    let id = bpf_get_current_pid_tgid();
    let tid = id as u32;
    if let Some(task) = TASKS.get_ptr_mut(tid) {
        return Some(task);
    }
    // The exit and exec programs run for every process of the host and have to know ours.
    // SAFETY: a map value; an aligned word.
    unsafe { core::ptr::write_volatile(&raw mut (*control).tgid, (id >> 32) as u32) };
    let template = TASK_TEMPLATE.get(0)?;
    if TASKS.insert(tid, template, 0).is_err() {
        count(Counter::TasksFull);
        return None;
    }
    TASKS.get_ptr_mut(tid)
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

/// The innermost open call, if there is one that `sp` is inside of.
#[inline(always)]
pub(crate) fn innermost(task: *mut Task, sp: u64) -> Option<*mut Pending> {
    // SAFETY: a map value that only this task uses.
    let depth = unsafe { (*task).depth };
    if depth == 0 {
        return None;
    }
    let top = at(task, depth - 1);
    // SAFETY: as above.
    (unsafe { (*top).sp } > sp).then_some(top)
}

/// Notes a call that begins.
#[inline(always)]
pub(crate) fn push(task: *mut Task, depth: u32, call: Pending) {
    if depth as usize >= MAX_PENDING {
        count(Counter::NestedTooDeep);
        return;
    }
    // SAFETY: a map value that only this task uses; the index is masked.
    unsafe {
        *at(task, depth) = call;
        (*task).depth = depth + 1;
    }
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
