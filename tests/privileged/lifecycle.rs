//! However a capture ends, no probe stays and what was seen is written.

use std::{
    fs,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::process::ExitStatusExt as _,
    },
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use pgleak::profile::EndReason;
use pgleak_tests::{
    Build, LEAKING_ROUND, Server, Session,
    findings::{counter, survived},
    pgleak::{Running, capture, command},
    planted::{self, CONTEXT, Call},
    workload::Loop,
};

use crate::common::{
    PATIENCE, assert_no_probe_is_left, has_breakpoint, probed_instructions, recording, server,
};

fn leaking() -> (Server, Loop) {
    let server = server(&Build::packaged(15).unwrap());
    let leak = Loop::start(&server, LEAKING_ROUND).unwrap();
    (server, leak)
}

#[test]
fn an_interrupt_ends_it_early_and_everything_is_written() {
    let (_server, leak) = leaking();
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let running = recording(leak.backend_pid(), &["--duration", "60s"]);
        assert!(has_breakpoint(leak.backend_pid(), probed_instructions(leak.backend_pid())[0]));
        running.signal(signal).unwrap();
        let finished = running.finish().unwrap().success().unwrap();
        let capture = finished.capture().unwrap();
        assert_eq!(capture.window.end, EndReason::Interrupted);
        assert!(capture.window.record_ns < 50_000_000_000);
        assert!(counter(&capture, "recorded") > 0);
        for artifact in ["stacks.folded", "flame.svg", "flame-inverted.svg", "report.txt"] {
            assert!(!finished.artifact(artifact).unwrap().is_empty(), "{artifact}");
        }
        assert_no_probe_is_left(leak.backend_pid());
    }
    leak.stop().unwrap();
}

#[test]
fn one_wish_may_come_as_several_signals() {
    let (_server, leak) = leaking();
    let pairs = [
        [libc::SIGHUP, libc::SIGHUP],
        [libc::SIGTERM, libc::SIGHUP],
        [libc::SIGINT, libc::SIGTERM],
        [libc::SIGINT, libc::SIGINT],
    ];
    for [first, second] in pairs {
        let running = recording(leak.backend_pid(), &["--duration", "60s"]);
        running.signal(first).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        // It may have done by then.
        let _ = running.signal(second);
        let finished = running.finish().unwrap().success().unwrap();
        assert_eq!(finished.capture().unwrap().window.end, EndReason::Interrupted);
        assert!(!finished.artifact("flame.svg").unwrap().is_empty());
    }
    leak.stop().unwrap();
}

#[test]
fn a_second_interrupt_leaves_at_once() {
    let (_server, leak) = leaking();
    let running = recording(leak.backend_pid(), &["--duration", "60s"]);
    running.signal(libc::SIGINT).unwrap();
    std::thread::sleep(Duration::from_millis(600));
    // The first may have been obeyed to the end by now.
    let _ = running.signal(libc::SIGINT);
    let finished = running.finish().unwrap();
    let written = |name: &str| finished.dir().unwrap().join(name).exists();
    match (finished.status.code(), finished.status.signal()) {
        // It had written everything before the second came, which then met its default.
        (Some(0), None) | (None, Some(libc::SIGINT)) => assert!(written("capture.json")),
        (Some(130), None) => {
            assert!(!finished.dir().unwrap().exists() || written("capture.json"), "nothing half-written");
        }
        _ => panic!("{:?}: {}", finished.status, finished.stderr),
    }
    assert_no_probe_is_left(leak.backend_pid());
    leak.stop().unwrap();
}

#[test]
fn a_hangup_that_is_ignored_stays_ignored() {
    use std::os::unix::process::CommandExt as _;
    let (_server, leak) = leaking();
    let out = tempfile::tempdir().unwrap();
    let directory = out.path().join("capture");
    let pid = leak.backend_pid().to_string();
    let mut command =
        command(["capture", "--pid", &pid, "--duration=3s", "--settle=0", "--map-memory=256M"]).unwrap();
    command.arg("--out").arg(&directory);
    // As nohup does.
    // SAFETY: setting a disposition is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGHUP, libc::SIG_IGN);
            Ok(())
        });
    }
    let running = Running::spawn(&mut command).unwrap();
    running.wait_for("recording for", PATIENCE).unwrap();
    running.signal(libc::SIGHUP).unwrap();
    running.finish().unwrap().success().unwrap();
    let capture = pgleak::render::read_capture(&directory.join("capture.json")).unwrap();
    assert_eq!(capture.window.end, EndReason::Completed);
    leak.stop().unwrap();
}

/// Ctrl-S, or a connection that hangs: writes to the terminal block, for longer than the watchdog
/// waits.
#[test]
fn a_terminal_that_stands_still_ends_no_capture() {
    let (_server, leak) = leaking();
    let out = tempfile::tempdir().unwrap();
    let directory = out.path().join("capture");
    let pid = leak.backend_pid().to_string();
    let terminal = Terminal::open();
    // The leak is quick on some machines.
    let room = ["--map-memory", "256M"];
    let mut child = command(["capture", "--pid", &pid, "--duration", "9s", "--settle", "0"])
        .unwrap()
        .args(room)
        .arg("--out")
        .arg(&directory)
        .stdout(Stdio::null())
        .stderr(terminal.side())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    terminal.stand_still();
    let status = child.wait().unwrap();
    assert!(status.success(), "{status:?}");
    let capture = pgleak::render::read_capture(&directory.join("capture.json")).unwrap();
    assert_eq!(capture.window.end, EndReason::Completed);
    leak.stop().unwrap();
}

/// A terminal whose screen nobody looks at.
struct Terminal {
    screen: OwnedFd,
    side: OwnedFd,
}

impl Terminal {
    fn open() -> Self {
        let (mut screen, mut side) = (-1, -1);
        let none = std::ptr::null_mut();
        // SAFETY: two valid places for descriptors, which are owned from here on.
        unsafe {
            assert_eq!(libc::openpty(&raw mut screen, &raw mut side, none, none.cast(), none.cast()), 0);
            Self { screen: OwnedFd::from_raw_fd(screen), side: OwnedFd::from_raw_fd(side) }
        }
    }

    fn side(&self) -> OwnedFd {
        self.side.try_clone().unwrap()
    }

    /// What Ctrl-S does.
    fn stand_still(&self) {
        // SAFETY: a call on an open descriptor.
        assert_eq!(unsafe { libc::tcflow(self.side.as_raw_fd(), libc::TCOOFF) }, 0);
        assert!(self.screen.as_raw_fd() >= 0, "open as long as the terminal is");
    }
}

/// More chunks than there is room for: what came later is missing, so that nothing may be called
/// a cache or no leak.
#[test]
fn full_maps_end_the_recording_and_prove_nothing() {
    let server = server(&Build::packaged(15).unwrap());
    planted::install(&server).unwrap();
    let mut session = planted::session(&server).unwrap();
    let pid = session.backend_pid();
    // The least that works, which says how much it is.
    let told = capture(pid, &["--map-memory", "1M"]).unwrap().stderr;
    let least = told.split("at least ").nth(1).and_then(|text| text.split('M').next()).expect(&told);
    let running = recording(
        pid,
        &["--duration", "60s", "--settle", "1s", "--map-memory", &format!("{least}M"), "--force"],
    );
    Call::PALLOC.run(&mut session, &[30_000, 40]).unwrap();
    let finished = running.finish().unwrap().success().unwrap();
    let capture = finished.capture().unwrap();
    assert_eq!(capture.window.end, EndReason::MapFull);
    assert!(capture.window.record_ns < 50_000_000_000);
    assert!(counter(&capture, "live_full") > 0);
    assert!(!finished.stdout.contains("No leak seen"), "{}", finished.stdout);
    assert!(finished.stderr.contains("--map-memory"), "{}", finished.stderr);
}

#[test]
fn a_killed_pgleak_leaves_no_probe() {
    let (_server, leak) = leaking();
    let running = recording(leak.backend_pid(), &["--duration", "60s"]);
    running.signal(libc::SIGKILL).unwrap();
    assert!(!running.finish().unwrap().status.success());
    assert_no_probe_is_left(leak.backend_pid());
    // The session goes on, and so does the next capture.
    capture(leak.backend_pid(), &["--duration", "1s", "--settle", "0"]).unwrap().success().unwrap();
    leak.stop().unwrap();
}

/// The kernel takes no breakpoint away for a process that is being killed meanwhile.
#[test]
fn a_pgleak_that_is_killed_while_it_takes_probes_away_leaves_none() {
    let (_server, leak) = leaking();
    for wait_ms in [0, 60, 150] {
        let running = recording(leak.backend_pid(), &["--duration", "500ms", "--settle", "60s"]);
        running.wait_for("settling for", PATIENCE).unwrap();
        std::thread::sleep(Duration::from_millis(wait_ms));
        running.signal(libc::SIGKILL).unwrap();
        assert!(!running.finish().unwrap().status.success());
        assert_no_probe_is_left(leak.backend_pid());
    }
    leak.stop().unwrap();
}

#[test]
fn the_watchdog_ends_a_pgleak_that_is_stopped() {
    let (_server, leak) = leaking();
    let running = recording(leak.backend_pid(), &["--duration", "60s"]);
    running.signal(libc::SIGSTOP).unwrap();
    let stopped = Instant::now();
    let finished = running.finish().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&finished.status), Some(libc::SIGKILL));
    assert!(stopped.elapsed() < Duration::from_secs(30), "{:?}", stopped.elapsed());
    assert_no_probe_is_left(leak.backend_pid());
    leak.stop().unwrap();
}

#[test]
fn a_second_capture_of_a_process_is_told_who_has_it() {
    let (_server, leak) = leaking();
    let running = recording(leak.backend_pid(), &["--duration", "60s"]);
    let second = capture(leak.backend_pid(), &[]).unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(second.stderr.contains(&format!("pgleak with pid {}", running.pid())), "{}", second.stderr);
    assert!(!second.dir().unwrap().exists());
    running.signal(libc::SIGINT).unwrap();
    running.finish().unwrap().success().unwrap();
    leak.stop().unwrap();
}

#[test]
fn an_idle_process_ends_on_time_and_is_called_idle() {
    let server = server(&Build::packaged(15).unwrap());
    let session = Session::open(&server).unwrap();
    let finished =
        capture(session.backend_pid(), &["--duration", "1s", "--settle", "1s"]).unwrap().success().unwrap();
    let capture = finished.capture().unwrap();
    assert_eq!(counter(&capture, "recorded"), 0);
    assert!(capture.notes.iter().any(|note| note.contains("idle")), "{:?}", capture.notes);
}

#[test]
fn a_process_that_ends_leaves_what_was_seen() {
    for build in [Build::packaged(15).unwrap(), Build::npm(18).unwrap()] {
        let server = server(&build);
        planted::install(&server).unwrap();
        let mut session = planted::session(&server).unwrap();
        let running = recording(session.backend_pid(), &["--duration", "60s"]);
        Call::PALLOC.run(&mut session, &[77, 40]).unwrap();
        drop(session);
        let finished = running.finish().unwrap().success().unwrap();
        let capture = finished.capture().unwrap();
        assert_eq!(capture.window.end, EndReason::TargetExited);
        // Named although the process and its mappings are gone.
        assert_eq!(survived(&capture, CONTEXT, Call::PALLOC.frame).count, 77);
        let exited: u64 = capture.profile.stacks.iter().map(|stack| stack.summary.exited.count).sum();
        assert!(exited >= 77);
        assert!(!finished.stdout.starts_with("LEAK"), "{}", finished.stdout);
    }
}

#[test]
fn a_process_that_becomes_another_program_leaves_what_was_seen() {
    let server = server(&Build::npm(15).unwrap());
    planted::install(&server).unwrap();
    let mut session = planted::session(&server).unwrap();
    let running = recording(session.backend_pid(), &["--duration", "60s"]);
    Call::PALLOC.run(&mut session, &[33, 40]).unwrap();
    assert!(Call::EXEC.run(&mut session, &[2]).is_err());
    let finished = running.finish().unwrap().success().unwrap();
    let capture = finished.capture().unwrap();
    assert_eq!(capture.window.end, EndReason::TargetExec);
    assert_eq!(survived(&capture, CONTEXT, Call::PALLOC.frame).count, 33);
    assert!(!finished.stdout.starts_with("LEAK"), "{}", finished.stdout);
}

/// A server whose processes are killed if they make the system call that return probes make, if
/// the kernel lets the filter see it.
#[test]
fn a_process_under_a_seccomp_filter_is_tried_on_a_child_first() {
    let real = Build::npm(16).unwrap();
    let directory = tempfile::Builder::new().prefix("pgleak-filter-").tempdir_in("/var/tmp").unwrap();
    let build = filtered(&real, directory.path());
    let server = server(&build);
    planted::install(&server).unwrap();
    let mut session = planted::session(&server).unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", session.backend_pid())).unwrap();
    assert!(status.contains("Seccomp:\t2"), "the server is under the filter");
    let running = recording(session.backend_pid(), &["--duration", "1s", "--settle", "0"]);
    Call::PALLOC.run(&mut session, &[9, 40]).unwrap();
    let capture = running.finish().unwrap().success().unwrap().capture().unwrap();
    assert_eq!(survived(&capture, CONTEXT, Call::PALLOC.frame).count, 9);
    assert_eq!(session.integer("select 1").unwrap(), 1);
    let doctor = pgleak_tests::pgleak::run(["doctor", "--pid", &session.backend_pid().to_string()]).unwrap();
    assert!(doctor.success().unwrap().stdout.contains("a child under a seccomp filter lives with them"));
}

/// The build with a `postgres` that puts itself under a filter and then becomes the real one.
fn filtered(build: &Build, to: &Path) -> Build {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    for entry in fs::read_dir(&build.bin).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "postgres" {
            symlink(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
    // uretprobe is system call 335 on x86_64. The program is: load the number, kill if it is
    // that, allow otherwise.
    let script = format!(
        r#"#!/usr/bin/python3
import ctypes, os, struct, sys
insns = [(0x20, 0, 0, 0), (0x15, 0, 1, 335), (0x06, 0, 0, 0x80000000), (0x06, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *insn) for insn in insns))
prog = struct.pack("HxxxxxxQ", len(insns), ctypes.addressof(code))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, prog, 0, 0) == 0, os.strerror(ctypes.get_errno())
os.execv("{0}", ["{0}"] + sys.argv[1:])
"#,
        build.postgres().display()
    );
    let wrapper = to.join("postgres");
    fs::write(&wrapper, script).unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(to, fs::Permissions::from_mode(0o755)).unwrap();
    Build { bin: to.to_owned(), ..build.clone() }
}

#[test]
fn a_replaced_binary_is_traced_as_the_process_runs_it() {
    let build = Build::packaged(15).unwrap();
    let private = tempfile::Builder::new().prefix("pgleak-upgrade-").tempdir_in("/var/tmp").unwrap();
    let copy = copied(&build, private.path());
    let server = server(&copy);
    planted::install(&server).unwrap();
    let mut session = planted::session(&server).unwrap();
    // An upgrade: another file under the same name. The process runs the old one.
    let binary = copy.postgres();
    fs::remove_file(&binary).unwrap();
    fs::copy("/bin/true", &binary).unwrap();
    let running = recording(session.backend_pid(), &["--duration", "2s", "--settle", "0"]);
    Call::PALLOC.run(&mut session, &[5, 40]).unwrap();
    let capture = running.finish().unwrap().success().unwrap().capture().unwrap();
    assert_eq!(survived(&capture, CONTEXT, Call::PALLOC.frame).count, 5);
    // The server's own end needs its program again.
    fs::remove_file(&binary).unwrap();
    fs::copy(build.postgres(), &binary).unwrap();
}

/// The build with a server program of its own, so that the installed one is not touched.
fn copied(build: &Build, to: &Path) -> Build {
    let run = |command: &mut Command| assert!(command.status().unwrap().success(), "{command:?}");
    // The server finds its files relative to its program, up to `share/postgresql/15` for Debian.
    let bin = to.join("lib/postgresql/15/bin");
    fs::create_dir_all(&bin).unwrap();
    run(Command::new("cp").arg("-a").arg(format!("{}/.", build.bin.display())).arg(&bin));
    let lib = build.bin.parent().unwrap().join("lib");
    std::os::unix::fs::symlink(lib, to.join("lib/postgresql/15/lib")).unwrap();
    fs::create_dir_all(to.join("share/postgresql")).unwrap();
    std::os::unix::fs::symlink("/usr/share/postgresql/15", to.join("share/postgresql/15")).unwrap();
    run(Command::new("chmod").arg("-R").arg("a+rX").arg(to));
    Build { bin, ..build.clone() }
}

#[test]
fn only_the_traced_process_has_breakpoints() {
    let server = server(&Build::npm(16).unwrap());
    let session = Session::open(&server).unwrap();
    let other = Session::open(&server).unwrap();
    let running = recording(session.backend_pid(), &["--duration", "60s"]);
    let instructions = probed_instructions(session.backend_pid());
    assert!(instructions.iter().all(|instruction| has_breakpoint(session.backend_pid(), *instruction)));
    assert!(!instructions.iter().any(|instruction| has_breakpoint(other.backend_pid(), *instruction)));
    assert!(!instructions.iter().any(|instruction| has_breakpoint(server.postmaster_pid(), *instruction)));
    running.signal(libc::SIGINT).unwrap();
    running.finish().unwrap().success().unwrap();
}

#[test]
fn output_that_nobody_reads_ends_no_capture() {
    let (_server, leak) = leaking();
    let out = tempfile::tempdir().unwrap();
    let directory = out.path().join("capture");
    let mut command =
        command(["capture", "--pid", &leak.backend_pid().to_string(), "--duration", "1s", "--settle", "0"])
            .unwrap();
    let mut child =
        command.arg("--out").arg(&directory).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    assert!(child.wait().unwrap().success());
    assert!(directory.join("capture.json").exists());
    leak.stop().unwrap();
}
