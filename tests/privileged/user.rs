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

fn capture(dir: &Path, capabilities: &[&str], pid: u32) -> Finished {
    let some: String = capabilities.iter().map(|name| format!(",+{name}")).collect();
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "sh", "-c", AS_NOBODY, "sh", &some]).arg(dir.join("pgleak"));
    command.args(["capture", "--pid", &pid.to_string(), "--duration=2s", "--settle=0", "--out"]);
    command.arg(dir.join(format!("out{some}"))).current_dir(dir);
    Running::spawn(&mut command).unwrap().finish().unwrap()
}

#[test]
fn nobody_needs_two_capabilities() {
    let server = server(&Build::packaged(15).unwrap());
    planted::install(&server).unwrap();
    let mut session: Session = planted::session(&server).unwrap();
    let pid = session.backend_pid();
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::copy(binary().unwrap(), dir.path().join("pgleak")).unwrap();

    for (capabilities, says) in [
        (&["sys_admin"][..], "CAP_SYS_PTRACE"),
        (&["sys_ptrace"][..], "CAP_SYS_ADMIN"),
        (&["sys_ptrace", "bpf", "perfmon"][..], "CAP_SYS_ADMIN"),
    ] {
        let finished = capture(dir.path(), capabilities, pid);
        assert_eq!(finished.status.code(), Some(1), "{capabilities:?}: {}", finished.stderr);
        assert!(finished.stderr.contains(says), "{capabilities:?}: {}", finished.stderr);
        assert_no_probe_is_left(pid);
    }
    std::thread::scope(|scope| {
        let finished = scope.spawn(|| capture(dir.path(), &["sys_admin", "sys_ptrace"], pid));
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
