//! Why a capture cannot be made.

use std::{io, path::PathBuf};

use super::ScopeError;
use crate::{
    bpf::{AttachError, LoadError, MapError},
    elf::ElfError,
    guard::{CalibrateError, LockError, MemoryError, SeccompError},
    probe::{OutsideError, ProbeError},
    target::ProcessError,
    unwind::{AtlasError, MapSetError, TableError},
};

/// Why a capture cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The process cannot be looked at.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Its program is no ELF file.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// It is no server that is known, or its functions are not found.
    #[error("cannot trace process {pid}: {source}")]
    Probe {
        /// The process.
        pid: u32,
        /// Why.
        source: ProbeError,
    },
    /// Its malloc is not found.
    #[error("cannot trace what process {pid} allocates outside of memory contexts: {source}")]
    Outside {
        /// The process.
        pid: u32,
        /// Why.
        source: OutsideError,
    },
    /// Its program has no code mapped.
    #[error("process {pid} has none of its program's code mapped; is it just starting or ending?")]
    NoCode {
        /// The process.
        pid: u32,
    },
    /// The program has no unwind information.
    #[error(
        "cannot unwind the stacks of {path}: it has no .eh_frame; it was built or stripped in a way that removes it"
    )]
    NoUnwindTable {
        /// The program.
        path: PathBuf,
    },
    /// The program's unwind information is damaged.
    #[error("cannot build the unwind table of {path}: {source}")]
    Table {
        /// The program.
        path: PathBuf,
        /// Why.
        source: TableError,
    },
    /// The tables of all objects do not fit together.
    #[error(transparent)]
    Atlas(#[from] AtlasError),
    /// The mappings cannot be described to the kernel.
    #[error(transparent)]
    MapSet(#[from] MapSetError),
    /// The processes that are asked for are not there, or cannot be traced together.
    #[error(transparent)]
    Scope(#[from] ScopeError),
    /// Recording was begun twice.
    #[error("this is a fault of pgleak: libraries that are loaded are noticed by somebody else already")]
    LoadsTaken,
    /// There can be no thread.
    #[error("cannot start a thread: {0}; raise the limit of processes (ulimit -u)")]
    Thread(io::Error),
    /// No process is named.
    #[error(
        "say which process: --pid PID, or --postmaster PID or --data-dir DIR for a whole server; `pgleak list` shows them"
    )]
    Nobody,
    /// More different sets of mappings than there are slots.
    #[error("more than 256 processes have mapped different libraries; capture fewer of them")]
    TooManySpaces,
    /// The budget is too small.
    #[error(
        "--map-memory {given_mib} MiB is too little for the unwind tables of this process; give at least {least_mib}M"
    )]
    MapMemory {
        /// What was given.
        given_mib: u64,
        /// What is needed.
        least_mib: u64,
    },
    /// The host has too little memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Somebody captures the process already.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The programs cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A kernel map cannot be used.
    #[error(transparent)]
    Map(#[from] MapError),
    /// A probe cannot be set.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// Probes cannot be tried on pgleak itself.
    #[error("cannot measure what a probe costs here: {0}")]
    Calibrate(#[from] CalibrateError),
    /// Return probes would kill the process.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    /// The watchdog cannot be started.
    #[error("cannot start the watchdog that takes the probes away if pgleak hangs: {0}")]
    Watchdog(io::Error),
    /// The ring of stacks cannot be waited for.
    #[error("cannot wait for stacks: {0}")]
    Ring(io::Error),
    /// Signals cannot be handled.
    #[error("cannot wait for signals: {0}")]
    Signals(io::Error),
    /// It would slow the process down too much.
    #[error(
        "recording would make process {pid} about {slowdown:.0} times slower at work, more than --max-slowdown {most} allows even for a short capture; wait for a quieter moment, raise --max-slowdown, or give --force"
    )]
    TooSlow {
        /// The process.
        pid: u32,
        /// The factor.
        slowdown: f64,
        /// What is allowed.
        most: f64,
    },
    /// The probes see nothing although the process works.
    #[error(
        "none of the probes was hit although process {pid} used {cpu_ms} ms of CPU time: it is in a loop that never allocates, or the probes do not work here. This is no sign that nothing leaks. `pgleak doctor --pid {pid}` says what was found"
    )]
    NeverHit {
        /// The process.
        pid: u32,
        /// CPU time that it used.
        cpu_ms: u64,
    },
    /// It ended before anything was recorded.
    #[error("process {pid} ended before recording began")]
    GoneTooEarly {
        /// The process.
        pid: u32,
    },
    /// It was interrupted before anything was recorded.
    #[error("interrupted before recording began; nothing was written")]
    InterruptedTooEarly,
}

impl CaptureError {
    /// Whether what was asked for makes no sense, rather than that it failed.
    pub fn is_misuse(&self) -> bool {
        match self {
            Self::Process(
                ProcessError::NoSuchProcess { .. }
                | ProcessError::Thread { .. }
                | ProcessError::KernelThread { .. },
            )
            | Self::MapMemory { .. }
            | Self::Scope(_)
            | Self::Nobody => true,
            Self::Probe { source, .. } => matches!(source, ProbeError::Catalog(_)),
            _ => false,
        }
    }
}
