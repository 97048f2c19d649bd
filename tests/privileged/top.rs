//! `pgleak top` in a terminal: what is on the screen, what keys do, and what is left behind.

use std::{fs, path::Path, time::Duration};

use pgleak_tests::{
    Build, Server,
    pgleak::command,
    planted::{self, CONTEXT, Call},
    terminal::Terminal,
    workload::Loop,
};

use crate::common::{PATIENCE, assert_no_probe_is_left, server};

/// Five chunks fifty times a second, forever.
const STATEMENT: &str = "select planted_palloc(5, 700), pg_sleep(0.02)";
const SIZE: (u16, u16) = (80, 24);

fn leaking() -> (Server, Loop) {
    let server = server(&Build::packaged(15).unwrap());
    planted::install(&server).unwrap();
    let leak = Loop::start(&server, STATEMENT).unwrap();
    (server, leak)
}

/// Starts it in a directory, where captures go.
fn top(arguments: &[&str], dir: &Path) -> Terminal {
    let mut command = command(["top", "--interval", "500ms"]).unwrap();
    command.args(arguments).current_dir(dir).env_remove("NO_COLOR");
    Terminal::start(&mut command, SIZE).unwrap()
}

/// The only directory with artifacts, and its report.
fn report_in(dir: &Path, pid: u32) -> String {
    let made: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [made] = &made[..] else { panic!("{made:?}") };
    assert!(made.file_name().unwrap().to_str().unwrap().starts_with(&format!("pgleak-{pid}-")), "{made:?}");
    fs::read_to_string(made.join("report.txt")).unwrap()
}

#[test]
fn a_leak_is_seen_captured_and_named() {
    let (_server, leak) = leaking();
    let (dir, pid) = (tempfile::tempdir().unwrap(), leak.backend_pid().to_string());
    let mut top = top(&[], dir.path());
    let before = top.modes_before().clone();
    let line = top.wait_for(&[&pid, "client backend", "postgres"], PATIENCE).unwrap();
    assert!(line.contains("MB"), "{line}");
    assert!(top.is_alternate());
    top.wait_for(&["checkpointer"], PATIENCE).unwrap();

    // Only this process, so that it is selected.
    top.press(&format!("/{pid}\r")).unwrap();
    top.wait_until_gone("checkpointer", PATIENCE).unwrap();
    top.wait_for(&["contexts of", &pid, "read in"], PATIENCE).unwrap();
    top.wait_for(&["TopMemoryContext"], PATIENCE).unwrap();
    // The server doubles the blocks of a context up to 8 MB, so that this takes its time.
    top.wait_for(&["+", CONTEXT], PATIENCE).unwrap();

    top.press("c").unwrap();
    top.wait_for(&["capture of", &pid, "overhead full"], PATIENCE).unwrap();
    top.wait_for(&["recording", "of 13 s"], PATIENCE).unwrap();
    // While it records: what holds most, where from.
    let live = top.wait_for(&[CONTEXT, Call::PALLOC.frame, " < "], PATIENCE).unwrap();
    assert!(live.contains("kB"), "{live}");
    top.wait_for(&["held now"], PATIENCE).unwrap();
    top.wait_for(&["LEAK:", Call::PALLOC.frame], PATIENCE).unwrap();
    top.wait_for(&["Enter opens the report"], PATIENCE).unwrap();
    assert!(top.has_colours());
    leak.stop().unwrap();

    top.press("\r").unwrap();
    top.wait_for(&["SUSPECTS"], PATIENCE).unwrap();
    top.press("\x1b[F").unwrap();
    top.wait_until_gone("SUSPECTS", PATIENCE).unwrap();
    top.press("\x1b").unwrap();
    top.wait_for(&["contexts of"], PATIENCE).unwrap();
    top.press("q").unwrap();
    assert!(top.wait().unwrap().success());
    assert_eq!(top.modes().unwrap(), before);
    top.wait_until_given_back(PATIENCE).unwrap();
    // What was found stays when the screen goes.
    top.wait_for(&["pgleak-", "LEAK:"], PATIENCE).unwrap();
    assert!(report_in(dir.path(), pid.parse().unwrap()).starts_with("LEAK:"));
}

#[test]
fn keys_end_a_capture_early_and_it_is_kept() {
    let (_server, leak) = leaking();
    let (dir, pid) = (tempfile::tempdir().unwrap(), leak.backend_pid());
    let mut top = top(&["--pid", &pid.to_string()], dir.path());
    top.wait_for(&["contexts of", &pid.to_string(), "read in"], PATIENCE).unwrap();
    top.press("C").unwrap();
    top.wait_for(&["at which overhead?"], PATIENCE).unwrap();
    top.press("l").unwrap();
    top.wait_for(&["overhead low"], PATIENCE).unwrap();
    top.wait_for(&["recording in windows", "of 120 s"], PATIENCE).unwrap();
    top.press("\x1b").unwrap();
    top.wait_for(&["Enter opens the report"], PATIENCE).unwrap();
    assert!(!report_in(dir.path(), pid).is_empty());
    assert_no_probe_is_left(pid);
    // A smaller screen is drawn as well, and a larger one.
    for (columns, rows) in [(50, 12), (150, 50)] {
        top.resize(columns, rows).unwrap();
        // A key that comes together with the new size is noticed with the next one only (crossterm 0.29).
        top.wait_for_bottom("? keys", PATIENCE).unwrap();
        top.wait_for(&[&pid.to_string(), "client"], PATIENCE).unwrap();
        top.press("?").unwrap();
        top.wait_for(&["these keys"], PATIENCE).unwrap();
        top.press("?").unwrap();
        top.wait_until_gone("these keys", PATIENCE).unwrap();
    }
    top.press("\x03").unwrap();
    assert!(top.wait().unwrap().success());
}

#[test]
fn a_signal_gives_the_terminal_back_and_lets_a_capture_end() {
    let (_server, leak) = leaking();
    let pid = leak.backend_pid();
    for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGINT] {
        let dir = tempfile::tempdir().unwrap();
        let mut top = top(&["--pid", &pid.to_string()], dir.path());
        let before = top.modes_before().clone();
        top.wait_for(&[&pid.to_string(), "client backend"], PATIENCE).unwrap();
        top.press("c").unwrap();
        top.wait_for(&["recording", "of 13 s"], PATIENCE).unwrap();
        assert_ne!(top.modes().unwrap(), before);
        top.signal(signal).unwrap();
        assert!(top.wait().unwrap().success());
        assert_eq!(top.modes().unwrap(), before);
        top.wait_until_given_back(PATIENCE).unwrap();
        assert!(!report_in(dir.path(), pid).is_empty());
        assert_no_probe_is_left(pid);
    }
}

#[test]
fn nothing_is_coloured_if_the_user_says_so() {
    let (_server, leak) = leaking();
    let (dir, pid) = (tempfile::tempdir().unwrap(), leak.backend_pid().to_string());
    let mut command = command(["top", "--interval", "200ms", "--pid", &pid]).unwrap();
    let mut top = Terminal::start(command.current_dir(dir.path()).env("NO_COLOR", "1"), SIZE).unwrap();
    // What grows would be red.
    top.wait_for(&["1 process, 1 grows"], PATIENCE).unwrap();
    assert!(!top.has_colours());
    top.press("q").unwrap();
    assert!(top.wait().unwrap().success());
}

#[test]
fn what_is_no_server_is_refused_before_anything_is_drawn() {
    let dir = tempfile::tempdir().unwrap();
    let mut top = top(&["--pid", &std::process::id().to_string()], dir.path());
    let before = top.modes_before().clone();
    assert_eq!(top.wait().unwrap().code(), Some(2));
    top.wait_for(&["belongs to no PostgreSQL"], Duration::from_secs(10)).unwrap();
    assert_eq!(top.modes().unwrap(), before);
}
