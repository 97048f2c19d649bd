//! Captures made by hand for the tests of the verdict and of the report.

use super::{
    Capture, ContextId, ContextPlace, CounterValue, EndReason, Frame, FrameId, FrameName, Group, Module,
    ModuleId, Profile, SCHEMA, SiteReport, Slice, Stack, StackEnd, StackId, StackSummary, Tally, Target,
    Tool, What, Window,
};
use crate::addr::VirtAddr;

/// Time slices of the captures made here, one second each.
pub(crate) const SLICES: usize = 12;

/// The outer frames of a simple query in a client backend.
pub(crate) const SIMPLE_QUERY: &str =
    "exec_simple_query < PostgresMain < ServerLoop < PostmasterMain < main < __libc_start_call_main < _start";

/// A capture in the making.
pub(crate) struct Maker {
    capture: Capture,
}

impl Maker {
    pub(crate) fn new() -> Self {
        let second = 1_000_000_000;
        Self {
            capture: Capture {
                schema: SCHEMA,
                tool: Tool { name: "pgleak".into(), version: "0.1.0".into() },
                target: Target {
                    pid: 4711,
                    kind: "client backend".into(),
                    database: Some("shop".into()),
                    user: Some("app".into()),
                    title: "postgres: app shop [local] SELECT".into(),
                    server: "PostgreSQL 15.18".into(),
                    product: "PostgreSQL".into(),
                    major: 15,
                    binary: "/usr/lib/postgresql/15/bin/postgres".into(),
                    build_id: None,
                    host: "db1".into(),
                    kernel: "6.12.0".into(),
                    rss_anon_start: Some(52_428_800),
                    rss_anon_end: Some(68_157_440),
                    rss_shmem_end: Some(134_217_728),
                },
                processes: Vec::new(),
                ended: Vec::new(),
                window: Window {
                    windows: None,
                    sampling: None,
                    started: "2026-03-01T03:07:00Z".into(),
                    record_ns: SLICES as u64 * second,
                    settle_ns: 3 * second,
                    requested_record_ns: SLICES as u64 * second,
                    requested_settle_ns: 3 * second,
                    slices: (0..SLICES as u64)
                        .map(|i| Slice { start_ns: i * second, length_ns: second })
                        .collect(),
                    end: EndReason::Completed,
                    target_cpu_ns: 9 * second,
                    expected_slowdown: Some(1.08),
                },
                sites: vec![SiteReport {
                    function: "AllocSetAlloc".into(),
                    role: "alloc".into(),
                    function_address: VirtAddr(0x5c_7730),
                    probe_address: VirtAddr(0x5c_7734),
                    instruction: "push rbp".into(),
                    cost_class: "emulated".into(),
                    found_by: ".symtab".into(),
                    library: None,
                    entries: 1_204_331,
                    returns: Some(1_204_331),
                    unawaited: 0,
                }],
                modules: vec![Module {
                    path: "/usr/lib/postgresql/15/bin/postgres".into(),
                    build_id: None,
                    named: 40,
                    nameless: 2,
                    symbols: vec![".symtab".into()],
                }],
                profile: Profile {
                    frames: Vec::new(),
                    stacks: Vec::new(),
                    contexts: Vec::new(),
                    groups: Vec::new(),
                    no_blocks: None,
                },
                queries: Vec::new(),
                memory: None,
                counters: Vec::new(),
                notes: Vec::new(),
            },
        }
    }

    /// Survivors of `size` bytes with a stack, written `inner < caller < …`, in contexts of a
    /// name; `counts` by slice. A name `module+0x…` is a function without a name, `name@file:line`
    /// one with its source.
    pub(crate) fn survivors(mut self, path: &str, context: &str, size: u64, counts: [u64; SLICES]) -> Self {
        let slices: Vec<Tally> = counts.iter().map(|count| chunks(*count, size)).collect();
        let mut sum = Tally::default();
        slices.iter().for_each(|slice| sum += *slice);
        self.push(path, context, sum, sum, slices);
        self
    }

    /// `count` chunks that were there when recording ended, and went while settling.
    pub(crate) fn settled(mut self, path: &str, context: &str, size: u64, count: u64) -> Self {
        self.push(path, context, chunks(count, size), Tally::default(), vec![Tally::default(); SLICES]);
        self
    }

    /// `count` chunks that were freed again while recording.
    pub(crate) fn released(mut self, path: &str, size: u64, count: u64) -> Self {
        self.push(path, "MessageContext", Tally::default(), Tally::default(), vec![Tally::default(); SLICES]);
        let frames: Vec<FrameId> = path.split(" < ").map(|name| self.frame(name)).collect();
        let of_path = self.capture.profile.stacks.iter_mut().find(|stack| stack.frames == frames);
        if let Some(stack) = of_path {
            stack.summary.allocated += chunks(count, size);
            stack.summary.freed += chunks(count, size);
        }
        self
    }

    pub(crate) fn counter(mut self, name: &str, value: u64, loss: bool, meaning: &str) -> Self {
        self.capture.counters.push(CounterValue { name: name.into(), value, loss, meaning: meaning.into() });
        self
    }

    pub(crate) fn note(mut self, note: &str) -> Self {
        self.capture.notes.push(note.into());
        self
    }

    pub(crate) fn end(mut self, end: EndReason, settle_ns: u64) -> Self {
        self.capture.window.end = end;
        self.capture.window.settle_ns = settle_ns;
        self
    }

    /// A capture of blocks of contexts, beside which malloc has given some other chunks.
    pub(crate) fn only_blocks(mut self) -> Self {
        self.capture.profile.no_blocks = Some(chunks(12, 1000));
        self
    }

    pub(crate) fn build(self) -> Capture {
        self.capture
    }

    fn push(&mut self, path: &str, context: &str, recorded: Tally, survived: Tally, slices: Vec<Tally>) {
        let frames: Vec<FrameId> = path.split(" < ").map(|name| self.frame(name)).collect();
        let stacks = &mut self.capture.profile.stacks;
        let at = stacks.iter().position(|stack| stack.frames == frames).unwrap_or_else(|| {
            let summary = StackSummary::default();
            stacks.push(Stack { frames, end: StackEnd::Bottom, summary, held_over_time: Vec::new() });
            stacks.len() - 1
        });
        // As much again was allocated and freed, and as much ended with its context.
        for sum in 0..3 {
            let summary = &mut stacks[at].summary;
            summary.allocated += recorded;
            match sum {
                0 => summary.freed += recorded,
                1 => summary.reset += recorded,
                _ => {}
            }
        }
        let context = self.context(context);
        self.capture.profile.groups.push(Group {
            stack: StackId(at as u32),
            context,
            what: What::Chunks,
            process: 0,
            contexts: survived.count.div_ceil(4),
            recorded,
            survived,
            pinned: 0,
            variance: 0,
            queries: Vec::new(),
            slices,
        });
    }

    /// The contexts of a name; one written `TopMemoryContext > a > b` has a path.
    fn context(&mut self, text: &str) -> ContextId {
        let mut path: Vec<String> = text.split(" > ").map(str::to_owned).collect();
        let name = path.pop().expect("split gives one at least");
        let place = ContextPlace { name, ident: None, path: Some(path).filter(|path| !path.is_empty()) };
        let contexts = &mut self.capture.profile.contexts;
        let at = contexts.iter().position(|known| *known == place).unwrap_or_else(|| {
            contexts.push(place);
            contexts.len() - 1
        });
        ContextId(at as u32)
    }

    fn frame(&mut self, text: &str) -> FrameId {
        let frames = &mut self.capture.profile.frames;
        let frame = if let Some((_, offset)) = text.split_once("+0x") {
            let start = u64::from_str_radix(offset, 16).expect("an offset in hexadecimal");
            Frame {
                module: Some(ModuleId(0)),
                // Calls from different places in the function are different frames.
                address: VirtAddr(start + 0x20 + frames.len() as u64),
                function_start: Some(VirtAddr(start)),
                names: Vec::new(),
                aliases: Vec::new(),
                fallback: text.into(),
            }
        } else {
            let (function, source) = text.split_once('@').map_or((text, None), |(f, s)| (f, Some(s)));
            let source = source.and_then(|source| source.split_once(':'));
            Frame {
                module: Some(ModuleId(0)),
                address: VirtAddr(0x1000 + frames.len() as u64),
                function_start: None,
                names: vec![FrameName {
                    function: function.into(),
                    file: source.map(|(file, _)| file.into()),
                    line: source.and_then(|(_, line)| line.parse().ok()),
                }],
                aliases: Vec::new(),
                fallback: String::new(),
            }
        };
        let same = |other: &Frame| other.names == frame.names && other.fallback == frame.fallback;
        // Every third nameless frame is a new address.
        let known = frames.iter().position(same).filter(|at| !frame.is_nameless() || at % 3 != 0);
        FrameId(known.unwrap_or_else(|| {
            frames.push(frame);
            frames.len() - 1
        }) as u32)
    }
}

/// The same number in every slice.
pub(crate) fn every(count: u64) -> [u64; SLICES] {
    [count; SLICES]
}

/// All in the first slices.
pub(crate) fn early(counts: [u64; 3]) -> [u64; SLICES] {
    let mut all = [0; SLICES];
    all[..3].copy_from_slice(&counts);
    all
}

/// All in the last slice.
pub(crate) fn last(count: u64) -> [u64; SLICES] {
    let mut all = [0; SLICES];
    all[SLICES - 1] = count;
    all
}

/// One in each `step`-th slice, from `first` on: a path that is too rare to be in every slice.
pub(crate) fn now_and_then(first: usize, step: usize) -> [u64; SLICES] {
    std::array::from_fn(|i| u64::from(i >= first && (i - first).is_multiple_of(step)))
}

fn chunks(count: u64, size: u64) -> Tally {
    Tally { count, requested: count * size, held: count * (size.next_power_of_two() + 8) }
}
