//! Reads the memory contexts of the selected process, again and again.

use std::{
    collections::HashMap,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender},
    time::{Duration, Instant},
};

use super::{
    budget::{Budget, pause},
    contexts::{Contexts, ContextsLook},
    error::TopError,
    event::{Event, start},
    text::harmless,
};
use crate::{
    census::{Census, CensusError, Limits, Observed},
    target::{ProcessError, ProcessId},
};

/// Whoever moves through the table does not want the contexts of each process on the way.
const SETTLED: Duration = Duration::from_millis(150);

/// A process whose contexts are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Which.
    pub(super) process: ProcessId,
    /// The first process of its server, if that is known.
    pub(super) server: Option<ProcessId>,
}

/// Reads the contexts of whichever process was named last: soon, then each interval, and always so that it takes no
/// more than 5 % of a core. What has grown is counted from the first time on.
pub(super) fn read_contexts(
    wanted: Receiver<Option<Wanted>>,
    interval: Duration,
    started: Instant,
    events: Sender<Event>,
) -> Result<(), TopError> {
    start("contexts", move || {
        let mut reading: Option<Reading> = None;
        let mut servers = Servers::default();
        // Whatever is selected, reading costs no more than its part.
        let mut budget = Budget::default();
        let mut due = Instant::now();
        loop {
            let told = match reading {
                Some(_) => wanted.recv_timeout(due.saturating_duration_since(Instant::now())),
                None => wanted.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match told {
                Ok(first) => {
                    let last = wanted.try_iter().last().unwrap_or(first);
                    if last != reading.as_ref().map(|reading| reading.wanted) {
                        reading = last.map(|wanted| Reading { wanted, observed: None, first: None });
                        due = started + budget.affordable(started.elapsed() + SETTLED);
                        let later = Contexts::Later(due.duration_since(started));
                        if last.is_some_and(|last| events.send(Event::Contexts(last.process, later)).is_err())
                        {
                            return;
                        }
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    let Some(reading) = &mut reading else { continue };
                    let process = reading.wanted.process;
                    let began = Instant::now();
                    let found = reading.look(&mut servers, interval);
                    // To look through a program is not counted: it happens once. Unless it fails, again and again.
                    let took = found.as_ref().map_or_else(|_| began.elapsed(), |look| look.took);
                    let contexts = match found {
                        Ok(look) => Contexts::Read(look),
                        Err(error) => Contexts::Unreadable(harmless(&error.to_string())),
                    };
                    if events.send(Event::Contexts(process, contexts)).is_err() {
                        return;
                    }
                    let ended = started.elapsed();
                    budget.spend(ended, took);
                    due = started + budget.affordable(ended + pause(interval, took));
                }
            }
        }
    })
}

/// What was found out about servers: all processes of one are alike, and a program is looked through once.
#[derive(Default)]
struct Servers {
    known: HashMap<ProcessId, Observed>,
}

impl Servers {
    fn observe(&mut self, wanted: Wanted) -> Result<Observed, CensusError> {
        if let Some(other) = wanted.server.and_then(|server| self.known.get(&server)) {
            return Ok(other.sibling(wanted.process));
        }
        let observed = Observed::of(wanted.process.pid)?;
        if let Some(server) = wanted.server {
            // Servers that have ended are few, and not worth to be looked for.
            self.known.insert(server, observed.sibling(wanted.process));
        }
        Ok(observed)
    }
}

/// A process whose contexts are read.
struct Reading {
    wanted: Wanted,
    observed: Option<Observed>,
    first: Option<(Instant, Census)>,
}

impl Reading {
    fn look(&mut self, servers: &mut Servers, interval: Duration) -> Result<ContextsLook, CensusError> {
        let process = self.wanted.process;
        if !process.is_same() {
            return Err(ProcessError::NoSuchProcess { pid: process.pid }.into());
        }
        let observed = match self.observed.take() {
            Some(observed) => self.observed.insert(observed),
            None => self.observed.insert(servers.observe(self.wanted)?),
        };
        let began = Instant::now();
        let now = observed.census(Limits { usage: false, ..Limits::default() })?;
        let (at, first) = self.first.get_or_insert_with(|| (began, now.clone()));
        let mut look = ContextsLook::between(first, &now, began.duration_since(*at));
        // What is made of it counts as well.
        look.took = began.elapsed();
        look.every = look.took + pause(interval, look.took);
        Ok(look)
    }
}
