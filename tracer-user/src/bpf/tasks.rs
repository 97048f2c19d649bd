//! Slots of tasks, shared with the running programs: what each task has counted for itself.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    sync::atomic::{AtomicU64, Ordering},
};

use memmap2::{MmapOptions, MmapRaw};
use tracer_ebpf::{abi::Task, counters::OWN};

use super::MapError;

/// The `TASKS` map in this process's memory.
#[derive(Debug)]
pub(super) struct TaskTable {
    page: MmapRaw,
    slots: u32,
}

impl TaskTable {
    pub(super) fn map(fd: BorrowedFd<'_>, slots: u32) -> Result<Self, MapError> {
        MmapOptions::new()
            .len(slots as usize * size_of::<Task>())
            .map_raw(fd.as_raw_fd())
            .map(|page| Self { page, slots })
            .map_err(|source: io::Error| MapError { map: "TASKS", operation: "map", source })
    }

    fn words(&self, field: impl Fn(*mut Task) -> *mut u64) -> impl Iterator<Item = &AtomicU64> {
        (0..self.slots as usize).map(move |slot| {
            // SAFETY: the slot is inside of the mapping. A word of a mapped record, aligned by its layout; the
            // kernel's accesses to it are single loads and stores.
            unsafe { AtomicU64::from_ptr(field(self.page.as_mut_ptr().cast::<Task>().add(slot))) }
        })
    }

    /// What all tasks have counted for themselves, in the order of [`OWN`].
    pub(super) fn own_counts(&self) -> [u64; OWN.len()] {
        std::array::from_fn(|index| {
            // SAFETY: an address computation inside of the record.
            let words = self.words(|task| unsafe { (&raw mut (*task).own_counts).cast::<u64>().add(index) });
            words.map(|word| word.load(Ordering::Relaxed)).sum()
        })
    }

    /// Frees every slot, and with it the calls that were left open. Nothing may be attached.
    pub(super) fn free_all(&self) {
        // SAFETY: an address computation inside of the record.
        self.words(|task| unsafe { &raw mut (*task).owner })
            .for_each(|word| word.store(0, Ordering::Relaxed));
    }
}
