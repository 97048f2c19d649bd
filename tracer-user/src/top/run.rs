//! The loop: events change the model, and the model is drawn.

use std::{
    fs,
    path::PathBuf,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    time::{Duration, Instant},
};

use super::{
    acting::Mode,
    action::{Action, Effect},
    capturing::Capturing,
    child::CaptureChild,
    draw::{Paint, draw},
    error::TopError,
    event::{Event, read_keys, read_signals},
    input::action,
    layout::Areas,
    model::Model,
    reader::{Wanted, read_contexts},
    screen::Screen,
    text::{harmless, joined},
    watch::watch,
};
use crate::{
    render::OutputDir,
    target::{ProcessId, server_process},
};

/// How often the bar of a capture moves.
const MOVE_EVERY: Duration = Duration::from_millis(500);
/// A panic of another thread sends no event, and is noticed so late.
const NOTICE_EVERY: Duration = Duration::from_secs(1);

/// What to look at.
#[derive(Clone, Debug)]
pub struct TopOptions {
    /// How far looks are apart.
    pub interval: Duration,
    /// Only these processes; all if there are none.
    pub pids: Vec<u32>,
}

/// A capture that was made, for whoever reads the terminal afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// The first sentence of its report.
    pub verdict: String,
    /// Where its artifacts are.
    pub directory: PathBuf,
}

/// Shows the server processes of this host until the user, or a signal, ends it; gives the captures that were made
/// meanwhile.
///
/// # Errors
/// If standard output is no terminal, a process that was named belongs to no server, or the terminal fails.
pub fn top(options: &TopOptions) -> Result<Vec<Made>, TopError> {
    for pid in &options.pids {
        server_process(*pid)?.ok_or(TopError::NoServer { pid: *pid })?;
    }
    let started = Instant::now();
    let (sender, events) = channel();
    let (select, selected) = channel();
    let mut screen = Screen::take()?;
    read_signals(sender.clone())?;
    read_keys(sender.clone())?;
    watch(options.pids.clone(), options.interval, started, sender.clone())?;
    read_contexts(selected, options.interval, started, sender.clone())?;
    let model = Model::new(host(), options.interval);
    let mut view = View { model, started, sender, select, child: None, made: Vec::new() };
    let result = view.run(&mut screen, &events);
    // However it ended: no capture is left behind.
    view.wait_for_capture(&events);
    drop(screen);
    result.map(|()| view.made)
}

fn host() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "this host".to_owned(), |name| harmless(name.trim()))
}

/// The model and what does for it what it cannot do.
struct View {
    model: Model,
    started: Instant,
    sender: Sender<Event>,
    select: Sender<Option<Wanted>>,
    child: Option<CaptureChild>,
    made: Vec<Made>,
}

impl View {
    /// Until it is to end, and no capture runs any more.
    fn run(&mut self, screen: &mut Screen, events: &Receiver<Event>) -> Result<(), TopError> {
        let paint = Paint::from_env();
        let mut told = None;
        loop {
            self.model.now = self.started.elapsed();
            screen.draw(|frame| draw(frame, &self.model, paint))?;
            let wait = if self.model.is_capturing() { MOVE_EVERY } else { NOTICE_EVERY };
            match events.recv_timeout(wait) {
                Ok(event) => {
                    for event in std::iter::once(event).chain(events.try_iter()) {
                        self.model.now = self.started.elapsed();
                        self.take(event, screen);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                // This holds a sender itself.
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            let wanted =
                self.model.selected_row().map(|row| Wanted { process: row.seen.id, server: row.seen.server });
            if told != wanted {
                told = wanted;
                let _ = self.select.send(told);
            }
            if self.model.mode == Mode::Leaving && !self.model.is_capturing() {
                return Ok(());
            }
        }
    }

    fn take(&mut self, event: Event, screen: &Screen) {
        let wanted = match event {
            Event::Key(key) => action(key, &self.model.mode),
            Event::Interrupt => Some(Action::Interrupt),
            // A second of these is the same wish: a terminal and a shell may both say that they end.
            Event::End | Event::NoKeys if self.model.mode != Mode::Leaving => Some(Action::Leave),
            Event::End | Event::NoKeys | Event::Redraw => None,
            other => return self.learn(other),
        };
        let pages = Areas::of(screen.area(), &self.model).pages();
        if let Some(effect) = wanted.and_then(|wanted| self.model.act(wanted, pages)) {
            self.apply(effect);
        }
    }

    fn learn(&mut self, event: Event) {
        match event {
            Event::Look(look) => self.model.see(look),
            Event::Contexts(process, contexts) => self.model.see_contexts(process, contexts),
            Event::Said(line) => self.model.hear(&line),
            Event::Stacks(stacks) => self.model.see_stacks(stacks),
            Event::Ended(outcome) => {
                self.child = None;
                self.model.end(outcome);
                self.made.extend(self.model.capture.as_ref().and_then(made));
            }
            _ => {}
        }
    }

    fn apply(&mut self, effect: Effect) {
        match (effect, &self.child) {
            (Effect::Start { process, overhead }, None) => self.start(process, overhead),
            (Effect::End | Effect::Leave, Some(child)) => child.end(),
            (Effect::LeaveAtOnce, Some(child)) => child.leave_at_once(),
            _ => {}
        }
    }

    fn start(&mut self, process: ProcessId, overhead: String) {
        if !process.is_same() {
            self.model.notice = Some(format!("process {} has ended", process.pid));
            return;
        }
        let directory = OutputDir::name_for(&process.pid.to_string());
        match CaptureChild::start(process, &overhead, &directory, self.sender.clone()) {
            Ok(child) => {
                self.child = Some(child);
                self.model.begin(process, overhead, directory);
            }
            Err(error) => self.model.notice = Some(harmless(&error.to_string())),
        }
    }

    /// Ends a capture that still runs, when nothing can be drawn any more.
    fn wait_for_capture(&mut self, events: &Receiver<Event>) {
        if let Some(child) = &self.child {
            child.end();
        }
        while self.child.is_some() {
            match events.recv() {
                Ok(Event::Interrupt) => self.apply(Effect::LeaveAtOnce),
                Ok(event @ (Event::Said(_) | Event::Ended(_))) => self.learn(event),
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }
}

fn made(capture: &Capturing) -> Option<Made> {
    let verdict = joined(capture.verdict()?).into_iter().next().unwrap_or_default();
    Some(Made { verdict, directory: capture.directory.clone() })
}
