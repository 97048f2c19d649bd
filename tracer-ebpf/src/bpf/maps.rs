//! Every map, and the counters' one way in.
//!
//! Nothing that decides what is counted is an LRU map: those evict silently, before they are
//! full. A full hash map fails an insert, which is counted.

use core::arch::asm;

use aya_ebpf::{
    Global,
    bindings::BPF_F_MMAPABLE,
    helpers::bpf_get_current_pid_tgid,
    macros::map,
    maps::{Array, HashMap, RingBuf},
};
use tracer_ebpf::{
    abi::{
        ChunkKey, Context, ContextKey, Control, DOOMED_SLOTS, Live, MAPSET_SLOTS, MAX_SITES, MapSet,
        Measured, NURSERY_SLOTS, Name, PROCESS_SLOTS, Parts, Phase, Process, ROW_CACHE_SLOTS, SiteHits,
        StackKey, StackTotals, Task, Young,
    },
    counters::{COUNT, Counter},
    foresee::SetFields,
};

/// Offset of `MemoryContextData.name` in the traced server.
#[unsafe(no_mangle)]
static NAME_OFFSET: Global<u64> = Global::new(56);

/// 1 if a context's name is a copy that ends with it.
#[unsafe(no_mangle)]
static NAMES_ARE_COPIES: Global<u64> = Global::new(0);

/// 1 if several processes are traced.
#[unsafe(no_mangle)]
static SEVERAL: Global<u64> = Global::new(0);

/// Device of the namespace that user space sees pids in, as the kernel writes it.
#[unsafe(no_mangle)]
static PID_NS_DEVICE: Global<u64> = Global::new(0);

/// Its inode; 0 for the first one.
#[unsafe(no_mangle)]
static PID_NS_INODE: Global<u64> = Global::new(0);

/// Where an AllocSet keeps what decides where a chunk comes from ([`tracer_ebpf::foresee::SetFields`]); 0 if nothing is
/// foreseen.
#[unsafe(no_mangle)]
static SET_START: Global<u64> = Global::new(0);

/// See there.
#[unsafe(no_mangle)]
static SET_LIMIT_WORD: Global<u64> = Global::new(0);

/// See there.
#[unsafe(no_mangle)]
static SET_LIMIT_SHIFT: Global<u64> = Global::new(0);

/// Number of slots of `TASKS`, a power of two, less one.
#[unsafe(no_mangle)]
static TASK_MASK: Global<u32> = Global::new(63);

/// The one control record. User space maps it into its memory (Linux 5.5): both sides write
/// single words of it, which a copy of the whole record would undo.
#[map]
pub(crate) static CONTROL: Array<Control> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// The processes that are traced, mapped into user space likewise.
#[map]
pub(crate) static PROCESSES: Array<Process> = Array::with_max_entries(PROCESS_SLOTS, BPF_F_MMAPABLE);
/// Where in `PROCESSES` a pid is, in a capture of several.
#[map]
pub(crate) static PROCESS_IDS: HashMap<u32, u32> = HashMap::with_max_entries(2 * PROCESS_SLOTS, 0);
/// Hits by site.
#[map]
pub(crate) static SITE_HITS: Array<SiteHits> = Array::with_max_entries(MAX_SITES as u32, 0);
/// Everything that is counted.
#[map]
pub(crate) static COUNTERS: Array<u64> = Array::with_max_entries(COUNT as u32, 0);
/// Scratch of each task, in a slot by its id. Mapped into user space, which reads what they have counted.
#[map]
pub(crate) static TASKS: Array<Task> = Array::with_max_entries(64, BPF_F_MMAPABLE);
/// Live chunks of late, in a capture of one process. Mapped into user space.
#[map]
pub(crate) static NURSERY: Array<Young> = Array::with_max_entries(NURSERY_SLOTS, BPF_F_MMAPABLE);
/// Other live chunks.
#[map]
pub(crate) static LIVE: HashMap<ChunkKey, Live> = HashMap::with_max_entries(1 << 18, 0);
/// Growth of chunks that realloc has grown.
#[map]
pub(crate) static PARTS: HashMap<ChunkKey, Parts> = HashMap::with_max_entries(1 << 13, 0);
/// Contexts with their epochs.
#[map]
pub(crate) static CONTEXTS: HashMap<ContextKey, Context> = HashMap::with_max_entries(1 << 16, 0);
/// Names of contexts.
#[map]
pub(crate) static NAMES: HashMap<u64, Name> = HashMap::with_max_entries(1 << 12, 0);
/// Known stacks.
#[map]
pub(crate) static STACKS: HashMap<StackKey, u32> = HashMap::with_max_entries(1 << 15, 0);
/// What became of each stack's chunks.
#[map]
pub(crate) static STACK_TOTALS: Array<StackTotals> = Array::with_max_entries(1 << 15, 0);
/// Stacks on their way to user space.
#[map]
pub(crate) static NEW_STACKS: RingBuf = RingBuf::with_byte_size(4 << 20, 0);
/// Numbers of processes that have loaded something: a ring of its own, so that who knows what to do about it
/// is woken by nothing else.
#[map]
pub(crate) static LOADS: RingBuf = RingBuf::with_byte_size(4096, 0);
/// Unwind rows of all objects ([`tracer_ebpf::unwind::Row`]).
#[map]
pub(crate) static ROWS: Array<u64> = Array::with_max_entries(1, 0);
/// Index of the rows.
#[map]
pub(crate) static PAGES: Array<u32> = Array::with_max_entries(1, 0);
/// Mappings of the process; a change of them takes the next slot, round and round.
#[map]
pub(crate) static MAPSETS: Array<MapSet> = Array::with_max_entries(MAPSET_SLOTS, 0);
/// Cache from code address to row, two of each slot.
#[map]
pub(crate) static ROW_CACHE: Array<[u64; 2]> = Array::with_max_entries(ROW_CACHE_SLOTS, 0);
/// Chunks whose record user space found dead and wants swept. The programs check again and
/// remove them in the task that allocates, so that no record that was inserted meanwhile goes.
#[map]
pub(crate) static DOOMED: Array<u64> = Array::with_max_entries(DOOMED_SLOTS, 0);

/// Stacks taken in several ways.
#[map]
pub(crate) static MEASURED: Array<Measured> = Array::with_max_entries(1, 0);

/// Where a context's name pointer is.
#[inline(always)]
pub(crate) fn name_offset() -> u64 {
    NAME_OFFSET.load()
}

/// Whether another context may have another name at the same address.
#[inline(always)]
pub(crate) fn names_are_copies() -> bool {
    NAMES_ARE_COPIES.load() != 0
}

/// Whether several processes are traced. The verifier knows which, and looks at one way only.
#[inline(always)]
pub(crate) fn are_several() -> bool {
    SEVERAL.load() != 0
}

/// Where an AllocSet has what chunks are foreseen by; `None` if none are. The verifier knows which.
#[inline(always)]
pub(crate) fn set_fields() -> Option<SetFields> {
    let start = SET_START.load();
    let fields =
        SetFields { start, limit_word: SET_LIMIT_WORD.load(), limit_shift: SET_LIMIT_SHIFT.load() & 63 };
    (start != 0).then_some(fields)
}

/// See `TASKS`.
#[inline(always)]
pub(crate) fn task_mask() -> u32 {
    TASK_MASK.load()
}

/// Device and inode of the namespace that user space sees pids in; inode 0 for the first one.
#[inline(always)]
pub(crate) fn pid_namespace() -> (u64, u64) {
    (PID_NS_DEVICE.load(), PID_NS_INODE.load())
}

/// Adds to a word of a map value, atomically. By hand because Rust has no atomics for this target.
#[inline(always)]
pub(crate) fn add(word: *mut u64, value: u64) {
    // SAFETY: `word` points into a map value that is 8-byte aligned and lives as long as the map;
    // every writer of such words is atomic.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) word, in(reg) value, options(nostack)) };
}

/// The same for a word that, in a capture of one process, only the thread adds to that works in memory contexts. `OUTSIDE`:
/// it is of memory in no context, which any thread may allocate.
#[inline(always)]
pub(crate) fn add_alone<const OUTSIDE: bool>(word: *mut u64, value: u64) {
    if OUTSIDE || are_several() {
        add(word, value);
    } else {
        // SAFETY: as in `add`; user space only reads it.
        unsafe { core::ptr::write_volatile(word, core::ptr::read_volatile(word).wrapping_add(value)) };
    }
}

/// Counts.
#[inline(always)]
pub(crate) fn count_many(counter: Counter, value: u64) {
    if let Some(word) = COUNTERS.get_ptr_mut(counter as u32) {
        add(word, value);
    }
}

/// Counts one.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    count_many(counter, 1);
}

/// Counts what is among [`tracer_ebpf::counters::OWN`], for the task if there is one.
#[inline(always)]
pub(crate) fn count_own(task: Option<*mut Task>, counter: Counter, value: u64) {
    match (task, counter.own_index()) {
        // SAFETY: a map value that only this task writes.
        (Some(task), Some(index)) => unsafe { (*task).own_counts[index] += value },
        _ => count_many(counter, value),
    }
}

/// The control record.
#[inline(always)]
pub(crate) fn control() -> Option<*mut Control> {
    CONTROL.get_ptr_mut(0)
}

/// The phase, unless nothing at all is to be done.
#[inline(always)]
pub(crate) fn phase() -> Option<u32> {
    let control = control()?;
    // SAFETY: a map value; the read is volatile because user space writes it at any time.
    let phase = unsafe { core::ptr::read_volatile(&raw const (*control).phase) };
    (phase == Phase::Count as u32 || phase == Phase::Record as u32 || phase == Phase::Settle as u32)
        .then_some(phase)
}

/// A number that is greater than all before it.
#[inline(always)]
pub(crate) fn next_epoch(control: *mut Control) -> u64 {
    // SAFETY: a word of a map value.
    unsafe { fetch_add(&raw mut (*control).next_epoch) }
}

/// The id of a new stack. Threads may ask at once.
#[inline(always)]
pub(crate) fn next_stack(control: *mut Control) -> u32 {
    // SAFETY: a word of a map value.
    unsafe { fetch_add(&raw mut (*control).next_stack) as u32 }
}

/// The number of a new process.
#[inline(always)]
pub(crate) fn next_process(control: *mut Control) -> u64 {
    // SAFETY: a word of a map value.
    unsafe { fetch_add(&raw mut (*control).next_process) }
}

/// Adds one and returns what was there before.
///
/// # Safety
/// `word` points into a map value that is 8-byte aligned.
#[inline(always)]
unsafe fn fetch_add(word: *mut u64) -> u64 {
    let mut value: u64 = 1;
    // SAFETY: see `add`. The instruction is of Linux 5.12.
    unsafe {
        asm!("{1} = atomic_fetch_add((u64 *)({0} + 0), {1})", in(reg) word, inout(reg) value, options(nostack));
    }
    value
}

/// Sets a word that is zero, and says whether it was.
///
/// # Safety
/// `word` points into a map value that is 8-byte aligned.
#[inline(always)]
pub(crate) unsafe fn set_if_zero(word: *mut u64, value: u64) -> bool {
    let mut seen: u64 = 0;
    // SAFETY: see `add`. The instruction is of Linux 5.12; it compares with r0, and leaves there what it found.
    unsafe {
        asm!("r0 = cmpxchg_64({0} + 0, r0, {1})", in(reg) word, in(reg) value, inout("r0") seen, options(nostack));
    }
    seen == 0
}

/// Notes whose calls these are, in a capture of one process: the exit and exec programs run for every
/// process of the host and have to know ours.
#[inline(always)]
pub(crate) fn remember_process() {
    if are_several() {
        return;
    }
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    if let Some(process) = PROCESSES.get_ptr_mut(0) {
        // SAFETY: a map value; an aligned word.
        unsafe { core::ptr::write_volatile(&raw mut (*process).tgid, tgid) };
    }
}

/// Counts an entry of the site. Not while settling: the probes of allocations are being taken
/// away then, and their entries and returns would no longer be equal in number.
#[inline(always)]
pub(crate) fn hit_entry<const OUTSIDE: bool>(phase: u32, site: u32) {
    if phase != Phase::Settle as u32
        && let Some(hits) = SITE_HITS.get_ptr_mut(site)
    {
        // SAFETY: a map value.
        add_alone::<OUTSIDE>(unsafe { &raw mut (*hits).entries }, 1);
        if phase == Phase::Count as u32 {
            remember_process();
        }
    }
}

/// Counts a return of the site.
#[inline(always)]
pub(crate) fn hit_return(phase: u32, site: u32) {
    if phase != Phase::Settle as u32
        && let Some(hits) = SITE_HITS.get_ptr_mut(site)
    {
        // SAFETY: a map value.
        add(unsafe { &raw mut (*hits).returns }, 1);
    }
}

/// Counts a call of the site, which allocates in contexts, whose return is not awaited.
#[inline(always)]
pub(crate) fn hit_unawaited(site: u32) {
    if let Some(hits) = SITE_HITS.get_ptr_mut(site) {
        // SAFETY: a map value.
        add_alone::<false>(unsafe { &raw mut (*hits).unawaited }, 1);
    }
}
