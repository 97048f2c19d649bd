//! The control record, shared word by word with the running programs.

use std::{
    io,
    os::fd::BorrowedFd,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use memmap2::{MmapOptions, MmapRaw};
use tracer_ebpf::abi::{Control, Family, NAME_BYTES, Phase};

use super::MapError;

/// The `CONTROL` map in this process's memory.
#[derive(Debug)]
pub struct ControlPage {
    page: MmapRaw,
}

impl ControlPage {
    pub(super) fn map(fd: BorrowedFd<'_>) -> Result<Self, MapError> {
        use std::os::fd::AsRawFd as _;
        MmapOptions::new()
            .len(size_of::<Control>())
            .map_raw(fd.as_raw_fd())
            .map(|page| Self { page })
            .map_err(|source: io::Error| MapError { map: "CONTROL", operation: "map", source })
    }

    fn record(&self) -> *mut Control {
        self.page.as_mut_ptr().cast()
    }

    fn word32(&self, field: impl FnOnce(*mut Control) -> *mut u32) -> &AtomicU32 {
        // SAFETY: a word of the mapped record, aligned by its layout; the kernel's accesses to it
        // are single loads and stores.
        unsafe { AtomicU32::from_ptr(field(self.record())) }
    }

    fn word64(&self, field: impl FnOnce(*mut Control) -> *mut u64) -> &AtomicU64 {
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(field(self.record())) }
    }

    /// The values to begin with: epoch 0 and stack 0 mean none, process 0 is the one of a capture of one.
    pub(super) fn start(&self) {
        // SAFETY: address computations inside of the record.
        unsafe {
            self.word64(|record| &raw mut (*record).next_process).store(1, Ordering::Relaxed);
            self.word64(|record| &raw mut (*record).next_epoch).store(1, Ordering::Relaxed);
            self.word64(|record| &raw mut (*record).next_stack).store(1, Ordering::Relaxed);
            self.word64(|record| &raw mut (*record).foresees).store(1, Ordering::Relaxed);
        }
    }

    /// Has only allocations in contexts of this name recorded. Before the programs are switched on.
    pub fn record_only(&self, name: &str) {
        let mut bytes = [0; NAME_BYTES];
        // The programs cut names, too, and keep the NUL.
        let length = name.len().min(NAME_BYTES - 1);
        bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
        for (index, word) in bytes.chunks_exact(8).enumerate() {
            let word = word.try_into().map_or(0, u64::from_le_bytes);
            // SAFETY: an address computation inside of the record.
            self.word64(|record| unsafe { (&raw mut (*record).only).cast::<u64>().add(index) })
                .store(word, Ordering::Release);
        }
    }

    /// Has tasks forget what they know of contexts.
    pub(super) fn forget_contexts(&self) {
        // SAFETY: an address computation inside of the record.
        self.word64(|record| unsafe { &raw mut (*record).forgets }).fetch_add(1, Ordering::AcqRel);
    }

    /// A number for a process that none has had.
    pub(super) fn next_process(&self) -> u64 {
        // SAFETY: an address computation inside of the record.
        self.word64(|record| unsafe { &raw mut (*record).next_process }).fetch_add(1, Ordering::AcqRel)
    }

    /// Has new processes of a server followed: those that have `family.value` at `family.address`.
    pub(super) fn set_family(&self, index: usize, family: Family) {
        // SAFETY: an address computation inside of the record; the address is written last.
        unsafe {
            let at = |record: *mut Control| (&raw mut (*record).families).cast::<Family>().add(index);
            self.word64(|record| &raw mut (*at(record)).value).store(family.value, Ordering::Relaxed);
            self.word64(|record| &raw mut (*at(record)).mapset).store(family.mapset, Ordering::Relaxed);
            self.word64(|record| &raw mut (*at(record)).title_address)
                .store(family.title_address, Ordering::Relaxed);
            self.word64(|record| &raw mut (*at(record)).address).store(family.address, Ordering::Release);
        }
    }

    /// What the programs do now; `None` for a code that is none.
    pub fn phase(&self) -> Option<Phase> {
        // SAFETY: an address computation.
        let code = self.word32(|record| unsafe { &raw mut (*record).phase }).load(Ordering::Acquire);
        [Phase::Off, Phase::Count, Phase::Record, Phase::Settle, Phase::Exited, Phase::Replaced]
            .into_iter()
            .find(|phase| *phase as u32 == code)
    }

    /// Goes to the next phase, unless the process has ended meanwhile; returns whether it did.
    pub fn advance(&self, from: Phase, to: Phase) -> bool {
        // SAFETY: an address computation.
        self.word32(|record| unsafe { &raw mut (*record).phase })
            .compare_exchange(from as u32, to as u32, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// Lets the programs go on until `deadline_ns` of `CLOCK_MONOTONIC`.
    pub fn allow_until(&self, deadline_ns: u64) {
        // SAFETY: an address computation.
        self.word64(|record| unsafe { &raw mut (*record).deadline_ns }).store(deadline_ns, Ordering::Release);
    }

    /// The number that the next context, or reset of one, will have.
    pub fn next_epoch(&self) -> u64 {
        // SAFETY: an address computation.
        self.word64(|record| unsafe { &raw mut (*record).next_epoch }).load(Ordering::Acquire)
    }

    /// The id that the next new stack will have: all that were seen have smaller ones.
    pub(super) fn next_stack(&self) -> u64 {
        // SAFETY: an address computation.
        self.word64(|record| unsafe { &raw mut (*record).next_stack }).load(Ordering::Acquire)
    }

    /// Has every chunk that is foreseen awaited, and compared with what is returned.
    pub fn check_all_foresight(&self) {
        // SAFETY: an address computation.
        self.word64(|record| unsafe { &raw mut (*record).foresees }).store(2, Ordering::Release);
    }

    /// Whether every walk starts anew, without what is remembered of the last one.
    pub fn walk_anew(&self, anew: bool) {
        // SAFETY: an address computation.
        self.word32(|record| unsafe { &raw mut (*record).walk_anew }).store(anew.into(), Ordering::Release);
    }

    /// How many entries the map of live chunks has, those of chunks that are dead included.
    pub fn entries(&self) -> u64 {
        // SAFETY: an address computation.
        self.word64(|record| unsafe { &raw mut (*record).entries }).load(Ordering::Relaxed)
    }

    /// Notes that so many were removed from here.
    pub(super) fn removed(&self, entries: u64) {
        // SAFETY: an address computation.
        self.word64(|record| unsafe { &raw mut (*record).entries }).fetch_sub(entries, Ordering::Relaxed);
    }

    /// Has the programs keep what chunks that are freed leave as long as there are fewer entries.
    pub(super) fn keep_below(&self, entries: u64) {
        // SAFETY: an address computation.
        self.word64(|record| unsafe { &raw mut (*record).entries_kept }).store(entries, Ordering::Relaxed);
    }
}
