//! Layouts of every map, shared by the eBPF programs and user space.

use crate::{
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
/// Slots of `MAPSETS`.
pub const MAPSET_SLOTS: u32 = 16;
/// Bytes kept of a context's name.
pub const NAME_BYTES: usize = 64;
/// Slots of the cache from code address to unwind row.
pub const ROW_CACHE_SLOTS: u32 = 1 << 14;
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
    /// Follow frees, record nothing new.
    Settle = 3,
    /// The process has ended; written by the exit program.
    Exited = 4,
    /// The process has become another program; written by the exec program.
    Replaced = 5,
}

/// The one element of the `CONTROL` map. Both sides write single words of it; each word has one
/// writer, but for `phase`, where the end of the process comes last.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Control {
    /// [`Phase`]; written by user space, and by the exit and exec programs.
    pub phase: u32,
    /// Number of the set of mappings in use, counted from 1; it is in slot number %
    /// [`MAPSET_SLOTS`] of `MAPSETS`.
    pub mapset: u32,
    /// `CLOCK_MONOTONIC` ns after which the programs do nothing: user space moves it on while it
    /// is well.
    pub deadline_ns: u64,
    /// The next epoch. Starts at 1, never goes back.
    pub next_epoch: u64,
    /// The next stack id. Starts at 1.
    pub next_stack: u64,
    /// How many keys user space has put into `DOOMED`, ever.
    pub doomed_head: u64,
    /// How many of them were dealt with, ever.
    pub doomed_tail: u64,
    /// Start of the area where return probes return to (`[uprobes]`), 0 until it is known.
    pub trampoline_start: u64,
    /// Its end.
    pub trampoline_end: u64,
    /// 1: walks do not use what is remembered of the last one. For tests and measurements.
    pub walk_anew: u32,
    /// How often the dynamic loader has said that it has loaded something, ever; written by the
    /// programs.
    pub loads: u32,
    /// Up to which of these the mappings are known; written by user space.
    pub loads_known: u32,
    /// Thread group that the probes have seen, as the kernel's first namespace numbers it.
    pub tgid: u32,
    /// The name of the contexts that allocations are recorded in, NUL-padded; all zero for every one.
    pub only: [u64; NAME_BYTES / 8],
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
}

/// Key of `LIVE`: the chunk's address.
pub type ChunkKey = u64;
/// Key of `CONTEXTS`: the context's address.
pub type ContextKey = u64;

/// A chunk that was allocated and not yet freed. It is dead, whatever else it says, unless its
/// context is in `CONTEXTS` with the same epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Live {
    /// Epoch of the context when the chunk was born.
    pub epoch: u64,
    /// The context, or the number of a [`crate::site::Pool`], which is always alive.
    pub context: ContextKey,
    /// Bytes asked for by the allocation itself; 0 if it is older than the capture.
    pub requested: u64,
    /// Bytes that these take in the context: chunk header and rounding included.
    pub held: u64,
    /// Bytes of the whole chunk as last asked for, grown parts and inherited bytes included.
    pub full_requested: u64,
    /// Bytes that the whole chunk takes.
    pub full_held: u64,
    /// `CLOCK_MONOTONIC` of the allocation.
    pub born_ns: u64,
    /// Stack of the allocation, or [`NO_STACK`].
    pub stack: u32,
    /// 1 if `PARTS` has growth of this chunk.
    pub has_parts: u32,
}

impl Live {
    /// A chunk that was allocated with these bytes.
    #[inline(always)]
    pub const fn new(context: (ContextKey, u64), bytes: (u64, u64), born_ns: u64, stack: u32) -> Self {
        let ((context, epoch), (requested, held)) = (context, bytes);
        let (full_requested, full_held) = bytes;
        Self { epoch, context, requested, held, full_requested, full_held, born_ns, stack, has_parts: 0 }
    }
}

/// What one realloc stack added to a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Part {
    /// Bytes asked for.
    pub requested: u64,
    /// Bytes taken.
    pub held: u64,
    /// When it last grew.
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
    /// Address of the context's name, the key of `NAMES`.
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
    /// Chunks, or growths, that were recorded.
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
    /// The function's first instruction.
    pub function: u64,
    /// The probe's cookie.
    pub cookie: u64,
    /// The context argument, the number of a pool, or 0.
    pub context: u64,
    /// The pointer argument, or 0.
    pub pointer: u64,
    /// The size argument.
    pub size: u64,
    /// Realloc of an unknown chunk: its usable size before the call.
    pub old_usable: u64,
    /// The same with its overhead.
    pub old_held: u64,
    /// [`PENDING_NESTED`], [`PENDING_OLD_KNOWN`], [`PENDING_INNER`], [`PENDING_NOT_OWN`].
    pub flags: u64,
}

/// Flag of [`Pending`]: made by a realloc for itself.
pub const PENDING_NESTED: u64 = 1;
/// Flag of [`Pending`]: `old_usable` and `old_held` were read.
pub const PENDING_OLD_KNOWN: u64 = 2;
/// Flag of [`Pending`]: memory that an allocator gets for itself.
pub const PENDING_INNER: u64 = 4;
/// Flag of [`Pending`]: a mapping of a file, or of memory that is shared.
pub const PENDING_NOT_OWN: u64 = 8;

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
    /// Open calls of the task.
    pub depth: u32,
    /// Frames walked.
    pub fresh: u32,
    /// Frames taken over from the last walk.
    pub met: u32,
    /// Frames of the last walk that are as they were.
    pub valid: u32,
    /// Padding.
    pub pad: u32,
    /// The control record's trampoline area.
    pub trampoline_start: u64,
    /// Its end.
    pub trampoline_end: u64,
}

/// Header of a record in the `NEW_STACKS` ring; `count` frames of 8 bytes follow, innermost
/// first. One with the id [`NO_STACK`] and no frames says that the dynamic loader was at work.
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

/// What one task needs while a program runs for it. Per task, never per CPU: a uprobe program
/// may be preempted, and a sleepable one sleeps.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Task {
    /// Open calls, innermost last.
    pub pending: [Pending; MAX_PENDING],
    /// How many of them are in use.
    pub depth: u32,
    /// Padding.
    pub pad: u32,
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
    /// The chunk that is resized, as it was.
    pub resized: Live,
    /// 1 if it is followed already.
    pub is_followed: u64,
    /// Bytes that it takes now.
    pub held: u64,
    /// 1 if growth is recorded.
    pub is_recording: u64,
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

/// A context's name. Key of `NAMES`: its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Name {
    /// NUL-terminated, cut at [`NAME_BYTES`].
    pub bytes: [u8; NAME_BYTES],
}

const _: () = {
    assert!(size_of::<Control>() == 144);
    assert!(size_of::<Range>() == 32);
    assert!(size_of::<MapSet>() == 8192);
    assert!(size_of::<Live>() == 64);
    assert!(size_of::<Part>() == 32);
    assert!(size_of::<Parts>() == 264);
    assert!(size_of::<Context>() == 32);
    assert!(size_of::<StackTotals>() == 48);
    assert!(size_of::<Pending>() == 80);
    assert!(size_of::<Walk>() == 136);
    assert!(size_of::<StackHeader>() == 16);
    assert!(size_of::<Window>() == 16 + 8 * WINDOW_WORDS);
    assert!(size_of::<Trail>() == 128 * 48 + 256 + 8);
    assert!(size_of::<Task>() == 8 * 80 + 8 + 136 + 16400 + 6408 + 128 * 32 + 16 + 1024 + 264 + 88);
    assert!(WINDOW_WORDS.is_power_of_two() && MAPSET_SLOTS.is_power_of_two());
    assert!(FRAME_SLOTS.is_power_of_two() && FRAME_SLOTS > MAX_FRAMES);
    assert!(MAX_RANGES.is_power_of_two() && MAX_PARTS.is_power_of_two() && MAX_PENDING.is_power_of_two());
};
