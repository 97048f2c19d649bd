//! What the person who waits sees: a bar with live figures on a terminal, lines otherwise.

use std::{
    io::{IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

/// Live figures.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Allocations recorded.
    pub recorded: u64,
    /// Records in the map.
    pub live: u64,
    /// Different stacks.
    pub stacks: u64,
    /// Anything lost.
    pub lost: u64,
}

/// Progress on standard error, which may be gone: nothing here fails.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    phase: &'static str,
    started: Instant,
    length: Duration,
    last_line: Instant,
}

/// Lines without a terminal come this far apart.
const LINE_EVERY: Duration = Duration::from_secs(5);

impl Progress {
    /// Nothing is shown yet.
    pub fn new() -> Self {
        let now = Instant::now();
        Self { bar: None, phase: "", started: now, length: Duration::ZERO, last_line: now }
    }

    /// A line that stays.
    pub fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| line(text)),
            None => line(text),
        }
    }

    /// Begins a phase of known length.
    pub fn begin(&mut self, phase: &'static str, length: Duration) {
        self.end();
        self.phase = phase;
        self.started = Instant::now();
        self.last_line = self.started;
        self.length = length;
        if !std::io::stderr().is_terminal() {
            line(&format!("{phase} for {:.1} s", length.as_secs_f64()));
            return;
        }
        let bar = ProgressBar::new(length.as_millis() as u64);
        if let Ok(style) = ProgressStyle::with_template("{prefix:>9} [{bar:30}] {msg}") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(phase);
        self.bar = Some(bar);
    }

    /// Shows how far it is.
    pub fn update(&mut self, figures: Figures) {
        let elapsed = self.started.elapsed().min(self.length);
        let text = format!(
            "{:.1}/{:.1} s, {} allocations, {} live, {} stacks{}",
            elapsed.as_secs_f64(),
            self.length.as_secs_f64(),
            figures.recorded,
            figures.live,
            figures.stacks,
            if figures.lost > 0 { format!(", {} LOST", figures.lost) } else { String::new() },
        );
        match &self.bar {
            Some(bar) => {
                bar.set_position(elapsed.as_millis() as u64);
                bar.set_message(text);
            }
            None if self.last_line.elapsed() >= LINE_EVERY => {
                self.last_line = Instant::now();
                line(&format!("{}: {text}", self.phase));
            }
            None => {}
        }
    }

    /// Ends the phase.
    pub fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

fn line(text: &str) {
    // A terminal that was closed takes no text, and that ends no capture.
    let _ = writeln!(std::io::stderr(), "pgleak: {text}");
}
