//! Everything the eBPF programs count: one table of code, name and meaning.
//!
//! User space prints this table, the eBPF side increments by code; nothing that is dropped goes
//! without a row here.

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $class:ident, $meaning:literal;)*) => {
        /// Index of a counter in the `COUNTERS` map.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Counter { $($(#[$doc])* #[doc = $meaning] $variant),* }

        /// Every counter in the order of its code.
        pub const COUNTERS: &[CounterInfo] = &[
            $(CounterInfo { counter: Counter::$variant, name: $name, class: Class::$class, meaning: $meaning }),*
        ];
    };
}

/// What a count that is not zero means for the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// The work that was done.
    Work,
    /// Normal in a live server; says nothing against the result.
    Normal,
    /// Something was not recorded, or a stack is incomplete.
    Loss,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct CounterInfo {
    /// The code.
    pub counter: Counter,
    /// Its name in `capture.json` and in the report.
    pub name: &'static str,
    /// Whether it stands against the result.
    pub class: Class,
    /// What it means, in a sentence for the report.
    pub meaning: &'static str,
}

counters! {
    Recorded = "recorded", Work, "allocations recorded";
    RecordedBytes = "recorded_bytes", Work, "bytes requested by the recorded allocations";
    Freed = "freed", Work, "recorded chunks that were freed";
    Resets = "resets", Work, "resets of a context that held recorded chunks";
    OtherContext = "other_context", Normal, "allocations in contexts that were not asked for (--context)";
    LeftOut = "left_out", Normal, "allocations, and growths of chunks that were not recorded, that were left out for their size (--min-size, --sample)";
    Births = "births", Work, "processes that began while the capture ran and were followed from then on";
    Ends = "ends", Work, "processes that ended while the capture ran";
    Creates = "creates", Work, "contexts made";
    Deletes = "deletes", Work, "deletes of a context that was made while recording or held recorded chunks";
    ReallocGrown = "realloc_grown", Work, "reallocs that grew a chunk";
    ReallocShrunk = "realloc_shrunk", Work, "reallocs that shrank a chunk";
    ReallocSame = "realloc_same", Work, "reallocs that kept a chunk's size";
    StacksWalked = "stacks_walked", Work, "stacks walked";
    FramesWalked = "frames_walked", Work, "frames walked";
    FramesReused = "frames_reused", Work, "frames that were as in the stack before, and not walked again";
    StacksNew = "stacks_new", Work, "different stacks seen";
    GrownUp = "grown_up", Work, "records of live chunks that younger ones have driven out of the nursery, into the map of live chunks";
    RowCacheMiss = "row_cache_miss", Work, "unwind rows searched because the cache did not have them";
    Foreseen = "foreseen", Work, "allocations whose address was foreseen, so that their return needed no probe";
    ForeseenChecked = "foreseen_checked", Work, "foreseen addresses that were compared with what was returned";
    RecordTimed = "record_timed", Work, "allocations of which recording was timed";
    RecordNs = "record_ns", Work, "nanoseconds that recording these took, without the traps";
    LoadsAwaited = "loads_awaited", Work, "times that the process waited some milliseconds until a library that it loaded was known";
    ReadFaulted = "read_faulted", Work, "stack reads that had to fault a page in";

    LoadsLate = "loads_late", Normal, "libraries that were not known within 10 ms of their loading: stacks through them may be cut at first";
    FreeUnknown = "free_unknown", Normal, "frees of chunks that are older than the capture or were not recorded";
    FreeDead = "free_dead", Normal, "frees of chunks whose context was reset or deleted before";
    OverwroteDead = "overwrote_dead", Normal, "addresses reused after a reset or delete of their context";
    SweptDead = "swept_dead", Normal, "records of chunks that were freed, or whose context was reset or deleted, swept out of the map";
    NullReturn = "null_return", Normal, "allocations that returned NULL";
    NestedInRealloc = "nested_in_realloc", Normal, "allocations and frees made by realloc for itself, counted once as the realloc";
    NestedInAllocator = "nested_in_allocator", Normal, "calls of malloc and mmap by an allocator for itself, counted once as what they were made for";
    NotOwnMemory = "not_own_memory", Normal, "mappings of files and of shared memory, which are not recorded";
    LeftByError = "left_by_error", Normal, "calls left by an error, which never return";
    ReturnOfUnseenCall = "return_of_unseen_call", Normal, "returns of calls that began before recording did";
    ReallocUnknown = "realloc_unknown", Normal, "reallocs of chunks that are older than the capture or were not recorded; only the growth counts";
    WalkBottom = "walk_bottom", Normal, "stacks that reached the bottom";

    LiveFull = "live_full", Loss, "allocations not recorded because the map of live chunks was full";
    PartsFull = "parts_full", Loss, "realloc growth booked to another realloc of the same chunk because it had too many";
    PartsMapFull = "parts_map_full", Loss, "realloc growth booked to the stack of the chunk's allocation, and left out of samples, because the map of growths was full";
    ContextsFull = "contexts_full", Loss, "allocations not recorded because the map of contexts was full";
    StacksFull = "stacks_full", Loss, "allocations whose stack is unknown because the map of stacks was full";
    StackRingFull = "stack_ring_full", Loss, "allocations whose stack is unknown because user space read too slowly";
    ProcessesFull = "processes_full", Loss, "processes not followed because there were too many";
    TasksFull = "tasks_full", Loss, "calls not followed because of too many threads";
    NestedTooDeep = "nested_too_deep", Loss, "calls not followed because too many were nested";
    OverwroteLive = "overwrote_live", Loss, "addresses handed out twice: a free, reset or delete was not seen";
    ForeseenWrongly = "foreseen_wrongly", Loss, "allocations that returned another address than was foreseen, or whose context was not as it should be: from then on nothing was foreseen; some frees before it may not have been seen";
    NameUnreadable = "name_unreadable", Loss, "contexts whose name could not be read";
    HeaderUnreadable = "header_unreadable", Loss, "chunks whose header could not be read: their requested size stands for what they hold";
    GrowthUnknown = "growth_unknown", Loss, "reallocs of memory that is older than the capture or was not recorded, whose old size nobody knows: their growth is missing";
    ReturnAddressUnreadable = "return_address_unreadable", Loss, "calls whose return address could not be read";
    WalkTruncated = "walk_truncated", Loss, "stacks cut at the most frames that are kept";
    WalkUnknownMapping = "walk_unknown_mapping", Loss, "stacks cut at code outside of every known mapping";
    WalkNoRow = "walk_no_row", Loss, "stacks cut at code without unwind information";
    WalkUnsupported = "walk_unsupported", Loss, "stacks cut at an unwind rule that is not supported";
    WalkRead = "walk_read", Loss, "stacks cut where the stack's memory could not be read";
    WalkBadSp = "walk_bad_sp", Loss, "stacks cut because the stack pointer did not move up";
    WalkLostReturn = "walk_lost_return", Loss, "stacks cut at a pending return probe whose return address is not known";
    AfterDeadline = "after_deadline", Loss, "calls ignored because pgleak gave no sign of life";
}

/// How many counters there are.
pub const COUNT: usize = COUNTERS.len();

/// What is counted so often that each task does it for itself, in [`crate::abi::Task::own_counts`]: without an
/// atomic operation, and without a line of memory that goes from one processor to the other.
pub const OWN: [Counter; 13] = [
    Counter::Foreseen,
    Counter::Recorded,
    Counter::RecordedBytes,
    Counter::Freed,
    Counter::StacksWalked,
    Counter::FramesWalked,
    Counter::FramesReused,
    Counter::WalkBottom,
    Counter::OverwroteDead,
    Counter::FreeUnknown,
    Counter::FreeDead,
    Counter::GrownUp,
    Counter::LeftOut,
];

impl Counter {
    /// Its index in [`OWN`], if it is there.
    #[inline(always)]
    pub const fn own_index(self) -> Option<usize> {
        let mut index = 0;
        while index < OWN.len() {
            if OWN[index] as u32 == self as u32 {
                return Some(index);
            }
            index += 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_its_codes_and_names_are_unique() {
        for (index, info) in COUNTERS.iter().enumerate() {
            assert_eq!(info.counter as usize, index);
            assert!(COUNTERS.iter().filter(|other| other.name == info.name).count() == 1);
        }
    }

    #[test]
    fn each_own_counter_is_found_and_no_other() {
        for (index, counter) in OWN.into_iter().enumerate() {
            assert_eq!(counter.own_index(), Some(index));
        }
        assert_eq!(Counter::LiveFull.own_index(), None);
    }
}
