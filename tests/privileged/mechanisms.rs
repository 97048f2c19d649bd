//! Every way to attach probes gives the same.

use std::time::Instant;

use pgleak_tests::{
    Build, Server, Session,
    findings::{counter, losses, survived},
    pgleak::Running,
    planted::{self, CONTEXT, Call},
};

use crate::common::{PATIENCE, assert_no_probe_is_left, server};

/// What it allocates is seen exactly, whatever it calls; calls begin as often as they return.
fn exact_by(how: &str) {
    let server = server(&Build::npm(17).unwrap());
    planted::install(&server).unwrap();
    let mut session = planted::session(&server).unwrap();
    let pid = session.backend_pid();
    of_one(&server, &mut session, how);
    of_several(&server, &mut session, how);
    assert_no_probe_is_left(pid);
}

fn of_one(server: &Server, session: &mut Session, how: &str) {
    let pid = session.backend_pid();
    let arguments =
        ["--attach", how, "--allocator", "all", "--duration", "3s", "--settle", "1s", "--force", "-vv"];
    let running = Running::capture(pid, &arguments).unwrap();
    running.wait_for("recording for", PATIENCE).unwrap();
    let held = Call::PALLOC.run(session, &[100, 40]).unwrap();
    Call::IN_FLIGHT.run(session, &[1000, 40]).unwrap();
    Call::REPALLOC.run(session, &[10, 300]).unwrap();
    Call::CHURN.run(session, &[20, 40, 5]).unwrap();
    let kind = Call::KIND.run(session, &[30, 40, 2]).unwrap();
    let threads = Call::THREADS.run(session, &[50, 640]).unwrap();
    running.wait_for("settling for", PATIENCE).unwrap();
    Call::PFREE.run(session, &[50]).unwrap();
    let began = Instant::now();
    let finished = running.finish().unwrap().success().unwrap();
    eprintln!("{how}: {:?} to the end", began.elapsed());
    let capture = finished.capture().unwrap();
    assert_eq!(losses(&capture), [], "nothing may be lost");
    // The newest fifty went while settling, with what ten of them had grown by.
    let left = survived(&capture, CONTEXT, Call::PALLOC.frame);
    assert_eq!((left.count, left.requested), (50, 2000));
    assert!(held > 0 && kind > 0);
    assert_eq!(survived(&capture, CONTEXT, Call::REPALLOC.frame).count, 0);
    assert_eq!(survived(&capture, "malloc", Call::THREADS.frame).count, threads.unsigned_abs());
    for site in capture.sites.iter().filter(|site| site.entries > 0) {
        let Some(returns) = site.returns else { continue };
        // Calls that were open when recording began or ended.
        let awaited = site.entries - site.unawaited;
        assert!(awaited.abs_diff(returns) <= counter(&capture, "left_by_error") + 4, "{site:?}");
    }
    let [foreseen, checked] = ["foreseen", "foreseen_checked"].map(|name| counter(&capture, name));
    if how == "session" {
        // The first 256 are awaited all the same, of the thousand in flight and all that the server needs itself.
        assert!(foreseen > 500 && checked >= 256, "{foreseen} foreseen, {checked} checked");
        let alloc = capture.sites.iter().find(|site| site.function == "AllocSetAlloc").expect("it is probed");
        let most = foreseen + counter(&capture, "nested_in_realloc");
        assert!((foreseen..=most).contains(&alloc.unawaited), "{alloc:?}, {foreseen} foreseen");
    } else {
        assert_eq!((foreseen, checked), (0, 0));
    }
    let said = match how {
        "session" => "session links",
        "multi" => "uprobe_multi links",
        _ => "perf links",
    };
    assert!(finished.stderr.contains(&format!("probes by {said}")), "{}", finished.stderr);
    Call::RESET.run(session, &[]).unwrap();
    drop(server.log());
}

fn of_several(server: &Server, session: &mut Session, how: &str) {
    let postmaster = server.postmaster_pid().to_string();
    let running = Running::capture_of(
        &["--postmaster", &postmaster, "--backend-type", "client"],
        &["--attach", how, "--duration", "3s", "--settle", "0", "--force"],
    )
    .unwrap();
    running.wait_for("recording for", PATIENCE).unwrap();
    let held = Call::PALLOC.run(session, &[20, 64]).unwrap();
    let mut new = planted::session(server).unwrap();
    let held_by_new = Call::PALLOC.run(&mut new, &[30, 64]).unwrap();
    let capture = running.finish().unwrap().success().unwrap().capture().unwrap();
    assert_eq!(losses(&capture), [], "nothing may be lost");
    let left = survived(&capture, CONTEXT, Call::PALLOC.frame);
    assert_eq!((left.count, left.held), (50, (held + held_by_new).unsigned_abs()));
    assert_eq!(capture.processes.len(), 2);
}

#[test]
fn perf_links() {
    exact_by("perf");
}

#[test]
fn uprobe_multi_links() {
    exact_by("multi");
}

#[test]
fn session_links() {
    exact_by("session");
}
