//! What comes in from the threads of the program.

use std::{io, sync::mpsc::Sender, thread};

use ratatui::crossterm::event::{self, Event as TerminalEvent, KeyEvent};
use tokio::signal::unix::{SignalKind, signal};

use super::{capturing::Outcome, contexts::Contexts, error::TopError, model::Look};
use crate::{session::LiveStacks, target::ProcessId};

/// Something that has happened.
#[derive(Debug)]
pub(super) enum Event {
    /// A key.
    Key(KeyEvent),
    /// The terminal has another size, or may have been drawn over.
    Redraw,
    /// There will be no more keys.
    NoKeys,
    /// A signal: SIGTERM or SIGHUP.
    End,
    /// SIGINT, which Ctrl-C does not send here.
    Interrupt,
    /// A look at all processes.
    Look(Look),
    /// The contexts of a process.
    Contexts(ProcessId, Contexts),
    /// A line of the capture.
    Said(String),
    /// Live stacks of the capture.
    Stacks(LiveStacks),
    /// The capture has ended.
    Ended(Outcome),
}

/// Starts a thread that ends with the program.
pub(super) fn start(what: &'static str, work: impl FnOnce() + Send + 'static) -> Result<(), TopError> {
    let spawned = thread::Builder::new().name(what.to_owned()).spawn(work);
    spawned.map(drop).map_err(|source| TopError::Start { what, source })
}

/// Passes keys on.
pub(super) fn read_keys(events: Sender<Event>) -> Result<(), TopError> {
    start("keys", move || {
        loop {
            let event = match event::read() {
                Ok(TerminalEvent::Key(key)) => Event::Key(key),
                Ok(_) => Event::Redraw,
                Err(_) => Event::NoKeys,
            };
            let is_last = matches!(event, Event::NoKeys);
            if events.send(event).is_err() || is_last {
                return;
            }
        }
    })
}

/// Passes signals on that would end the program and leave the terminal as it is drawn on.
pub(super) fn read_signals(events: Sender<Event>) -> Result<(), TopError> {
    let failed = |source: io::Error| TopError::Start { what: "signals", source };
    // A program that is stopped from outside would leave a terminal that nobody can use; Ctrl-Z is a key here.
    // SAFETY: setting a disposition.
    unsafe { libc::signal(libc::SIGTSTP, libc::SIG_IGN) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let entered = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;
    drop(entered);
    start("signals", move || {
        runtime.block_on(async {
            loop {
                let event = tokio::select! {
                    _ = interrupt.recv() => Event::Interrupt,
                    _ = terminate.recv() => Event::End,
                    _ = hangup.recv() => Event::End,
                };
                if events.send(event).is_err() {
                    return;
                }
            }
        });
    })
}
