//! What is shown of a capture, from what it says on standard error.

use std::{collections::VecDeque, path::PathBuf, time::Duration};

use super::text::harmless;
use crate::{session::LiveStacks, target::ProcessId};

/// What a capture says is a few lines; more are of a process in trouble.
const MOST_LINES: usize = 100;

/// A capture that this program has started.
#[derive(Clone, Debug)]
pub(super) struct Capturing {
    /// Of which process.
    pub(super) process: ProcessId,
    /// What `--overhead` it was given.
    pub(super) overhead: String,
    /// Where its artifacts go.
    pub(super) directory: PathBuf,
    /// What it does now, if it has said how long that takes.
    pub(super) phase: Option<Phase>,
    /// What it has said last, oldest first.
    pub(super) lines: VecDeque<String>,
    /// How far it is.
    pub(super) stage: Stage,
    /// Where its memory was allocated, as far as that is known already.
    pub(super) stacks: LiveStacks,
}

/// A part of a capture that takes a known time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Phase {
    /// `recording`, `settling` …
    pub(super) name: String,
    /// How long it takes.
    pub(super) length: Duration,
    /// When it began, since this program did.
    pub(super) began: Duration,
    /// The last figures.
    pub(super) figures: String,
}

/// How far a capture is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It runs.
    Running,
    /// It was asked to end.
    Ending,
    /// It has written its artifacts; the report, line by line.
    Reported(Vec<String>),
    /// It has none, since it failed in this way.
    Failed(String),
}

/// How a capture ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The text of its report.
    Report(String),
    /// Its exit status, or why there is no report.
    Failed(String),
}

impl Capturing {
    /// One that has just been started.
    pub(super) fn new(process: ProcessId, overhead: String, directory: PathBuf) -> Self {
        Self {
            process,
            overhead,
            directory,
            phase: None,
            lines: VecDeque::new(),
            stage: Stage::Running,
            stacks: LiveStacks::default(),
        }
    }

    /// Whether its process is still there.
    pub(super) fn is_running(&self) -> bool {
        matches!(self.stage, Stage::Running | Stage::Ending)
    }

    /// Takes a line of its standard error: `pgleak: recording for 13.0 s`, `pgleak: recording: 5.0/13.0 s, …`.
    pub(super) fn say(&mut self, line: &str, at: Duration) {
        let line = harmless(line.strip_prefix("pgleak: ").unwrap_or(line));
        if line.is_empty() {
            return;
        }
        if let Some((name, length)) = phase(&line) {
            let name = name.to_owned();
            self.phase = Some(Phase { name, length, began: at, figures: String::new() });
            return;
        }
        if let Some(phase) = &mut self.phase {
            if let Some(figures) = line.strip_prefix(&*phase.name).and_then(|rest| rest.strip_prefix(": ")) {
                // The time is drawn.
                phase.figures = figures.split_once(" s, ").map_or(figures, |(_, rest)| rest).to_owned();
                return;
            }
            if at >= phase.began + phase.length {
                self.phase = None;
            }
        }
        self.lines.push_back(line);
        if self.lines.len() > MOST_LINES {
            self.lines.pop_front();
        }
    }

    /// It has ended.
    pub(super) fn end(&mut self, outcome: Outcome) {
        self.phase = None;
        self.stacks = LiveStacks::default();
        self.stage = match outcome {
            Outcome::Report(text) => Stage::Reported(text.lines().map(harmless).collect()),
            Outcome::Failed(reason) => {
                // It says why itself, last.
                let said = self.lines.back().map_or(reason, Clone::clone);
                Stage::Failed(harmless(&said))
            }
        };
    }

    /// The report, if there is one.
    pub(super) fn report(&self) -> Option<&[String]> {
        match &self.stage {
            Stage::Reported(lines) => Some(lines),
            _ => None,
        }
    }

    /// The first paragraph of the report: what leaks.
    pub(super) fn verdict(&self) -> Option<&[String]> {
        let lines = self.report()?;
        let end = lines.iter().position(String::is_empty).unwrap_or(lines.len());
        Some(&lines[..end])
    }
}

impl Phase {
    /// How much of its time is over.
    pub(super) fn elapsed(&self, now: Duration) -> Duration {
        now.saturating_sub(self.began).min(self.length)
    }
}

/// `recording in windows for 120.0 s`, which a capture says without a terminal.
fn phase(line: &str) -> Option<(&str, Duration)> {
    let (name, length) = line.rsplit_once(" for ")?;
    let seconds: f64 = length.strip_suffix(" s")?.parse().ok()?;
    Some((name, Duration::try_from_secs_f64(seconds).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Duration = Duration::from_secs(10);

    fn capturing() -> Capturing {
        Capturing::new(ProcessId { pid: 7, start_ticks: 1 }, "full".into(), "pgleak-7".into())
    }

    #[test]
    fn phases_and_figures_are_told_from_lines() {
        let mut capture = capturing();
        capture.say("pgleak: process 7 is a client backend of PostgreSQL 15", AT);
        capture.say("pgleak: recording for 13.0 s", AT);
        capture.say("pgleak: recording: 5.0/13.0 s, 400 allocations, 40 records, 4 stacks", AT);
        let phase = capture.phase.clone().expect("it has said so");
        assert_eq!((&*phase.name, phase.length), ("recording", Duration::from_secs(13)));
        assert_eq!(phase.figures, "400 allocations, 40 records, 4 stacks");
        assert_eq!(phase.elapsed(AT + Duration::from_secs(2)), Duration::from_secs(2));
        assert_eq!(capture.lines, ["process 7 is a client backend of PostgreSQL 15"]);
        capture.say("pgleak: settling for 3.0 s", AT + Duration::from_secs(13));
        assert_eq!(capture.phase.as_ref().map(|phase| &*phase.name), Some("settling"));
        capture.say("pgleak: naming the stacks", AT + Duration::from_secs(17));
        assert!(capture.phase.is_none());
    }

    #[test]
    fn the_verdict_is_the_first_paragraph() {
        let mut capture = capturing();
        capture.end(Outcome::Report("LEAK: f leaks\n      in C.\n\nSUSPECTS\n".into()));
        assert_eq!(capture.verdict(), Some(&["LEAK: f leaks".to_owned(), "      in C.".to_owned()][..]));
        assert!(!capture.is_running() && capture.report().is_some_and(|lines| lines.len() == 4));
    }

    #[test]
    fn a_failure_is_said_in_the_words_of_the_capture() {
        let mut capture = capturing();
        capture.end(Outcome::Failed("exit status: 1".into()));
        assert_eq!(capture.stage, Stage::Failed("exit status: 1".into()));
        let mut capture = capturing();
        capture.say("pgleak: process 7 is being captured already\u{1b}", AT);
        capture.end(Outcome::Failed("exit status: 1".into()));
        assert_eq!(capture.stage, Stage::Failed("process 7 is being captured already?".into()));
        assert_eq!(capture.verdict(), None);
    }
}
