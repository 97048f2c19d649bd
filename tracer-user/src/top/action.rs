//! What a key asks for, and what the model asks of the program.

use crate::target::ProcessId;

/// What a key means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Ends the program.
    Leave,
    /// The same; a second one does not wait for a capture.
    Interrupt,
    /// Moves the selection, or what is read.
    Move(Step),
    /// Changes the order.
    Sort(Sort),
    /// Begins to type a filter.
    Filter,
    /// Types a letter.
    Letter(char),
    /// Takes the last letter back.
    Rub,
    /// Takes all letters back.
    RubAll,
    /// Ends typing.
    Done,
    /// Closes what is open, or ends a capture early.
    Back,
    /// Starts a capture, or ends it early.
    Capture,
    /// Asks with which overhead.
    Ask,
    /// Starts a capture with this overhead.
    Choose(&'static str),
    /// Opens the report.
    Open,
    /// Shows the keys.
    Help,
}

/// How far to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A line up.
    Up,
    /// A line down.
    Down,
    /// A page up.
    PageUp,
    /// A page down.
    PageDown,
    /// To the first line.
    First,
    /// To the last line.
    Last,
}

impl Step {
    /// The line that is reached from another, of so many, with pages of so many.
    pub(super) fn from(self, line: usize, lines: usize, page: usize) -> usize {
        let last = lines.saturating_sub(1);
        let to = match self {
            Self::Up => line.saturating_sub(1),
            Self::Down => line.saturating_add(1),
            Self::PageUp => line.saturating_sub(page.max(1)),
            Self::PageDown => line.saturating_add(page.max(1)),
            Self::First => 0,
            Self::Last => last,
        };
        to.min(last)
    }
}

/// What stands first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    /// What grew most over the last minute.
    #[default]
    Growth,
    /// What has most.
    Size,
    /// The lowest pid.
    Pid,
}

impl Sort {
    /// By its name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Growth => "growth",
            Self::Size => "size",
            Self::Pid => "pid",
        }
    }
}

/// What has to be done for the model, since it does nothing itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Start a capture.
    Start {
        /// Of which process.
        process: ProcessId,
        /// Its `--overhead`.
        overhead: String,
    },
    /// Let the capture end with what it has.
    End,
    /// End the program, and the capture before.
    Leave,
    /// End the capture without waiting for what it would write.
    LeaveAtOnce,
}

#[cfg(test)]
mod tests {
    use super::Step;

    #[test]
    fn steps_stay_within_the_lines() {
        let from = |step: Step, line| step.from(line, 10, 4);
        assert_eq!([from(Step::Up, 0), from(Step::Up, 5), from(Step::Down, 9)], [0, 4, 9]);
        assert_eq!([from(Step::PageUp, 3), from(Step::PageDown, 3), from(Step::PageDown, 8)], [0, 7, 9]);
        assert_eq!([from(Step::First, 8), from(Step::Last, 2)], [0, 9]);
        assert_eq!(Step::Down.from(0, 0, 0), 0);
    }
}
