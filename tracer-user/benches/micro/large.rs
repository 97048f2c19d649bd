//! A large capture, made up, and the same each time.

use std::collections::{HashMap, HashSet};

use pgleak::{
    addr::VirtAddr,
    profile::{
        Capture, ContextId, ContextPlace, CounterValue, EndReason, Frame, FrameId, FrameName, Group, Module,
        ModuleId, Profile, SCHEMA, SiteReport, Slice, Stack, StackEnd, StackId, StackSummary, Tally, Target,
        Tool, What, Window,
    },
};

/// Different stacks.
const STACKS: usize = 10_000;
/// Functions between those that all stacks begin and end with.
const FUNCTIONS: u64 = 3_000;
/// Whom each of them calls.
const CALLEES: u64 = 3;
const CONTEXTS: u32 = 60;
const SLICES: u64 = 13;

/// From the bottom up.
const OUTER: [&str; 7] = [
    "_start",
    "__libc_start_call_main",
    "main",
    "PostmasterMain",
    "ServerLoop",
    "PostgresMain",
    "exec_simple_query",
];
const INNER: [&str; 2] = ["palloc", "AllocSetAlloc"];

/// It.
pub(crate) fn capture() -> Capture {
    let mut chance = fastrand::Rng::with_seed(15);
    let mut frames = Frames::default();
    let (mut stacks, mut groups, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
    while stacks.len() < STACKS {
        let path = path(&mut frames, &mut chance);
        if seen.insert(path.clone()) {
            let id = StackId(stacks.len() as u32);
            // Work in flight, what stays, and a little of both.
            let stays = chance.u64(0..4);
            let slices: Vec<Tally> = (0..SLICES)
                .map(|slice| tally(if stays == 0 || slice + stays > SLICES { chance.u64(0..5) } else { 0 }))
                .collect();
            let mut survived = Tally::default();
            slices.iter().for_each(|slice| survived += *slice);
            for context in 0..chance.u32(1..3) {
                groups.push(group(
                    id,
                    ContextId((chance.u32(0..CONTEXTS) + context) % CONTEXTS),
                    survived,
                    &slices,
                ));
            }
            let summary =
                StackSummary { allocated: tally(1000), freed: tally(900), ..StackSummary::default() };
            stacks.push(Stack { frames: path, end: StackEnd::Bottom, summary, held_over_time: Vec::new() });
        }
    }
    let profile = Profile { frames: frames.all, stacks, contexts: contexts(), groups, no_blocks: None };
    around(profile)
}

#[derive(Default)]
struct Frames {
    all: Vec<Frame>,
    by_name: HashMap<String, FrameId>,
}

impl Frames {
    fn id(&mut self, name: String) -> FrameId {
        if let Some(id) = self.by_name.get(&name) {
            return *id;
        }
        let id = FrameId(self.all.len() as u32);
        let address = VirtAddr(0x10_0000 + u64::from(id.0) * 0x100);
        self.all.push(Frame {
            module: Some(ModuleId(0)),
            address: VirtAddr(address.0 + 0x20),
            function_start: Some(address),
            names: vec![FrameName { function: name.clone(), file: None, line: None }],
            aliases: Vec::new(),
            fallback: format!("postgres+{:#x}", address.0),
        });
        self.by_name.insert(name, id);
        id
    }
}

/// A stack from the innermost frame outwards, through a graph in which each function has few callees.
fn path(frames: &mut Frames, chance: &mut fastrand::Rng) -> Vec<FrameId> {
    let mut path: Vec<FrameId> = OUTER.iter().map(|name| frames.id((*name).to_owned())).collect();
    let mut function = 0;
    for _ in 0..chance.u32(6..30) {
        path.push(frames.id(format!("ExecWork{function}")));
        function = (function * CALLEES + 1 + chance.u64(0..CALLEES)) % FUNCTIONS;
    }
    path.extend(INNER.iter().map(|name| frames.id((*name).to_owned())));
    path.reverse();
    path
}

fn tally(count: u64) -> Tally {
    Tally { count, requested: count * 100, held: count * 112 }
}

fn group(stack: StackId, context: ContextId, survived: Tally, slices: &[Tally]) -> Group {
    Group {
        stack,
        context,
        what: What::Chunks,
        process: 0,
        contexts: 1,
        recorded: survived,
        survived,
        pinned: 0,
        variance: 0,
        queries: Vec::new(),
        slices: slices.to_vec(),
    }
}

fn contexts() -> Vec<ContextPlace> {
    let place = |number: u32| ContextPlace {
        name: format!("Context {number}"),
        ident: None,
        path: Some(vec!["TopMemoryContext".into(), "CacheMemoryContext".into(), format!("Context {number}")]),
    };
    (0..CONTEXTS).map(place).collect()
}

/// What else a capture says.
fn around(profile: Profile<Frame>) -> Capture {
    const SECOND: u64 = 1_000_000_000;
    Capture {
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
            record_ns: SLICES * SECOND,
            settle_ns: 3 * SECOND,
            requested_record_ns: SLICES * SECOND,
            requested_settle_ns: 3 * SECOND,
            slices: (0..SLICES).map(|at| Slice { start_ns: at * SECOND, length_ns: SECOND }).collect(),
            end: EndReason::Completed,
            target_cpu_ns: 9 * SECOND,
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
            unawaited: 0,
            returns: Some(1_204_331),
        }],
        modules: vec![Module {
            path: "/usr/lib/postgresql/15/bin/postgres".into(),
            build_id: None,
            named: profile.frames.len() as u64,
            nameless: 0,
            symbols: vec![".symtab".into()],
        }],
        profile,
        queries: Vec::new(),
        memory: None,
        counters: vec![CounterValue {
            name: "recorded".into(),
            value: 1_204_331,
            loss: false,
            meaning: "allocations recorded".into(),
        }],
        notes: Vec::new(),
    }
}
