//! What the person who waits sees: a bar with live figures on a terminal, lines otherwise.
//!
//! A terminal can stand still: Ctrl-S, a connection that hangs. Writing to it is therefore a
//! thread of its own, which nobody waits for: the capture goes on and ends on time without it.

use std::{
    io::{IsTerminal as _, Write as _},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    thread,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

/// Live figures.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Allocations recorded.
    pub recorded: u64,
    /// Records in the map.
    pub records: u64,
    /// Different stacks.
    pub stacks: u64,
    /// Anything lost.
    pub lost: u64,
}

enum Message {
    Line(String),
    Begin {
        phase: &'static str,
        length: Duration,
    },
    Update(Figures),
    End,
    /// Answered when everything before it is on the terminal.
    Flush(SyncSender<()>),
}

/// Messages that may wait; more are dropped while the terminal stands still.
const WAITING: usize = 64;
/// How long a terminal that stands still holds pgleak up.
const PATIENCE: Duration = Duration::from_millis(500);
/// Lines without a terminal come this far apart.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Progress on standard error, which may be gone or stand still: nothing here fails or blocks.
#[derive(Debug)]
pub struct Progress {
    messages: Option<SyncSender<Message>>,
    ended: Receiver<()>,
}

impl Progress {
    /// Nothing is shown yet.
    pub fn new() -> Self {
        let (messages, received) = sync_channel(WAITING);
        let (alive, ended) = sync_channel(0);
        // Without the thread nothing is shown, and every message is dropped.
        let _ = thread::Builder::new().name("progress".to_owned()).spawn(move || {
            let mut screen = Screen::new();
            while let Ok(message) = received.recv() {
                screen.show(message);
            }
            screen.end();
            drop(alive);
        });
        Self { messages: Some(messages), ended }
    }

    /// A line that stays.
    pub fn say(&self, text: &str) {
        self.send(Message::Line(text.to_owned()));
    }

    /// Begins a phase of known length.
    pub fn begin(&self, phase: &'static str, length: Duration) {
        self.send(Message::Begin { phase, length });
    }

    /// Shows how far it is.
    pub fn update(&self, figures: Figures) {
        self.send(Message::Update(figures));
    }

    /// Ends the phase.
    pub fn end(&self) {
        self.send(Message::End);
    }

    /// Waits until everything is shown, so that something else can be written to the terminal;
    /// not for long.
    pub fn flush(&self) {
        let (shown, wait) = sync_channel(1);
        self.send(Message::Flush(shown));
        let _ = wait.recv_timeout(PATIENCE);
    }

    fn send(&self, message: Message) {
        if let Some(messages) = &self.messages {
            let _ = messages.try_send(message);
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        // The thread ends with its channel; if its write blocks, it goes with the process.
        self.messages = None;
        let wait = self.ended.recv_timeout(PATIENCE);
        debug_assert!(wait != Ok(()), "nobody sends");
        if wait == Err(RecvTimeoutError::Timeout) {
            tracing::debug!("standard error takes no more text");
        }
    }
}

/// The thread's side.
struct Screen {
    bar: Option<ProgressBar>,
    phase: &'static str,
    started: Instant,
    length: Duration,
    last_line: Instant,
}

impl Screen {
    fn new() -> Self {
        let now = Instant::now();
        Self { bar: None, phase: "", started: now, length: Duration::ZERO, last_line: now }
    }

    fn show(&mut self, message: Message) {
        match message {
            Message::Line(text) => match &self.bar {
                Some(bar) => bar.suspend(|| line(&text)),
                None => line(&text),
            },
            Message::Begin { phase, length } => self.begin(phase, length),
            Message::Update(figures) => self.update(figures),
            Message::End => self.end(),
            Message::Flush(shown) => {
                let _ = shown.try_send(());
            }
        }
    }

    fn begin(&mut self, phase: &'static str, length: Duration) {
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

    fn update(&mut self, figures: Figures) {
        let elapsed = self.started.elapsed().min(self.length);
        let text = format!(
            "{:.1}/{:.1} s, {} allocations, {} records, {} stacks{}",
            elapsed.as_secs_f64(),
            self.length.as_secs_f64(),
            figures.recorded,
            figures.records,
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

    fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn line(text: &str) {
    // A terminal that was closed takes no text, and that ends no capture.
    let _ = writeln!(std::io::stderr(), "pgleak: {text}");
}
