//! Two leaks that Greenplum had, in imitation: where they happened, and how hard they were to see.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use pgleak::{
    profile::{Class, Tally, What, judge},
    target::find_servers,
};
use pgleak_tests::{
    Build, Server, ServerOptions, Session,
    findings::{counter, losses, survived},
    imitation::Imitation,
    planted::{self, Call},
};

use crate::common::{PATIENCE, recording, server};

/// A path string for each record that a standby redoes (greenplum-db/gpdb issue 11202).
#[test]
fn a_standby_that_forgets_a_path_for_each_record() {
    let build = Build::packaged(15).unwrap();
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let library = planted::compile_redo(&build, dir.path()).unwrap().display().to_string();
    let options = ServerOptions::default().set("shared_preload_libraries", &library);
    let primary = Server::start(&build, &options).unwrap();
    let standby = Server::start(&build, &options.clone().standby_of(&primary)).unwrap();
    let mut session = Session::open(&primary).unwrap();
    session
        .run(&format!("create function planted_records(bigint) returns bigint language c as '{library}'"))
        .unwrap();
    let startup = startup_process(&standby);
    let done = AtomicBool::new(false);
    let capture = thread::scope(|scope| {
        let done = &done;
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                session.run("select planted_records(50)").unwrap();
                thread::sleep(Duration::from_millis(50));
            }
        });
        let running = recording(startup, &["--duration", "5s", "--settle", "1s"]);
        let finished = running.finish();
        done.store(true, Ordering::Relaxed);
        finished.unwrap().success().unwrap().capture().unwrap()
    });
    assert_eq!(losses(&capture), []);
    assert_eq!(capture.target.kind, "startup");
    let verdict = judge(&capture);
    let first = &verdict.suspects[0];
    // GetDatabasePath itself ends in a jump to psprintf, and so is not on the stack.
    assert_eq!(first.head, "planted_truncate_replay", "{first:#?}");
    assert_eq!(first.course.class, Class::Leak);
    assert_eq!(first.callers[0], "planted_redo");
    assert_eq!(first.contexts[0].name, "TopMemoryContext");
    // What psprintf begins with.
    assert_eq!(first.survived.requested, first.survived.count * 128, "{:?}", first.survived);
    assert!(first.survived.count > 500, "{:?}", first.survived);
}

fn startup_process(server: &Server) -> u32 {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let of_it = |process: &&pgleak::target::ServerProcess| {
            process.postmaster == Some(server.postmaster_pid()) && process.parsed.kind == "startup"
        };
        if let Some(process) = find_servers().iter().find(of_it) {
            return process.pid;
        }
        assert!(Instant::now() < deadline, "the standby has no startup process");
        thread::sleep(Duration::from_millis(50));
    }
}

/// One function leaks into the cache's context, by forty paths, while everything else allocates ten
/// thousand times as much (greenplum-db/gpdb issue 11244).
#[test]
fn one_function_by_forty_paths_in_heavy_noise() {
    for build in [Build::packaged(15).unwrap(), Build::npm(17).unwrap()] {
        let server = server(&build);
        planted::install(&server).unwrap();
        let mut session = planted::session(&server).unwrap();
        let noise = "select count(*) from (select relname, row_number() over (order by relname, oid) from pg_class) s;
            select string_agg(attname, ',' order by attname) from pg_attribute;
            create temp table n on commit drop as select g, md5(g::text) from generate_series(1, 200) g;
            select count(*) from n a join n b using (g)";
        session.run(noise).unwrap();
        let pid = session.backend_pid();
        let done = AtomicBool::new(false);
        let finished = thread::scope(|scope| {
            let done = &done;
            scope.spawn(move || {
                for path in (0..40).cycle() {
                    if done.load(Ordering::Relaxed) {
                        return;
                    }
                    Call::FETCH.run(&mut session, &[1, 100, path]).unwrap();
                    session.run(noise).unwrap();
                }
            });
            let running = recording(pid, &["--duration", "8s", "--settle", "1s", "--max-slowdown", "100"]);
            let finished = running.finish();
            done.store(true, Ordering::Relaxed);
            finished.unwrap().success().unwrap()
        });
        let (report, capture) = (&finished.stdout, finished.capture().unwrap());
        let verdict = judge(&capture);
        let leaks: Vec<_> =
            verdict.suspects.iter().filter(|place| place.course.class == Class::Leak).collect();
        let [first] = leaks[..] else { panic!("{}: {report}", build.name) };
        assert_eq!(verdict.suspects[0].head, first.head, "{}", build.name);
        assert_eq!(first.head, Call::FETCH.frame, "{}", build.name);
        assert_eq!(first.contexts[0].name, "CacheMemoryContext");
        let rounds = first.survived.count / 2;
        println!("{}: {rounds} rounds, {} paths, {:?}", build.name, first.paths, verdict.totals.recorded);
        assert_eq!(first.paths as u64, 2 * rounds.min(40), "each of them, and two chunks by each");
        assert!(verdict.totals.recorded.held > 1000 * first.survived.held, "{:?}", verdict.totals.recorded);
    }
}

/// Flags of each imitation, with what it says that it is. Greenplum 7 has `mem_allocated` in some trees.
const IMITATIONS: [(&[&str], &str); 5] = [
    (&["-DGREENPLUM=6"], "Greenplum 6.24.3"),
    (&["-DGREENPLUM=6", "-no-pie", "-fno-pie"], "Greenplum 6.24.3"),
    (&["-DGREENPLUM=7"], "Greenplum 7.1.0"),
    (&["-DGREENPLUM=7", "-DWITHOUT_MEM_ALLOCATED"], "Greenplum 7.1.0"),
    (&["-DCLOUDBERRY"], "Cloudberry 1.6.0"),
];

/// The allocators of Greenplum and Cloudberry, with symbols and without: what their methods get, what
/// their contexts look like, and what is no allocation of anybody.
#[test]
fn the_allocators_of_greenplum_and_cloudberry() {
    for (flags, what) in IMITATIONS {
        for is_stripped in [false, true] {
            imitated(flags, is_stripped, what);
        }
    }
}

fn imitated(flags: &[&str], is_stripped: bool, what: &str) {
    let dir = tempfile::tempdir().unwrap();
    let flags: Vec<&str> = flags.iter().copied().chain(is_stripped.then_some("-s")).collect();
    let mut program = Imitation::start(dir.path(), &flags).unwrap();
    program.rounds(20).unwrap();
    let running = recording(program.pid(), &["--duration", "2s", "--settle", "0", "--force"]);
    program.rounds(1000).unwrap();
    let finished = running.finish().unwrap().success().unwrap();
    assert!(finished.stderr.contains(what), "{flags:?}: {}", finished.stderr);
    let capture = finished.capture().unwrap();
    assert_eq!(losses(&capture), [], "{flags:?}");

    let policy = survived(&capture, "CacheMemoryContext", "fetch_policy");
    assert_eq!(policy, Tally { count: 1000, requested: 100_000, held: 144_000 }, "{flags:?}");
    let later = survived(&capture, "later name", "leak_context");
    assert_eq!(later, Tally { count: 100, requested: 6400, held: 8000 }, "{flags:?}");
    // A context is gone, and so are its chunks and its name.
    for name in ["early name", "churned"] {
        assert_eq!(survived(&capture, name, "churn_context"), Tally::default(), "{flags:?}: {name}");
    }
    let contexts = if flags[0] == "-DGREENPLUM=6" {
        // There a context lies in a chunk of the top context, with its name.
        survived(&capture, "TopMemoryContext", "MemoryContextCreate").count
    } else {
        let made = capture.profile.groups.iter().filter(|group| group.what == What::Contexts);
        made.filter(|group| capture.profile.place(group).name == "later name")
            .map(|group| group.survived.count)
            .sum()
    };
    assert_eq!(contexts, 100, "{flags:?}");
    // Each round an error leaves an allocation.
    assert_eq!(counter(&capture, "left_by_error"), 1000, "{flags:?}");
    // Ten chunks of each context that was made and deleted have grown; half of them were freed.
    assert_eq!(counter(&capture, "realloc_grown"), 11_000, "{flags:?}");
    let method = |function: &str| capture.sites.iter().find(|site| site.function == function).unwrap();
    let found_by = if is_stripped { "static analysis" } else { ".symtab" };
    assert_eq!(method("AllocSetAlloc").found_by, found_by, "{flags:?}");
    // And from outside, without a probe.
    let memory = capture.memory.as_ref().expect("a census");
    let grown = memory.by_label.iter().find(|growth| growth.label == "later name").unwrap();
    assert_eq!(grown.contexts_after - grown.contexts_before, 100, "{flags:?}: {grown:?}");
    assert!(grown.after > grown.before + 100 * 64, "{flags:?}: {grown:?}");
}
