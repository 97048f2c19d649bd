//! What is asked of a recording, and what comes out of it.

use std::time::Duration;

use tracer_ebpf::abi::SiteHits;

use super::{Described, Detaching, Drained, Overhead};
use crate::{
    bpf::Counters,
    profile::{EndReason, Windows},
    target::Memory,
};

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct RecordOptions {
    /// How much time may be added.
    pub overhead: Overhead,
    /// How long to record, pauses included.
    pub duration: Duration,
    /// Record on until it is clear how the process grows, at most for this long in all.
    pub longest: Option<Duration>,
    /// How long to settle.
    pub settle: Duration,
    /// The most slowdown.
    pub max_slowdown: f64,
    /// Whatever it costs.
    pub force: bool,
    /// Keep the literals of statements.
    pub show_queries: bool,
    /// Only blocks of contexts are wanted of what malloc gives.
    pub only_blocks: bool,
}

/// What came out.
#[derive(Debug)]
pub struct Recording {
    /// What was drained.
    pub drained: Drained,
    /// Wall-clock start of recording.
    pub started: jiff::Timestamp,
    /// How long was recorded; of windows, what they stand for.
    pub recorded_for: Duration,
    /// How long was settled.
    pub settled_for: Duration,
    /// Why it ended.
    pub end: EndReason,
    /// CPU time of the process while recording.
    pub cpu_ns: u64,
    /// Memory of each process when recording began, when it ended and at the end, in the order of
    /// `described`.
    pub memory: Vec<[Option<Memory>; 3]>,
    /// The processes.
    pub described: Described,
    /// How many others hit the probes; `None` in a capture of one process.
    pub foreign: Option<usize>,
    /// What was expected of it.
    pub expected_slowdown: Option<f64>,
    /// How it was recorded in windows, if it was.
    pub windows: Option<Windows>,
    /// What was counted.
    pub counters: Counters,
    /// Hits of each site.
    pub hits: Vec<SiteHits>,
    /// Things that a reader has to know.
    pub notes: Vec<String>,
    /// The probes on their way out.
    pub detaching: Detaching,
}

/// Why a phase ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    TimeOver,
    Interrupted,
    Exited,
    Replaced,
    TooSlow,
    MapFull,
}

impl Stop {
    /// The same, as a capture says it.
    pub(super) fn reason(self) -> EndReason {
        match self {
            Self::TimeOver => EndReason::Completed,
            Self::Interrupted => EndReason::Interrupted,
            Self::Exited => EndReason::TargetExited,
            Self::Replaced => EndReason::TargetExec,
            Self::TooSlow => EndReason::TooSlow,
            Self::MapFull => EndReason::MapFull,
        }
    }
}
