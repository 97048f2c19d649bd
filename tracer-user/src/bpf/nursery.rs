//! The nursery, shared with the running programs: records of chunks that were allocated of late.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use memmap2::{MmapOptions, MmapRaw};
use tracer_ebpf::abi::{Live, NURSERY_SLOTS, Young};

use super::MapError;

/// How often a record that changes while it is read is read again.
const ATTEMPTS: usize = 16;

/// The `NURSERY` map in this process's memory.
#[derive(Debug)]
pub(super) struct Nursery(MmapRaw);

impl Nursery {
    pub(super) fn map(fd: BorrowedFd<'_>) -> Result<Self, MapError> {
        MmapOptions::new()
            .len(NURSERY_SLOTS as usize * size_of::<Young>())
            .map_raw(fd.as_raw_fd())
            .map(Self)
            .map_err(|source: io::Error| MapError { map: "NURSERY", operation: "map", source })
    }

    fn places(&self) -> impl Iterator<Item = *mut Young> {
        // SAFETY: the place is inside of the mapping.
        (0..NURSERY_SLOTS as usize).map(|slot| unsafe { self.0.as_mut_ptr().cast::<Young>().add(slot) })
    }

    /// Records that are not those of chunks that were freed, with their keys.
    pub(super) fn records(&self) -> Vec<(u64, Live)> {
        self.places().filter_map(read).map(|young| (young.key, young.live)).collect()
    }

    /// Forgets all chunks. Nothing may be attached.
    pub(super) fn clear(&self) {
        for place in self.places() {
            // SAFETY: inside of the mapping, and aligned; no program runs.
            unsafe { (&raw mut (*place).live.context).write_volatile(Live::FREED) };
        }
    }
}

/// What is in a place, unless nothing is. A program that writes into it marks it as free first, so that two equal looks in
/// turn are one record and not the halves of two.
fn read(place: *mut Young) -> Option<Young> {
    // SAFETY: inside of the mapping, and aligned; any bytes are a record.
    let look = || unsafe { place.read_volatile() };
    let mut young = look();
    for _ in 0..ATTEMPTS {
        let again = look();
        if again == young {
            return (young.key != 0 && young.live.context != Live::FREED).then_some(young);
        }
        young = again;
    }
    // It comes and goes all the time.
    None
}
