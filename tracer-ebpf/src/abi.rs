//! Layouts of every map, shared by the eBPF programs and user space.

use crate::{
    counters::OWN,
    foresee::{Known, SET_WORDS},
    trail::{Fresh, Trail},
    unwind::Registers,
};

/// The most frames of a stack that are kept, the allocator's own included.
pub const MAX_FRAMES: usize = 127;
/// Slots of a frame buffer: a power of two, so that an index can be masked.
pub const FRAME_SLOTS: usize = 128;
/// The most mappings of one process that the walk knows.
pub const MAX_RANGES: usize = 256;
/// The most probe sites of a capture.
pub const MAX_SITES: usize = 64;
/// Calls of one task that may be open at once: a realloc, the allocation in it, an error raised
/// there, and what its report allocates; twice that.
pub const MAX_PENDING: usize = 8;
/// Stacks whose growth of one chunk is told apart.
pub const MAX_PARTS: usize = 8;
/// Words of the stack that are read at once. Most stacks fit: 20 frames of a server take 2 to 6
/// KiB.
pub const WINDOW_WORDS: usize = 2048;
/// Slots of `MAPSETS` that a walk looks into; a capture of one process uses the first sixteen.
pub const MAPSET_SLOTS: u32 = 256;
/// Slots of `PROCESSES` in a capture of several.
pub const PROCESS_SLOTS: u32 = 4096;
/// Processes that a capture can tell apart, those that have ended included.
pub const MAX_PROCESSES: u64 = 1 << 20;
/// Servers whose new processes a capture follows.
pub const MAX_FAMILIES: usize = 16;
/// Bytes kept of a new process's title.
pub const TITLE_BYTES: usize = 96;
/// Bytes kept of a context's name.
pub const NAME_BYTES: usize = 64;
/// Slots of the cache from code address to unwind row.
pub const ROW_CACHE_SLOTS: u32 = 1 << 13;
/// Slots of the list of records that user space wants swept.
pub const DOOMED_SLOTS: u32 = 1 << 16;
/// Records that one allocation sweeps at the most, so that no single call pays for many.
pub const DOOMED_A_CALL: u32 = 8;

/// The stack id of what has no stack of its own: bytes older than the capture, or a stack that
/// could not be kept.
pub const NO_STACK: u32 = 0;

/// What the programs do with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Phase {
    /// Nothing: probes are being attached or have to go.
    Off = 0,
    /// Count the hit and nothing else.
    Count = 1,
    /// Record allocations and follow frees.
    Record = 2,
    /// Follow frees, record nothing new. What tasks know of sets is not kept up: before anything is recorded again, their
    /// slots have to be freed.
    Settle = 3,
    /// The process has ended; written by the exit program.
    Exited = 4,
    /// The process has become another program; written by the exec program.
    Replaced = 5,
}

/// What is known of a process that the probes have seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum ProcessState {
    /// The slot is free.
    Free = 0,
    /// It was born while the capture ran, and is followed until user space knows what it is.
    New = 1,
    /// It is followed.
    Followed = 2,
    /// It is not what was asked for.
    LeftOut = 3,
    /// It has ended; written by the exit program.
    Ended = 4,
    /// It has become another program; written by the exec program.
    Replaced = 5,
}

/// A process. Element of `PROCESSES`, which user space maps into its memory; in a capture of one
/// process there is one. Each word has one writer, but for `state`, where the end comes last.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Process {
    /// [`ProcessState`].
    pub state: u32,
    /// Its pid: in a capture of several, as user space sees it; in a capture of one, as the kernel's first
    /// namespace numbers it, by the probes.
    pub tgid: u32,
    /// Its number in this capture, part of every key; never used twice.
    pub number: u32,
    /// Number of the set of mappings in use, counted from 1; it is in slot number %
    /// [`MAPSET_SLOTS`] of `MAPSETS`.
    pub mapset: u32,
    /// How often the dynamic loader has said that it has loaded something, ever; written by the
    /// programs.
    pub loads: u32,
    /// Up to which of these the mappings are known; written by user space.
    pub loads_known: u32,
    /// Start of the area where return probes return to (`[uprobes]`), 0 until it is known.
    pub trampoline_start: u64,
    /// Its end.
    pub trampoline_end: u64,
    /// `CLOCK_MONOTONIC` when a new process was first seen.
    pub born_ns: u64,
    /// `CLOCK_MONOTONIC` of its end.
    pub ended_ns: u64,
    /// Allocations that were recorded; in a capture of several.
    pub recorded: u64,
    /// Bytes asked for by these.
    pub recorded_bytes: u64,
    /// Where in `DOOMED` the first of its keys is that was not dealt with; the programs move it on.
    pub doomed_next: u32,
    /// One past the last of them; written by user space, as both are when it has found new ones.
    pub doomed_end: u32,
    /// Where its title is, 0 if that is not known.
    pub title_address: u64,
    /// The title of a new process, which may end before user space has seen it; NUL-padded.
    pub title: [u8; TITLE_BYTES],
}

/// How processes that a server forks are known: they inherit what its postmaster has at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Family {
    /// Address of a word; 0 for no family.
    pub address: u64,
    /// What is there.
    pub value: u64,
    /// The set of mappings that a new process begins with; written by user space.
    pub mapset: u64,
    /// Where they have their titles.
    pub title_address: u64,
}

/// The one element of the `CONTROL` map. Both sides write single words of it, and those that have several writers
/// atomically; of `phase`, the end of the process comes last.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Control {
    /// [`Phase`]; written by user space, and by the exit and exec programs.
    pub phase: u32,
    /// 1: walks do not use what is remembered of the last one. For tests and measurements.
    pub walk_anew: u32,
    /// `CLOCK_MONOTONIC` ns after which the programs do nothing: user space moves it on while it
    /// is well.
    pub deadline_ns: u64,
    /// The next epoch. Starts at 1, never goes back.
    pub next_epoch: u64,
    /// The next stack id. Starts at 1.
    pub next_stack: u64,
    /// The number of the next process. Starts at 1 in a capture of several; 0 is the one of a capture of one.
    pub next_process: u64,
    /// 1: chunks are foreseen ([`crate::foresee`]). 2: they are, and each is awaited and compared all the same; for
    /// tests. Written by user space; the programs write 0 when one was another.
    pub foresees: u64,
    /// As long as `LIVE` has fewer entries than that, the one of a chunk that was freed stays for the next at its address;
    /// written by user space.
    pub entries_kept: u64,
    /// How often user space has removed contexts of processes that go on; written by it.
    pub forgets: u64,
    /// The name of the contexts that allocations are recorded in, NUL-padded; all zero for every one.
    pub only: [u64; NAME_BYTES / 8],
    /// Servers whose new processes are followed.
    pub families: [Family; MAX_FAMILIES],
    /// How many entries `LIVE` has. Not among the words that every hit reads: on other processors these would have to be
    /// fetched anew whenever this one changes.
    pub entries: u64,
    /// Padding.
    pub pad_after: [u64; 7],
}

/// One executable mapping. Kept sorted by `start`; unused ones start at `i64::MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// What to subtract for the object's own virtual address.
    pub bias: u64,
    /// Index in `PAGES` of the object's first page.
    pub first_page: u32,
    /// How many pages of the index it has; 0 if it has no unwind information.
    pub page_count: u32,
}

impl Range {
    /// A slot that matches no address.
    pub const UNUSED: Self = Self { start: i64::MAX as u64, end: 0, bias: 0, first_page: 0, page_count: 0 };
}

/// The mappings of a process.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct MapSet {
    /// Sorted by start.
    pub ranges: [Range; MAX_RANGES],
    /// First address of the server's main loop, a function that never returns; 0 if it is not known.
    pub loop_start: u64,
    /// One past its last one.
    pub loop_end: u64,
}

/// Key of `LIVE` and `PARTS`: the chunk's address and the number of its process ([`key`]).
pub type ChunkKey = u64;
/// Key of `CONTEXTS`: the context's address and the number of its process ([`key`]).
pub type ContextKey = u64;

/// Bits of a key that an address takes: what user space has of it, less the three that chunks and
/// contexts do not use.
const ADDRESS_BITS: u32 = 44;

/// The key of what lies at `address`, a multiple of 8, in the process with that number.
#[inline(always)]
pub const fn key(number: u32, address: u64) -> u64 {
    (address >> 3) & ((1 << ADDRESS_BITS) - 1) | (number as u64) << ADDRESS_BITS
}

/// The address in a [`key`].
pub const fn key_address(key: u64) -> u64 {
    (key & ((1 << ADDRESS_BITS) - 1)) << 3
}

/// The number of the process in a [`key`].
pub const fn key_process(key: u64) -> u32 {
    (key >> ADDRESS_BITS) as u32
}

/// The key of the name at `address`, of any alignment, among those with one tag.
#[inline(always)]
pub const fn name_key(tag: u32, address: u64) -> u64 {
    address & ((1 << 47) - 1) | (tag as u64) << 47
}

/// A chunk that was allocated. It is dead, whatever else it says, unless its context is in `CONTEXTS` with the same
/// epoch: [`Live::FREED`] never is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Live {
    /// Epoch of the context when the chunk was born.
    pub epoch: u64,
    /// The key of the context, or the number of a [`crate::site::Pool`], which is always alive.
    pub context: ContextKey,
    /// Bytes asked for by the allocation itself; 0 if it is older than the capture.
    pub requested: u64,
    /// Bytes that these take in the context: chunk header and rounding included.
    pub held: u64,
    /// Bytes of the whole chunk as last asked for, grown parts and inherited bytes included.
    pub full_requested: u64,
    /// Bytes that the whole chunk takes.
    pub full_held: u64,
    /// `CLOCK_MONOTONIC` of the allocation, or of one before it in the same tick of the kernel, since when no context
    /// was made, reset or deleted.
    pub born_ns: u64,
    /// Stack of the allocation, or [`NO_STACK`].
    pub stack: u32,
    /// 1 if `PARTS` has growth of this chunk.
    pub has_parts: u32,
    /// Of a sample, the bytes that made it one, by which it stands for others ([`crate::sampling`]); 0 if nothing
    /// is sampled. Growth of a chunk that is known stands for itself.
    pub sampled: u64,
}

impl Live {
    /// Stands for the context of a chunk that was freed.
    pub const FREED: ContextKey = 0;

    /// A chunk that was allocated with these bytes.
    #[inline(always)]
    pub const fn new(context: (ContextKey, u64), bytes: (u64, u64), born_ns: u64, stack: u32) -> Self {
        let ((context, epoch), (requested, held)) = (context, bytes);
        let (full_requested, full_held) = bytes;
        Self {
            epoch,
            context,
            requested,
            held,
            full_requested,
            full_held,
            born_ns,
            stack,
            has_parts: 0,
            sampled: 0,
        }
    }
}

/// Slots of `NURSERY`: what `pgbench -S` allocates in one transaction has room, and a look through all of it is
/// nothing.
pub const NURSERY_SLOTS: u32 = 1 << 12;

/// A chunk that was allocated of late, in a capture of one process. Element of `NURSERY`, at [`nursery_slot`]: there it
/// is found without a hash map, and most chunks die before another one wants the place. Then it goes into `LIVE`. The
/// record of a chunk is in one of the two, unless the other one is of a dead chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Young {
    /// Whose record it is; 0 if there never was one.
    pub key: ChunkKey,
    /// The record.
    pub live: Live,
}

/// The place of a chunk in `NURSERY`, one for each 16 bytes: neighbours are neighbours there.
#[inline(always)]
pub const fn nursery_slot(key: ChunkKey) -> u32 {
    (key >> 1) as u32 & (NURSERY_SLOTS - 1)
}

/// What one realloc stack added to a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Part {
    /// Bytes asked for.
    pub requested: u64,
    /// Bytes taken.
    pub held: u64,
    /// When it last grew, likewise.
    pub born_ns: u64,
    /// Whose it is.
    pub stack: u32,
    /// Padding.
    pub pad: u32,
}

/// Growth of one chunk. Key: [`ChunkKey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Parts {
    /// How many parts are in use.
    pub count: u32,
    /// Padding.
    pub pad: u32,
    /// The parts, oldest first; unused ones are zero.
    pub parts: [Part; MAX_PARTS],
}

impl Parts {
    /// No growth.
    pub const EMPTY: Self = Self {
        count: 0,
        pad: 0,
        parts: [Part { requested: 0, held: 0, born_ns: 0, stack: 0, pad: 0 }; MAX_PARTS],
    };
}

/// A context that chunks were recorded in, or that was made while recording. Key: [`ContextKey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Context {
    /// Chunks born in an earlier epoch are dead.
    pub epoch: u64,
    /// Key of the context's name in `NAMES`; 0 if it has none.
    pub name: u64,
    /// `CLOCK_MONOTONIC` of its making; 0 if it is older than the capture.
    pub born_ns: u64,
    /// Stack that made it, or [`NO_STACK`].
    pub stack: u32,
    /// 1 if it has another name than [`Control::only`]: nothing in it is recorded.
    pub left_out: u32,
}

/// Key of `STACKS`: two independent 64-bit hashes of the frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct StackKey {
    /// The first.
    pub a: u64,
    /// The second.
    pub b: u64,
}

/// What happened to the chunks of one stack. Element of `STACK_TOTALS`, indexed by stack id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct StackTotals {
    /// Chunks, or growths, that were recorded; this and all others by [`crate::sampling::ONE`] if samples stand for
    /// more than themselves.
    pub count: u64,
    /// Bytes asked for by these.
    pub requested: u64,
    /// Bytes taken by these.
    pub held: u64,
    /// How many of them were freed one by one.
    pub freed_count: u64,
    /// Bytes asked for by the freed ones, and by what a realloc gave back.
    pub freed_requested: u64,
    /// Bytes taken by these.
    pub freed_held: u64,
}

/// Hits of one site. Element of `SITE_HITS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct SiteHits {
    /// Calls that began.
    pub entries: u64,
    /// Calls that returned.
    pub returns: u64,
    /// Calls of which the return was not awaited: what they return was foreseen, or they were left out.
    pub unawaited: u64,
}

/// A call that has begun.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Pending {
    /// Stack pointer at the entry: it names the call, since a later call at the same or a higher
    /// one proves that this one was left without returning.
    pub sp: u64,
    /// The return address, which a return probe hides from the walk while the call is open.
    pub return_address: u64,
    /// The probe's cookie.
    pub cookie: u64,
    /// The size argument.
    pub size: u64,
    /// The pointer argument, or 0.
    pub pointer: u64,
    /// Of an allocation, the key of its context or the number of a pool; of a realloc, the context argument, the
    /// number of a pool, or 0.
    pub context: u64,
    /// Of an allocation, the epoch of its context.
    pub epoch: u64,
    /// Of an allocation, its stack, or [`NO_STACK`].
    pub stack: u32,
    /// Why nothing will be recorded ([`PENDING_NESTED`] and its like), and [`PENDING_OLD_KNOWN`].
    pub flags: u32,
    /// Of an allocation that is timed, nanoseconds that its entry took; 0 of others.
    pub timed_ns: u64,
    /// Of an allocation that was foreseen and is looked at all the same, what it should return; 0 of others.
    pub foreseen: u64,
    /// Of a realloc, the function's first instruction.
    pub function: u64,
    /// Realloc of an unknown chunk: its usable size before the call.
    pub old_usable: u64,
    /// The same with its overhead.
    pub old_held: u64,
}

/// Flag of [`Pending`]: made by a realloc for itself.
pub const PENDING_NESTED: u32 = 1;
/// Flag of [`Pending`]: `old_usable` and `old_held` were read.
pub const PENDING_OLD_KNOWN: u32 = 2;
/// Flag of [`Pending`]: memory that an allocator gets for itself.
pub const PENDING_INNER: u32 = 4;
/// Flag of [`Pending`]: a mapping of a file, or of memory that is shared.
pub const PENDING_NOT_OWN: u32 = 8;
/// Flag of [`Pending`]: in a context that nothing is recorded in or that there is no room for, or left out for its
/// size.
pub const PENDING_LEFT_OUT: u32 = 16;
/// Flag of [`Pending`]: begun while user space was not heard of.
pub const PENDING_LATE: u32 = 32;

/// State of the walk in progress.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Walk {
    /// Registers of the frame at hand.
    pub regs: Registers,
    /// First address of the mapping at hand; one that is not known yet has `lo > hi`.
    pub lo: u64,
    /// One past its last address.
    pub hi: u64,
    /// Its bias.
    pub bias: u64,
    /// Its first page.
    pub first_page: u32,
    /// Its page count.
    pub page_count: u32,
    /// Hashes of the whole stack.
    pub key: StackKey,
    /// The function that the stack is of: its innermost frame.
    pub function: u64,
    /// Frames of the whole stack.
    pub count: u32,
    /// [`crate::unwind::WalkEnd`], 0 while walking.
    pub end: u32,
    /// Number of the set of mappings.
    pub mapset: u32,
    /// Frames walked.
    pub fresh: u32,
    /// Frames taken over from the last walk.
    pub met: u32,
    /// Frames of the last walk that are as they were.
    pub valid: u32,
}

/// Header of a record in the `NEW_STACKS` ring; `count` frames of 8 bytes follow, innermost
/// first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct StackHeader {
    /// Stack id.
    pub id: u32,
    /// How many frames follow.
    pub count: u32,
    /// [`crate::unwind::WalkEnd`].
    pub end: u32,
    /// Number of the set of mappings that the walk used.
    pub mapset: u32,
}

/// A piece of the stack.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Window {
    /// Its first address.
    pub base: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// What was read.
    pub words: [u64; WINDOW_WORDS],
}

/// Slots of [`Task::known_contexts`] and [`Task::known_stacks`].
pub const KNOWN_CONTEXTS: usize = 64;
/// See [`KNOWN_CONTEXTS`].
pub const KNOWN_STACKS: usize = 64;

/// A context that a task has just met; key 0 for an empty slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct KnownContext {
    /// Its key.
    pub key: ContextKey,
    /// Its epoch.
    pub epoch: u64,
    /// [`Control::forgets`] when it was looked up. What happens to the context is seen by the task itself, which is the
    /// only one of its process that works in contexts.
    pub as_of: u64,
    /// What it holds, if it is an AllocSet.
    pub set: Known,
}

/// A stack that a task has just met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct KnownStack {
    /// Its key.
    pub key: StackKey,
    /// Its id; 0 for an empty slot.
    pub id: u64,
}

/// What one task needs while a program runs for it. Per task, never per CPU: a uprobe program
/// may be preempted, and a sleepable one sleeps.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Task {
    /// Open calls, innermost last.
    pub pending: [Pending; MAX_PENDING],
    /// How many of them are in use.
    pub depth: u32,
    /// Index of its process in `PROCESSES`.
    pub process: u32,
    /// Allocations that were recorded or might have been, for one in some to be timed.
    pub allocations: u32,
    /// 1 if user space was not heard of when the last allocation returned.
    pub is_late: u32,
    /// When the allocation that begins came, if it is timed, else 0: here, where the verifier knows nothing of it.
    pub started_ns: u64,
    /// The walk in progress.
    pub walk: Walk,
    /// The stack.
    pub window: Window,
    /// The last walk, and with it what is known of this one.
    pub trail: Trail,
    /// Frames of this walk that are not on the trail, innermost first.
    pub new_frames: [Fresh; FRAME_SLOTS],
    /// Header and frames lie side by side: they are sent as one record.
    pub header: StackHeader,
    /// Frames, innermost first.
    pub frames: [u64; FRAME_SLOTS],
    /// Growth of the chunk at hand.
    pub parts: Parts,
    /// What the AllocSet at hand has: see [`crate::foresee`].
    pub set: [u64; SET_WORDS],
    /// How many chunks were foreseen for the task.
    pub foresights: u32,
    /// Padding.
    pub pad: u32,
    /// How often something may have happened to contexts that what is known of their sets does not account for.
    pub changes: u64,
    /// The chunk that is resized, as it was.
    pub resized: Live,
    /// 1 if it is followed already.
    pub is_followed: u64,
    /// Bytes that it takes now.
    pub held: u64,
    /// 1 if growth is recorded.
    pub is_recording: u64,
    /// Contexts by bits of their keys.
    pub known_contexts: [KnownContext; KNOWN_CONTEXTS],
    /// Stacks by bits of their keys.
    pub known_stacks: [KnownStack; KNOWN_STACKS],
    /// The kernel's tick when the task last looked at the clock.
    pub tick: u64,
    /// [`Control::next_epoch`] then.
    pub tick_epoch: u64,
    /// `CLOCK_MONOTONIC` then.
    pub tick_ns: u64,
    /// What it has counted, by the index of [`OWN`]; goes on with the next task that has the slot.
    pub own_counts: [u64; OWN.len()],
    /// Bytes to the next sample, 0 if that is not known yet; goes on likewise.
    pub until_sample: u64,
    /// The task's id, 0 for a free slot.
    pub owner: u64,
}

/// Sums over stacks that were taken in several ways for comparison. The one element of
/// `MEASURED`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Measured {
    /// How many stacks.
    pub hits: u64,
    /// Of how many the walk by way of the last one and the walk anew differ: 0.
    pub differences: u64,
    /// What looking at the clock takes, in nanoseconds.
    pub nothing_ns: u64,
    /// Walks by way of the last one.
    pub trail_ns: u64,
    /// Walks anew.
    pub anew_ns: u64,
    /// The kernel's `bpf_get_stack`.
    pub helper_ns: u64,
    /// Frames of the walks.
    pub frames: u64,
    /// Frames of `bpf_get_stack`.
    pub helper_frames: u64,
}

/// A context's name. Key of `NAMES`: [`name_key`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Name {
    /// NUL-terminated, cut at [`NAME_BYTES`].
    pub bytes: [u8; NAME_BYTES],
}

const _: () = {
    assert!(size_of::<Control>() == 64 + 64 + 32 * MAX_FAMILIES + 64);
    assert!(core::mem::offset_of!(Control, entries).is_multiple_of(64));
    assert!(size_of::<Process>() == 88 + TITLE_BYTES);
    assert!(size_of::<Range>() == 32);
    assert!(size_of::<MapSet>() == 8192 + 16);
    assert!(size_of::<Live>() == 72);
    assert!(size_of::<Young>() == 80);
    assert!(size_of::<Part>() == 32);
    assert!(size_of::<Parts>() == 264);
    assert!(size_of::<Context>() == 32);
    assert!(size_of::<StackTotals>() == 48);
    assert!(size_of::<Pending>() == 104);
    assert!(size_of::<Walk>() == 112);
    assert!(size_of::<StackHeader>() == 16);
    assert!(size_of::<Window>() == 16 + 8 * WINDOW_WORDS);
    assert!(size_of::<Trail>() == 128 * (48 + 32) + 256 + 16);
    assert!(
        size_of::<Task>()
            == 8 * 104
                + 24
                + 112
                + 16400
                + 10512
                + 128 * 32
                + 16
                + 1024
                + 264
                + 8 * SET_WORDS
                + 16
                + 96
                + 64 * 64
                + 64 * 24
                + 24
                + 13 * 8
                + 8
                + 8
    );
    assert!(KNOWN_CONTEXTS.is_power_of_two() && KNOWN_STACKS.is_power_of_two());
    assert!(WINDOW_WORDS.is_power_of_two() && MAPSET_SLOTS.is_power_of_two());
    assert!(PROCESS_SLOTS.is_power_of_two() && MAX_PROCESSES == 1 << (u64::BITS - ADDRESS_BITS));
    assert!(FRAME_SLOTS.is_power_of_two() && FRAME_SLOTS > MAX_FRAMES);
    assert!(MAX_RANGES.is_power_of_two() && MAX_PARTS.is_power_of_two() && MAX_PENDING.is_power_of_two());
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_holds_both_ends_of_every_address_and_number() {
        for number in [0, 1, MAX_PROCESSES as u32 - 1] {
            for address in [0x10000, 0x5555_5575_c8c0, 0x7fff_ffff_fff8] {
                let key = key(number, address);
                assert_eq!((key_process(key), key_address(key)), (number, address));
                assert!(!crate::site::is_pool(key));
            }
        }
        assert_ne!(name_key(1, 0x7fff_ffff_ffff), name_key(2, 0x7fff_ffff_ffff));
        assert_ne!(name_key(1, 0x5555_0001), name_key(1, 0x5555_0002));
    }
}
