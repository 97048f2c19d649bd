//! Which process runs, whether it is one of those that are traced, and its end.
//!
//! A capture of one process has probes that only that process hits. In a capture of several, every
//! process that runs the same program hits them: those that are traced are in `PROCESS_IDS`. A process
//! that is not in there yet is asked who its parent is: what its postmaster had in its memory when it
//! forked is in its memory too, at the same address.

use aya_ebpf::{
    bindings::bpf_pidns_info,
    helpers::{
        bpf_get_current_pid_tgid, bpf_ktime_get_ns,
        generated::{bpf_get_ns_current_pid_tgid, bpf_probe_read_user_str},
    },
};
use tracer_ebpf::{
    abi::{MAX_FAMILIES, MAX_PROCESSES, PROCESS_SLOTS, Phase, Process, ProcessState, TITLE_BYTES, Task},
    counters::Counter,
};

use crate::bpf::{
    maps::{PROCESS_IDS, PROCESSES, add, are_several, control, count, next_process, phase, pid_namespace},
    read, task,
};

/// In `PROCESS_IDS`, the index of what is none of ours.
const FOREIGN: u32 = u32::MAX;
/// Slots that are tried for a new process.
const ATTEMPTS: u32 = 8;

/// The process that runs, if it is traced. `ADOPTS`: one that was never seen is looked at, which only
/// programs can that may sleep.
#[inline(always)]
pub(crate) fn current<const ADOPTS: bool>() -> Option<*mut Process> {
    if !are_several() {
        return PROCESSES.get_ptr_mut(0);
    }
    let tgid = tgid()?;
    let index = match PROCESS_IDS.get_ptr(&tgid) {
        // SAFETY: a map value, written once.
        Some(index) => unsafe { *index },
        None if ADOPTS => adopt(tgid),
        None => return None,
    };
    let process = PROCESSES.get_ptr_mut(index)?;
    // SAFETY: a map value; one aligned word, that user space may write at any time.
    let state = unsafe { core::ptr::read_volatile(&raw const (*process).state) };
    (state == ProcessState::New as u32 || state == ProcessState::Followed as u32).then_some(process)
}

/// The process of a task.
#[inline(always)]
pub(crate) fn of(task: *mut Task) -> Option<*mut Process> {
    // SAFETY: a map value that only this task uses.
    PROCESSES.get_ptr_mut(unsafe { (*task).process })
}

/// The number of a process, which is part of every key.
#[inline(always)]
pub(crate) fn number(process: *mut Process) -> u32 {
    // The verifier and the processor have less to do for one.
    // SAFETY: a map value, written once.
    if are_several() { unsafe { (*process).number } } else { 0 }
}

/// The index of a process in `PROCESSES`.
#[inline(always)]
pub(crate) fn index(process: *mut Process) -> u32 {
    number(process) & (PROCESS_SLOTS - 1)
}

/// The pid of the process that runs, as user space sees it; `None` in a namespace of pids where it sees
/// none.
#[inline(always)]
fn tgid() -> Option<u32> {
    let (device, inode) = pid_namespace();
    if inode == 0 {
        return Some((bpf_get_current_pid_tgid() >> 32) as u32);
    }
    let mut seen = bpf_pidns_info { pid: 0, tgid: 0 };
    // SAFETY: room for what the helper writes (Linux 5.7).
    let failed = unsafe {
        bpf_get_ns_current_pid_tgid(device, inode, &raw mut seen, size_of::<bpf_pidns_info>() as u32)
    };
    (failed == 0).then_some(seen.tgid)
}

/// The index of a process that was never seen, or [`FOREIGN`]: a new one if a server that is traced has
/// forked it.
#[inline(never)]
fn adopt(tgid: u32) -> u32 {
    let Some(control) = control() else { return FOREIGN };
    let (mut mapset, mut title_address) = (0, 0);
    for at in 0..MAX_FAMILIES {
        // SAFETY: a map value, written before the programs are switched on, but for the set of mappings.
        let family = unsafe { core::ptr::read_volatile(&raw const (*control).families[at]) };
        if family.address == 0 {
            break;
        }
        if read::word(family.address) == Some(family.value) {
            (mapset, title_address) = (family.mapset as u32, family.title_address);
            break;
        }
    }
    let mut index = FOREIGN;
    if mapset != 0 {
        index = take_slot(tgid, mapset, title_address);
    }
    if PROCESS_IDS.insert(&tgid, &index, 0).is_err() {
        count(Counter::ProcessesFull);
    }
    index
}

/// Finds room for a new process. Numbers are never used twice, so two that are looked for at once are at
/// different slots.
#[inline(always)]
fn take_slot(tgid: u32, mapset: u32, title_address: u64) -> u32 {
    let Some(control) = control() else { return FOREIGN };
    for _ in 0..ATTEMPTS {
        let number = next_process(control);
        if number >= MAX_PROCESSES {
            break;
        }
        let index = number as u32 & (PROCESS_SLOTS - 1);
        let Some(process) = PROCESSES.get_ptr_mut(index) else { break };
        // SAFETY: a map value. User space frees a slot, and takes none.
        unsafe {
            if core::ptr::read_volatile(&raw const (*process).state) != ProcessState::Free as u32 {
                continue;
            }
            *process = Process {
                state: ProcessState::Free as u32,
                tgid,
                number: number as u32,
                mapset,
                loads: 0,
                loads_known: 0,
                trampoline_start: 0,
                trampoline_end: 0,
                born_ns: bpf_ktime_get_ns(),
                ended_ns: 0,
                recorded: 0,
                recorded_bytes: 0,
                doomed_next: 0,
                doomed_end: 0,
                title_address,
                title: [0; TITLE_BYTES],
            };
            core::ptr::write_volatile(&raw mut (*process).state, ProcessState::New as u32);
        }
        count(Counter::Births);
        return index;
    }
    count(Counter::ProcessesFull);
    FOREIGN
}

/// Counts what a process has allocated, and copies the title of a new one now and then.
#[inline(always)]
pub(crate) fn note_recorded(process: *mut Process, bytes: u64) {
    /// Of so many allocations, one. A power of two.
    const EVERY: u64 = 16;
    // SAFETY: a map value; aligned words. A title has room for what is written, and user space takes it for
    // whole only when the process has ended.
    unsafe {
        add(&raw mut (*process).recorded, 1);
        add(&raw mut (*process).recorded_bytes, bytes);
        let address = (*process).title_address;
        if core::ptr::read_volatile(&raw const (*process).state) == ProcessState::New as u32
            && address != 0
            && (*process).recorded & (EVERY - 1) == 1
        {
            bpf_probe_read_user_str(
                (&raw mut (*process).title).cast(),
                TITLE_BYTES as u32,
                address as *const _,
            );
        }
    }
}

/// A thread ends, and with its leader the process: nothing that it holds now is a leak, and nothing more may
/// be counted.
#[inline(always)]
pub(crate) fn exit() {
    let id = bpf_get_current_pid_tgid();
    // Only the thread group's leader: other threads come and go.
    if id as u32 == (id >> 32) as u32 {
        end(ProcessState::Ended, Phase::Exited);
    }
    task::end(id as u32);
}

/// The process becomes another program, whose addresses mean something else.
#[inline(always)]
pub(crate) fn exec() {
    end(ProcessState::Replaced, Phase::Replaced);
}

/// These programs run for every process of the host.
#[inline(always)]
fn end(state: ProcessState, phase_of_one: Phase) {
    if are_several() {
        end_of_several(state);
        return;
    }
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let (Some(control), Some(process)) = (control(), PROCESSES.get_ptr_mut(0)) else { return };
    // SAFETY: map values; aligned words.
    unsafe {
        if core::ptr::read_volatile(&raw const (*process).tgid) == tgid {
            core::ptr::write_volatile(&raw mut (*control).phase, phase_of_one as u32);
        }
    }
}

#[inline(always)]
fn end_of_several(state: ProcessState) {
    let Some(tgid) = tgid() else { return };
    let Some(index) = PROCESS_IDS.get_ptr(&tgid) else { return };
    // SAFETY: a map value; copied because its slot is used again as soon as it is removed.
    let index = unsafe { *index };
    let _ = PROCESS_IDS.remove(&tgid);
    let Some(process) = PROCESSES.get_ptr_mut(index) else { return };
    if phase().is_some() {
        count(Counter::Ends);
    }
    // SAFETY: a map value; aligned words.
    unsafe {
        core::ptr::write_volatile(&raw mut (*process).ended_ns, bpf_ktime_get_ns());
        core::ptr::write_volatile(&raw mut (*process).state, state as u32);
    }
}
