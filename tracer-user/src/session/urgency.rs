//! The priority of the thread that a process of the server may wait for.

/// Some of the processors that this process may use.
pub(super) fn some_processors(most: usize) -> Vec<usize> {
    // SAFETY: a plain set of bits; a valid buffer.
    let allowed = unsafe {
        let mut allowed: libc::cpu_set_t = std::mem::zeroed();
        libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut allowed);
        allowed
    };
    // SAFETY: the index is below the size of the set.
    let is_allowed = |processor: &usize| unsafe { libc::CPU_ISSET(*processor, &allowed) };
    let mut processors: Vec<usize> = (0..8 * size_of::<libc::cpu_set_t>()).filter(is_allowed).collect();
    // Far apart: neighbours are often one core.
    let step = processors.len().div_ceil(most).max(1);
    processors = processors.into_iter().step_by(step).collect();
    processors
}

/// Lets this thread run on one processor, before all ordinary ones; without the privilege, with what there is.
pub(super) fn hurry(processor: usize) {
    // SAFETY: a plain set of bits; a valid buffer, and an index that came from one.
    unsafe {
        let mut only: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(processor, &mut only);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const only);
    }
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
