//! A stripped server and a stripped extension, captured, and named afterwards by what was not
//! stripped; a capture that waits for debuginfod.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use pgleak::profile::{Capture, Frame};
use pgleak_tests::{
    Build,
    debuginfod::{Answer, Server},
    pgleak as program,
    planted::{self, Call},
};
use tempfile::TempDir;
use xtask::process::output;

use crate::common::{PATIENCE, recording, server};

/// A copy of a build whose server has no symbols, and the directory that it is in.
fn stripped(build: &Build) -> (Build, TempDir) {
    let copy = tempfile::Builder::new().prefix("pgleak-stripped-").tempdir().unwrap();
    // The servers' user has to get in.
    fs::set_permissions(copy.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let tree = build.bin.parent().unwrap();
    output(Command::new("cp").arg("-a").arg(tree.join(".")).arg(copy.path())).unwrap();
    let bin = copy.path().join("bin");
    output(Command::new("strip").arg(bin.join("postgres"))).unwrap();
    (Build { name: format!("{}-stripped", build.name), bin, ..build.clone() }, copy)
}

/// Frames in an object.
fn frames<'c>(capture: &'c Capture, object: &str) -> Vec<&'c Frame> {
    let is_in = |frame: &&Frame| {
        let module = frame.module.map(|id| &capture.modules[id.0 as usize]);
        module.is_some_and(|module| module.path.ends_with(object))
    };
    capture.profile.frames.iter().filter(is_in).collect()
}

/// What binutils calls the functions at some addresses.
fn names_of_addr2line(file: &Path, frames: &[&Frame]) -> Vec<String> {
    let mut addr2line = Command::new("addr2line");
    addr2line.args(["-f", "-e"]).arg(file).args(frames.iter().map(|frame| format!("{:#x}", frame.address.0)));
    // A name, then file and line, which this build does not have.
    output(&mut addr2line).unwrap().lines().step_by(2).map(str::to_owned).collect()
}

#[test]
fn a_stripped_server_is_named_on_another_machine() {
    let whole = Build::npm(15).unwrap();
    let (build, _copy) = stripped(&whole);
    let server = server(&build);
    planted::install(&server).unwrap();
    let library = server.dir().join("planted.so");
    let given = tempfile::tempdir().unwrap();
    fs::copy(&library, given.path().join("as-linked.so")).unwrap();
    output(Command::new("strip").arg(&library)).unwrap();

    let mut session = planted::session(&server).unwrap();
    let running = recording(session.backend_pid(), &["--duration", "2s", "--settle", "0", "--force"]);
    Call::PALLOC.run(&mut session, &[100, 40]).unwrap();
    let captured = running.finish().unwrap().success().unwrap();
    let bare = captured.capture().unwrap();
    let nameless = frames(&bare, "bin/postgres").iter().filter(|frame| frame.is_nameless()).count();
    assert!(nameless >= 3, "{nameless} frames of a stripped server are bare");

    let file = captured.dir().unwrap().join("capture.json");
    let directories = [given.path().to_owned(), whole.bin.clone()];
    let given: Vec<PathBuf> =
        directories.iter().flat_map(|path| ["--symbols".into(), path.clone()]).collect();
    let mut render = program::command(["render", "--format=json"]).unwrap();
    let rendered = program::Running::spawn(render.arg(file).args(given)).unwrap().finish().unwrap();
    let named: Capture = serde_json::from_str(&rendered.success().unwrap().stdout).unwrap();

    let server_frames = frames(&named, "bin/postgres");
    let theirs = names_of_addr2line(&whole.postgres(), &server_frames);
    let ours: Vec<String> = server_frames.iter().map(|frame| frame.label().to_owned()).collect();
    assert_eq!(ours, theirs);
    // The extension had the names that it exports; now it has what was inlined, and lines.
    let extension = frames(&named, "planted.so");
    let palloc = extension.iter().find(|frame| frame.label() == Call::PALLOC.frame).unwrap();
    assert!(palloc.names.iter().all(|name| name.line.is_some()), "{palloc:?}");
    assert!(palloc.names[0].file.as_deref().unwrap().ends_with("planted.c"));
    assert_eq!(named.profile.groups, bare.profile.groups);
}

#[test]
fn an_interrupt_ends_the_waiting_for_debuginfod_and_everything_is_written() {
    let build = Build::packaged(15).unwrap();
    let server = server(&build);
    planted::install(&server).unwrap();
    let mut session = planted::session(&server).unwrap();
    let silent = Server::start(Answer::Silent);
    let cache = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    let mut command =
        program::command(["capture", "--debuginfod", "--duration=1s", "--settle=0", "--force"]).unwrap();
    command.arg(format!("--pid={}", session.backend_pid())).arg("--out").arg(out.path().join("capture"));
    command.env("DEBUGINFOD_URLS", &silent.url).env("DEBUGINFOD_CACHE_PATH", cache.path());
    // Longer than this test is patient.
    command.env("DEBUGINFOD_TIMEOUT", (2 * PATIENCE).as_secs().to_string());
    let started = Instant::now();
    let running = program::Running::spawn(&mut command).unwrap();
    running.wait_for("recording for", PATIENCE).unwrap();
    Call::PALLOC.run(&mut session, &[100, 40]).unwrap();
    while silent.requests() == 0 {
        assert!(started.elapsed() < PATIENCE, "nobody asked");
        thread::sleep(Duration::from_millis(20));
    }
    running.signal(libc::SIGINT).unwrap();
    running.finish().unwrap().success().unwrap();
    assert!(started.elapsed() < PATIENCE);
    let report = fs::read_to_string(out.path().join("capture/report.txt")).unwrap();
    let report = report.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(report.contains("debuginfod was not asked any further"), "{report}");
    assert!(report.contains("planted"), "{report}");
}
