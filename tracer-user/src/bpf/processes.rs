//! The processes that the programs have seen, shared word by word with them.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use memmap2::{MmapOptions, MmapRaw};
use tracer_ebpf::abi::{Process, ProcessState, TITLE_BYTES};

use super::MapError;

/// The `PROCESSES` map in this process's memory. A process has the slot that its number says.
#[derive(Debug)]
pub struct ProcessTable {
    page: MmapRaw,
    slots: u32,
}

/// What the programs know of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenProcess {
    /// Its number in this capture.
    pub number: u32,
    /// Its pid.
    pub pid: u32,
    /// Whether it is followed, or has ended.
    pub state: ProcessState,
    /// The set of mappings that its walks use.
    pub mapset: u32,
    /// How often the dynamic loader has said that it has loaded something.
    pub loads: u32,
    /// Up to which of these its mappings are known.
    pub loads_known: u32,
    /// `CLOCK_MONOTONIC` when a new one was first seen.
    pub born_ns: u64,
    /// `CLOCK_MONOTONIC` of its end.
    pub ended_ns: u64,
    /// Allocations that were recorded; not counted in a capture of one process.
    pub recorded: u64,
    /// Bytes asked for by these.
    pub recorded_bytes: u64,
    /// The title of one that was born meanwhile, cut, as it was when the programs last looked.
    pub title: String,
}

impl SeenProcess {
    /// Whether its allocations are recorded.
    pub fn is_followed(&self) -> bool {
        matches!(self.state, ProcessState::New | ProcessState::Followed)
    }
}

const STATES: [ProcessState; 6] = [
    ProcessState::Free,
    ProcessState::New,
    ProcessState::Followed,
    ProcessState::LeftOut,
    ProcessState::Ended,
    ProcessState::Replaced,
];

impl ProcessTable {
    pub(super) fn map(fd: BorrowedFd<'_>, slots: u32) -> Result<Self, MapError> {
        MmapOptions::new()
            .len(slots as usize * size_of::<Process>())
            .map_raw(fd.as_raw_fd())
            .map(|page| Self { page, slots })
            .map_err(|source: io::Error| MapError { map: "PROCESSES", operation: "map", source })
    }

    fn record(&self, number: u32) -> *mut Process {
        // SAFETY: the index is below the number of slots, which is the length of the mapping.
        unsafe { self.page.as_mut_ptr().cast::<Process>().add((number % self.slots) as usize) }
    }

    fn word32(&self, number: u32, field: impl FnOnce(*mut Process) -> *mut u32) -> &AtomicU32 {
        // SAFETY: a word of a mapped record, aligned by its layout; the kernel's accesses to it are
        // single loads and stores.
        unsafe { AtomicU32::from_ptr(field(self.record(number))) }
    }

    fn word64(&self, number: u32, field: impl FnOnce(*mut Process) -> *mut u64) -> &AtomicU64 {
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(field(self.record(number))) }
    }

    /// Follows a process from now on.
    pub(super) fn follow(&self, number: u32, pid: u32, mapset: u32) {
        // SAFETY: address computations inside of the record.
        unsafe {
            self.word32(number, |record| &raw mut (*record).tgid).store(pid, Ordering::Relaxed);
            self.word32(number, |record| &raw mut (*record).number).store(number, Ordering::Relaxed);
            self.word32(number, |record| &raw mut (*record).mapset).store(mapset, Ordering::Relaxed);
        }
        self.state(number).store(ProcessState::Followed as u32, Ordering::Release);
    }

    fn state(&self, number: u32) -> &AtomicU32 {
        // SAFETY: an address computation.
        self.word32(number, |record| unsafe { &raw mut (*record).state })
    }

    /// Goes from one state to another, unless the programs have said something else meanwhile; returns
    /// whether it did.
    pub fn advance(&self, number: u32, from: ProcessState, to: ProcessState) -> bool {
        self.state(number)
            .compare_exchange(from as u32, to as u32, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// Has the walks of a process use a set of mappings.
    pub fn use_mapset(&self, number: u32, mapset: u32) {
        // SAFETY: an address computation.
        self.word32(number, |record| unsafe { &raw mut (*record).mapset }).store(mapset, Ordering::Release);
    }

    /// What was loaded until then is known: the process waits for it.
    pub fn loads_are_known(&self, number: u32, loads: u32) {
        // SAFETY: an address computation.
        self.word32(number, |record| unsafe { &raw mut (*record).loads_known })
            .store(loads, Ordering::Release);
    }

    /// Tells where the kernel has its return probes return to in a process.
    pub fn set_trampoline(&self, number: u32, start: u64, end: u64) {
        // SAFETY: address computations.
        unsafe {
            self.word64(number, |record| &raw mut (*record).trampoline_start).store(start, Ordering::Release);
            self.word64(number, |record| &raw mut (*record).trampoline_end).store(end, Ordering::Release);
        }
    }

    /// Tells a process where its keys are among the dead that were found: from `next` to `end`, which is not one of them.
    pub(super) fn set_doomed(&self, number: u32, next: u32, end: u32) {
        // SAFETY: address computations inside of the record.
        unsafe {
            // First that there are none: what the program reads in between is never more than there are.
            self.word32(number, |record| &raw mut (*record).doomed_end).store(0, Ordering::Release);
            self.word32(number, |record| &raw mut (*record).doomed_next).store(next, Ordering::Release);
            self.word32(number, |record| &raw mut (*record).doomed_end).store(end, Ordering::Release);
        }
    }

    /// A process, if its slot is in use.
    pub fn seen(&self, number: u32) -> Option<SeenProcess> {
        let state = self.state(number).load(Ordering::Acquire);
        let state = STATES.into_iter().find(|known| *known as u32 == state)?;
        if state == ProcessState::Free {
            return None;
        }
        // SAFETY: address computations.
        let seen = unsafe {
            let word =
                |field: fn(*mut Process) -> *mut u32| self.word32(number, field).load(Ordering::Acquire);
            let long =
                |field: fn(*mut Process) -> *mut u64| self.word64(number, field).load(Ordering::Acquire);
            SeenProcess {
                number: word(|record| &raw mut (*record).number),
                pid: word(|record| &raw mut (*record).tgid),
                state,
                mapset: word(|record| &raw mut (*record).mapset),
                loads: word(|record| &raw mut (*record).loads),
                loads_known: word(|record| &raw mut (*record).loads_known),
                born_ns: long(|record| &raw mut (*record).born_ns),
                ended_ns: long(|record| &raw mut (*record).ended_ns),
                recorded: long(|record| &raw mut (*record).recorded),
                recorded_bytes: long(|record| &raw mut (*record).recorded_bytes),
                title: self.title(number),
            }
        };
        Some(seen)
    }

    fn title(&self, number: u32) -> String {
        let mut bytes = [0_u8; TITLE_BYTES];
        for (index, byte) in bytes.iter_mut().enumerate() {
            // SAFETY: a byte of the mapped record, which the kernel may be writing; any value is one.
            *byte =
                unsafe { (&raw const (*self.record(number)).title).cast::<u8>().add(index).read_volatile() };
        }
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    }

    /// Every process whose slot is in use.
    pub fn all(&self) -> impl Iterator<Item = SeenProcess> {
        (0..self.slots).filter_map(|slot| self.seen(slot))
    }
}
