//! Recording in windows: little is added, and what is said of all the work is right.

use std::time::Duration;

use pgleak::profile::{Class, EndReason, Group, judge};
use pgleak_tests::{
    Build,
    findings::{groups, losses},
    pgleak::{Running, capture},
    planted::{self, CONTEXT, Call},
    workload::{Loop, Pgbench, Script, init_pgbench},
};

use crate::common::{
    PATIENCE, assert_no_probe_is_left, has_breakpoint, on_builds, probed_instructions, server,
};

on_builds!(a_busy_leak: debian_15 npm_17 17);

/// Of a loop that leaks so much in each round, and does other work: the first suspect, at the rate that it
/// really leaks at, while there are no probes most of the time.
fn a_busy_leak(build: &Build) {
    const ROUND: [i64; 2] = [20, 200];
    let server = server(build);
    planted::install(&server).unwrap();
    let held = Call::PALLOC.run(&mut planted::session(&server).unwrap(), &ROUND).unwrap();
    let sql = format!("{}; {}", Call::PALLOC.sql(&ROUND), Call::IN_FLIGHT.sql(&[3000, 40]));
    let leak = Loop::start(&server, &sql).unwrap();
    let probed = probed_instructions(leak.backend_pid());
    let running = Running::capture(leak.backend_pid(), &["--overhead", "5", "--duration", "25s"]).unwrap();
    running.wait_for("recording in windows", PATIENCE).unwrap();
    let (rounds, begun) = (leak.rounds(), std::time::Instant::now());
    let (mut looks, mut with_probes) = (0, 0);
    while begun.elapsed() < Duration::from_secs(24) {
        looks += 1;
        with_probes += u32::from(probed.iter().any(|probe| has_breakpoint(leak.backend_pid(), *probe)));
        std::thread::sleep(Duration::from_millis(50));
    }
    let really = (leak.rounds() - rounds) as f64 * held as f64 / begun.elapsed().as_secs_f64();
    let finished = running.finish().unwrap().success().unwrap();
    assert_no_probe_is_left(leak.backend_pid());
    leak.stop().unwrap();
    let capture = finished.capture().unwrap();
    assert_eq!(losses(&capture), [], "{}", finished.stdout);
    let windows = capture.window.windows.as_ref().expect("it was recorded in windows");
    assert!(windows.count >= 4, "{windows:?}");
    assert!(windows.added <= windows.allowed * 1.5, "{windows:?}");
    assert!(f64::from(with_probes) < f64::from(looks) * 0.4, "{with_probes} of {looks}: {windows:?}");
    let verdict = judge(&capture);
    let first = verdict.suspects.first().unwrap_or_else(|| panic!("{}", finished.stdout));
    assert_eq!((first.head.as_str(), first.course.class), ("planted_leak_palloc", Class::Leak));
    assert!(first.course.interval.is_some());
    let said = first.course.growth_per_second;
    println!("{}: {said:.0} of {really:.0} bytes a second, {windows:?}", build.name);
    assert!((said / really).ln().abs() < 0.5, "{said} instead of {really}: {}", finished.stdout);
    // What the contexts say for themselves.
    let growth = capture
        .memory
        .as_ref()
        .and_then(|memory| memory.by_label.iter().find(|growth| growth.label == first.contexts[0].name));
    let growth = growth.expect("its context grew");
    assert!(growth.after > growth.before && growth.traced > 0, "{growth:?}");
}

/// A process that allocates little loses nothing by it, and is recorded without a pause.
#[test]
fn who_allocates_little_is_recorded_all_the_time() {
    let server = server(&Build::npm(15).unwrap());
    planted::install(&server).unwrap();
    let leak =
        Loop::start(&server, &format!("{}; select pg_sleep(0.05)", Call::PALLOC.sql(&[3, 100]))).unwrap();
    let finished = capture(leak.backend_pid(), &["--overhead", "20", "--duration", "8s"]).unwrap();
    let finished = finished.success().unwrap();
    leak.stop().unwrap();
    let capture = finished.capture().unwrap();
    let windows = capture.window.windows.as_ref().expect("it was asked for");
    assert_eq!(windows.count, 1, "{windows:?}");
    assert!(windows.record_ns as f64 > windows.wall_ns as f64 * 0.85, "{windows:?}");
    let verdict = judge(&capture);
    let heads: Vec<&str> = verdict.suspects.iter().map(|place| place.head.as_str()).collect();
    assert_eq!(heads, ["planted_leak_palloc"], "{}", finished.stdout);
}

/// Busy work leaks nothing in windows either, and what was in flight in each is not added up to a leak.
#[test]
fn busy_work_is_no_leak() {
    for (build, script) in
        [(Build::packaged(15).unwrap(), Script::SelectOnly), (Build::npm(17).unwrap(), Script::TpcB)]
    {
        let server = server(&build);
        init_pgbench(&server).unwrap();
        let bench = Pgbench::start(&server, script, 1, 60).unwrap();
        let arguments = ["--overhead", "low", "--duration", "20s"];
        let finished = capture(bench.backend_pid(), &arguments).unwrap();
        let finished = finished.success().unwrap();
        let capture = finished.capture().unwrap();
        assert_eq!(losses(&capture), [], "{}", finished.stdout);
        let verdict = judge(&capture);
        assert!(verdict.suspects.is_empty(), "{}", finished.stdout);
    }
}

/// One that ends between two windows, of which what was recorded is not lost.
#[test]
fn who_ends_meanwhile_has_a_result() {
    let server = server(&Build::packaged(15).unwrap());
    planted::install(&server).unwrap();
    let leak = Loop::start(
        &server,
        &format!("{}; {}", Call::PALLOC.sql(&[20, 200]), Call::IN_FLIGHT.sql(&[3000, 40])),
    )
    .unwrap();
    let running = Running::capture(leak.backend_pid(), &["--overhead", "2", "--duration", "60s"]).unwrap();
    running.wait_for("recording in windows:", PATIENCE).unwrap();
    leak.stop().unwrap();
    let finished = running.finish().unwrap().success().unwrap();
    let capture = finished.capture().unwrap();
    assert_eq!(capture.window.end, EndReason::TargetExited, "{}", finished.stdout);
    assert!(
        !groups(&capture, CONTEXT, Call::PALLOC.frame).collect::<Vec<_>>().is_empty(),
        "{}",
        finished.stdout
    );
}

/// A server: each of its processes has its own, scaled alike.
#[test]
fn several_processes_in_windows() {
    let server = server(&Build::packaged(15).unwrap());
    planted::install(&server).unwrap();
    let of = |count| format!("{}; select pg_sleep(0.02)", Call::PALLOC.sql(&[count, 100]));
    let leaks = [1, 3].map(|count| Loop::start(&server, &of(count)).unwrap());
    let postmaster = server.postmaster_pid().to_string();
    let scope = ["--postmaster", &*postmaster, "--backend-type", "client"];
    let running = Running::capture_of(&scope, &["--overhead", "20", "--duration", "10s"]).unwrap();
    let finished = running.finish().unwrap().success().unwrap();
    let capture = finished.capture().unwrap();
    let held = |pid: u32| -> u64 {
        let of_pid = |group: &&Group| capture.processes[group.process as usize].pid == pid;
        groups(&capture, CONTEXT, Call::PALLOC.frame).filter(of_pid).map(|group| group.survived.count).sum()
    };
    let [one, three] = leaks.each_ref().map(|leak| held(leak.backend_pid()) as f64);
    assert!(one > 20.0 && (three / one - 3.0).abs() < 0.6, "{one} and {three}: {}", finished.stdout);
    assert_eq!(judge(&capture).suspects[0].head, Call::PALLOC.frame, "{}", finished.stdout);
    for leak in leaks {
        assert_no_probe_is_left(leak.backend_pid());
        leak.stop().unwrap();
    }
}
