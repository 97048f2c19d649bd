//! `--allocator blocks`: contexts that grow, by the blocks that malloc gives them.

use std::{
    thread,
    time::{Duration, Instant},
};

use pgleak::profile::{Capture, Class, judge};
use pgleak_tests::{
    Build, Server,
    findings::losses,
    pgleak::Finished,
    planted::{self, CONTEXT, Call, KEPT_CONTEXT},
    workload::Loop,
};

use crate::common::{PATIENCE, assert_no_probe_is_left, on_builds, recording, server};

/// A round of small chunks that stay, among others that go.
const ROUND: [i64; 2] = [60, 100];

fn captured(pid: u32, allocator: &str) -> Finished {
    let arguments = ["--duration=4s", "--settle=500ms", "--force", "--allocator", allocator];
    recording(pid, &arguments).finish().unwrap().success().unwrap()
}

fn on(build: &Build) {
    let server = server(build);
    planted::install(&server).unwrap();
    a_leak_is_told_by_its_context(build, &server);
    bytes_are_those_that_leaked(build, &server);
    growth_within_a_block_is_told(build, &server);
}

/// Calls of allocators that were seen.
fn events(capture: &Capture) -> u64 {
    capture.sites.iter().map(|site| site.entries + site.returns.unwrap_or(0)).sum()
}

fn a_leak_is_told_by_its_context(build: &Build, server: &Server) {
    let sql = format!("{}; {}", Call::PALLOC.sql(&ROUND), Call::IN_FLIGHT.sql(&[2000, 40]));
    let leak = Loop::start(server, &sql).unwrap();
    let rate = |before: u64, rounds: u64, capture: &Capture| {
        (events(capture) as f64) / (rounds - before).max(1) as f64
    };
    let before = leak.rounds();
    let chunks = captured(leak.backend_pid(), "contexts").capture().unwrap();
    let between = leak.rounds();
    let finished = captured(leak.backend_pid(), "blocks");
    let after = leak.rounds();
    assert_no_probe_is_left(leak.backend_pid());
    leak.stop().unwrap();
    let capture = finished.capture().unwrap();
    assert_eq!(losses(&capture), [], "{}", finished.stdout);
    // Of as much work: rounds that were run meanwhile, pauses included in both.
    let (all, few) = (rate(before, between, &chunks), rate(between, after, &capture));
    println!("{}: {all:.0} and {few:.1} events in each round", build.name);
    assert!(few * 20.0 < all, "{few} and {all}");
    let verdict = judge(&capture);
    let first = verdict.suspects.first().unwrap_or_else(|| panic!("{}", finished.stdout));
    assert_eq!((first.head.as_str(), first.course.class), (CONTEXT, Class::Leak), "{}", finished.stdout);
    assert!(first.is_context);
    assert_eq!(first.contexts[0].path, Some(vec!["TopMemoryContext".to_owned()]));
    assert_eq!(first.children[0].label, Call::PALLOC.frame, "{}", finished.stdout);
    assert!(
        finished.stdout.starts_with(&format!("GROWS: the context {CONTEXT} grows by")),
        "{}",
        finished.stdout
    );
    for words in ["its blocks were acquired by", "This is a first look", "acquired by", "Left out:"] {
        assert!(finished.stdout.contains(words), "{words}: {}", finished.stdout);
    }
    assert!(!finished.stdout.contains("LEAK"), "{}", finished.stdout);
}

fn bytes_are_those_that_leaked(build: &Build, server: &Server) {
    /// The largest block of the context.
    const BLOCK: u64 = 8 << 20;
    let mut session = planted::session(server).unwrap();
    let pid = session.backend_pid();
    let running = recording(pid, &["--duration=3s", "--settle=0", "--force", "--allocator=blocks"]);
    let leaked = Call::PALLOC.run(&mut session, &[300_000, 40]).unwrap().unsigned_abs();
    // Each chunk has a block of its own.
    let large = Call::HUGE.run(&mut session, &[20, 100_000]).unwrap().unsigned_abs();
    Call::REPALLOC.run(&mut session, &[20, 150_000]).unwrap();
    Call::KEEP_CONTEXT.run(&mut session, &[20, 64]).unwrap();
    // Not of a context.
    Call::MALLOC.run(&mut session, &[1000, 192]).unwrap();
    running.wait_for("wrote", PATIENCE).unwrap();
    let capture = running.finish().unwrap().success().unwrap().capture().unwrap();
    let of = |name: &str| -> u64 {
        let groups = capture.profile.groups.iter().filter(|group| capture.profile.place(group).name == name);
        groups.map(|group| group.survived.held).sum()
    };
    let (is, should) = (of(CONTEXT), leaked + large / 2 * 3);
    println!("{}: {is} bytes of blocks, {should} leaked", build.name);
    assert!(is + BLOCK > should && is < should + BLOCK + BLOCK / 10, "{is} {should}");
    assert!((1024..64 << 10).contains(&of(KEPT_CONTEXT)), "{}", of(KEPT_CONTEXT));
    let others = capture.profile.no_blocks.unwrap();
    assert!((900..1200).contains(&others.count), "{others:?}");
    let memory = capture.memory.as_ref().unwrap();
    let growth = memory.by_label.iter().find(|growth| growth.label == CONTEXT).unwrap();
    assert!((growth.after - growth.before).abs_diff(is) < is / 50 + 16_384, "{growth:?}, {is}");
    assert_eq!(growth.untraced, None);
}

/// A context that has just got a block of 8 MiB leaks for a long time without another one.
fn growth_within_a_block_is_told(build: &Build, server: &Server) {
    /// Just more than all blocks up to one of 4 MiB hold.
    const FILLED: i64 = 120_000;
    let mut session = planted::session(server).unwrap();
    Call::PALLOC.run(&mut session, &[FILLED, 40]).unwrap();
    let pid = session.backend_pid();
    let running = recording(pid, &["--duration=4s", "--settle=0", "--force", "--allocator=blocks"]);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(4500) {
        Call::PALLOC.run(&mut session, &[500, 40]).unwrap();
        // A leak is slow, and goes on while it is looked at.
        thread::sleep(Duration::from_millis(50));
    }
    let finished = running.finish().unwrap().success().unwrap();
    let capture = finished.capture().unwrap();
    let memory = capture.memory.as_ref().unwrap();
    let growth = memory.by_label.iter().find(|growth| growth.label == CONTEXT);
    let growth = growth.unwrap_or_else(|| panic!("{}: {}", build.name, finished.stdout));
    assert_eq!(growth.before, growth.after, "{}: it has got no block", build.name);
    let verdict = judge(&capture);
    let first = verdict.suspects.first().unwrap_or_else(|| panic!("{}", finished.stdout));
    assert_eq!((first.head.as_str(), first.course.class), (CONTEXT, Class::Leak), "{}", finished.stdout);
}

on_builds! { on: debian_15 npm_12 12 npm_17 17 }
