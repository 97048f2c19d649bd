//! How large the kernel maps are, from the memory that they may take.

use std::mem::size_of;

use tracer_ebpf::{
    abi::{
        Context, DOOMED_SLOTS, Live, MAPSET_SLOTS, MapSet, NURSERY_SLOTS, Name, PROCESS_SLOTS, Parts,
        Process, ROW_CACHE_SLOTS, StackKey, StackTotals, Task, Young,
    },
    sampling::{DISTANCES, Selection, WEIGHTS},
};

/// Entries of each map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Unwind rows.
    pub rows: u32,
    /// Entries of the row index.
    pub pages: u32,
    /// Live chunks.
    pub live: u32,
    /// Chunks that realloc has grown.
    pub parts: u32,
    /// Memory contexts.
    pub contexts: u32,
    /// Names of contexts.
    pub names: u32,
    /// Different stacks.
    pub stacks: u32,
    /// Tasks.
    pub tasks: u32,
    /// Slots for processes: one, or those of a capture of several.
    pub processes: u32,
    /// Bytes of the ring that carries new stacks.
    pub ring_bytes: u32,
    /// Bytes of the ring that carries samples: a page, since captures take none.
    pub sample_bytes: u32,
    /// Which allocations are recorded, by their size.
    pub selection: Selection,
}

/// What the kernel adds to each preallocated hash element (`struct htab_elem`), and the size of a
/// bucket, of which there are as many as the next power of two (`kernel/bpf/hashtab.c`; equal to
/// `memlock` in the maps' fdinfo on 6.18).
const ELEMENT_BYTES: u64 = 48;
const BUCKET_BYTES: u64 = 16;

/// The least room for live chunks that is worth attaching for.
const LEAST_LIVE: u32 = 1 << 12;

const fn element_bytes(key: usize, value: usize) -> u64 {
    ELEMENT_BYTES + (key as u64).next_multiple_of(8) + (value as u64).next_multiple_of(8)
}

const fn hash_bytes(entries: u32, key: usize, value: usize) -> u64 {
    entries as u64 * element_bytes(key, value) + (entries as u64).next_power_of_two() * BUCKET_BYTES
}

impl Limits {
    /// The largest maps within `budget` bytes, with room for `rows` and `pages` and as much
    /// again for libraries that are loaded later. `None` if the budget is too small, in which
    /// case [`Self::least_bytes`] says what is needed.
    pub fn within(budget: u64, rows: usize, pages: usize) -> Option<Self> {
        Self::least(rows, pages).filled(budget)
    }

    /// The same for a capture of several processes, of which there are `processes` now.
    pub fn within_for_several(budget: u64, rows: usize, pages: usize, processes: usize) -> Option<Self> {
        Self::least_for_several(rows, pages, processes).filled(budget)
    }

    fn filled(self, budget: u64) -> Option<Self> {
        let mut limits = self;
        let rest = budget.checked_sub(limits.bytes())?;
        // Live chunks get most of what is left, contexts and grown chunks a share of it. Rounding
        // up to a power of two makes at most two buckets of each element.
        let scale = |share: u64, value: usize| {
            u32::try_from(rest / 100 * share / (element_bytes(8, value) + 2 * BUCKET_BYTES))
                .unwrap_or(u32::MAX)
        };
        limits.live = limits.live.saturating_add(scale(80, size_of::<Live>()));
        limits.contexts = limits.contexts.saturating_add(scale(10, size_of::<Context>()));
        limits.parts = limits.parts.saturating_add(scale(10, size_of::<Parts>()));
        Some(limits)
    }

    /// The smallest budget that works for these tables.
    pub fn least_bytes(rows: usize, pages: usize) -> u64 {
        Self::least(rows, pages).bytes()
    }

    /// The smallest budget that works for these tables and processes.
    pub fn least_bytes_for_several(rows: usize, pages: usize, processes: usize) -> u64 {
        Self::least_for_several(rows, pages, processes).bytes()
    }

    fn least_for_several(rows: usize, pages: usize, processes: usize) -> Self {
        // As many again may come; a process that ends makes room.
        let tasks = u32::try_from(2 * processes).unwrap_or(u32::MAX).clamp(128, 2048).next_power_of_two();
        Self {
            names: 1 << 14,
            stacks: 1 << 16,
            tasks,
            processes: PROCESS_SLOTS,
            contexts: 1 << 14,
            ..Self::least(rows, pages)
        }
    }

    fn least(rows: usize, pages: usize) -> Self {
        // A third more: an extension that is loaded while tracing brings its libraries.
        let room = |count: usize| u32::try_from(count + count / 3 + 4096).unwrap_or(u32::MAX);
        Self {
            rows: room(rows),
            pages: room(pages),
            live: LEAST_LIVE,
            parts: 512,
            contexts: 4096,
            names: 2048,
            stacks: 1 << 15,
            tasks: 64,
            processes: 1,
            ring_bytes: 4 << 20,
            sample_bytes: 4096,
            selection: Selection::default(),
        }
    }

    /// The most memory of pgleak itself that a capture with full maps takes beside its fixed
    /// part: two snapshots of every live chunk, and the copies made while reading.
    pub fn user_bytes(&self) -> u64 {
        const A_CHUNK: u64 = 170;
        u64::from(self.live) * A_CHUNK
    }

    /// Pids that are known, also of processes that run the same program and are none of those traced.
    pub fn process_ids(&self) -> u32 {
        if self.are_several() { 2 * self.processes } else { 1 }
    }

    /// Entries of the tables that are sampled by.
    pub(super) fn sampling_tables(&self) -> (u32, u32) {
        if self.selection.is_sampled() { (DISTANCES, WEIGHTS) } else { (1, 1) }
    }

    /// Whether they are for several processes.
    pub fn are_several(&self) -> bool {
        self.processes > 1
    }

    /// Kernel memory of all maps.
    pub fn bytes(&self) -> u64 {
        let arrays = u64::from(self.rows) * 8
            + u64::from(self.pages) * 8
            + u64::from(self.stacks) * size_of::<StackTotals>() as u64
            + u64::from(ROW_CACHE_SLOTS) * 16
            + u64::from(DOOMED_SLOTS) * 8
            + u64::from(NURSERY_SLOTS) * size_of::<Young>() as u64
            + u64::from(MAPSET_SLOTS) * size_of::<MapSet>() as u64
            + u64::from(self.processes) * size_of::<Process>() as u64
            + u64::from(self.tasks) * size_of::<Task>() as u64
            + u64::from(self.sampling_tables().0) * 4
            + u64::from(self.sampling_tables().1) * 8;
        arrays
            + hash_bytes(self.live, 8, size_of::<Live>())
            + hash_bytes(self.parts, 8, size_of::<Parts>())
            + hash_bytes(self.contexts, 8, size_of::<Context>())
            + hash_bytes(self.names, 8, size_of::<Name>())
            + hash_bytes(self.stacks, size_of::<StackKey>(), 4)
            + hash_bytes(self.process_ids(), 4, 4)
            + u64::from(self.ring_bytes)
            + u64::from(self.sample_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_used_and_not_exceeded() {
        let limits = Limits::within(64 << 20, 450_000, 30_000).expect("64 MiB are enough");
        assert!(limits.bytes() <= 64 << 20);
        assert!(limits.bytes() > 50 << 20);
        assert!(limits.live > 200_000, "{limits:?}");
    }

    #[test]
    fn no_budget_is_too_large_to_reckon_with() {
        let limits = Limits::within(u64::MAX >> 1, 450_000, 30_000).expect("enough");
        assert_eq!(limits.live, u32::MAX);
    }

    #[test]
    fn too_small_a_budget_is_none() {
        assert_eq!(Limits::within(1 << 20, 450_000, 30_000), None);
        assert!(Limits::within(Limits::least_bytes(450_000, 30_000), 450_000, 30_000).is_some());
    }
}
