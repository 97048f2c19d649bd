//! Memory contexts read from outside, against what the server says of itself.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    io, thread,
    time::{Duration, Instant},
};

use pgleak::addr::AbsAddr;
use pgleak::census::{self, Census, Kind, Limits, Observed, Usage, used_chunks};
use pgleak::target::ReadMemory;
use pgleak_tests::{
    Build, Server, ServerOptions, Session,
    damage::Random,
    pgleak::run,
    planted::{self, Call},
    workload::{Pgbench, Script, init_pgbench},
};

const PATIENCE: Duration = Duration::from_secs(30);

fn server(build: &Build) -> Server {
    Server::start(build, &ServerOptions::default()).unwrap()
}

fn census(pid: u32) -> Census {
    Observed::of(pid).unwrap().census(Limits::default()).unwrap()
}

/// What the server logs of a context, but for its bytes used, which are total less free.
type Logged = (u64, String, [u64; 4]);

/// Lines such as `level: 1; TopTransactionContext: 8192 total in 1 blocks; 7752 free (0 chunks); 440 used`.
fn logged(log: &str) -> Vec<Logged> {
    let of_line = |line: &str| {
        let (level, rest) = line.split_once("level: ")?.1.split_once("; ")?;
        let (name, numbers) = rest.rsplit_once(" total in ").map(|(before, after)| {
            let (name, total) = before.rsplit_once(": ").expect("a name");
            (name.to_owned(), format!("{total} {after}"))
        })?;
        let numbers: Vec<u64> = numbers
            .split(|c: char| !c.is_ascii_digit())
            .filter(|digits| !digits.is_empty())
            .map(|digits| digits.parse().expect("a number"))
            .collect();
        // Of a Generation context the number of its chunks stands between, of a Bump context none at all.
        let numbers = match numbers[..] {
            [total, blocks, free, _] => [total, blocks, free, 0],
            [total, blocks, free, chunks, _] | [total, blocks, _, free, chunks, _] => {
                [total, blocks, free, chunks]
            }
            _ => return None,
        };
        Some((level.parse().ok()?, name, numbers))
    };
    log.lines().filter_map(of_line).collect()
}

/// What the server would log, by the census.
fn expected(census: &Census) -> Vec<Logged> {
    let levels = census.levels();
    let of = |(context, level): (&pgleak::census::MemoryContext, usize)| {
        let usage = context.usage.as_ref()?;
        // It prints the ident of a table instead of the name.
        let name = match &context.ident {
            Some(ident) if context.name == "dynahash" => ident.clone(),
            _ => context.name.clone(),
        };
        // It forgets the empty blocks that a slab keeps, but for their bytes (`SlabStats`, 16 and later).
        let kept = usage.blocks.iter().filter(|block| block.unused == block.bytes);
        let kept: Vec<u64> = kept.map(|block| block.bytes).collect();
        let blocks = usage.blocks.len() - kept.len();
        let free = usage.free() - kept.iter().sum::<u64>();
        let numbers = [usage.total(), blocks as u64, free, usage.free_chunks];
        Some((level as u64, name, numbers))
    };
    census.contexts.iter().zip(levels).filter_map(of).collect()
}

fn logged_by(server: &Server, other: &mut Session, pid: u32) -> Vec<Logged> {
    let before = server.log().len();
    other.run(&format!("select pg_log_backend_memory_contexts({pid})")).unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let log = server.log();
        if log[before..].contains("Grand total:") {
            return logged(&log[before..]);
        }
        assert!(Instant::now() < deadline, "nothing was logged: {}", &log[before..]);
        thread::sleep(Duration::from_millis(20));
    }
}

fn counted<T: Ord>(all: impl IntoIterator<Item = T>) -> BTreeMap<T, u64> {
    let mut counts = BTreeMap::new();
    for one in all {
        *counts.entry(one).or_insert(0) += 1;
    }
    counts
}

/// An idle backend, context by context.
#[test]
fn an_idle_backend_has_the_contexts_that_it_logs_itself() {
    for build in Build::all().unwrap().into_iter().filter(|build| build.major >= 14) {
        let server = server(&build);
        let mut session = Session::open(&server).unwrap();
        planted::install(&server).unwrap();
        session.run("create table t as select 1 a; select count(*) from pg_class; select * from t").unwrap();
        Call::KINDS.run(&mut session, &[5000, 100]).unwrap();
        let mut other = Session::open(&server).unwrap();
        let pid = session.backend_pid();
        // The first time, what logs is loaded.
        logged_by(&server, &mut other, pid);
        let before = census(pid);
        let theirs = logged_by(&server, &mut other, pid);
        let after = census(pid);
        assert!(before.troubles.none() && after.troubles.none(), "{}: {}", build.name, after.troubles);
        assert_eq!(expected(&before), expected(&after), "{}: it logged and changed", build.name);
        // From 18 on the top is level 1, and children are logged in another order.
        let top = theirs.iter().map(|line| line.0).min().unwrap();
        let theirs = counted(theirs.into_iter().map(|(level, name, numbers)| (level - top, name, numbers)));
        // Errors are logged in ErrorContext, which is being used meanwhile.
        let is_quiet = |line: &&(u64, String, [u64; 4])| line.1 != "ErrorContext";
        let ours = counted(expected(&after));
        let of_theirs: Vec<_> = theirs.keys().filter(is_quiet).collect();
        let kinds: BTreeSet<String> = after.contexts.iter().map(|context| context.kind.to_string()).collect();
        println!("{}: {} contexts of {kinds:?}", build.name, after.contexts.len());
        assert_eq!(kinds.len(), if build.major < 17 { 3 } else { 4 }, "{kinds:?}");
        for line in ours.keys().filter(is_quiet) {
            assert_eq!(ours.get(line), theirs.get(line), "{}: {line:?} not in {of_theirs:#?}", build.name);
        }
        assert!(ours.values().sum::<u64>() > 80, "{}: {ours:?}", build.name);
    }
}

/// What the blocks say is what the context counts, and every byte is in a chunk, free or a header.
#[test]
fn blocks_chunks_and_counts_agree_on_every_version() {
    for build in Build::all().unwrap() {
        let server = server(&build);
        planted::install(&server).unwrap();
        let mut session = planted::session(&server).unwrap();
        Call::PALLOC.run(&mut session, &[1000, 40]).unwrap();
        Call::HUGE.run(&mut session, &[3, 100_000]).unwrap();
        Call::REPALLOC.run(&mut session, &[2, 300_000]).unwrap();
        Call::PFREE.run(&mut session, &[1]).unwrap();
        Call::PALLOC.run(&mut session, &[500, 3000]).unwrap();
        Call::PFREE.run(&mut session, &[100]).unwrap();
        let (chunks, bytes) = (
            Call::CHUNKS.run(&mut session, &[]).unwrap().unsigned_abs(),
            Call::LIVE.run(&mut session, &[]).unwrap().unsigned_abs(),
        );
        let observed = Observed::of(session.backend_pid()).unwrap();
        let census = observed.census(Limits::default()).unwrap();
        assert!(census.troubles.none(), "{}: {}", build.name, census.troubles);
        for context in census.contexts.iter().filter(|context| context.kind == Kind::AllocSet) {
            let usage = context.usage.as_ref().unwrap();
            assert_eq!(context.total, Some(usage.total()), "{}: {context:?}", build.name);
            let used = used_chunks(&observed.memory, &observed.layout, context, Limits::default()).unwrap();
            let held: u64 = used.iter().map(|chunk| chunk.held).sum();
            assert_eq!(held, usage.used(), "{}: {} {:?}", build.name, context.name, context.ident);
        }
        let planted = census.contexts.iter().find(|context| context.name == planted::CONTEXT).unwrap();
        let used = used_chunks(&observed.memory, &observed.layout, planted, Limits::default()).unwrap();
        assert_eq!(used.len() as u64, chunks, "{}", build.name);
        assert_eq!(planted.usage.as_ref().map(Usage::used), Some(bytes), "{}", build.name);
        assert_eq!(
            census.path(census.by_address()[&planted.address]),
            ["TopMemoryContext", planted::CONTEXT]
        );
    }
}

/// A slab counts its free chunks, a bump context has none.
#[test]
fn contexts_of_other_kinds_hold_what_was_allocated_in_them() {
    for build in Build::all().unwrap() {
        let server = server(&build);
        planted::install(&server).unwrap();
        let mut session = planted::session(&server).unwrap();
        let in_slab = Call::KINDS.run(&mut session, &[5000, 100]).unwrap().unsigned_abs();
        let census = census(session.backend_pid());
        assert!(census.troubles.none(), "{}: {}", build.name, census.troubles);
        let used = |name: &str| {
            let found = census.contexts.iter().find(|context| context.name == name)?;
            Some(found.usage.as_ref().expect("its blocks").used())
        };
        assert_eq!(used("planted slab"), Some(in_slab), "{}", build.name);
        let generation = used("planted generation").unwrap();
        // With what was freed in blocks that are in use; the first quarter of them is not.
        assert!((5000 * 75..=5000 * 128).contains(&generation), "{}: {generation}", build.name);
        let bump = (build.major >= 17).then_some(5000 * 104);
        assert_eq!(used("planted bump"), bump, "{}", build.name);
    }
}

/// The memory changes under the reader: it says so, and nothing worse happens.
#[test]
fn a_busy_backend_can_be_read_again_and_again() {
    for build in [Build::packaged(15).unwrap(), Build::npm(12).unwrap(), Build::npm(17).unwrap()] {
        let server = server(&build);
        init_pgbench(&server).unwrap();
        let bench = Pgbench::start(&server, Script::TpcB, 1, 60).unwrap();
        let observed = Observed::of(bench.backend_pid()).unwrap();
        let (mut whole, mut slowest, mut fewest) = (0, Duration::ZERO, usize::MAX);
        for _ in 0..300 {
            let census = observed.census(Limits::default()).unwrap();
            whole += usize::from(census.troubles.none());
            slowest = slowest.max(census.took);
            fewest = fewest.min(census.contexts.len());
        }
        println!("{}: {whole} of 300 whole, the slowest in {slowest:?}, {fewest} contexts", build.name);
        assert!(whole >= 270, "{}: {whole} of 300", build.name);
        assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    }
}

#[test]
fn processes_of_every_kind_have_contexts_stopped_ones_too() {
    let server = server(&Build::packaged(15).unwrap());
    let mut session = Session::open(&server).unwrap();
    let pids = session.text("select string_agg(pid::text, ' ') from pg_stat_activity").unwrap();
    let mut pids: Vec<u32> = pids.split(' ').map(|pid| pid.parse().unwrap()).collect();
    pids.push(server.postmaster_pid());
    assert!(pids.len() > 5, "{pids:?}");
    for pid in pids {
        let census = census(pid);
        assert_eq!(census.contexts[0].name, "TopMemoryContext");
        assert!(census.contexts.len() > 5, "{pid}: {}", census.contexts.len());
    }
    let pid = session.backend_pid();
    let running = census(pid);
    xtask::process::signal(pid, libc::SIGSTOP).unwrap();
    let stopped = census(pid);
    xtask::process::signal(pid, libc::SIGCONT).unwrap();
    assert_eq!(expected(&running), expected(&stopped));
    assert_eq!(session.integer("select 1").unwrap(), 1);
}

#[test]
fn the_command_shows_the_tree_the_largest_json_and_growth() {
    let server = server(&Build::packaged(15).unwrap());
    planted::install(&server).unwrap();
    let mut session = planted::session(&server).unwrap();
    session.run("prepare secret as select 4711, 'hush'").unwrap();
    let pid = session.backend_pid().to_string();
    let tree = run(["contexts", &pid]).unwrap().success().unwrap().stdout;
    assert!(tree.lines().any(|line| line.ends_with("  TopMemoryContext")), "{tree}");
    assert!(tree.lines().any(|line| line.contains("    CacheMemoryContext")), "{tree}");
    assert!(tree.contains("prepare secret as select ?, ?"), "{tree}");
    assert!(!tree.contains("hush") && !tree.contains("NOT COMPLETE"), "{tree}");
    let shown = run(["contexts", &pid, "--show-queries"]).unwrap().success().unwrap().stdout;
    assert!(shown.contains("select 4711, 'hush'"), "{shown}");
    let top = run(["contexts", &pid, "--top", "3"]).unwrap().success().unwrap().stdout;
    assert_eq!(top.lines().count(), 5, "{top}");
    let json = run(["contexts", &pid, "--json"]).unwrap().success().unwrap().stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["complete"], true);
    assert_eq!(json["contexts"][0]["name"], "TopMemoryContext");
    assert!(!json.to_string().contains("hush"));

    let mut command = pgleak_tests::pgleak::command(["contexts", &pid, "--watch", "200ms"]).unwrap();
    let watching = pgleak_tests::pgleak::Running::spawn(&mut command).unwrap();
    watching.wait_for("TopMemoryContext", PATIENCE).unwrap();
    Call::PALLOC.run(&mut session, &[1000, 1000]).unwrap();
    let line = watching.wait_for("planted leak", PATIENCE).unwrap();
    assert!(line.contains("+1.0 MB") || line.contains("MB"), "{line}");
    watching.signal(libc::SIGINT).unwrap();
    watching.finish().unwrap();

    let refused = run(["contexts", &std::process::id().to_string()]).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("not a PostgreSQL server"), "{}", refused.stderr);
    // Reading leaves no mark: the session goes on.
    let observed = Observed::of(session.backend_pid()).unwrap();
    let top = observed.census(Limits::default()).unwrap().contexts[0].address;
    assert!(observed.memory.word(top).is_ok());
    assert_eq!(session.integer("select 1").unwrap(), 1);
}

/// What a census has read of an idle process, to be read again.
#[derive(Clone, Default)]
struct Recorded {
    pages: BTreeMap<u64, Vec<u8>>,
}

const PAGE: u64 = 4096;

impl ReadMemory for Recorded {
    fn read(&self, address: AbsAddr, into: &mut [u8]) -> io::Result<()> {
        let (mut at, mut left) = (address.0, into);
        while !left.is_empty() {
            let page = self.pages.get(&(at / PAGE)).ok_or(io::ErrorKind::NotFound)?;
            let from = (at % PAGE) as usize;
            let (now, later) = left.split_at_mut(left.len().min(page.len() - from));
            now.copy_from_slice(&page[from..from + now.len()]);
            (at, left) = (at.checked_add(now.len() as u64).ok_or(io::ErrorKind::NotFound)?, later);
        }
        Ok(())
    }
}

/// Memory that notes its pages as they are read.
struct Recorder<'a> {
    memory: &'a dyn ReadMemory,
    recorded: RefCell<Recorded>,
}

impl ReadMemory for Recorder<'_> {
    fn read(&self, address: AbsAddr, into: &mut [u8]) -> io::Result<()> {
        self.memory.read(address, into)?;
        for page in address.0 / PAGE..=(address.0 + into.len() as u64 - 1) / PAGE {
            let mut bytes = vec![0; PAGE as usize];
            self.memory.read(AbsAddr(page * PAGE), &mut bytes)?;
            self.recorded.borrow_mut().pages.insert(page, bytes);
        }
        Ok(())
    }
}

impl Recorded {
    fn set(&mut self, address: u64, word: u64) {
        let at = (address % PAGE) as usize;
        let page = self.pages.get_mut(&(address / PAGE)).expect("it was read");
        page[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }
}

/// Memory that changes once, right after something at an address was read.
struct Moving {
    memory: RefCell<Recorded>,
    after: u64,
    change: RefCell<Vec<(u64, u64)>>,
}

impl ReadMemory for Moving {
    fn read(&self, address: AbsAddr, into: &mut [u8]) -> io::Result<()> {
        self.memory.borrow().read(address, into)?;
        if address.0 == self.after {
            for (at, word) in self.change.take() {
                self.memory.borrow_mut().set(at, word);
            }
        }
        Ok(())
    }
}

/// A server keeps deleted contexts and makes the next ones of them: what was read as somebody's child is
/// met again, elsewhere or before its siblings. It is in the census once, and no damage.
#[test]
fn a_context_that_is_made_again_elsewhere_is_no_damage() {
    let server = server(&Build::packaged(15).unwrap());
    planted::install(&server).unwrap();
    let session = planted::session(&server).unwrap();
    let observed = Observed::of(session.backend_pid()).unwrap();
    let recorder = Recorder { memory: &observed.memory, recorded: RefCell::default() };
    let limits = Limits::default();
    let top = observed.census(limits).unwrap().contexts[0].address;
    let take = |memory: &dyn ReadMemory| census::take(memory, &observed.layout, top, limits);
    let whole = take(&recorder);
    let recorded = recorder.recorded.into_inner();
    let fields = &observed.layout.context;
    let word = |at: u64| {
        let mut bytes = [0; 8];
        recorded.read(AbsAddr(at), &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    };
    let cache = whole.contexts.iter().position(|context| context.name == "CacheMemoryContext").unwrap();
    let parent = whole.contexts[cache].address.0;
    let children: Vec<u64> = whole
        .contexts
        .iter()
        .filter(|context| context.parent == Some(cache))
        .map(|context| context.address.0)
        .collect();
    let [first, second, third, fourth] = children[..4] else { panic!("{} children", children.len()) };
    let [last_but_one, last] = children[children.len() - 2..] else { panic!() };
    assert_eq!(word(second + fields.next_child), third);
    let others = whole.contexts.iter().find(|context| context.name == "ErrorContext").unwrap().address.0;

    let before_its_siblings = vec![
        (first + fields.next_child, third),
        (second + fields.next_child, first),
        (parent + fields.first_child, second),
    ];
    let of_another = vec![
        (first + fields.next_child, third),
        (second + fields.parent, others),
        (second + fields.next_child, word(others + fields.first_child)),
        (others + fields.first_child, second),
    ];
    // The last one, which has none, gets it, with a child that was not there before.
    let with_a_child = vec![
        (first + fields.next_child, fourth),
        (second + fields.parent, last),
        (second + fields.first_child, third),
        (second + fields.next_child, 0),
        (third + fields.parent, second),
        (third + fields.next_child, 0),
        (last + fields.first_child, second),
    ];
    let mut without_third = recorded.clone();
    without_third.set(second + fields.next_child, fourth);
    for (what, memory, after, change) in [
        ("before its siblings", recorded.clone(), second, before_its_siblings),
        ("elsewhere", recorded.clone(), second, of_another),
        ("elsewhere, after it was read", without_third, last_but_one, with_a_child),
    ] {
        let moving = Moving { memory: RefCell::new(memory), after, change: RefCell::new(change) };
        let census = take(&moving);
        assert!(moving.change.borrow().is_empty(), "{what}: it was read");
        assert_eq!(census.troubles.to_string(), "", "{what}");
        let mut addresses: Vec<u64> = census.contexts.iter().map(|context| context.address.0).collect();
        addresses.sort_unstable();
        let mut all: Vec<u64> = whole.contexts.iter().map(|context| context.address.0).collect();
        all.sort_unstable();
        assert_eq!(addresses, all, "{what}: each context once, and none is missing");
    }
}

/// Words of real contexts, changed at random: to other addresses of it, to edges, to anything. Each is
/// what a torn read could give, and worse.
#[test]
fn damaged_memory_ends_in_a_marked_partial_result() {
    for build in [Build::packaged(15).unwrap(), Build::npm(12).unwrap(), Build::npm(18).unwrap()] {
        let server = server(&build);
        planted::install(&server).unwrap();
        let mut session = planted::session(&server).unwrap();
        Call::KINDS.run(&mut session, &[500, 100]).unwrap();
        let observed = Observed::of(session.backend_pid()).unwrap();
        let recorder = Recorder { memory: &observed.memory, recorded: RefCell::default() };
        let top = observed.census(Limits::default()).unwrap().contexts[0].address;
        let limits = Limits { time: Duration::from_secs(1), contexts: 2000, blocks: 10_000, usage: true };
        let take = |memory: &dyn ReadMemory| census::take(memory, &observed.layout, top, limits);
        let whole = take(&recorder);
        assert!(whole.troubles.none(), "{}", whole.troubles);
        for context in &whole.contexts {
            let _ = used_chunks(&recorder, &observed.layout, context, limits);
        }
        let recorded = recorder.recorded.into_inner();
        let again = take(&recorded);
        assert_eq!(again.contexts, whole.contexts, "{}: the recording is what was read", build.name);

        let addresses: Vec<u64> = whole.contexts.iter().map(|context| context.address.0).collect();
        let pages: Vec<u64> = recorded.pages.keys().copied().collect();
        let mut random = Random::new();
        let (mut marked, mut slowest) = (0, Duration::ZERO);
        for _ in 0..500 {
            let mut damaged = recorded.clone();
            for _ in 0..=random.below(8) {
                let near = addresses[random.below(addresses.len())];
                let (page, at) = match random.below(2) {
                    0 => (near / PAGE, near % PAGE + 8 * random.below(30) as u64),
                    _ => (pages[random.below(pages.len())], 8 * random.below(512) as u64),
                };
                let word = match random.below(4) {
                    0 => addresses[random.below(addresses.len())],
                    1 => pages[random.below(pages.len())] * PAGE + 8 * random.below(512) as u64,
                    2 => [0, 1, 8, u64::MAX, u64::MAX - 7, 1 << 47, i64::MAX as u64][random.below(7)],
                    _ => random.next(),
                };
                let Some(bytes) = damaged.pages.get_mut(&page) else { continue };
                if let Some(place) = bytes.get_mut(at as usize..at as usize + 8) {
                    place.copy_from_slice(&word.to_le_bytes());
                }
            }
            let census = take(&damaged);
            slowest = slowest.max(census.took);
            let addresses: BTreeSet<u64> = census.contexts.iter().map(|context| context.address.0).collect();
            assert_eq!(addresses.len(), census.contexts.len(), "each context once");
            // What is missing is said, unless a context was cut off where its parent names no other.
            marked += usize::from(!census.troubles.none());
            let _ = (census.total(), census.levels());
            for context in &census.contexts {
                let chunks = used_chunks(&damaged, &observed.layout, context, limits).unwrap_or_default();
                assert!(chunks.len() < 1 << 20, "{}", chunks.len());
            }
        }
        println!("{}: {marked} of 500 marked, the slowest in {slowest:?}", build.name);
        assert!(marked > 100, "{}: {marked}", build.name);
        assert!(slowest < limits.time * 3, "{slowest:?}");
    }
}
