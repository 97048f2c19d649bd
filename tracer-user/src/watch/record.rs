//! What is known of a capture that the service made, is making, or could not make.

use serde::{Deserialize, Serialize};

use crate::{profile::Outcome, render::Findings, target::ProcessId};

/// Number of a capture: one more for each, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CaptureNumber(pub i64);

impl std::fmt::Display for CaptureNumber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a capture was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trigger {
    /// Something kept growing.
    Growth,
    /// Something was too large.
    Limit,
    /// It was time.
    Schedule,
    /// Somebody asked.
    Request,
}

impl Trigger {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Growth, Self::Limit, Self::Schedule, Self::Request];

    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Growth => "growth",
            Self::Limit => "limit",
            Self::Schedule => "schedule",
            Self::Request => "request",
        }
    }
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It is being made.
    Running,
    /// Its artifacts are there.
    Done,
    /// It could not be made.
    Failed,
    /// It was made, and its artifacts are gone: they were too old, or too many.
    Expired,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Running, Self::Done, Self::Failed, Self::Expired];

    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Expired => "expired",
        }
    }
}

/// What is meant to be captured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// The process; 0 if it is not known.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    pub start_ticks: u64,
    /// Its server.
    pub server: String,
    /// What kind of process.
    pub kind: String,
    /// Database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// User.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The context that grew most before, if that was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// All contexts of it that kept growing then: one leak is mostly in several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub growing: Vec<String>,
}

impl Subject {
    /// The process.
    pub fn id(&self) -> ProcessId {
        ProcessId { pid: self.pid, start_ticks: self.start_ticks }
    }
}

/// A capture, whatever became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its number.
    pub number: CaptureNumber,
    /// Why it was begun.
    pub trigger: Trigger,
    /// The same in a sentence.
    pub why: String,
    /// Of what.
    pub subject: Subject,
    /// Which boot of the host, since pids and clock ticks begin anew with each.
    pub boot: String,
    /// When it began, in milliseconds since 1970.
    pub begun_ms: i64,
    /// When it ended.
    pub ended_ms: Option<i64>,
    /// How far it is.
    pub status: Status,
    /// Why it could not be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// For how long there were probes; until that is known, how long there may be.
    pub probed_seconds: f64,
    /// Bytes of its artifacts.
    pub bytes: u64,
    /// Whether all who are to know of it were told, or cannot be.
    #[serde(default)]
    pub told: bool,
    /// What was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub findings: Option<Findings>,
}

impl Record {
    /// Whether something was found that grows.
    pub fn found_growth(&self) -> bool {
        self.findings
            .as_ref()
            .is_some_and(|findings| !matches!(findings.outcome, Outcome::NotProven | Outcome::NothingSeen))
    }

    /// The contexts that it was about: those that grew before, and those of what was found.
    pub fn contexts(&self) -> impl Iterator<Item = &str> {
        let found = self.findings.iter().flat_map(|findings| &findings.suspects);
        let found = found.flat_map(|suspect| &suspect.contexts).map(|context| &*context.name);
        let subject = &self.subject;
        subject.context.as_deref().into_iter().chain(subject.growing.iter().map(|name| &**name)).chain(found)
    }
}
