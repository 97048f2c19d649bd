//! The `pgleak` program: arguments, logging, exit codes.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::Parser as _;
use pgleak::{
    cli::{CaptureArgs, Cli, Command, DoctorArgs, ListArgs},
    doctor::{Health, examine},
    guard::{run_sacrifice, run_watchdog},
    session::{CaptureError, CaptureOptions, Progress, RecordOptions, capture},
    target::{find_servers, measure_growth, render_table, sort_by_growth},
};
use tracing_subscriber::EnvFilter;

/// Something was asked for that makes no sense.
const MISUSE: u8 = 2;
/// It made sense and did not work.
const FAILURE: u8 = 1;

fn main() -> ExitCode {
    let cli = Cli::parse();
    log(cli.verbose);
    let result = match cli.command {
        Command::List(args) => list(&args),
        Command::Capture(args) => run_capture(&args),
        Command::Doctor(args) => run_doctor(&args),
        Command::Render(_) => Ok(()),
        Command::Watchdog { parent } => run_watchdog(parent).map_err(Failure::from),
        Command::Sacrifice => run_sacrifice().map_err(Failure::from),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, message }) => {
            // Standard error may be gone with its terminal.
            let _ = writeln!(io::stderr(), "pgleak: {message}");
            ExitCode::from(code)
        }
    }
}

struct Failure {
    code: u8,
    message: String,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self { code: FAILURE, message: error.to_string() }
    }
}

impl From<CaptureError> for Failure {
    fn from(error: CaptureError) -> Self {
        Self { code: if error.is_misuse() { MISUSE } else { FAILURE }, message: error.to_string() }
    }
}

fn log(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "pgleak=info,warn",
        _ => "pgleak=debug,info",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
}

/// Prints to standard output, which may be a pipe that was closed.
fn print(text: &str) -> Result<(), Failure> {
    match io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

fn list(args: &ListArgs) -> Result<(), Failure> {
    let mut servers = find_servers();
    measure_growth(&mut servers, args.interval);
    sort_by_growth(&mut servers);
    if args.json {
        let text = serde_json::to_string_pretty(&servers).map_err(io::Error::from)?;
        return print(&format!("{text}\n"));
    }
    print(&render_table(&servers))
}

fn run_doctor(args: &DoctorArgs) -> Result<(), Failure> {
    let checks = examine(args.pid);
    let text: String = checks.iter().map(|check| format!("{check}\n")).collect();
    print(&text)?;
    let bad = checks.iter().filter(|check| check.health == Health::Bad).count();
    if bad == 0 { Ok(()) } else { Err(Failure { code: FAILURE, message: format!("{bad} of {} checks failed", checks.len()) }) }
}

fn run_capture(args: &CaptureArgs) -> Result<(), Failure> {
    let options = CaptureOptions {
        pid: args.pid,
        record: RecordOptions {
            duration: args.duration,
            settle: args.settle,
            max_slowdown: args.max_slowdown,
            force: args.force,
        },
        map_memory: args.map_memory,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut progress = Progress::new();
    let captured = runtime.block_on(capture(&options, &mut progress))?;
    std::fs::write("/tmp/capture.json", serde_json::to_string_pretty(&captured).unwrap())?;
    Ok(())
}
