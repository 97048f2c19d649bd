//! What a process was running while it was recorded, and recording until it is clear what grows.

use pgleak::profile::{Class, judge};
use pgleak_tests::{
    Build, LEAKING_ROUND, Server, ServerOptions, Session,
    planted::{self, Call},
    workload::Loop,
};

use crate::common::{on_builds, recording, server};

/// Leaks at once, and goes on for longer than it takes until somebody looks: what is booked to a statement
/// was born in it for sure.
const STATEMENT: &str = "select planted_palloc(5, 700), pg_sleep(0.1)";

/// The server says the same of the process: its statement and the id of it.
fn statements(build: &Build) {
    let mut options = ServerOptions::default();
    if build.major >= 14 {
        options = options.set("compute_query_id", "on");
    }
    let server = Server::start(build, &options).unwrap();
    planted::install(&server).unwrap();
    let leak = Loop::start(&server, STATEMENT).unwrap();
    let pid = leak.backend_pid();
    let running = recording(pid, &["--duration", "2s", "--settle", "0"]);
    let id = (build.major >= 14).then(|| {
        let mut other = Session::open(&server).unwrap();
        let asked = format!("select coalesce(query_id, 0) from pg_stat_activity where pid = {pid}");
        // A statement that has just begun has none yet.
        let mut ids = std::iter::repeat_with(|| other.integer(&asked).unwrap()).take(10_000);
        ids.find(|id| *id != 0).expect("the server computes ids")
    });
    let finished = running.finish().unwrap().success().unwrap();
    leak.stop().unwrap();
    let capture = finished.capture().unwrap();
    let verdict = judge(&capture);
    let first = &verdict.suspects[0];
    assert_eq!(first.head, Call::PALLOC.frame, "{}", build.name);
    let (query, part) = first.query.expect("a statement was seen");
    let query = &capture.queries[query as usize];
    assert_eq!(query.statement, "select planted_palloc(?, ?), pg_sleep(?)", "{}", build.name);
    assert_eq!(query.id, id, "{}: {:?}", build.name, capture.queries);
    assert!(part > 0.5, "{}: {part}", build.name);
    let line = finished.stdout.lines().find(|line| line.contains("while running")).expect("it is reported");
    assert!(id.is_none_or(|id| line.contains(&id.to_string())), "{line}");
    // Nothing that was written knows the literals.
    for artifact in ["capture.json", "report.txt", "stacks.folded", "flame.svg", "contexts.svg"] {
        let text = finished.artifact(artifact).unwrap();
        assert!(!text.contains("(5, 700)"), "{}: {artifact}", build.name);
    }
}

on_builds!(statements: debian_15 npm_12 12 npm_13 13 npm_14 14 npm_15 15 npm_16 16 npm_17 17 npm_18 18);

#[test]
fn literals_are_kept_when_they_are_asked_for() {
    let server = server(&Build::packaged(15).unwrap());
    planted::install(&server).unwrap();
    let leak = Loop::start(&server, STATEMENT).unwrap();
    let arguments = ["--duration", "1s", "--settle", "0", "--show-queries"];
    let finished = recording(leak.backend_pid(), &arguments).finish().unwrap().success().unwrap();
    leak.stop().unwrap();
    assert!(finished.stdout.contains("planted_palloc(5, 700)"), "{}", finished.stdout);
}

/// A leak that is plain after a second needs no more; what says nothing is recorded to the end.
#[test]
fn longer_ends_when_it_is_clear_and_at_the_limit() {
    let server = server(&Build::packaged(15).unwrap());
    let second = 1_000_000_000;
    let arguments = ["--duration", "1s", "--settle", "0", "--longer", "50s"];
    let leak = Loop::start(&server, LEAKING_ROUND).unwrap();
    let clear = recording(leak.backend_pid(), &arguments).finish().unwrap().success().unwrap();
    leak.stop().unwrap();
    let clear = clear.capture().unwrap();
    assert_eq!(judge(&clear).suspects.first().map(|place| place.course.class), Some(Class::Leak));
    assert!((second..40 * second).contains(&clear.window.record_ns), "{}", clear.window.record_ns);

    planted::install(&server).unwrap();
    let mut session = planted::session(&server).unwrap();
    let arguments = ["--duration", "1s", "--settle", "0", "--longer", "4s", "--force"];
    let running = recording(session.backend_pid(), &arguments);
    // Too few to tell.
    Call::PALLOC.run(&mut session, &[3, 100_000]).unwrap();
    let unclear = running.finish().unwrap().success().unwrap().capture().unwrap();
    assert!(unclear.window.record_ns >= 4 * second, "{}", unclear.window.record_ns);
}
