//! Verdicts on real servers: a real leak is named, and busy work without one is not.

use pgleak::profile::{Capture, Class, EndReason, judge};
use pgleak_tests::{
    Build, BuildKind, LEAKING_ROUND, Server, Session,
    findings::{counter, losses},
    planted::{self, Call},
    workload::{Loop, Pgbench, Script, init_pgbench},
};

use crate::common::{recording, server};

/// Ends of a stack that are counted as whole.
const MOST_CUT: f64 = 0.0001;

/// At least 99.99 % of the stacks reach the bottom, and every walk has an end that is counted.
fn stacks_are_whole(build: &Build, capture: &Capture) {
    let (walked, bottom) = (counter(capture, "stacks_walked"), counter(capture, "walk_bottom"));
    let ends: u64 = capture.counters.iter().filter(|c| c.name.starts_with("walk_")).map(|c| c.value).sum();
    println!("{}: {bottom} of {walked} stacks reach the bottom", build.name);
    assert!(walked > 1000, "{}: only {walked} stacks", build.name);
    assert_eq!(ends, walked, "each walk ends in one way");
    assert!((walked - bottom) as f64 <= walked as f64 * MOST_CUT, "{}: {bottom} of {walked}", build.name);
}

fn real_leak(build: &Build) {
    let server = server(build);
    let leak = Loop::start(&server, LEAKING_ROUND).unwrap();
    // Its caches fill first, as in a process that has run for long.
    while leak.rounds() < 30 {
        std::thread::yield_now();
    }
    // A fast machine leaks more than the default holds in that time.
    let arguments = ["--duration", "4s", "--settle", "1s", "--map-memory", "256M"];
    let running = recording(leak.backend_pid(), &arguments);
    let finished = running.finish().unwrap().success().unwrap();
    leak.stop().unwrap();
    let capture = finished.capture().unwrap();
    assert_eq!(losses(&capture), []);
    stacks_are_whole(build, &capture);
    let verdict = judge(&capture);
    let first = verdict.suspects.first().expect("a leak is seen");
    assert_eq!(first.course.class, Class::Leak, "{first:?}");
    let names: Vec<&str> = verdict
        .suspects
        .iter()
        .flat_map(|place| place.hottest.iter().map(|step| step.label.as_str()))
        .collect();
    // PL/pgSQL's own functions are static, and stripped in Debian's package: there the exported
    // ones around them tell.
    let expected = match build.kind {
        BuildKind::Package => ["SPI_prepare_extended", "plpgsql_compile"],
        BuildKind::Npm => ["exec_prepare_plan", "plpgsql_compile"],
    };
    for name in expected {
        assert!(names.contains(&name), "{}: {name} is not in {names:?}", build.name);
    }
    assert!(finished.stdout.starts_with("LEAK: "), "{}", finished.stdout);
    assert!(finished.artifact("flame.svg").unwrap().contains("</svg>"));
    assert!(finished.artifact("stacks.folded").unwrap().lines().count() > 10);
}

fn no_leak(build: &Build) {
    let server = server(build);
    init_pgbench(&server).unwrap();
    for script in [Script::SelectOnly, Script::TpcB] {
        busy(build, &server, script, 12, &["--duration", "5s", "--settle", "2s"]);
    }
}

/// What a user gets without an option: 13 seconds, 3 of settling, and the default limit.
#[test]
fn a_default_capture_of_a_busy_backend_loses_nothing() {
    for (build, script) in
        [(Build::packaged(15).unwrap(), Script::SelectOnly), (Build::npm(17).unwrap(), Script::TpcB)]
    {
        let server = server(&build);
        init_pgbench(&server).unwrap();
        busy(&build, &server, script, 24, &[]);
    }
}

fn busy(build: &Build, server: &Server, script: Script, seconds: u32, arguments: &[&str]) {
    let bench = Pgbench::start(server, script, 1, seconds).unwrap();
    let running = recording(bench.backend_pid(), arguments);
    let finished = running.finish().unwrap().success().unwrap();
    let capture = finished.capture().unwrap();
    assert_eq!(losses(&capture), [], "{}: {script:?}", build.name);
    stacks_are_whole(build, &capture);
    let verdict = judge(&capture);
    assert!(verdict.suspects.is_empty(), "{}: {script:?}: {}", build.name, finished.stdout);
    assert!(finished.stdout.starts_with("No leak"), "{}", finished.stdout);
    assert_eq!(capture.window.end, EndReason::Completed, "{}", finished.stderr);
    let result = bench.finish().unwrap();
    assert_eq!(result.failed, 0);
}

/// A planted leak among the work of a cache that fills: the leak is first, the cache is none.
#[test]
fn a_cache_that_fills_is_no_suspect() {
    let server = server(&Build::npm(17).unwrap());
    planted::install(&server).unwrap();
    let mut session = planted::session(&server).unwrap();
    let mut setup = Session::open(&server).unwrap();
    let tables: String =
        (0..300).map(|n| format!("create table cached_{n} (a int primary key, b text);")).collect();
    setup.run(&tables).unwrap();
    let running = recording(session.backend_pid(), &["--duration", "5s", "--settle", "1s"]);
    for table in 0..300 {
        session.run(&format!("select count(*) from cached_{table}")).unwrap();
    }
    for _ in 0..40 {
        Call::PALLOC.run(&mut session, &[20, 200]).unwrap();
        // Not a handshake: the leak has to be spread over the window.
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let finished = running.finish().unwrap().success().unwrap();
    let verdict = judge(&finished.capture().unwrap());
    let heads: Vec<&str> = verdict.suspects.iter().map(|place| place.head.as_str()).collect();
    assert_eq!(heads, ["planted_leak_palloc"], "{}", finished.stdout);
}

/// What a session knows of a sequence it keeps when the sequence is dropped: `seqhashtab` of
/// `commands/sequence.c` loses no entry but by DISCARD SEQUENCES.
#[test]
fn dropped_sequences() {
    let server = server(&Build::npm(15).unwrap());
    let leak =
        Loop::start(&server, "create temp sequence s; select nextval('s'); drop sequence s;\n").unwrap();
    while leak.rounds() < 30 {
        std::thread::yield_now();
    }
    let running = recording(leak.backend_pid(), &["--duration", "6s", "--settle", "1s"]);
    let finished = running.finish().unwrap().success().unwrap();
    leak.stop().unwrap();
    let verdict = judge(&finished.capture().unwrap());
    let leaks: Vec<(&str, &str)> = verdict
        .suspects
        .iter()
        .filter(|place| place.course.class == Class::Leak)
        .map(|place| (place.head.as_str(), place.contexts[0].name.as_str()))
        .collect();
    assert_eq!(leaks, [("init_sequence", "dynahash Sequence values")], "{}", finished.stdout);
}

#[test]
fn forty_paths_are_one_suspect_and_forty_leaves_their_root() {
    let server = server(&Build::npm(15).unwrap());
    planted::install(&server).unwrap();
    for (call, head) in
        [(Call::MANY_PATHS, "planted_leak_palloc"), (Call::MANY_LEAVES, "planted_leak_palloc")]
    {
        let leak = Loop::start(&server, &format!("{}; select pg_sleep(0.01)", call.sql(&[1, 100]))).unwrap();
        let running = recording(leak.backend_pid(), &["--duration", "3s", "--settle", "1s"]);
        let finished = running.finish().unwrap().success().unwrap();
        leak.stop().unwrap();
        let verdict = judge(&finished.capture().unwrap());
        assert_eq!(verdict.suspects.len(), 1, "{}", finished.stdout);
        let place = &verdict.suspects[0];
        assert_eq!(place.head, head, "{}", finished.stdout);
        assert!(place.paths >= 40, "{} paths", place.paths);
    }
}

macro_rules! on_builds {
    ($($leak:ident $busy:ident $build:expr;)*) => {$(
        #[test]
        fn $leak() {
            real_leak(&$build.unwrap());
        }

        #[test]
        fn $busy() {
            no_leak(&$build.unwrap());
        }
    )*};
}

on_builds! {
    a_real_leak_on_debian_15 busy_work_on_debian_15 Build::packaged(15);
    a_real_leak_on_npm_12 busy_work_on_npm_12 Build::npm(12);
    a_real_leak_on_npm_13 busy_work_on_npm_13 Build::npm(13);
    a_real_leak_on_npm_14 busy_work_on_npm_14 Build::npm(14);
    a_real_leak_on_npm_15 busy_work_on_npm_15 Build::npm(15);
    a_real_leak_on_npm_16 busy_work_on_npm_16 Build::npm(16);
    a_real_leak_on_npm_17 busy_work_on_npm_17 Build::npm(17);
    a_real_leak_on_npm_18 busy_work_on_npm_18 Build::npm(18);
}
