//! Bad input: one clear message, the right exit code, and nothing half-written.

use std::fs;

use pgleak_tests::{
    Build, LEAKING_ROUND, Session,
    pgleak::{Finished, Running, binary, capture, run},
    workload::Loop,
};

use crate::common::server;

const MISUSE: i32 = 2;
const FAILURE: i32 = 1;

const ARTIFACTS: [&str; 8] = [
    "capture.json",
    "contexts.svg",
    "flame-inverted.svg",
    "flame.svg",
    "profile.pb.gz",
    "report.txt",
    "stacks.folded",
    "verdict.json",
];

fn refused(finished: &Finished, code: i32, says: &str) {
    assert_eq!(finished.status.code(), Some(code), "{}", finished.stderr);
    assert!(finished.stderr.contains(says), "{says:?} is not in {}", finished.stderr);
    if let Ok(directory) = finished.dir() {
        assert!(!directory.exists(), "{} is left", directory.display());
    }
}

#[test]
fn what_makes_no_sense_is_misuse() {
    // Pids end at 2^22.
    refused(&capture(4_194_303, &[]).unwrap(), MISUSE, "no process with pid 4194303");
    refused(&capture(std::process::id(), &[]).unwrap(), MISUSE, "TopMemoryContext");
    refused(&capture(2, &[]).unwrap(), MISUSE, "kernel");
    for (arguments, says) in [
        (["--duration", "0s"], "less than 100ms"),
        (["--duration", "3 weeks"], "no unit of time"),
        (["--duration", "9h"], "limited to 1h"),
        (["--settle", "-3"], "--settle"),
        (["--max-slowdown", "0.5"], "at least 1"),
        (["--map-memory", "lots"], "no number of bytes"),
        (["--format", "gif"], "no format 'gif'"),
        (["--allocator", "slab"], "possible values: contexts, malloc, all, blocks"),
        (["--allocator=malloc", "--context=ExecutorState"], "leave out --context"),
        (["--overhead", "some"], "neither full, low nor a part of the time in percent"),
        (["--overhead=low", "--longer"], "give a longer --duration"),
        (["--sample", "10"], "one sample each 64 bytes to 64 MiB"),
        (["--sample", "some"], "no number of bytes"),
        (["--min-size", "0"], "leave out --min-size"),
        (["--allocator=blocks", "--overhead=low"], "leave out --overhead"),
        (["--allocator=blocks", "--sample=4K"], "leave out --sample"),
        (["--allocator=blocks", "--context=ExecutorState"], "leave out --context"),
    ] {
        refused(&capture(1, &arguments).unwrap(), MISUSE, says);
    }
    refused(&run(["capture"]).unwrap(), MISUSE, "--pid");
    refused(&run(["render", "x.json", "--palette", "plaid"]).unwrap(), MISUSE, "no palette 'plaid'");
}

#[test]
fn too_little_memory_for_the_tables_says_how_much_is_needed() {
    let server = server(&Build::packaged(15).unwrap());
    let session = Session::open(&server).unwrap();
    refused(&capture(session.backend_pid(), &["--map-memory", "1M"]).unwrap(), MISUSE, "give at least");
    refused(&capture(session.backend_pid(), &["--map-memory", "900G"]).unwrap(), FAILURE, "MemAvailable");
}

/// The server's own user may look at its processes and still not probe them.
#[test]
fn without_privilege_it_says_what_is_missing() {
    let server = server(&Build::packaged(15).unwrap());
    let session = Session::open(&server).unwrap();
    // Where that user can reach it.
    let program = server.dir().join("pgleak");
    fs::copy(binary().unwrap(), &program).unwrap();
    for arguments in [vec!["capture", "--pid"], vec!["doctor", "--pid"]] {
        let mut command = std::process::Command::new(&program);
        command.args(&arguments).arg(session.backend_pid().to_string()).current_dir(server.dir());
        let finished = Running::spawn(server.user().runs(&mut command)).unwrap().finish().unwrap();
        assert_eq!(finished.status.code(), Some(FAILURE), "{}", finished.stderr);
        let said = format!("{}{}", finished.stdout, finished.stderr);
        assert!(said.contains("root"), "{said}");
    }
}

#[test]
fn a_directory_that_cannot_be_written_to_is_told_before_anything_is_attached() {
    let server = server(&Build::packaged(15).unwrap());
    let session = Session::open(&server).unwrap();
    let pid = session.backend_pid().to_string();
    for directory in ["/proc/nowhere", "/no/such/parent/x"] {
        let finished = run(["capture", "--pid", &pid, "--out", directory]).unwrap();
        refused(&finished, FAILURE, directory);
        assert!(!finished.stderr.contains("counting"), "{}", finished.stderr);
    }
    let finished =
        capture(session.backend_pid(), &["--duration", "200ms", "--settle", "0"]).unwrap().success().unwrap();
    let again = run(["capture", "--pid", &pid, "--out", finished.dir().unwrap().to_str().unwrap()]).unwrap();
    refused(&again, FAILURE, "another capture");
}

#[test]
fn a_full_disk_leaves_nothing_half_written() {
    let server = server(&Build::packaged(15).unwrap());
    let leak = Loop::start(&server, LEAKING_ROUND).unwrap();
    let disk = tempfile::tempdir().unwrap();
    let mount = Mount::tmpfs(disk.path(), "64k");
    let out = disk.path().join("capture");
    let pid = leak.backend_pid().to_string();
    let finished =
        run(["capture", "--pid", &pid, "--duration", "2s", "--settle", "0", "--out", out.to_str().unwrap()])
            .unwrap();
    leak.stop().unwrap();
    assert_eq!(finished.status.code(), Some(FAILURE), "{}", finished.stderr);
    assert!(
        finished.stderr.contains("capture.json") && finished.stderr.contains("space"),
        "{}",
        finished.stderr
    );
    assert!(!out.exists() || fs::read_dir(&out).unwrap().next().is_none());
    // The answer is there all the same.
    assert!(finished.stdout.contains("TOTALS"), "{}", finished.stdout);
    drop(mount);
}

#[test]
fn artifacts_are_private_and_render_makes_the_same_again() {
    use std::os::unix::fs::PermissionsExt as _;
    let server = server(&Build::npm(14).unwrap());
    let leak = Loop::start(&server, LEAKING_ROUND).unwrap();
    let finished =
        capture(leak.backend_pid(), &["--duration", "1s", "--settle", "1s"]).unwrap().success().unwrap();
    leak.stop().unwrap();
    let directory = finished.dir().unwrap();
    assert_eq!(fs::metadata(directory).unwrap().permissions().mode() & 0o777, 0o700);
    let again = tempfile::tempdir().unwrap();
    let source = directory.join("capture.json");
    run(["render", source.to_str().unwrap(), "--out", again.path().to_str().unwrap()])
        .unwrap()
        .success()
        .unwrap();
    let mut seen = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
        let name = entry.file_name();
        assert_eq!(fs::read(entry.path()).unwrap(), fs::read(again.path().join(&name)).unwrap(), "{name:?}");
        seen.push(name.into_string().unwrap());
    }
    seen.sort_unstable();
    assert_eq!(seen, ARTIFACTS);
    let stap = run(["render", source.to_str().unwrap(), "--format", "stap"]).unwrap().success().unwrap();
    assert!(stap.stdout.contains("AllocSetAlloc"), "{}", stap.stdout);
    let nothing =
        run(["render", source.to_str().unwrap(), "--format", "folded", "--context", "no such context"])
            .unwrap();
    assert_eq!(nothing.success().unwrap().stdout, "");
}

#[test]
fn list_shows_the_process_and_doctor_finds_it_well() {
    let server = server(&Build::packaged(15).unwrap());
    let session = Session::open(&server).unwrap();
    let list = run(["list", "--interval", "200ms"]).unwrap().success().unwrap();
    let line = list
        .stdout
        .lines()
        .find(|line| line.split_whitespace().next() == Some(&session.backend_pid().to_string()));
    assert!(line.expect("the backend is listed").contains("client backend"), "{}", list.stdout);
    assert!(list.stdout.contains("No leak"), "{}", list.stdout);
    let doctor = run(["doctor", "--pid", &session.backend_pid().to_string()]).unwrap().success().unwrap();
    for function in ["AllocSetAlloc", "AllocSetFree", "AllocSetRealloc", "AllocSetReset", "AllocSetDelete"] {
        let line = doctor.stdout.lines().find(|line| line.contains(function)).unwrap();
        assert!(line.contains("static analysis") && line.contains("emulated"), "{line}");
    }
}

/// A file system of its own, unmounted again.
struct Mount(std::path::PathBuf);

impl Mount {
    fn tmpfs(at: &std::path::Path, size: &str) -> Self {
        let status = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(at)
            .status()
            .unwrap();
        assert!(status.success());
        Self(at.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
    }
}
