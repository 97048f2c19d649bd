//! A program that is told: it gets the JSON on its standard input, and nothing that this service may do.

use std::{
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
    thread,
};

use rustix::process::{Resource, setrlimit};

use super::TellError;
use crate::{
    program::{ProgramError, wait_for},
    watch::own::FILES_AT_FIRST,
};

/// Runs the program to its end.
///
/// # Errors
/// If there is none, or it does not succeed.
pub(super) fn run(command: &[String], json: &[u8]) -> Result<(), TellError> {
    let [program, arguments @ ..] = command else { return Err(TellError::NoProgram) };
    let mut child = Command::new(program);
    child
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    child
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .process_group(0);
    // Some close every descriptor that they might have.
    let files = *FILES_AT_FIRST;
    // SAFETY: only system calls that may be made between fork and exec, on numbers.
    unsafe {
        child.pre_exec(move || {
            setrlimit(Resource::Nofile, files)?;
            drop_all_capabilities()
        })
    };
    let mut child = child.spawn().map_err(ProgramError::Start)?;
    let stdin = child.stdin.take();
    let json = json.to_vec();
    // One that does not read must not keep its end from being seen; a pipe that nobody reads is no failure.
    let writer = thread::spawn(move || stdin.map(|mut stdin| stdin.write_all(&json)));
    let ended = wait_for(child);
    // What it has started may keep the pipe open.
    drop(writer);
    Ok(ended?)
}

/// `linux/capability.h`: the header and data of `capset(2)`.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3`.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// `SECBIT_NOROOT` and its lock (`linux/securebits.h`): an exec by root gives no capabilities.
const NO_ROOT: libc::c_ulong = 0b11;

/// Takes every capability from this process and from whatever it executes, root's as well. Made of system calls only, for
/// use between fork and exec.
///
/// # Errors
/// If it still might have some.
fn drop_all_capabilities() -> io::Result<()> {
    let check = |result: libc::c_int| if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    // SAFETY: numbers and two structs that outlive the call.
    unsafe {
        // What may not be locked was not there: then an exec gives nothing for want of the following.
        libc::prctl(libc::PR_SET_SECUREBITS, NO_ROOT, 0, 0, 0);
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        check(libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))?;
        let header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
        let nothing = [CapabilityData { effective: 0, permitted: 0, inheritable: 0 }; 2];
        if libc::syscall(libc::SYS_capset, &raw const header, nothing.as_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Result<(), TellError> {
        run(&["sh".to_owned(), "-c".to_owned(), script.to_owned()], b"{\"a\": 1}\n")
    }

    #[test]
    fn it_gets_the_json_and_has_no_capabilities() {
        let directory = tempfile::tempdir().expect("a directory");
        let out = directory.path().join("out");
        std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))
            .expect("its own");
        shell(&format!("cat > {0}; grep ^Cap /proc/self/status >> {0}", out.display())).expect("it runs");
        let text = std::fs::read_to_string(&out).expect("written");
        let (json, status) = text.split_once('\n').expect("lines");
        assert_eq!(json, "{\"a\": 1}");
        let sets: Vec<(&str, &str)> = status.lines().filter_map(|line| line.split_once(":\t")).collect();
        assert!(sets.len() >= 5, "{status}");
        for (name, set) in sets.iter().filter(|(name, _)| *name != "CapBnd") {
            assert_eq!(set.trim_matches('0'), "", "{name} in {status}");
        }
    }

    #[test]
    fn failure_is_told() {
        let error = shell("exit 3").expect_err("it failed").to_string();
        assert_eq!(error, "it ended with exit status: 3");
        assert!(run(&["/no/such/program".to_owned()], b"").is_err());
    }
}
