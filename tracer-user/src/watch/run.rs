//! One capture as a program of its own: the memory that it takes and whatever happens to it are not the service's.
//!
//! It is `pgleak capture` with its guards. If the service ends, however it ends, the kernel tells the program to come to
//! an end (`PR_SET_PDEATHSIG`), and it writes what it has; the next service finds that in the spool. A lock that the program
//! has inherited says whether it is still at work.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::{fs::OpenOptionsExt as _, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    process::Child,
    time::timeout,
};
use tracing::debug;

use super::{config::CaptureConfig, record::CaptureNumber, shelf::LEFT_BEHIND};
use crate::{
    guard::try_lock,
    program::{Handle, own_program},
    render::Findings,
    target::ProcessId,
};

/// The command that captures.
const CAPTURE: &str = "capture";

/// As much of what it prints and complains is read.
const MOST_VERDICT: u64 = 4 << 20;
const MOST_COMPLAINTS: u64 = 1 << 20;

/// Lines of its complaints that are kept.
const LAST_LINES: usize = 12;

/// For so long beyond recording and settling it may name stacks and write.
const NAMING: Duration = Duration::from_secs(300);

/// For so long it may come to an end after it was told to.
const LEAVING: Duration = Duration::from_secs(30);

/// Why a capture was not made.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    /// The process is another one by now.
    #[error("process {0} has ended")]
    Ended(u32),
    /// It cannot be started.
    #[error("cannot start a capture: {0}")]
    Start(io::Error),
    /// It failed.
    #[error("{0}")]
    Failed(String),
    /// The service that began it has ended.
    #[error("{LEFT_BEHIND}")]
    LeftBehind,
    /// It took far too long, and was ended.
    #[error("it did not come to an end, and was ended by force")]
    TooLong,
}

/// What is asked of one capture, over what the configuration says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Order {
    /// Its number.
    pub number: CaptureNumber,
    /// The process.
    pub process: ProcessId,
    /// Where it goes.
    pub out: PathBuf,
    /// How it is made.
    pub how: CaptureConfig,
}

/// A capture that is being made. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Run {
    child: Child,
    handle: Handle,
    longest: Duration,
}

impl Order {
    /// Starts it. To be called by the thread that lives as long as the service: the kernel goes by that.
    ///
    /// # Errors
    /// If the process has ended, or there can be no other.
    pub(super) fn start(&self) -> Result<Run, RunError> {
        if !self.process.is_same() {
            return Err(RunError::Ended(self.process.pid));
        }
        let lock = lock(&lock_path(&self.out)).map_err(RunError::Start)?;
        let lock = lock.ok_or_else(|| RunError::Start(io::ErrorKind::WouldBlock.into()))?;
        let mut command = own_program(CAPTURE);
        command.args(self.options()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let (parent, descriptor) = (std::process::id(), lock.as_raw_fd());
        // SAFETY: only system calls that may be made between fork and exec, on numbers.
        unsafe {
            command.pre_exec(move || {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) != 0
                    || libc::fcntl(descriptor, libc::F_SETFD, 0) < 0
                {
                    return Err(io::Error::last_os_error());
                }
                // The parent was gone before that could be asked for.
                if u32::try_from(libc::getppid()) != Ok(parent) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                Ok(())
            });
        }
        let mut command = tokio::process::Command::from(command);
        let child = command.kill_on_drop(true).spawn().map_err(RunError::Start)?;
        let longest = self.how.duration + self.how.settle.unwrap_or_default() + NAMING;
        let handle = child.id().ok_or_else(|| io::ErrorKind::NotFound.into()).and_then(Handle::of_child);
        Ok(Run { child, handle: handle.map_err(RunError::Start)?, longest })
    }

    /// What `pgleak` is told: the command, and its options.
    pub(super) fn arguments(&self) -> Vec<String> {
        std::iter::once(CAPTURE.to_owned()).chain(self.options()).collect()
    }

    fn options(&self) -> Vec<String> {
        let seconds = |time: Duration| format!("{}ms", time.as_millis());
        let how = &self.how;
        let mut arguments: Vec<String> = ["--format", "verdict", "--pid"].map(str::to_owned).to_vec();
        arguments.push(self.process.pid.to_string());
        let mut add = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                arguments.extend([format!("--{name}"), value]);
            }
        };
        add("started", Some(self.process.start_ticks.to_string()));
        add("out", Some(self.out.display().to_string()));
        add("overhead", Some(how.overhead.to_string()));
        add("duration", Some(seconds(how.duration)));
        add("settle", how.settle.map(seconds));
        add("sample", how.sample.map(|bytes| bytes.to_string()));
        add("max-slowdown", Some(how.max_slowdown.to_string()));
        add("map-memory", how.map_memory.map(|bytes| bytes.to_string()));
        let flags = [(how.show_queries, "--show-queries"), (how.debuginfod, "--debuginfod")];
        arguments.extend(flags.into_iter().filter(|(wanted, _)| *wanted).map(|(_, flag)| flag.to_owned()));
        arguments
    }
}

impl Run {
    /// What it can be told to come to an end by.
    ///
    /// # Errors
    /// If there are too many open files.
    pub(super) fn handle(&self) -> io::Result<Handle> {
        self.handle.try_clone()
    }

    /// Waits for its end. Gives the verdict that it has printed, which is all that there is of it where there was no room
    /// for files.
    pub(super) async fn finish(mut self, number: CaptureNumber) -> Ended {
        let (stderr, stdout) = (self.child.stderr.take(), self.child.stdout.take());
        let mut last = VecDeque::new();
        let complaints = async {
            let Some(stderr) = stderr else { return };
            let mut lines = BufReader::new(stderr.take(MOST_COMPLAINTS)).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                debug!("capture {number}: {line}");
                if last.len() == LAST_LINES {
                    last.pop_front();
                }
                last.push_back(line);
            }
        };
        let mut printed = Vec::new();
        let verdict = async {
            if let Some(stdout) = stdout {
                // One that cannot be read is none.
                let _ = stdout.take(MOST_VERDICT).read_to_end(&mut printed).await;
            }
        };
        let handle = self.handle;
        let end = async {
            if let Ok(status) = timeout(self.longest, self.child.wait()).await {
                return status.map_err(RunError::Start);
            }
            handle.terminate();
            match timeout(LEAVING, self.child.wait()).await {
                Ok(status) => status.map_err(RunError::Start),
                Err(_) => {
                    let _ = self.child.kill().await;
                    Err(RunError::TooLong)
                }
            }
        };
        // What it started may hold its streams for a little longer than it lives.
        let longest = self.longest + LEAVING * 2;
        let (status, _, _) = tokio::join!(end, timeout(longest, complaints), timeout(longest, verdict));
        let result = status.and_then(|status| match status.code() {
            Some(0) => Ok(()),
            // The last line says why; the one of a program that was killed is of something else.
            Some(_) => {
                let told = last
                    .iter()
                    .rev()
                    .find_map(|line| line.strip_prefix("pgleak: ").or_else(|| line.strip_prefix("error: ")));
                Err(RunError::Failed(
                    told.map_or_else(|| format!("the capture ended with {status}"), str::to_owned),
                ))
            }
            None => Err(RunError::Failed(format!("the capture ended with {status}"))),
        });
        Ended { result, findings: serde_json::from_slice(&printed).ok() }
    }
}

/// How a capture ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// Whether it succeeded.
    pub(super) result: Result<(), RunError>,
    /// What it found, if it came so far.
    pub(super) findings: Option<Findings>,
}

/// Whether a capture of an earlier service is still being made there.
///
/// # Errors
/// If that cannot be found out.
pub(super) fn is_at_work(out: &Path) -> io::Result<bool> {
    let path = lock_path(out);
    if !path.exists() {
        return Ok(false);
    }
    Ok(lock(&path)?.is_none())
}

/// Takes away what says so.
pub(super) fn forget_lock(out: &Path) {
    let _ = std::fs::remove_file(lock_path(out));
}

/// The file that is locked as long as a capture is made there.
pub(super) fn lock_path(out: &Path) -> PathBuf {
    out.with_extension("lock")
}

/// The lock; `None` if somebody has it.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    Ok(try_lock(&file)?.then_some(file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command as Asked};

    #[test]
    fn what_is_ordered_is_what_capture_understands() {
        use clap::Parser as _;
        let how = CaptureConfig {
            settle: Some(Duration::from_millis(1500)),
            sample: Some(4096),
            map_memory: Some(64 << 20),
            show_queries: true,
            debuginfod: true,
            ..CaptureConfig::default()
        };
        let process = ProcessId { pid: 42, start_ticks: 1 };
        let order =
            Order { number: CaptureNumber(7), process, out: "/spool/000007".into(), how: how.clone() };
        let arguments = order.arguments();
        let cli = Cli::try_parse_from(std::iter::once("pgleak".to_owned()).chain(arguments))
            .expect("it is understood");
        let Asked::Capture(args) = cli.command else { panic!("{:?}", cli.command) };
        assert_eq!((args.pid, args.overhead, args.duration), (vec![42], how.overhead, Some(how.duration)));
        assert_eq!(args.started, Some(1));
        assert_eq!((args.settle, args.sample, args.map_memory), (how.settle, how.sample, how.map_memory));
        assert!(args.show_queries && args.debuginfod);
        assert_eq!((args.out, args.max_slowdown), (Some(order.out), how.max_slowdown));
    }

    #[test]
    fn a_process_that_has_ended_is_not_captured() {
        let process = ProcessId { pid: std::process::id(), start_ticks: 1 };
        let order = Order {
            number: CaptureNumber(7),
            process,
            out: "/nowhere/000007".into(),
            how: CaptureConfig::default(),
        };
        assert!(matches!(order.start(), Err(RunError::Ended(_))));
    }

    #[test]
    fn the_lock_tells_whether_somebody_is_at_work() {
        let directory = tempfile::tempdir().expect("a directory");
        let out = directory.path().join("000007");
        assert!(!is_at_work(&out).expect("no lock"));
        let held = lock(&lock_path(&out)).expect("a lock").expect("nobody has it");
        assert!(is_at_work(&out).expect("a lock"));
        drop(held);
        assert!(!is_at_work(&out).expect("a lock"));
    }
}
