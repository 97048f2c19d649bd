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
    workload::{Pgbench, Script, init_pgbench},
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
    let finished = running.finish().unwrap().success().unwrap();
    let capture = finished.capture().unwrap();
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
    let running =
        recording(&["--pid", &first, "--pid", &second], &["--duration", "2s", "--settle", "0", "--force"]);
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

/// Two backends that work as fast as they can, at the same time.
#[test]
fn two_at_full_speed_lose_nothing() {
    let server = server(&Build::packaged(15).unwrap());
    init_pgbench(&server).unwrap();
    let bench = Pgbench::start(&server, Script::SelectOnly, 2, 20).unwrap();
    let pids: Vec<String> = bench.backend_pids().iter().map(ToString::to_string).collect();
    let [first, second] = [&*pids[0], &*pids[1]];
    let running =
        recording(&["--pid", first, "--pid", second], &["--duration", "8s", "--settle", "1s", "--force"]);
    let (_, capture) = finished(running);
    let recorded: Vec<u64> = capture.processes.iter().map(|process| process.recorded).collect();
    // Ten times as many on a fast machine.
    assert!(recorded.len() == 2 && recorded.iter().all(|count| *count > 20_000), "{recorded:?}");
    bench.finish().unwrap();
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
    let a_second = came as f64 / began.elapsed().as_secs_f64();
    assert!(a_second > 25.0, "{a_second:.0} connections a second prove nothing");
    let held = Call::PALLOC.run(&mut stays, &[1, 64]);
    assert!(held.is_ok(), "it lives");
    let (finished, capture) = finished(running);
    assert_eq!(survived(&capture, new.backend_pid(), Call::PALLOC.frame), tally(40, 40 * 64, held_by_new));
    // What went with its process is no growth.
    let all: u64 = groups(&capture, CONTEXT, Call::PALLOC.frame).map(|group| group.survived.count).sum();
    assert_eq!(all, 40);
    assert!(capture.processes.iter().all(|process| process.pid != server.postmaster_pid()));
    let born = capture.processes.iter().find(|process| process.pid == new.backend_pid()).unwrap();
    assert!(born.born_ns.is_some() && born.recorded > 1000, "{born:?}");
    assert!(counter(&capture, "births") >= came, "{came} came");
    let ended = capture.ended.iter().find(|ended| ended.kind == "client backend").unwrap();
    assert!(ended.count >= came * 9 / 10, "{ended:?} of {came}");
    assert!(finished.stdout.contains("client backend"), "{}", finished.stdout);
    new.run("select 1").unwrap();
    assert_no_probe_is_left(new.backend_pid());
}

/// Of those that are there and of those that come.
#[test]
fn only_what_is_asked_for() {
    let server = server(&Build::packaged(15).unwrap());
    planted::install(&server).unwrap();
    let mut wanted = planted::session(&server).unwrap();
    wanted.run("create database other").unwrap();
    let mut other = Session::open_database(&server, "other").unwrap();
    let postmaster = server.postmaster_pid().to_string();
    let running = recording(
        &[
            "--postmaster",
            &postmaster,
            "--backend-type",
            "client,parallel worker",
            "--database",
            "postgres",
            "--application",
            "pgleak-tests",
        ],
        &["--duration", "5s", "--settle", "0", "--force"],
    );
    other.run("select count(*) from pg_class a, pg_class b").unwrap();
    let mut new = planted::session(&server).unwrap();
    let mut new_other = Session::open_database(&server, "other").unwrap();
    new_other.run("select count(*) from pg_class").unwrap();
    let held = Call::PALLOC.run(&mut new, &[10, 64]).unwrap();
    Call::PALLOC.run(&mut wanted, &[5, 64]).unwrap();
    // A parallel worker is of the database of its leader.
    wanted
        .run(
            "set force_parallel_mode = on; set parallel_setup_cost = 0; set parallel_tuple_cost = 0; \
             set min_parallel_table_scan_size = 0; select count(*) from pg_class",
        )
        .unwrap();
    let (_, capture) = finished(running);
    let mut seen: Vec<(u32, bool)> =
        capture.processes.iter().map(|process| (process.pid, process.born_ns.is_some())).collect();
    seen.sort_unstable();
    let mut expected = vec![(wanted.backend_pid(), false), (new.backend_pid(), true)];
    expected.sort_unstable();
    assert_eq!(seen, expected);
    assert_eq!(survived(&capture, new.backend_pid(), Call::PALLOC.frame), tally(10, 640, held));
    assert_eq!(survived(&capture, wanted.backend_pid(), Call::PALLOC.frame).count, 5);
    let workers: Vec<_> = capture.ended.iter().filter(|ended| ended.kind == "parallel worker").collect();
    assert!(workers.len() == 1 && workers[0].count >= 1, "{:?}", capture.ended);
    assert!(capture.processes.iter().all(|process| process.database.as_deref() == Some("postgres")));
    drop((other, new_other));
}

/// With the server, its new processes and what is captured end.
#[test]
fn until_the_server_ends() {
    let server = server(&Build::packaged(15).unwrap());
    let postmaster = server.postmaster_pid().to_string();
    let running = recording(
        &["--postmaster", &postmaster, "--with-postmaster"],
        &["--duration", "60s", "--settle", "0", "--force"],
    );
    drop(server);
    let finished = running.finish().unwrap().success().unwrap();
    let capture = finished.capture().unwrap();
    assert_eq!(capture.window.end, pgleak::profile::EndReason::TargetExited);
    assert!(capture.processes.is_empty() && capture.ended.len() >= 4, "{:?}", capture.ended);
    assert!(finished.stdout.contains("all processes had ended"), "{}", finished.stdout);
}

/// What cannot be meant is told before anything is attached.
#[test]
fn scopes_that_cannot_be_meant() {
    const MISUSE: Option<i32> = Some(2);
    let one = server(&Build::packaged(15).unwrap());
    let other = server(&Build::npm(17).unwrap());
    let session = Session::open(&one).unwrap();
    let foreign = Session::open(&other).unwrap();
    let [pid, foreign, postmaster, nobody] =
        [session.backend_pid(), foreign.backend_pid(), one.postmaster_pid(), 4_194_303]
            .map(|pid| pid.to_string());
    let empty = tempfile::tempdir().unwrap();
    let empty = empty.path().to_str().unwrap();
    let cases: [(&[&str], &str); 10] = [
        (&[], "say which process"),
        (&["--pid", &pid, "--pid", &foreign], "one program at a time"),
        (&["--pid", &pid, "--pid", &nobody], "no process with pid"),
        (&["--postmaster", &pid], &format!("it is a client backend of postmaster {postmaster}")),
        (&["--postmaster", &nobody], "no postmaster"),
        (&["--data-dir", empty], "no server with the data directory"),
        (&["--data-dir", "/no/such/directory"], "cannot read the data directory"),
        (&["--postmaster", &postmaster, "--backend-type", "gremlin"], "there are: archiver"),
        (&["--pid", &pid, "--database", "x"], "name it with --postmaster"),
        (&["--session", "con99"], "no process of session con99"),
    ];
    for (arguments, said) in cases {
        let finished = Running::capture_of(arguments, &[]).unwrap().finish().unwrap();
        assert_eq!(finished.status.code(), MISUSE, "{arguments:?}: {}", finished.stderr);
        assert!(finished.stderr.contains(said), "{arguments:?}: {}", finished.stderr);
        assert!(!finished.stderr.contains("counting"), "{}", finished.stderr);
    }
    // Two captures of one server would each take the other's probes for its own.
    let running = recording(&["--postmaster", &postmaster], &["--duration", "3s", "--settle", "0"]);
    let second = Running::capture_of(&["--postmaster", &postmaster], &[]).unwrap().finish().unwrap();
    assert!(second.stderr.contains("being captured already"), "{}", second.stderr);
    running.finish().unwrap().success().unwrap();
}
