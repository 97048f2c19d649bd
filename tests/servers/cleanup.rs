//! Nothing of a server stays behind, however its owner ends.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use pgleak_tests::{Build, Server, ServerOptions, Session};
use xtask::process::is_running;

/// Set in the child process that a test kills.
const VICTIM: &str = "PGLEAK_TESTS_VICTIM";

#[test]
fn a_dropped_server_is_gone() {
    let server = Server::start(&Build::packaged(15).unwrap(), &ServerOptions::default()).unwrap();
    let session = Session::open(&server).unwrap();
    let (postmaster, backend, dir) =
        (server.postmaster_pid(), session.backend_pid(), server.dir().to_owned());
    assert!(is_running(postmaster) && is_running(backend) && dir.exists());
    drop(server);
    assert!(!is_running(postmaster) && !is_running(backend) && !dir.exists());
}

#[test]
fn a_server_does_not_outlive_a_killed_owner() {
    if std::env::var_os(VICTIM).is_some() {
        let server = Server::start(&Build::packaged(15).unwrap(), &ServerOptions::default()).unwrap();
        println!("victim {} {}", server.postmaster_pid(), server.dir().display());
        loop {
            thread::park();
        }
    }
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "cleanup::a_server_does_not_outlive_a_killed_owner"])
        .env(VICTIM, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let line = BufReader::new(victim.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok)
        .find_map(|line| line.split_once("victim ").map(|(_, rest)| rest.to_owned()));
    let line = line.expect("the victim has a server");
    let (postmaster, dir) = line.split_once(' ').unwrap();
    let (postmaster, dir): (u32, PathBuf) = (postmaster.parse().unwrap(), dir.into());
    assert!(is_running(postmaster));
    victim.kill().unwrap();
    victim.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while is_running(postmaster) || dir.exists() {
        assert!(Instant::now() < deadline, "postmaster {postmaster} or {} is still there", dir.display());
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_server_that_cannot_start_says_why_and_leaves_nothing() {
    let options = ServerOptions::default().set("no_such_setting", "1");
    let error = Server::start(&Build::packaged(15).unwrap(), &options).unwrap_err().to_string();
    assert!(error.contains("no_such_setting"), "{error}");
    let options = ServerOptions::default().set("shared_preload_libraries", "no_such_library");
    let error = Server::start(&Build::npm(18).unwrap(), &options).unwrap_err().to_string();
    assert!(error.contains("no_such_library"), "{error}");
}
