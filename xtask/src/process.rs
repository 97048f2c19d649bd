//! Running child processes: say what is run, fail with what they said.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The command as one would type it, without its environment.
pub fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|word| {
        let word = word.to_string_lossy();
        if word.is_empty() || word.contains(|c: char| c.is_whitespace() || "'\"$&|;<>()*".contains(c)) {
            format!("'{}'", word.replace('\'', "'\\''"))
        } else {
            word.into_owned()
        }
    }));
    words.join(" ")
}

/// Shows the command, runs it on this terminal, and fails unless it succeeds.
pub fn run(command: &mut Command) -> Result<()> {
    eprintln!("+ {}", shown(command));
    let status = command.status().with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}` failed: {status}", shown(command));
    }
    Ok(())
}

/// Runs the command silently and gives its standard output; what it said is in the error.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !output.status.success() {
        bail!(
            "`{}` failed: {}\n{}",
            shown(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The executable file that `PATH` leads to.
pub fn find_program(name: impl AsRef<Path>) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(&name)).find(|file| is_executable(file))
}

/// Whether this is a file that somebody may execute.
pub fn is_executable(file: &Path) -> bool {
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Whether this process is root.
pub fn is_root() -> bool {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Sends a signal; `false` if the process is gone.
pub fn signal(pid: u32, signal: libc::c_int) -> io::Result<bool> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: kill takes no pointers.
    if unsafe { libc::kill(pid, signal) } == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        gone if gone.raw_os_error() == Some(libc::ESRCH) => Ok(false),
        error => Err(error),
    }
}

/// Whether the process runs: it is there and no zombie.
pub fn is_running(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        // The state follows the name, which is in parentheses and may hold any character.
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    })
}

/// Takes away what `cargo run` and rustup set for this process, so that a tool chosen by hand is not
/// led to another toolchain.
pub fn without_cargo_environment(command: &mut Command) -> &mut Command {
    for (name, _) in env::vars_os() {
        let is_cargos = name.to_str().is_some_and(|name| {
            (name.starts_with("CARGO") && name != "CARGO_HOME" && !name.starts_with("CARGO_NET_"))
                || name.starts_with("RUSTUP_TOOLCHAIN")
                || matches!(name, "RUSTC" | "RUSTDOC" | "RUSTFLAGS" | "RUSTC_WRAPPER" | "LD_LIBRARY_PATH")
        });
        if is_cargos {
            command.env_remove(&name);
        }
    }
    command
}

/// A `cargo` of the toolchain that runs this.
pub fn cargo<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(crate::workspace::root());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_arguments_that_need_quotes() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo it's", ""]);
        assert_eq!(shown(&command), "sh -c 'echo it'\\''s' ''");
    }

    #[test]
    fn a_failure_carries_what_was_said() {
        let error = output(Command::new("sh").args(["-c", "echo why >&2; exit 3"])).expect_err("exit 3");
        assert!(error.to_string().contains("why") && error.to_string().contains("exit status: 3"), "{error}");
    }

    #[test]
    fn this_process_runs_and_a_zombie_does_not() {
        assert!(is_running(std::process::id()));
        let mut child = Command::new("sh").args(["-c", "exit"]).stdout(Stdio::piped()).spawn().expect("sh");
        let mut end = String::new();
        let mut stdout = child.stdout.take().expect("piped");
        io::Read::read_to_string(&mut stdout, &mut end).expect("end of file at its exit");
        // The pipe closes a moment before the process becomes a zombie.
        while is_running(child.id()) {
            std::thread::yield_now();
        }
        assert!(signal(child.id(), 0).expect("allowed"), "the zombie still has its pid");
        child.wait().expect("reaped");
    }
}
