//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use tracer_ebpf::sampling::MOST_SAMPLE;

use crate::{
    quantity::{bytes, duration},
    session::{Kinds, Overhead, session_number},
    watch::Place,
};

/// Name the stacks that leak memory in a running PostgreSQL process.
#[derive(Debug, Parser)]
#[command(name = "pgleak", version, about, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Say more about what is done (repeat for debugging; RUST_LOG is obeyed too).
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the PostgreSQL processes of this host and which of them grow.
    List(ListArgs),
    /// Watch the PostgreSQL processes of this host on the terminal, and capture one of them by a key.
    Top(TopArgs),
    /// Read the memory contexts of one process, without any probe.
    Contexts(ContextsArgs),
    /// Trace one process for some seconds and name what leaks.
    Capture(Box<CaptureArgs>),
    /// Make artifacts again from a capture.json, with other options.
    Render(RenderArgs),
    /// Compare two captures: a table of what grows faster, and a flame graph of the difference.
    Diff(DiffArgs),
    /// Run the service: watch all servers of this host, and capture what keeps growing.
    Watch(WatchArgs),
    /// Say whether a configuration of the service makes sense.
    CheckConfig(WatchArgs),
    /// Ask the service for a capture.
    Request(RequestArgs),
    /// Say what works on this host and for one process, and what to do about what does not.
    Doctor(DoctorArgs),
    /// Compare the unwind tables of ELF files with gimli's evaluation of their .eh_frame.
    UnwindCheck(UnwindCheckArgs),
    /// Print a manual page, or write all of them into a directory.
    Man(ManArgs),
    /// Print what a shell needs to complete pgleak's arguments.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// End a pgleak that no longer moves.
    #[command(name = crate::guard::WATCHDOG_SUBCOMMAND, hide = true)]
    Watchdog {
        /// The process to watch.
        parent: u32,
    },
    /// Try a return probe under a seccomp filter.
    #[command(name = crate::guard::SACRIFICE_SUBCOMMAND, hide = true)]
    Sacrifice,
}

/// Arguments of `list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// How long to watch for growth.
    #[arg(long, default_value = "2s", value_parser = list_interval)]
    pub interval: Duration,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// How far looks are apart; they are further apart where they would take more than 5 % of a core.
    #[arg(long, default_value = "2s", value_parser = list_interval)]
    pub interval: Duration,
    /// Only this process (repeatable) [default: all].
    #[arg(long, value_name = "PID")]
    pub pid: Vec<u32>,
}

/// Which allocations are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AllocatorChoice {
    /// In memory contexts.
    Contexts,
    /// Outside of them: malloc and mmap, by libraries and by the server itself. Blocks of contexts
    /// are among it, as one place.
    Malloc,
    /// Both. Blocks of contexts count once, as what is allocated in them.
    All,
    /// The blocks that contexts get from malloc: which context grows, as a first look at next to no cost.
    Blocks,
}

/// How probes are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AttachChoice {
    /// Session links (Linux 6.13).
    Session,
    /// uprobe_multi links (Linux 6.6; trusted from 6.11 on).
    Multi,
    /// Perf events, one for each probe.
    Perf,
}

/// Arguments of `contexts`.
#[derive(Debug, Args)]
pub struct ContextsArgs {
    /// The process to look at, busy or idle.
    pub pid: u32,
    /// Look again and again, and show what has grown since the first look (2s, 1m).
    #[arg(long, value_name = "INTERVAL", value_parser = list_interval)]
    pub watch: Option<Duration>,
    /// Only so many of the largest, those of one name as one line; with --watch, of what grew most.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub top: Option<u32>,
    /// Print JSON, one line for each look (see docs/contexts-json.md).
    #[arg(long)]
    pub json: bool,
    /// Show statements with their literals.
    #[arg(long)]
    pub show_queries: bool,
}

/// Arguments of `capture`.
#[derive(Debug, Args)]
pub struct CaptureArgs {
    /// The process to trace: a server process, as in `pgleak list` or pg_stat_activity. Repeat it for
    /// several of one program.
    #[arg(long, value_name = "PID")]
    pub pid: Vec<u32>,
    /// When that process started, in clock ticks since boot: another one with its pid is refused.
    #[arg(long, hide = true, requires = "pid")]
    pub started: Option<u64>,
    /// While recording, print what is live as JSON, a line each time, instead of the report: `pgleak top` reads it.
    #[arg(long, hide = true, requires = "pid")]
    pub live: bool,
    /// Trace the children of this postmaster, those that are born meanwhile too.
    #[arg(long, value_name = "PID")]
    pub postmaster: Vec<u32>,
    /// The same, by the server's data directory.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Vec<PathBuf>,
    /// With these, trace the postmaster itself, too.
    #[arg(long)]
    pub with_postmaster: bool,
    /// Of these children, only such kinds: client,walsender,checkpointer,parallel …
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    pub backend_type: Vec<Kinds>,
    /// Only those connected to this database (repeatable). Parallel workers count as their leaders.
    #[arg(long, value_name = "NAME")]
    pub database: Vec<String>,
    /// Only those of this user (repeatable).
    #[arg(long, value_name = "NAME")]
    pub user: Vec<String>,
    /// Only those with this application_name (repeatable).
    #[arg(long, value_name = "NAME")]
    pub application: Vec<String>,
    /// Greenplum: every process of this session on this host, as its titles have it (con123).
    #[arg(long, value_name = "conN", value_parser = session_number)]
    pub session: Option<u64>,
    /// How long to record allocations (500ms, 13s, 2m) [default: 13s; 2m with --overhead low].
    #[arg(long, allow_negative_numbers = true, value_parser = record_duration)]
    pub duration: Option<Duration>,
    /// How much of its time the process may lose: `full` records every allocation, `low` in short windows at
    /// random times that add 3 percent, a number is that many percent.
    #[arg(long, default_value = "full", value_name = "full|low|PERCENT")]
    pub overhead: Overhead,
    /// Record on until it is clear how the process grows, for at most this long in all [default: 5m].
    #[arg(long, value_name = "LONGEST", num_args = 0..=1, default_missing_value = "5m",
        value_parser = record_duration)]
    pub longer: Option<Duration>,
    /// How long to follow frees after that, so that what was in flight goes; 0 for not at all [default: 3s;
    /// as long as a window records with --overhead low].
    #[arg(long, allow_negative_numbers = true, value_parser = settle_duration)]
    pub settle: Option<Duration>,
    /// Where the artifacts go [default: pgleak-PID-UTCTIME].
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// How many times slower the process may become at work while it is recorded. A capture that
    /// would cost more is shortened in proportion, or refused.
    #[arg(long, default_value_t = 25.0, value_parser = slowdown)]
    pub max_slowdown: f64,
    /// Which allocations are recorded.
    #[arg(long, value_enum, default_value_t = AllocatorChoice::Contexts)]
    pub allocator: AllocatorChoice,
    /// Record only what is allocated in memory contexts of this name, which costs less: no other
    /// allocation has its stack walked. `pgleak contexts PID --top 10` shows names.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
    /// Record only allocations of at least so many bytes (1000, 8K): no other has its stack walked.
    #[arg(long, value_name = "BYTES", value_parser = min_size)]
    pub min_size: Option<u64>,
    /// Record samples: one allocation each so many requested bytes on average (4K, 64K), whatever their sizes.
    /// All figures are estimates then, with an interval for each suspect.
    #[arg(long, value_name = "BYTES", value_parser = sample)]
    pub sample: Option<u64>,
    /// Capture whatever it costs.
    #[arg(long)]
    pub force: bool,
    /// Keep the literals of the statements that it runs; otherwise they are `?` in every artifact.
    #[arg(long)]
    pub show_queries: bool,
    /// Kernel memory for the maps (64M, 1G) [default: 64M, for several processes 256M].
    #[arg(long, value_parser = bytes)]
    pub map_memory: Option<u64>,
    /// How probes are attached. What comes later in this list is for older kernels; it takes more
    /// privileges (perf) and detaches more slowly.
    #[arg(long, value_enum, value_name = "HOW")]
    pub attach: Option<AttachChoice>,
    /// Make the unwind tables of libraries anew, and keep none on disk.
    #[arg(long)]
    pub no_table_cache: bool,
    /// Print this format instead of the report: folded, stap, json, svg, inverted.
    #[arg(long, default_value = "report")]
    pub format: String,
    /// Title of the flame graphs.
    #[arg(long)]
    pub title: Option<String>,
    /// Ask the servers in DEBUGINFOD_URLS for debug files that this host does not have, after the
    /// probes are gone.
    #[arg(long)]
    pub debuginfod: bool,
}

/// Arguments of `render`.
#[derive(Debug, Args)]
pub struct RenderArgs {
    /// A capture.json.
    pub capture: PathBuf,
    /// Where the artifacts go [default: beside the capture].
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Print one format to standard output instead of writing all: report, folded, svg, inverted,
    /// contexts, pprof, stap, json.
    #[arg(long)]
    pub format: Option<String>,
    /// Draw the flame graph from the top down.
    #[arg(long)]
    pub inverted: bool,
    /// Merge stacks from the leaf.
    #[arg(long)]
    pub reverse: bool,
    /// Leave out stacks that hold less (4096, 1M).
    #[arg(long, default_value = "0", value_parser = bytes)]
    pub min_bytes: u64,
    /// Only memory contexts of this name.
    #[arg(long)]
    pub context: Option<String>,
    /// Of a capture of several processes, only what this one holds.
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,
    /// Put the path of the memory contexts below the stacks.
    #[arg(long)]
    pub by_context: bool,
    /// Put the kind of the process below the stacks.
    #[arg(long)]
    pub by_kind: bool,
    /// Title of the flame graphs.
    #[arg(long)]
    pub title: Option<String>,
    /// Colours: mem, hot, java, aqua, blue, green, orange, purple, red, yellow.
    #[arg(long)]
    pub palette: Option<String>,
    /// Name functions by the debug files or unstripped binaries in this directory and below it, as
    /// far as their build IDs are those of the capture (repeatable).
    #[arg(long, value_name = "DIR")]
    pub symbols: Vec<PathBuf>,
    /// Ask the servers in DEBUGINFOD_URLS for debug files.
    #[arg(long)]
    pub debuginfod: bool,
}

/// Arguments of `diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The earlier capture: its directory, or its capture.json.
    pub before: PathBuf,
    /// The later one.
    pub after: PathBuf,
    /// Where the artifacts go [default: pgleak-diff-UTCTIME].
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Print the table and write nothing.
    #[arg(long, conflicts_with = "out")]
    pub table: bool,
    /// Leave out stacks that hold less (4096, 1M).
    #[arg(long, default_value = "0", value_parser = bytes)]
    pub min_bytes: u64,
    /// Only memory contexts of this name.
    #[arg(long)]
    pub context: Option<String>,
    /// Put the path of the memory contexts below the stacks.
    #[arg(long)]
    pub by_context: bool,
    /// Draw the flame graphs from the top down.
    #[arg(long)]
    pub inverted: bool,
}

/// Arguments of `man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// The command that the page is of; pgleak itself if none is named.
    pub command: Option<String>,
    /// Write every page into this directory, which is made if need be.
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    pub out: Option<PathBuf>,
}

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Look at this process too.
    #[arg(long)]
    pub pid: Option<u32>,
}

/// Arguments of `watch` and `check-config`.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// The configuration; docs/service.md says what may be in it.
    #[arg(long, value_name = "FILE", default_value = "/etc/pgleak/pgleak.toml")]
    pub config: PathBuf,
}

/// Arguments of `request`.
#[derive(Debug, Args)]
pub struct RequestArgs {
    /// The process to capture.
    #[arg(long, value_name = "PID")]
    pub pid: u32,
    /// How long to record, if not as the service is configured.
    #[arg(long, value_parser = record_duration)]
    pub duration: Option<Duration>,
    /// How much of its time the process may lose, if not as the service is configured.
    #[arg(long, value_name = "full|low|PERCENT")]
    pub overhead: Option<Overhead>,
    /// Wait until it is made, and print what it found.
    #[arg(long)]
    pub wait: bool,
    /// Where the service listens: its socket, or http://127.0.0.1:PORT.
    #[arg(long, value_name = "PLACE", default_value = "unix:/run/pgleak/web.sock")]
    pub at: Place,
    /// The token that a network address wants: the file `token` of the store.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// Arguments of `unwind-check`.
#[derive(Debug, Args)]
pub struct UnwindCheckArgs {
    /// ELF files for x86_64: programs or libraries.
    #[arg(required = true)]
    pub binaries: Vec<PathBuf>,
}

const LONGEST_RECORD: Duration = Duration::from_secs(3600);
const LONGEST_SETTLE: Duration = Duration::from_secs(600);

fn record_duration(text: &str) -> Result<Duration, String> {
    let value = duration(text)?;
    if value < Duration::from_millis(100) {
        return Err("recording for less than 100ms shows nothing".to_owned());
    }
    if value > LONGEST_RECORD {
        return Err(
            "recording is limited to 1h, because the process is slower meanwhile; take several captures"
                .to_owned(),
        );
    }
    Ok(value)
}

fn settle_duration(text: &str) -> Result<Duration, String> {
    let value = duration(text)?;
    if value > LONGEST_SETTLE { Err("settling is limited to 10m".to_owned()) } else { Ok(value) }
}

fn list_interval(text: &str) -> Result<Duration, String> {
    let value = duration(text)?;
    if value < Duration::from_millis(100) || value > Duration::from_secs(600) {
        return Err("the interval must be between 100ms and 10m".to_owned());
    }
    Ok(value)
}

fn slowdown(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| format!("'{text}' is no number"))?;
    if value.is_finite() && value >= 1.0 {
        Ok(value)
    } else {
        Err("the slowdown is a factor of at least 1 (25 allows the process to take 25 times as long)"
            .to_owned())
    }
}

/// Allocations have less than the 47 bits of an address.
const MOST_MIN_SIZE: u64 = 1 << 47;

fn min_size(text: &str) -> Result<u64, String> {
    match bytes(text)? {
        0 => {
            Err("every allocation has at least 0 bytes; leave out --min-size, or give a size like 1000 or 8K"
                .to_owned())
        }
        MOST_MIN_SIZE.. => Err("no allocation is that large; give a size like 1000 or 8K".to_owned()),
        size => Ok(size),
    }
}

/// Closer samples than this would be most allocations, at the cost of all.
const LEAST_SAMPLE: u64 = 64;

fn sample(text: &str) -> Result<u64, String> {
    let value = bytes(text)?;
    if (LEAST_SAMPLE..=MOST_SAMPLE).contains(&value) {
        return Ok(value);
    }
    Err(format!(
        "one sample each {LEAST_SAMPLE} bytes to {} MiB; 4K or 64K do for most, and to record everything leave out \
         --sample",
        MOST_SAMPLE >> 20
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn durations() {
        assert!(record_duration("0s").is_err());
        assert!(record_duration("2h").is_err());
        assert_eq!(settle_duration("0"), Ok(Duration::ZERO));
    }

    #[test]
    fn sizes() {
        assert_eq!((min_size("1000"), sample("4K")), (Ok(1000), Ok(4096)));
        assert!(min_size("0").is_err() && min_size("999999G").is_err());
        assert!(sample("0").is_err() && sample("63").is_err() && sample("65M").is_err());
    }
}
