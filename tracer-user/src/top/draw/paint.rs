//! Colours, where they are wanted.

use ratatui::{
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Borders},
};

/// What grows by less in a second is not worth a colour.
const NOTABLE_PER_S: i64 = 1024;

/// How things are told apart. Only the foreground is ever coloured, by two colours that can be read on light and on
/// dark; nothing is said by a colour alone.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Paint {
    colours: bool,
}

impl Paint {
    /// With colours or without.
    pub(in super::super) fn new(colours: bool) -> Self {
        Self { colours }
    }

    /// As the user wants it: <https://no-color.org>.
    pub(in super::super) fn from_env() -> Self {
        Self::new(std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()))
    }

    pub(super) fn head(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    pub(super) fn selected(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    pub(super) fn bad(self) -> Style {
        self.bold(Color::Red)
    }

    pub(super) fn good(self) -> Style {
        self.bold(Color::Green)
    }

    fn bold(self, colour: Color) -> Style {
        if self.colours { self.head().fg(colour) } else { self.head() }
    }

    /// Of a rate: what grows is to be seen.
    pub(super) fn rate(self, bytes_per_s: Option<i64>) -> Style {
        if grows(bytes_per_s) { self.bad() } else { Style::new() }
    }

    /// A pane under a line with its title.
    pub(super) fn pane(self, title: String) -> Block<'static> {
        let title = Line::from(Span::styled(format!(" {title} "), self.head()));
        Block::new().borders(Borders::TOP).title(title)
    }
}

/// Whether a process is said to grow.
pub(super) fn grows(bytes_per_s: Option<i64>) -> bool {
    bytes_per_s.is_some_and(|rate| rate >= NOTABLE_PER_S)
}
