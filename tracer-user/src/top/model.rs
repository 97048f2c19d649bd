//! What `pgleak top` shows, as values: what came in, what is selected, what is open. No clock, no process and no
//! terminal is known here.

use std::{collections::HashMap, path::PathBuf, time::Duration};

use super::{
    acting::Mode,
    action::Sort,
    capturing::{Capturing, Outcome},
    contexts::Contexts,
    series::Series,
};
use crate::{session::LiveStacks, target::ProcessId};

/// A server process as it was seen, its texts harmless.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// Which.
    pub(super) id: ProcessId,
    /// The first process of its server, which it was forked from, or itself; `None` if that is not known.
    pub(super) server: Option<ProcessId>,
    /// `client backend`, `checkpointer` …
    pub(super) kind: String,
    /// Its database, or `-`.
    pub(super) database: String,
    /// Its user, or `-`.
    pub(super) user: String,
    /// Bytes of its own memory.
    pub(super) rss_anon: u64,
}

/// All of them at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Look {
    /// When, since the program began.
    pub(super) at: Duration,
    /// The processes, in any order.
    pub(super) processes: Vec<Seen>,
}

/// A line of the table.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// What it was seen as last.
    pub(super) seen: Seen,
    /// What it had.
    pub(super) series: Series,
}

/// All that is shown.
#[derive(Clone, Debug)]
pub(super) struct Model {
    /// The name of this host.
    pub(super) host: String,
    /// How far looks are apart.
    pub(super) interval: Duration,
    /// The time since the program began.
    pub(super) now: Duration,
    /// Looks so far.
    pub(super) looks: u64,
    /// What the keys mean.
    pub(super) mode: Mode,
    /// What stands first.
    pub(super) sort: Sort,
    /// Only lines with this are shown.
    pub(super) filter: String,
    /// What has just gone wrong.
    pub(super) notice: Option<String>,
    /// The contexts of a process.
    pub(super) contexts: Option<(ProcessId, Contexts)>,
    /// The capture that was started last.
    pub(super) capture: Option<Capturing>,
    /// Which line is selected.
    pub(super) selected: Option<ProcessId>,
    /// Whether somebody has chosen it.
    pub(super) chosen: bool,
    rows: Vec<Row>,
}

impl Model {
    /// Nothing was seen yet.
    pub(super) fn new(host: String, interval: Duration) -> Self {
        Self {
            host,
            interval,
            now: Duration::ZERO,
            looks: 0,
            mode: Mode::Table,
            sort: Sort::default(),
            filter: String::new(),
            notice: None,
            contexts: None,
            capture: None,
            rows: Vec::new(),
            selected: None,
            chosen: false,
        }
    }

    /// All processes, whatever the filter.
    pub(super) fn all(&self) -> &[Row] {
        &self.rows
    }

    /// The lines of the table.
    pub(super) fn shown(&self) -> Vec<&Row> {
        let wanted = self.filter.to_lowercase();
        self.rows.iter().filter(|row| row.matches(&wanted)).collect()
    }

    /// Where in the table the selected process is.
    pub(super) fn selected_line(&self) -> Option<usize> {
        self.shown().iter().position(|row| Some(row.seen.id) == self.selected)
    }

    /// The selected process, if it is in the table.
    pub(super) fn selected_row(&self) -> Option<&Row> {
        self.rows.iter().find(|row| Some(row.seen.id) == self.selected)
    }

    /// A look at all processes. Those that are not in it have ended.
    pub(super) fn see(&mut self, look: Look) {
        let mut line = self.selected_line().unwrap_or(0);
        let mut before: HashMap<ProcessId, Series> =
            self.rows.drain(..).map(|row| (row.seen.id, row.series)).collect();
        let row = |seen: Seen| {
            let mut series = before.remove(&seen.id).unwrap_or_default();
            series.push(look.at, seen.rss_anon);
            Row { seen, series }
        };
        self.rows = look.processes.into_iter().map(row).collect();
        self.looks += 1;
        self.order();
        // What grows is only known from the second look on.
        if !self.chosen && self.looks <= 2 {
            (self.selected, line) = (None, 0);
        }
        self.select_something(line);
    }

    /// The contexts of a process were read.
    pub(super) fn see_contexts(&mut self, process: ProcessId, contexts: Contexts) {
        if Some(process) == self.selected {
            self.contexts = Some((process, contexts));
        }
    }

    /// A capture was started.
    pub(super) fn begin(&mut self, process: ProcessId, overhead: String, directory: PathBuf) {
        self.capture = Some(Capturing::new(process, overhead, directory));
    }

    /// The capture has said something.
    pub(super) fn hear(&mut self, line: &str) {
        if let Some(capture) = &mut self.capture {
            capture.say(line, self.now);
        }
    }

    /// The capture tells where memory was allocated so far.
    pub(super) fn see_stacks(&mut self, stacks: LiveStacks) {
        if let Some(capture) = self.capture.as_mut().filter(|capture| capture.is_running()) {
            capture.stacks = stacks;
        }
    }

    /// The capture has ended.
    pub(super) fn end(&mut self, outcome: Outcome) {
        if let Some(capture) = &mut self.capture {
            capture.end(outcome);
        }
    }

    /// Whether a capture runs.
    pub(super) fn is_capturing(&self) -> bool {
        self.capture.as_ref().is_some_and(Capturing::is_running)
    }

    /// If the selected process is gone, whoever is at its line now is selected.
    pub(super) fn select_something(&mut self, line: usize) {
        if self.selected_line().is_none() {
            let shown = self.shown();
            self.selected = shown.get(line.min(shown.len().saturating_sub(1))).map(|row| row.seen.id);
        }
    }

    /// Puts the rows into the order that is wanted.
    pub(super) fn order(&mut self) {
        let sort = self.sort;
        self.rows.sort_by_key(|row| {
            let pid = row.seen.id.pid;
            let growth = row.series.minute_rate().unwrap_or(0);
            match sort {
                // Among equals the larger one, which may well be the one that has grown.
                Sort::Growth => (-i128::from(growth), u64::MAX - row.seen.rss_anon, pid),
                Sort::Size => (0, u64::MAX - row.seen.rss_anon, pid),
                Sort::Pid => (0, 0, pid),
            }
        });
    }
}

impl Row {
    /// Whether a filter, in lower case, lets it through.
    fn matches(&self, wanted: &str) -> bool {
        let Seen { id, kind, database, user, .. } = &self.seen;
        format!("{} {kind} {database} {user}", id.pid).to_lowercase().contains(wanted)
    }
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
