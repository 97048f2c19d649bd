//! The types of a profile and of `capture.json`, which is one written down.
//!
//! `Profile<AbsAddr>` is what was drained from the kernel; naming its frames makes it a
//! `Profile<Frame>`; a [`Capture`] is that with all that an artifact says about the process, the
//! time and the losses. Every list is indexed by the ids that other lists hold.

use serde::{Deserialize, Serialize};

use crate::addr::{BuildId, VirtAddr};

/// Version of the `capture.json` schema that this program writes.
pub const SCHEMA: u32 = 2;

/// A number of chunks and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Chunks, or growths of chunks.
    pub count: u64,
    /// Bytes that the server asked for.
    pub requested: u64,
    /// Bytes that they take in their context: chunk header and rounding included.
    pub held: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.count = self.count.saturating_add(other.count);
        self.requested = self.requested.saturating_add(other.requested);
        self.held = self.held.saturating_add(other.held);
    }
}

/// Index into [`Profile::frames`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FrameId(pub u32);

/// Index into [`Profile::stacks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StackId(pub u32);

/// Index into [`Capture::modules`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ModuleId(pub u32);

/// Index into [`Profile::contexts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ContextId(pub u32);

/// Memory contexts of one name at one place of the tree.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ContextPlace {
    /// Their name.
    pub name: String,
    /// What they are for, where the name does not tell: the table of a `dynahash`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ident: Option<String>,
    /// Names from `TopMemoryContext` to the parent; `None` if they were gone before they could be
    /// looked at.
    pub path: Option<Vec<String>>,
}

impl ContextPlace {
    /// The name, and what they are for if the name does not tell.
    pub fn label(&self) -> String {
        match &self.ident {
            Some(ident) => format!("{} {ident}", self.name),
            None => self.name.clone(),
        }
    }
}

/// What a group counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// Chunks that were allocated in the contexts.
    #[default]
    Chunks,
    /// The contexts themselves: their headers, and what of their blocks is in no chunk.
    Contexts,
}

/// How a stack ends at its outer side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StackEnd {
    /// It is complete.
    Bottom,
    /// Cut at code outside of every known mapping.
    UnknownMapping,
    /// Cut at code that was made at run time, which has no unwind information.
    Jit,
    /// Cut at code without unwind information.
    NoRow,
    /// Cut at an unwind rule that is not supported.
    Unsupported,
    /// Cut where stack memory could not be read.
    Read,
    /// Cut at the most frames that are kept.
    Truncated,
    /// Cut because the stack pointer did not move up.
    BadSp,
    /// Cut at a pending return probe.
    LostReturn,
    /// Not known at all: the tables for stacks were full, or bytes older than the capture.
    Unknown,
}

/// A call stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stack {
    /// Innermost first: the allocator function itself.
    pub frames: Vec<FrameId>,
    /// How it ends.
    pub end: StackEnd,
    /// What happened to all that was allocated with it.
    pub summary: StackSummary,
    /// Bytes that were allocated and not freed one by one at the end of each time slice, so that
    /// growth shows even where each chunk is soon replaced by a larger one; empty if that was not seen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held_over_time: Vec<u64>,
}

/// What became of all chunks that one stack allocated while recording. What is in none of the
/// other fields was still there at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StackSummary {
    /// All that was recorded.
    pub allocated: Tally,
    /// Freed one by one, or given back by a realloc.
    pub freed: Tally,
    /// Ended by the reset or delete of its context.
    pub reset: Tally,
    /// Was there when the process ended, which takes everything with it.
    pub exited: Tally,
}

/// What survived of one stack in contexts of one place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// The stack.
    pub stack: StackId,
    /// The memory contexts.
    pub context: ContextId,
    /// What is counted.
    #[serde(default)]
    pub what: What,
    /// Index into [`Capture::processes`]; 0 in a capture of one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub process: u32,
    /// How many different contexts.
    pub contexts: u64,
    /// What was there when recording ended.
    pub recorded: Tally,
    /// What is still there after settling.
    pub survived: Tally,
    /// Bytes that the surviving chunks keep from all others: the headers of blocks that were made while
    /// recording, and the free chunks between them.
    #[serde(default)]
    pub pinned: u64,
    /// Of samples, the variance of the bytes that survive, by the chance that chose them: in square bytes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub variance: u64,
    /// The statements that it was allocated in, the most frequent first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub queries: Vec<QueryShare>,
    /// `survived` by the time of birth: one entry for each of [`Window::slices`]. Of samples, chunks are those that were
    /// really seen, and bytes what they stand for.
    pub slices: Vec<Tally>,
}

impl Group {
    /// Bytes that the process would be smaller by.
    pub fn weight(&self) -> u64 {
        self.survived.held.saturating_add(self.pinned)
    }
}

fn is_zero<N: Default + PartialEq>(number: &N) -> bool {
    *number == N::default()
}

/// One of several processes that were traced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracedProcess {
    /// Its pid.
    pub pid: u32,
    /// `client backend`, `checkpointer`, `walsender` …
    pub kind: String,
    /// Database, if it has one and its title shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// User.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// `application_name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub application: Option<String>,
    /// Process title.
    pub title: String,
    /// Nanoseconds from the start of recording to its first allocation, if it was born after that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub born_ns: Option<u64>,
    /// Anonymous resident bytes at the start; none for one that was born later.
    pub rss_anon_start: Option<u64>,
    /// The same at the end.
    pub rss_anon_end: Option<u64>,
    /// Allocations that were recorded.
    pub recorded: u64,
    /// Bytes asked for by these.
    pub recorded_bytes: u64,
}

/// Processes that ended while they were recorded, those of one kind together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedProcesses {
    /// Their kind.
    pub kind: String,
    /// How many.
    pub count: u64,
    /// Allocations of theirs that were recorded.
    pub recorded: u64,
    /// Bytes asked for by these.
    pub recorded_bytes: u64,
}

/// A statement that the process was seen at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Query {
    /// Its id as `pg_stat_statements` knows it, if the server computes ids.
    pub id: Option<i64>,
    /// Its text, cut; without literals unless they were asked for.
    pub statement: String,
    /// How often it was seen.
    pub samples: u64,
}

/// How much of a group was allocated while a statement ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueryShare {
    /// Index into [`Capture::queries`].
    pub query: u32,
    /// Chunks and contexts.
    pub count: u64,
}

/// Stacks with what they hold, and frames of type `F`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile<F> {
    /// Each different frame once.
    pub frames: Vec<F>,
    /// Each different stack once.
    pub stacks: Vec<Stack>,
    /// Each place of contexts once.
    pub contexts: Vec<ContextPlace>,
    /// What survives, by stack and context.
    pub groups: Vec<Group>,
    /// Where only blocks of contexts were looked for: what survives of all else that malloc gave, and is in no group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_blocks: Option<Tally>,
}

impl<F> Profile<F> {
    /// The same profile with every frame turned into something else.
    pub fn map_frames<G>(self, each: impl FnMut(F) -> G) -> Profile<G> {
        Profile {
            frames: self.frames.into_iter().map(each).collect(),
            stacks: self.stacks,
            contexts: self.contexts,
            groups: self.groups,
            no_blocks: self.no_blocks,
        }
    }

    /// The contexts of a group. Every id leads somewhere: a capture that is read is checked for that.
    pub fn place(&self, group: &Group) -> &ContextPlace {
        &self.contexts[group.context.0 as usize]
    }
}

/// One name of a frame; a frame has several when functions were inlined into it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FrameName {
    /// Demangled function name.
    pub function: String,
    /// Source file, from DWARF.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Source line, from DWARF.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
}

/// A code address with its names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Frame {
    /// The object that it lies in.
    pub module: Option<ModuleId>,
    /// Its address in that object (return address − 1 for every frame but the innermost); without
    /// a module, the address in the process.
    pub address: VirtAddr,
    /// Start of its function, from the symbol or the FDE; in the object.
    pub function_start: Option<VirtAddr>,
    /// Innermost inlined function first, the function that is really called last. Empty for a
    /// function without a name.
    pub names: Vec<FrameName>,
    /// Other names of the function that is really called, where several have the same code: aliases,
    /// or functions that the linker folded. The first ones, demangled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// What stands in a graph when `names` is empty: `postgres+0x5c7730`, `[unknown mapping]`.
    pub fallback: String,
}

impl Frame {
    /// The name of the function that is really called, or the fallback.
    pub fn label(&self) -> &str {
        self.names.last().map_or(&self.fallback, |name| &name.function)
    }

    /// Whether nothing better than an address is known.
    pub fn is_nameless(&self) -> bool {
        self.names.is_empty()
    }
}

/// An object that frames lie in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    /// Its path as the process sees it.
    pub path: String,
    /// Its build ID.
    pub build_id: Option<BuildId>,
    /// Frames in it that have a name.
    pub named: u64,
    /// Frames in it that have none.
    pub nameless: u64,
    /// Where names came from: `.symtab`, `.dynsym`, `DWARF`.
    pub symbols: Vec<String>,
}

/// Which program wrote a capture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tool {
    /// `pgleak`.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// The process that was traced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Its pid.
    pub pid: u32,
    /// `client backend`, `checkpointer`, `walsender` …
    pub kind: String,
    /// Database, if it has one and its title shows it.
    pub database: Option<String>,
    /// User.
    pub user: Option<String>,
    /// Process title.
    pub title: String,
    /// `PostgreSQL 15.18 (Debian 15.18-0+deb12u1)`.
    pub server: String,
    /// `PostgreSQL` or `Greenplum`.
    pub product: String,
    /// Major version of the PostgreSQL that it is made from.
    pub major: u32,
    /// The server binary.
    pub binary: String,
    /// Build ID of the server binary.
    pub build_id: Option<BuildId>,
    /// Host name.
    pub host: String,
    /// Kernel release.
    pub kernel: String,
    /// Anonymous resident bytes at the start, from `/proc/PID/status`.
    pub rss_anon_start: Option<u64>,
    /// The same at the end.
    pub rss_anon_end: Option<u64>,
    /// Touched shared memory (shared buffers, mostly) at the end; no leak. Of several processes, the most that
    /// one has touched.
    pub rss_shmem_end: Option<u64>,
}

/// Why a capture ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// The time was over.
    Completed,
    /// A signal or Ctrl-C.
    Interrupted,
    /// The process ended.
    TargetExited,
    /// The process became another program.
    TargetExec,
    /// It slowed the process down more than allowed.
    TooSlow,
    /// There was no room for more records.
    MapFull,
}

/// One time slice of the record window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slice {
    /// Nanoseconds from the start of recording to the start of the slice.
    pub start_ns: u64,
    /// Its length.
    pub length_ns: u64,
}

/// When and how long.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// Start of recording, RFC 3339, UTC.
    pub started: String,
    /// How long allocations were recorded.
    pub record_ns: u64,
    /// How long frees were followed after that.
    pub settle_ns: u64,
    /// What was asked for.
    pub requested_record_ns: u64,
    /// What was asked for.
    pub requested_settle_ns: u64,
    /// Equal parts of the record window.
    pub slices: Vec<Slice>,
    /// Why it ended.
    pub end: EndReason,
    /// CPU time that the process used while recording, probes included.
    pub target_cpu_ns: u64,
    /// How much slower the process was expected to be while recording; 1 is not slower.
    pub expected_slowdown: Option<f64>,
    /// If it was recorded in windows: then `record_ns` is the time in which the process does as much without
    /// probes as it did while it was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub windows: Option<Windows>,
    /// If some allocations were left out for their size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling: Option<Sampling>,
}

/// Which allocations were recorded, by their size.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sampling {
    /// Only those of at least so many bytes; 0 for all.
    pub min_size: u64,
    /// Of these, one each so many bytes on average: one of `s` bytes with probability 1 − exp(−s / `mean_bytes`), and it
    /// stands for the inverse of that in every count and sum of bytes. 0 if each was recorded.
    pub mean_bytes: u64,
    /// Allocations, and growths of chunks that were not known, that were recorded.
    pub recorded: u64,
    /// The same that were left out.
    pub left_out: u64,
}

/// A recording in windows at random times, between which nothing was attached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Windows {
    /// How many.
    pub count: u64,
    /// From the beginning of the first to the end.
    pub wall_ns: u64,
    /// Time in which allocations were recorded.
    pub record_ns: u64,
    /// The part of its work that the process did in that time; what was recorded is scaled by it.
    pub work: f64,
    /// The part of all time that might be added.
    pub allowed: f64,
    /// The part that was added.
    pub added: f64,
    /// Survivors of windows that were seen to be gone later.
    pub gone: u64,
}

/// One counter of the capture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterValue {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: u64,
    /// Whether a value other than zero means that something is missing.
    pub loss: bool,
    /// What it counts.
    pub meaning: String,
}

/// A probed function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteReport {
    /// `AllocSetAlloc`.
    pub function: String,
    /// `alloc`, `free`, `realloc`, `reset`, `delete`.
    pub role: String,
    /// Its first instruction, in the server binary or the library.
    pub function_address: VirtAddr,
    /// The probed instruction.
    pub probe_address: VirtAddr,
    /// The probed instruction as text.
    pub instruction: String,
    /// `emulated` or `single-stepped`.
    pub cost_class: String,
    /// How the function was found: `.dynsym`, `.symtab`, `static analysis`, `live process`.
    pub found_by: String,
    /// The library that it is in; none for the server binary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub library: Option<String>,
    /// Calls seen.
    pub entries: u64,
    /// Returns seen, where the site has a return probe.
    pub returns: Option<u64>,
    /// Calls whose return was not awaited: it was foreseen, or nothing depended on it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unawaited: u64,
}

/// [`Target::kind`] of a capture of several processes.
pub const SEVERAL: &str = "several processes";

/// Places of what was allocated in no context ([`ContextPlace::name`]): by malloc and its like, by mmap.
pub const OUTSIDE: [&str; 2] = ["malloc", "mmap"];
/// Place of what malloc gave for blocks of contexts, where contexts were not traced.
pub const BLOCKS_OF_CONTEXTS: &str = "blocks of memory contexts";

impl Capture {
    /// Whether it is of several processes.
    pub fn is_of_several(&self) -> bool {
        self.target.kind == SEVERAL
    }

    /// The same with what one of several processes holds. What became of the chunks of a stack stays that
    /// of all of them; the course of what they held, which would be taken for its own, goes.
    pub fn of_process(&self, index: u32) -> Self {
        let mut capture = self.clone();
        capture.profile.groups.retain(|group| group.process == index);
        capture.profile.stacks.iter_mut().for_each(|stack| stack.held_over_time.clear());
        capture.memory = None;
        capture
    }

    /// Whether chunks and bytes are estimates by samples.
    pub fn is_estimate(&self) -> bool {
        self.window.sampling.as_ref().is_some_and(|sampling| sampling.mean_bytes != 0)
    }

    /// Whether only blocks of contexts were traced, and not what is allocated in them.
    pub fn traces_blocks(&self) -> bool {
        self.profile.no_blocks.is_some()
    }

    /// Whether what is allocated outside of contexts was traced.
    pub fn traces_malloc(&self) -> bool {
        !self.traces_blocks() && self.sites.iter().any(|site| site.function == OUTSIDE[0])
    }
}

/// What the contexts of one label have gained while recording, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContextGrowth {
    /// Their name, with what they are for if the name does not tell.
    pub label: String,
    /// How many there were before.
    pub contexts_before: u64,
    /// How many there were when recording ended.
    pub contexts_after: u64,
    /// Their blocks before.
    pub before: u64,
    /// Their blocks when recording ended.
    pub after: u64,
    /// What was left of the recorded allocations: requested bytes.
    pub requested: u64,
    /// The same with chunk headers and rounding.
    pub traced: u64,
    /// Growth of what is in no used chunk: headers of contexts and blocks, free chunks, unused ends
    /// of blocks.
    pub overhead: i64,
    /// Where only blocks were traced: bytes of its used chunks when recording began, and at the end of each of
    /// [`Window::slices`]; empty if that was not seen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub used_over_time: Vec<u64>,
    /// Used chunks that were not there before and not traced; less than zero if chunks from before
    /// were freed. `None` where the contexts do not tell: those of Generation kind with freed chunks.
    pub untraced: Option<i64>,
}

/// The memory of the process, before and after recording.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryGrowth {
    /// Anonymous resident bytes before.
    pub rss_anon_before: Option<u64>,
    /// The same when recording ended.
    pub rss_anon_after: Option<u64>,
    /// Blocks of all contexts before.
    pub contexts_before: u64,
    /// The same when recording ended.
    pub contexts_after: u64,
    /// By label: those that grew or shrank, what grew most first.
    pub by_label: Vec<ContextGrowth>,
    /// What stood in the way of a whole answer, in words; empty if nothing did.
    pub troubles: String,
}

/// Everything a capture found. This is `capture.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Capture {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Who wrote it.
    pub tool: Tool,
    /// What was traced; of several processes, their postmaster or the first of them, with sums of memory.
    pub target: Target,
    /// The processes, if several were asked for, that were there at the end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<TracedProcess>,
    /// Those that had ended, by kind.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ended: Vec<EndedProcesses>,
    /// When.
    pub window: Window,
    /// Where the probes were.
    pub sites: Vec<SiteReport>,
    /// Objects of the frames.
    pub modules: Vec<Module>,
    /// What was found.
    pub profile: Profile<Frame>,
    /// Statements that the process was seen at, as often as was looked.
    #[serde(default)]
    pub queries: Vec<Query>,
    /// The contexts before and after; `None` if they could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryGrowth>,
    /// What was counted.
    pub counters: Vec<CounterValue>,
    /// Things a reader has to know, in sentences: gaps in tables, limits that were hit.
    pub notes: Vec<String>,
}
