//! Code that is mapped or made while it is traced.

use pgleak::profile::{Capture, StackEnd};
use pgleak_tests::{Build, Session, findings::counter, pgleak::Running, workload::Loop};

use crate::common::{PATIENCE, recording, server};

/// Stacks that end so.
fn ending(capture: &Capture, end: StackEnd) -> u64 {
    let stacks = capture.profile.stacks.iter().filter(|stack| stack.end == end);
    stacks.map(|stack| stack.summary.allocated.count).sum()
}

/// With JIT on, stacks through compiled code say so, and what to do about it.
#[test]
fn code_that_was_compiled_at_run_time_is_called_that() {
    let server = server(&Build::packaged(15).unwrap());
    let query = "set jit = on; set jit_above_cost = 0; set jit_inline_above_cost = -1; set jit_optimize_above_cost = -1;
        select sum(length(relname::text || oid::text)) from pg_class where relname::text like '%a%'";
    let work = Loop::start(&server, query).unwrap();
    let running = recording(work.backend_pid(), &["--duration", "3s", "--settle", "1s"]);
    let finished = running.finish().unwrap().success().unwrap();
    work.stop().unwrap();
    let capture = finished.capture().unwrap();
    let (jit, unknown) = (ending(&capture, StackEnd::Jit), ending(&capture, StackEnd::UnknownMapping));
    let all = counter(&capture, "stacks_walked");
    println!("{jit} of {all} allocations below compiled code, {unknown} below code that is not known");
    assert!(jit > 100, "{jit} of {all}");
    assert_eq!(unknown, 0);
    assert_eq!(counter(&capture, "walk_unknown_mapping") + counter(&capture, "walk_bottom"), all);
    assert!(capture.notes.iter().any(|note| note.contains("jit = off")), "{:?}", capture.notes);
    assert!(finished.stdout.contains("LOSSES") && finished.stdout.contains("walk_unknown_mapping"));
    // Whether any of it survives is the query's business; if so, the flame graph says it.
    let survives = capture.profile.groups.iter().any(|group| {
        group.survived.held > 0 && capture.profile.stacks[group.stack.0 as usize].end == StackEnd::Jit
    });
    assert_eq!(finished.artifact("stacks.folded").unwrap().contains("[jit]"), survives);
}

/// A library that is opened meanwhile is known before its first instruction runs: no stack is cut,
/// unless the machine was too slow for that, which is counted.
#[test]
fn a_library_that_is_opened_meanwhile_is_noticed() {
    let server = server(&Build::npm(17).unwrap());
    let mut session = Session::open(&server).unwrap();
    session.run("create extension hstore; create extension pg_trgm").unwrap();
    drop(session);
    let mut session = Session::open(&server).unwrap();
    let running = recording(session.backend_pid(), &["--duration", "60s", "--settle", "0"]);
    for _ in 0..200 {
        session
            .text("select count(*) from generate_series(1, 200) g where similarity(g::text, '17') > 0")
            .unwrap();
        session.text("select (hstore('a', 'b') || hstore('c', 'd'))::text").unwrap();
    }
    running.signal(libc::SIGINT).unwrap();
    let capture = running.finish().unwrap().success().unwrap().capture().unwrap();
    let (cut, whole) = (counter(&capture, "walk_unknown_mapping"), counter(&capture, "walk_bottom"));
    let (awaited, late) = (counter(&capture, "loads_awaited"), counter(&capture, "loads_late"));
    println!("{cut} stacks cut, {whole} whole; the loader waited {awaited} times, {late} times in vain");
    assert_eq!(cut + whole, counter(&capture, "stacks_walked"));
    assert!(awaited + late >= 2 && (cut == 0 || late > 0), "{cut} cut, {awaited} awaited, {late} late");
    assert!(cut * 20 < whole, "{cut} of {whole}");
    let loaded = |name: &str| capture.modules.iter().any(|module| module.path.contains(name));
    assert!(loaded("hstore") && loaded("pg_trgm"), "{:?}", capture.modules);
}

/// Between the first look at the mappings and the probe on the dynamic loader lies a second or so.
#[test]
fn a_library_that_is_opened_while_probes_are_set_is_known_when_recording_begins() {
    const USES: [(&str, &str); 8] = [
        ("hstore", "select (hstore('a', 'b') || hstore('c', 'd'))::text"),
        ("pg_trgm", "select show_trgm('word')::text"),
        ("citext", "select lower('A'::citext)"),
        ("cube", "select cube(array[1, 2])::text"),
        ("ltree", "select ('a.b'::ltree || 'c')::text"),
        ("seg", "select '1 .. 2'::seg::text"),
        ("isn", "select isbn('978-0-393-04002-9')::text"),
        ("fuzzystrmatch", "select metaphone('word', 4)"),
    ];
    let server = server(&Build::npm(17).unwrap());
    let mut session = Session::open(&server).unwrap();
    for (extension, _) in USES {
        session.run(&format!("create extension {extension}")).unwrap();
    }
    drop(session);
    let mut session = Session::open(&server).unwrap();
    let running = Running::capture(session.backend_pid(), &["--duration", "2s", "--settle", "0"]).unwrap();
    // By then it has looked, and has not begun to set probes.
    running.wait_for("kernel maps:", PATIENCE).unwrap();
    for (_, sql) in USES {
        session.text(sql).unwrap();
    }
    running.wait_for("recording for", PATIENCE).unwrap();
    for (_, sql) in USES.iter().cycle().take(400) {
        session.text(sql).unwrap();
    }
    let capture = running.finish().unwrap().success().unwrap().capture().unwrap();
    let (cut, whole) = (counter(&capture, "walk_unknown_mapping"), counter(&capture, "walk_bottom"));
    println!("{cut} stacks cut, {whole} whole");
    assert!(whole > 400, "{whole}");
    assert_eq!(cut, 0);
}
