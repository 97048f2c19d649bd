//! As another user than root, with the capabilities that README.md names: these and no others.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use pgleak_tests::{
    Build, Session,
    pgleak::{Finished, Running, binary},
    planted::{self, CONTEXT, Call},
};

use crate::common::{assert_no_probe_is_left, server};

/// Runs a program as `nobody` with some capabilities, and a `/run/pgleak` of its own that nobody else sees.
const AS_NOBODY: &str = r#"
mkdir -p /run/pgleak && mount -t tmpfs -o mode=700,uid=65534,gid=65534 pgleak /run/pgleak || exit 99
some=$1
shift
exec setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps="-all$some" --ambient-caps="-all$some" \
    --bounding-set="-all$some" "$@"
"#;

fn capture(dir: &Path, attach: &str, capabilities: &[&str], pid: u32) -> Finished {
    capture_with(dir, attach, capabilities, pid, &[])
}

fn capture_with(dir: &Path, attach: &str, capabilities: &[&str], pid: u32, more: &[&str]) -> Finished {
    let some: String = capabilities.iter().map(|name| format!(",+{name}")).collect();
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "sh", "-c", AS_NOBODY, "sh", &some]).arg(dir.join("pgleak"));
    command.args(["capture", "--attach", attach, "--pid", &pid.to_string(), "--duration=2s", "--settle=0"]);
    command.args(more);
    command.arg("--out").arg(dir.join(format!("{attach}{some}"))).current_dir(dir);
    Running::spawn(&mut command).unwrap().finish().unwrap()
}

/// With `needed` it works; without any one of them it says so, and probes nothing.
fn nobody_needs(attach: &str, needed: &[&str]) {
    let server = server(&Build::packaged(15).unwrap());
    planted::install(&server).unwrap();
    let mut session: Session = planted::session(&server).unwrap();
    let pid = session.backend_pid();
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::copy(binary().unwrap(), dir.path().join("pgleak")).unwrap();

    for missing in needed {
        let others: Vec<&str> = needed.iter().copied().filter(|name| name != missing).collect();
        let finished = capture(dir.path(), attach, &others, pid);
        assert_eq!(finished.status.code(), Some(1), "without {missing}: {}", finished.stderr);
        let name = format!("CAP_{}", missing.to_uppercase());
        assert!(finished.stderr.contains(&name), "without {missing}: {}", finished.stderr);
        assert_no_probe_is_left(pid);
    }
    std::thread::scope(|scope| {
        let finished = scope.spawn(|| capture(dir.path(), attach, needed, pid));
        while !finished.is_finished() {
            Call::PALLOC.run(&mut session, &[10, 100]).unwrap();
        }
        let finished = finished.join().unwrap().success().unwrap();
        assert!(finished.stdout.contains(CONTEXT), "{}", finished.stdout);
        assert!(finished.stdout.contains("planted_leak_palloc"), "{}", finished.stdout);
        assert!(!finished.stdout.contains("LOSSES"), "{}", finished.stdout);
    });
    assert_no_probe_is_left(pid);
}

#[test]
fn by_perf_links() {
    nobody_needs("perf", &["sys_admin", "sys_ptrace"]);
}

#[test]
fn by_uprobe_multi_links() {
    nobody_needs("multi", &["bpf", "perfmon", "sys_ptrace"]);
}

#[test]
fn by_session_links() {
    nobody_needs("session", &["bpf", "perfmon", "sys_ptrace"]);
}

/// Links to the libraries of a process are followed for two capabilities more.
#[test]
fn libraries_take_two_more() {
    let server = server(&Build::packaged(15).unwrap());
    planted::install(&server).unwrap();
    let mut session: Session = planted::session(&server).unwrap();
    let pid = session.backend_pid();
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::copy(binary().unwrap(), dir.path().join("pgleak")).unwrap();
    let three = ["bpf", "perfmon", "sys_ptrace"];
    let malloc = ["--allocator", "malloc"];
    let finished = capture_with(dir.path(), "session", &three, pid, &malloc);
    assert_eq!(finished.status.code(), Some(1), "{}", finished.stderr);
    assert!(finished.stderr.contains("CAP_CHECKPOINT_RESTORE"), "{}", finished.stderr);
    let five = ["bpf", "perfmon", "sys_ptrace", "dac_read_search", "checkpoint_restore"];
    std::thread::scope(|scope| {
        let finished = scope.spawn(|| capture_with(dir.path(), "session", &five, pid, &malloc));
        while !finished.is_finished() {
            Call::MALLOC.run(&mut session, &[20, 640]).unwrap();
        }
        let finished = finished.join().unwrap().success().unwrap();
        assert!(finished.stdout.contains("planted_malloc_one"), "{}", finished.stdout);
    });
    assert_no_probe_is_left(pid);
}
