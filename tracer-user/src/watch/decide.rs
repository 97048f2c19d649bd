//! What is to be captured now: what grows or is too large, what is due, what somebody asks for. Whether it may be, `triggers`
//! says.

use std::{collections::HashSet, time::Duration};

use tokio::sync::oneshot;
use tracing::info;

use super::{
    config::{CaptureConfig, Config, ScheduleTrigger},
    history::{Grower, History},
    observe::{Look, Seen, seen_now},
    record::{CaptureNumber, Subject, Trigger},
    view::Trouble,
};
use crate::{render::units::bytes, session::Overhead, target::ProcessId};

/// A capture that should be made.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Wish {
    /// Of what.
    pub subject: Subject,
    /// Why.
    pub trigger: Trigger,
    /// The same in a sentence.
    pub why: String,
    /// How.
    pub how: CaptureConfig,
}

/// Somebody asks for a capture.
#[derive(Debug)]
pub(super) struct Asked {
    /// Of which process.
    pub pid: u32,
    /// For how long, if not as configured.
    pub duration: Option<Duration>,
    /// How much of its time the process may lose, if not as configured.
    pub overhead: Option<Overhead>,
    /// Who, in a few words.
    pub by: String,
    /// Gets the capture's number, or why there is none.
    pub answer: oneshot::Sender<Result<CaptureNumber, String>>,
}

/// What it takes to know what is to be captured.
#[derive(Debug)]
pub(super) struct Decider {
    /// What each process held over the last while.
    pub history: History,
    /// What might not begin at the last look: told once, and not each time.
    held_back: HashSet<ProcessId>,
    being_held_back: HashSet<ProcessId>,
    /// When the last captures of the schedule were due, in milliseconds since 1970.
    last_scheduled_ms: i64,
    /// Captures of the schedule that have to wait for others.
    waiting: Vec<Wish>,
    /// Captures that should have been made and might not.
    pub trouble: Trouble,
}

impl Decider {
    /// One that knows what was seen, and when captures of the schedule were due last.
    pub(super) fn new(history: History, last_scheduled_ms: i64) -> Self {
        Self {
            history,
            held_back: HashSet::new(),
            being_held_back: HashSet::new(),
            last_scheduled_ms,
            waiting: Vec::new(),
            trouble: Trouble::default(),
        }
    }

    /// Captures of the schedule that are due with a look: of those processes that grow most, and whatever had to wait.
    pub(super) fn due(&mut self, look: &Look, schedule: &ScheduleTrigger, how: &CaptureConfig) -> Vec<Wish> {
        let since_ms = look.at_ms - self.last_scheduled_ms;
        // Less than none: the clock was set back.
        if (0..i64::try_from(schedule.every.as_millis()).unwrap_or(i64::MAX)).contains(&since_ms) {
            let is_there = |wish: &Wish| look.processes.iter().any(|seen| seen.id == wish.subject.id());
            return std::mem::take(&mut self.waiting).into_iter().filter(is_there).collect();
        }
        self.last_scheduled_ms = look.at_ms;
        for wish in std::mem::take(&mut self.waiting) {
            let pid = wish.subject.pid;
            self.hold_back(&format!(
                "the schedule: process {pid} had to wait until it was time for the next"
            ));
        }
        let fastest = self.history.fastest(look).into_iter().take(schedule.top as usize);
        let wish = |(seen, slope): (&Seen, f64)| Wish {
            subject: subject(seen, None),
            trigger: Trigger::Schedule,
            why: format!("the schedule: of all, it grew most, by {} a minute", bytes(slope as u64)),
            how: how.clone(),
        };
        fastest.map(wish).collect()
    }

    /// A capture of the schedule has to wait for others that are being made.
    pub(super) fn wait(&mut self, wish: Wish) {
        self.waiting.push(wish);
    }

    /// What grows might not be captured: that is told when it begins.
    pub(super) fn hold_grower_back(&mut self, grower: &Grower, why: &str) {
        // Whatever else of it grows is told with that.
        if self.being_held_back.insert(grower.id) && !self.held_back.contains(&grower.id) {
            self.hold_back(&format!("process {}: {}; {why}", grower.id.pid, grower.why()));
        }
    }

    /// All that grows has been looked at.
    pub(super) fn growers_are_through(&mut self) {
        self.held_back = std::mem::take(&mut self.being_held_back);
    }

    /// Something might not be captured.
    pub(super) fn hold_back(&mut self, why: &str) {
        info!("not captured: {why}");
        self.trouble.note(why.to_owned());
    }
}

impl Wish {
    /// What grows is to be captured.
    pub(super) fn of_grower(seen: &Seen, grower: &Grower, how: &CaptureConfig) -> Self {
        Self {
            subject: subject(seen, Some(grower)),
            trigger: grower.trigger(),
            why: grower.why(),
            how: how.clone(),
        }
    }

    /// Somebody asks for a process, which may have come since the last look.
    ///
    /// # Errors
    /// If it is no process that is watched.
    pub(super) fn of_request(asked: &Asked, config: &Config) -> Result<Self, String> {
        let (pid, servers) = (asked.pid, &config.census.servers);
        let seen =
            seen_now(pid).filter(|seen| servers.is_empty() || servers.contains(&seen.server)).ok_or_else(
                || format!("process {pid} is no server process that is watched; `pgleak list` shows all"),
            )?;
        let mut how = config.capture.clone();
        how.duration = asked.duration.unwrap_or(how.duration);
        how.overhead = asked.overhead.unwrap_or(how.overhead);
        let (trigger, why) = (Trigger::Request, format!("asked for by {}", asked.by));
        Ok(Self { subject: subject(&seen, None), trigger, why, how })
    }
}

/// A process, and what of it is known to grow.
fn subject(seen: &Seen, grower: Option<&Grower>) -> Subject {
    Subject {
        pid: seen.id.pid,
        start_ticks: seen.id.start_ticks,
        server: seen.server.clone(),
        kind: seen.process.parsed.kind.clone(),
        database: seen.process.parsed.database.clone(),
        user: seen.process.parsed.user.clone(),
        context: grower.and_then(|grower| grower.context.clone()),
        growing: grower.map(|grower| grower.growing.clone()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        target::{Memory, testing::server},
        watch::growth::Rise,
        watch::history::Growing,
    };

    /// Processes with so much memory each, at that second.
    fn look(at_s: i64, anon: &[u64]) -> Look {
        let seen = |(index, anon): (usize, &u64)| {
            let memory = Memory { rss_anon: *anon, ..Memory::default() };
            let process = server(7 + index as u32, "postgres: a b [local] idle", memory, None);
            Seen { id: process.id(), process, server: "/data".to_owned(), contexts: None }
        };
        let processes = anon.iter().enumerate().map(seen).collect();
        Look { at_ms: at_s * 1000, processes, ..Look::default() }
    }

    fn decider(looks: &[&Look]) -> Decider {
        let mut history = History::new(Duration::from_secs(600));
        looks.iter().for_each(|look| history.add(look));
        Decider::new(history, looks[0].at_ms)
    }

    fn pids(wishes: &[Wish]) -> Vec<u32> {
        wishes.iter().map(|wish| wish.subject.pid).collect()
    }

    #[test]
    fn the_schedule_takes_the_fastest_and_keeps_what_has_to_wait() {
        let (first, last) = (look(0, &[1 << 20; 3]), look(60, &[2 << 20, 9 << 20, 1 << 20]));
        let mut decider = decider(&[&first, &last]);
        let schedule = ScheduleTrigger { every: Duration::from_secs(60), top: 3 };
        let how = CaptureConfig::default();
        assert_eq!(decider.due(&first, &schedule, &how), []);
        let due = decider.due(&last, &schedule, &how);
        // The third grew by nothing.
        assert_eq!(pids(&due), [8, 7]);
        due.into_iter().for_each(|wish| decider.wait(wish));
        // The second has ended meanwhile.
        let later = look(65, &[2 << 20]);
        let due = decider.due(&later, &schedule, &how);
        assert_eq!(pids(&due), [7]);
        assert_eq!(decider.due(&later, &schedule, &how), [], "nobody has put it back");
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_stop_the_schedule() {
        let (first, last) = (look(1000, &[1 << 20]), look(1005, &[2 << 20]));
        let mut decider = decider(&[&first, &last]);
        let schedule = ScheduleTrigger { every: Duration::from_secs(60), top: 1 };
        let how = CaptureConfig::default();
        assert_eq!(decider.due(&last, &schedule, &how), []);
        assert_eq!(pids(&decider.due(&Look { at_ms: 5000, ..last }, &schedule, &how)), [7]);
    }

    #[test]
    fn what_is_held_back_is_told_when_that_begins() {
        let seen = look(0, &[1 << 20]);
        let mut decider = decider(&[&seen]);
        let rise = Rise { per_minute: 2e6, from: 0, to: 1, over: Duration::from_secs(500) };
        let grower = |what| Grower {
            id: seen.processes[0].id,
            server: "/data".to_owned(),
            what,
            rise: Some(rise),
            bytes: 1 << 30,
            context: None,
            growing: Vec::new(),
        };
        for _ in 0..3 {
            decider.hold_grower_back(&grower(Growing::Process), "there is no room");
            decider.hold_grower_back(&grower(Growing::Context), "there is no room");
            decider.growers_are_through();
        }
        assert_eq!(decider.trouble.count, 1);
        // It was over, and is there again.
        decider.growers_are_through();
        decider.hold_grower_back(&grower(Growing::Process), "there is no room");
        assert_eq!(decider.trouble.count, 2);
    }
}
