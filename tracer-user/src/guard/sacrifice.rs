//! Return probes under a seccomp filter: on some kernels they kill the process.
//!
//! From Linux 6.11 a return probe goes through a system call of its own. A filter that does not
//! know the call kills the process at the first return, until a fix let the call pass ("seccomp:
//! passthrough uretprobe systemcall without filtering", in 6.12.y since February 2025 and in
//! later kernels). Version numbers lie about backports, so a child of pgleak tries it first.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{RecvTimeoutError, sync_channel},
    time::{Duration, Instant},
};

use tracer_ebpf::site::Role;

use super::{
    CalibrateError,
    calibrate::{own_offset, pgleak_calibrate_emulated},
};
use crate::bpf::{AttachError, Attached, Probe, Tracer};

/// The hidden subcommand that the child is started with.
pub const SUBCOMMAND: &str = "internal-sacrifice";

/// `uretprobe` in the x86_64 system call table (Linux 6.11).
const SYS_URETPROBE: u32 = 335;

/// The child has next to nothing to do.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why the process must not get return probes.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The child was killed.
    #[error(
        "process {pid} runs under a seccomp filter, and this kernel ({release}) kills such a process at its first return probe (a child of pgleak was sacrificed to find out: {fate}); update the kernel (fixed in 6.12.y since February 2025)"
    )]
    WouldKill {
        /// The process.
        pid: u32,
        /// `uname -r`.
        release: String,
        /// What became of the child.
        fate: String,
    },
    /// The child cannot be run.
    #[error("cannot try return probes on a child process: {0}")]
    Child(#[from] io::Error),
    /// The child cannot be probed.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// pgleak's own code cannot be found.
    #[error(transparent)]
    Own(#[from] CalibrateError),
}

/// Proves on a child under a filter that return probes let it live.
///
/// # Errors
/// If they do not, or if it cannot be found out.
pub fn prove(tracer: &mut Tracer, pid: u32) -> Result<(), SeccompError> {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("pgleak-sacrifice")
        .arg(SUBCOMMAND)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command.spawn()?;
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(io::Error::other("a child without pipes").into());
    };
    let (told, lines) = sync_channel(1);
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines() {
            if told.send(line).is_err() {
                return;
            }
        }
    });
    // A child that ends without a word has closed the channel.
    let next_line = || match lines.recv_timeout(PATIENCE) {
        Ok(line) => line.map(Some),
        Err(RecvTimeoutError::Disconnected) => Ok(None),
        Err(RecvTimeoutError::Timeout) => Err(io::Error::from(io::ErrorKind::TimedOut)),
    };
    let run = (|| {
        next_line()?;
        let mut attached = Attached::default();
        let path = PathBuf::from(format!("/proc/{}/exe", child.id()));
        let offset = own_offset(pgleak_calibrate_emulated)?;
        let probe = Probe { function: "sacrifice", role: Role::Alloc, is_outside: false, offset, cookie: 0 };
        attached.add(tracer, Some(child.id()), &path, probe)?;
        stdin.write_all(b"go\n")?;
        let answer = next_line()?;
        Ok::<_, SeccompError>(answer)
    })();
    drop(stdin);
    let status = wait_or_kill(&mut child)?;
    let answer = run?;
    if answer.as_deref() == Some("alive") && status.success() {
        return Ok(());
    }
    let fate = match status.signal() {
        Some(signal) => format!("it died of signal {signal}"),
        None => format!("it ended with {status}"),
    };
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    Err(SeccompError::WouldKill { pid, release, fate })
}

fn wait_or_kill(child: &mut Child) -> io::Result<ExitStatus> {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill()?;
    child.wait()
}

/// What the child does: waits for the probe, puts itself under a filter that kills at the return
/// probe's system call, makes a call that is probed, and tells that it lives.
///
/// # Errors
/// If it cannot speak with its parent or get its filter.
pub fn run_child() -> io::Result<()> {
    println!("ready");
    io::stdin().lock().lines().next().transpose()?;
    filter_uretprobe()?;
    // SAFETY: a function of pgleak's own that touches nothing but its stack.
    std::hint::black_box(unsafe { pgleak_calibrate_emulated(1) });
    println!("alive");
    Ok(())
}

fn filter_uretprobe() -> io::Result<()> {
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let instruction = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // seccomp_data.nr is its first word.
    let mut program = [
        instruction(LOAD_WORD, 0, 0, 0),
        instruction(JUMP_EQUAL, 0, 1, SYS_URETPROBE),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: `filter` describes `program`, which lives through the call.
    unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) != 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
