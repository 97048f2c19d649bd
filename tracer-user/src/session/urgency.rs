//! The priority of the thread that a process of the server may wait for.

/// Lets this thread run before all ordinary ones; without the privilege, with what there is. A waiting process
/// holds its processor, so on a busy host it would otherwise take until the next timer tick.
pub(super) fn hurry() {
    // SAFETY: calls without pointers; a thread has a priority of its own.
    unsafe {
        if !set(libc::SCHED_FIFO, 1) {
            libc::setpriority(libc::PRIO_PROCESS, libc::gettid().unsigned_abs(), -10);
        }
    }
}

/// Does something long as an ordinary thread.
pub(super) fn unhurried<R>(work: impl FnOnce() -> R) -> R {
    // SAFETY: a call without pointers.
    let hurries = unsafe { libc::sched_getscheduler(0) } & !libc::SCHED_RESET_ON_FORK == libc::SCHED_FIFO;
    if !hurries {
        return work();
    }
    set(libc::SCHED_OTHER, 0);
    let result = work();
    set(libc::SCHED_FIFO, 1);
    result
}

fn set(policy: libc::c_int, priority: libc::c_int) -> bool {
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: a valid buffer. Threads that this one starts are ordinary.
    unsafe { libc::sched_setscheduler(0, policy | libc::SCHED_RESET_ON_FORK, &raw const parameters) == 0 }
}
