//! Several processes in one capture: each has its own, those that are born meanwhile too.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use pgleak::profile::{Capture, Tally};
use pgleak_tests::{
    Build, Session,
    findings::{counter, groups, losses},
    pgleak::{Finished, Running},
    planted::{self, CONTEXT, Call},
};

use crate::common::{PATIENCE, assert_no_probe_is_left, on_builds, server};

on_builds!(two_and_not_the_third: debian_15 npm_12 12 npm_13 13 npm_14 14 npm_16 16 npm_17 17 npm_18 18);

/// Starts a capture of a server and returns once it records.
fn recording(scope: &[&str], arguments: &[&str]) -> Running {
    let running = Running::capture_of(scope, arguments).unwrap();
    running.wait_for("recording for", PATIENCE).unwrap();
    running
}

fn finished(running: Running) -> (Finished, Capture) {
    let finished = running.finish().unwrap().success().unwrap(); std::fs::write("/tmp/sev.err", &finished.stderr).unwrap();
    let capture = finished.capture().unwrap();
    eprintln!("{:?}", capture.counters.iter().filter(|c| c.value > 0).map(|c| (&c.name, c.value)).collect::<Vec<_>>());
    assert_eq!(losses(&capture), [], "nothing may be lost");
    (finished, capture)
}

/// What the process with that pid kept of what `frame` allocated.
fn survived(capture: &Capture, pid: u32, frame: &str) -> Tally {
    let mut sum = Tally::default();
    for group in groups(capture, CONTEXT, frame) {
        if capture.processes[group.process as usize].pid == pid {
            sum += group.survived;
        }
    }
    sum
}

/// A number of chunks of a size, which their contexts hold in so many bytes.
fn tally(count: u64, requested: u64, held: i64) -> Tally {
    Tally { count, requested, held: held.unsigned_abs() }
}

fn two_and_not_the_third(build: &Build) {
    let server = server(build);
    planted::install(&server).unwrap();
    let mut sessions: Vec<Session> = (0..3).map(|_| planted::session(&server).unwrap()).collect();
    let pids: Vec<u32> = sessions.iter().map(Session::backend_pid).collect();
    let [first, second] = [pids[0].to_string(), pids[1].to_string()];
    let running = recording(
        &["--pid", &first, "--pid", &second],
        &["--duration", "2s", "--settle", "0", "--force"],
    );
    // The same addresses, sizes and functions, at the same time.
    let held: Vec<i64> = (sessions.iter_mut().zip([100, 30, 77]))
        .map(|(session, count)| {
            let held = Call::PALLOC.run(session, &[count, 40]).unwrap();
            Call::IN_FLIGHT.run(session, &[500, 40]).unwrap();
            held
        })
        .collect();
    let freed = Call::PFREE.run(&mut sessions[1], &[10]).unwrap();
    let (finished, capture) = finished(running);
    assert_eq!(survived(&capture, pids[0], Call::PALLOC.frame), tally(100, 4000, held[0]));
    assert_eq!(survived(&capture, pids[1], Call::PALLOC.frame), tally(20, 800, held[1] - freed));
    let known: Vec<u32> = capture.processes.iter().map(|process| process.pid).collect();
    assert_eq!(known, pids[..2]);
    assert!(finished.stdout.contains("2 processes"), "{}", finished.stdout);
    // One stack, though it was walked in each.
    let stacks = groups(&capture, CONTEXT, Call::PALLOC.frame).map(|group| group.stack);
    assert_eq!(stacks.collect::<std::collections::HashSet<_>>().len(), 1);
    assert!(capture.notes.iter().any(|note| note.contains("other process")), "{:?}", capture.notes);
    pids.iter().for_each(|pid| assert_no_probe_is_left(*pid));
}

/// Fifty, each with its own count, while it is told from all others.
#[test]
fn fifty_at_once() {
    const BACKENDS: usize = 50;
    let server = server(&Build::packaged(15).unwrap());
    planted::install(&server).unwrap();
    let mut sessions: Vec<Session> = (0..BACKENDS).map(|_| planted::session(&server).unwrap()).collect();
    let postmaster = server.postmaster_pid().to_string();
    let running = recording(
        &["--postmaster", &postmaster, "--backend-type", "client"],
        &["--duration", "8s", "--settle", "1s", "--force"],
    );
    let held: Vec<i64> = thread::scope(|scope| {
        let work = |(index, session): (usize, &mut Session)| {
            let count = index as i64 + 1;
            for _ in 0..20 {
                Call::IN_FLIGHT.run(session, &[200, 40]).unwrap();
            }
            Call::PALLOC.run(session, &[count, 64]).unwrap()
        };
        let works: Vec<_> =
            sessions.iter_mut().enumerate().map(|each| scope.spawn(move || work(each))).collect();
        works.into_iter().map(|work| work.join().unwrap()).collect()
    });
    let (_, capture) = finished(running);
    assert_eq!(capture.processes.len(), BACKENDS);
    for (index, (session, held)) in sessions.iter().zip(held).enumerate() {
        let count = index as u64 + 1;
        let seen = survived(&capture, session.backend_pid(), Call::PALLOC.frame);
        assert_eq!(seen, tally(count, 64 * count, held), "backend {index}");
    }
    assert!(capture.processes.iter().all(|process| process.kind == "client backend"));
    assert_no_probe_is_left(sessions[0].backend_pid());
}

/// Fifty connections a second that come, allocate and go, beside one that stays and one that comes and stays.
#[test]
fn processes_that_come_and_go() {
    const EVERY: Duration = Duration::from_millis(20);
    let server = server(&Build::packaged(15).unwrap());
    planted::install(&server).unwrap();
    let mut stays = planted::session(&server).unwrap();
    let data_dir = server.dir().join("data");
    let running = recording(
        &["--data-dir", data_dir.to_str().unwrap()],
        &["--duration", "8s", "--settle", "1s", "--force"],
    );
    let enough = AtomicBool::new(false);
    let began = Instant::now();
    let (came, held_by_new, mut new) = thread::scope(|scope| {
        let comers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut came = 0_u64;
                    while !enough.load(Ordering::Relaxed) {
                        let mut session = planted::session(&server).unwrap();
                        Call::PALLOC.run(&mut session, &[30, 64]).unwrap();
                        came += 1;
                        thread::sleep(EVERY);
                    }
                    came
                })
            })
            .collect();
        let mut new = planted::session(&server).unwrap();
        let held = Call::PALLOC.run(&mut new, &[40, 64]).unwrap();
        running.wait_for("settling for", PATIENCE).unwrap();
        enough.store(true, Ordering::Relaxed);
        let came: u64 = comers.into_iter().map(|comer| comer.join().unwrap()).sum();
        (came, held, new)
    });
    let seconds = began.elapsed().as_secs_f64();
    let held = Call::PALLOC.run(&mut stays, &[1, 64]);
    assert!(held.is_ok(), "it lives");
    let (finished, capture) = finished(running);
    eprintln!("{came} connections in {seconds:.1} s");
    assert_eq!(survived(&capture, new.backend_pid(), Call::PALLOC.frame), tally(40, 40 * 64, held_by_new));
    // What went with its process is no growth.
    let all: u64 = groups(&capture, CONTEXT, Call::PALLOC.frame).map(|group| group.survived.count).sum();
    assert_eq!(all, 40);
    let born = capture.processes.iter().find(|process| process.pid == new.backend_pid()).unwrap();
    assert!(born.born_ns.is_some() && born.recorded > 1000, "{born:?}");
    assert!(counter(&capture, "births") >= came, "{came} came");
    let ended = capture.ended.iter().find(|ended| ended.kind == "client backend").unwrap();
    assert!(ended.count >= came * 9 / 10, "{ended:?} of {came}");
    assert!(finished.stdout.contains("client backend"), "{}", finished.stdout);
    new.run("select 1").unwrap();
    assert_no_probe_is_left(new.backend_pid());
}
