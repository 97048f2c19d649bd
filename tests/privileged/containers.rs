//! Debian's newer servers, each in a container: pgleak outside of it, and inside.

use pgleak::profile::{Capture, StackEnd, judge};
use pgleak_tests::{
    LEAKING_ROUND, Session,
    container::Container,
    findings::losses,
    pgleak::{Finished, Running},
};

use crate::common::PATIENCE;

/// Leaks for as long as it is recorded.
fn leaking(session: &mut Session, running: Running) -> Finished {
    running.wait_for("recording for", PATIENCE).unwrap();
    let mut rounds = 0;
    // It ends when the capture does, whatever goes wrong.
    while running.is_running() {
        session.run(LEAKING_ROUND).unwrap();
        rounds += 1;
    }
    assert!(rounds > 10, "{rounds} rounds");
    running.finish().unwrap().success().unwrap()
}

/// The names of the first suspect, and where it leaks.
fn first(capture: &Capture) -> (String, String) {
    assert_eq!(losses(capture), [], "nothing may be lost");
    assert!(capture.profile.stacks.iter().skip(1).all(|stack| stack.end == StackEnd::Bottom));
    let verdict = judge(capture);
    let first = verdict.suspects.first().expect("a suspect");
    (first.head.clone(), first.contexts[0].name.clone())
}

fn on(suites: &[&str], major: u32) {
    let container = Container::start(suites, major).unwrap();
    let mut session = Session::connect(container.socket_dir(), 5432, "postgres").unwrap();
    let inner = session.backend_pid();
    let outer = container.on_host(inner).unwrap();
    assert_ne!(inner, outer);
    session.run(LEAKING_ROUND).unwrap();

    // A fast machine leaks more than the default holds in that time.
    let options = ["--duration", "4s", "--settle", "1s", "--map-memory", "256M", "--force"];
    let outside = leaking(&mut session, Running::capture(outer, &options).unwrap()).capture().unwrap();
    assert_eq!(outside.target.pid, outer);
    assert_eq!(outside.target.major, major);
    // What the contexts have gained is what was traced in them.
    let memory = outside.memory.as_ref().expect("the contexts are read");
    assert_eq!(memory.troubles, "");
    for growth in memory.by_label.iter().filter(|growth| growth.traced > 100_000) {
        let untraced = growth.untraced.unwrap_or(0).unsigned_abs();
        assert!(untraced * 50 <= growth.traced, "{growth:?}");
    }

    let inner_pid = inner.to_string();
    let arguments = [&["capture", "--pid", &inner_pid, "--out", "/mnt/inside"][..], &options].concat();
    let finished = leaking(&mut session, container.pgleak(&arguments).unwrap());
    let inside = container.artifact(&finished, "inside/capture.json").unwrap();
    let inside = pgleak::render::read_capture(&inside).unwrap();
    assert_eq!(inside.target.pid, inner);
    assert_eq!(first(&inside), first(&outside));

    // New processes are known by their pids of inside.
    let postmaster = container.postmaster().unwrap().to_string();
    let arguments = [
        &["capture", "--postmaster", &postmaster, "--backend-type", "client", "--out", "/mnt/all"][..],
        &options,
    ]
    .concat();
    let running = container.pgleak(&arguments).unwrap();
    running.wait_for("recording for", PATIENCE).unwrap();
    let mut new = Session::connect(container.socket_dir(), 5432, "postgres").unwrap();
    let finished = leaking(&mut new, running);
    let all =
        pgleak::render::read_capture(&container.artifact(&finished, "all/capture.json").unwrap()).unwrap();
    assert_eq!(first(&all), first(&outside));
    let mut pids: Vec<u32> = all.processes.iter().map(|process| process.pid).collect();
    pids.sort_unstable();
    assert_eq!(pids, [inner, new.backend_pid()]);
}

#[test]
fn debian_17() {
    on(&["trixie"], 17);
}

#[test]
fn debian_18() {
    on(&["sid"], 18);
}

/// Its first release candidate.
#[test]
fn debian_19() {
    on(&["experimental", "sid"], 19);
}
