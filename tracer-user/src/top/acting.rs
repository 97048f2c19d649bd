//! What keys do to the model.

use super::{
    action::{Action, Effect, Step},
    capturing::{Capturing, Stage},
    model::Model,
    text::fitted,
};
use crate::session::Overhead;

/// What `c` gives.
const DEFAULT_OVERHEAD: &str = "full";
/// Nobody types a longer filter.
const MOST_LETTERS: usize = 60;
/// `12.5%`
const MOST_DIGITS: usize = 5;

/// What the keys mean now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// The table.
    Table,
    /// The filter is typed.
    Typing,
    /// It is asked with which overhead to capture; what was typed so far.
    Asking(String),
    /// The report is read, from this line on.
    Reading(usize),
    /// The keys are shown.
    Help,
    /// A capture is waited for, then the program ends.
    Leaving,
}

/// The lines that there is room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pages {
    /// Of the table.
    pub(super) table: usize,
    /// Of a report.
    pub(super) report: usize,
    /// Letters in a line of it.
    pub(super) report_width: usize,
}

impl Model {
    /// Does what a key asks for, and says what else has to be done for it.
    pub(super) fn act(&mut self, action: Action, pages: Pages) -> Option<Effect> {
        self.notice = None;
        match (action, self.mode.clone()) {
            (Action::Interrupt, Mode::Leaving) => return Some(Effect::LeaveAtOnce),
            (_, Mode::Leaving) => {}
            (Action::Interrupt | Action::Leave, _) => {
                self.mode = Mode::Leaving;
                let _ = self.ask_to_end();
                return Some(Effect::Leave);
            }
            (Action::Help, Mode::Help) | (Action::Back, Mode::Help | Mode::Reading(_) | Mode::Asking(_)) => {
                self.mode = Mode::Table;
            }
            (Action::Open, Mode::Reading(_)) => self.mode = Mode::Table,
            (Action::Move(step), Mode::Reading(line)) => self.scroll(step, line, pages),
            (Action::Back, Mode::Typing) => {
                self.mode = Mode::Table;
                self.refilter(String::clear);
            }
            (Action::Done, Mode::Typing) => self.mode = Mode::Table,
            (Action::Letter(letter), Mode::Typing) => self.refilter(|filter| {
                if filter.len() < MOST_LETTERS {
                    filter.push(letter);
                }
            }),
            (Action::Rub, Mode::Typing) => self.refilter(|filter| {
                filter.pop();
            }),
            (Action::RubAll, Mode::Typing) => self.refilter(String::clear),
            (Action::Choose(overhead), Mode::Asking(_)) => return self.start(overhead),
            (Action::Done, Mode::Asking(typed)) => return self.start_with(&typed),
            (Action::Letter(letter), Mode::Asking(mut typed)) => {
                if typed.len() < MOST_DIGITS {
                    typed.push(letter);
                }
                self.mode = Mode::Asking(typed);
            }
            (Action::Rub, Mode::Asking(mut typed)) => {
                typed.pop();
                self.mode = Mode::Asking(typed);
            }
            (Action::Move(step), _) => self.move_by(step, pages.table),
            (Action::Sort(sort), _) => {
                self.sort = sort;
                self.order();
            }
            (Action::Filter, _) => self.mode = Mode::Typing,
            (Action::Capture, _) if self.is_capturing() => return self.end_early(),
            (Action::Capture, _) => return self.start(DEFAULT_OVERHEAD),
            (Action::Ask, _) => match self.refusal() {
                None => self.mode = Mode::Asking(String::new()),
                refusal => self.notice = refusal,
            },
            (Action::Back, _) => return self.back(),
            (Action::Open, _) => self.open(),
            (Action::Help, _) => self.mode = Mode::Help,
            _ => {}
        }
        None
    }

    /// Esc: ends a capture, otherwise puts away what is not needed any more.
    fn back(&mut self) -> Option<Effect> {
        if self.is_capturing() {
            return self.ask_to_end();
        }
        if !self.filter.is_empty() {
            self.refilter(String::clear);
        } else {
            self.capture = None;
        }
        None
    }

    /// `c` while a capture runs: of another process than the selected one it was hardly meant to end it.
    fn end_early(&mut self) -> Option<Effect> {
        let captured = self.capture.as_ref().map(|capture| capture.process);
        if captured != self.selected {
            self.notice = self.refusal();
            return None;
        }
        self.ask_to_end()
    }

    fn ask_to_end(&mut self) -> Option<Effect> {
        self.capture.as_mut().filter(|capture| capture.is_running())?.stage = Stage::Ending;
        Some(Effect::End)
    }

    /// Why no capture can be started now.
    fn refusal(&self) -> Option<String> {
        match &self.capture {
            Some(capture) if capture.is_running() => {
                Some(format!("process {} is being captured: Esc ends that", capture.process.pid))
            }
            _ if self.selected.is_none() => Some("there is no process to capture".to_owned()),
            _ => None,
        }
    }

    fn start(&mut self, overhead: &str) -> Option<Effect> {
        self.mode = Mode::Table;
        self.notice = self.refusal();
        let process = self.selected.filter(|_| self.notice.is_none())?;
        // The selection stays with what is captured.
        self.chosen = true;
        Some(Effect::Start { process, overhead: overhead.to_owned() })
    }

    /// What was typed is a number of percent, unless it is none.
    fn start_with(&mut self, typed: &str) -> Option<Effect> {
        let overhead = if typed.is_empty() { DEFAULT_OVERHEAD } else { typed };
        match overhead.parse::<Overhead>() {
            Ok(_) => self.start(overhead),
            Err(error) => {
                self.notice = Some(error);
                None
            }
        }
    }

    fn open(&mut self) {
        if self.capture.as_ref().and_then(Capturing::report).is_some() {
            self.mode = Mode::Reading(0);
        } else if self.is_capturing() {
            self.notice = Some("there is a report when the capture has ended".to_owned());
        } else {
            self.notice = Some("there is no report: c starts a capture".to_owned());
        }
    }

    /// A report is read a page at a time; its last line stays at the bottom.
    fn scroll(&mut self, step: Step, line: usize, pages: Pages) {
        let report = self.capture.as_ref().and_then(Capturing::report).unwrap_or_default();
        let lines = fitted(report, pages.report_width).len();
        let tops = (lines + 1).saturating_sub(pages.report.max(1)).max(1);
        self.mode = Mode::Reading(step.from(line, tops, pages.report));
    }

    fn move_by(&mut self, step: Step, page: usize) {
        let shown = self.shown();
        let line = shown.iter().position(|row| Some(row.seen.id) == self.selected).unwrap_or(0);
        let to = shown.get(step.from(line, shown.len(), page)).map(|row| row.seen.id);
        if to.is_some() {
            self.selected = to;
            self.chosen = true;
        }
    }

    fn refilter(&mut self, change: impl FnOnce(&mut String)) {
        change(&mut self.filter);
        self.select_something(0);
    }
}

#[cfg(test)]
#[path = "acting_tests.rs"]
mod tests;
