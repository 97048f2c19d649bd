//! What the service shows of itself: made anew after each look, read by the page and the metrics.

use std::collections::{HashMap, VecDeque};

use serde::Serialize;

use super::{
    config::Config,
    history::History,
    labels::Labels,
    looking::LONGEST_LOOK,
    observe::{ContextBytes, Look, Unread},
    record::{Record, Status, Trigger},
};
use crate::target::ProcessId;

/// Values of a sparkline.
const SPARKS: usize = 40;

/// What the service knows now.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct View {
    /// Milliseconds since 1970.
    pub at_ms: i64,
    /// When all processes were looked at last; before the first time, when the service started.
    pub looked_ms: i64,
    /// Host name.
    pub host: String,
    /// Version of pgleak.
    pub version: &'static str,
    /// What the service goes by.
    pub settings: Settings,
    /// What the service takes, and what it could not do.
    pub figures: Figures,
    /// The processes, the fastest growing first.
    pub processes: Vec<ProcessView>,
    /// Captures that are being made.
    pub running: Vec<Record>,
    /// Captures that have ended.
    #[serde(skip)]
    pub counts: Counts,
    /// Names that are labels of metrics.
    #[serde(skip)]
    pub labels: Labels,
}

/// Captures that have ended since the service started.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Counts {
    /// By why they began and what became of them.
    ended: HashMap<(Trigger, Status), u64>,
    /// Those that found growth, by why they began.
    found: HashMap<Trigger, u64>,
}

impl Counts {
    /// One more.
    pub(super) fn add(&mut self, record: &Record) {
        *self.ended.entry((record.trigger, record.status)).or_default() += 1;
        *self.found.entry(record.trigger).or_default() += u64::from(record.found_growth());
    }

    /// Those that began so and of which that became.
    pub(super) fn ended(&self, trigger: Trigger, status: Status) -> u64 {
        self.ended.get(&(trigger, status)).copied().unwrap_or(0)
    }

    /// Those that began so and found growth.
    pub(super) fn found(&self, trigger: Trigger) -> u64 {
        self.found.get(&trigger).copied().unwrap_or(0)
    }
}

/// Something that should have been done and could not be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Trouble {
    /// How often.
    pub count: u64,
    /// Why the last time.
    pub why: Option<String>,
    /// When that was, in milliseconds since 1970.
    pub at_ms: Option<i64>,
}

impl Trouble {
    /// Once more, now.
    pub(super) fn note(&mut self, why: String) {
        self.count += 1;
        self.why = Some(why);
        self.at_ms = Some(jiff::Timestamp::now().as_millisecond());
    }
}

/// What the service goes by, as far as the page has to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Settings {
    /// Seconds from look to look.
    interval_seconds: f64,
    /// Seconds that growth is looked at over.
    window_seconds: f64,
    /// Bytes a minute that are a trigger.
    process_per_minute: u64,
    /// With less than that free, nothing is written.
    #[serde(skip)]
    pub min_free: u64,
}

impl View {
    /// Whether the service looks as often as it should.
    pub(super) fn is_current(&self, now_ms: i64) -> bool {
        let longest = self.settings.interval_seconds + LONGEST_LOOK.as_secs_f64();
        // In either direction: a clock that was set is right again with the next look.
        (now_ms - self.looked_ms).unsigned_abs() as f64 <= longest * 1000.0
    }
}

impl Settings {
    /// Of a configuration.
    pub(super) fn of(config: &Config) -> Self {
        Self {
            interval_seconds: config.census.interval.as_secs_f64(),
            window_seconds: config.triggers.growth.window.as_secs_f64(),
            process_per_minute: config.triggers.growth.process_per_minute,
            min_free: config.store.min_free,
        }
    }
}

/// A process now.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ProcessView {
    /// Its number in the series; `None` if it could not be written there.
    pub row: Option<i64>,
    /// Its pid.
    pub pid: u32,
    /// Its server.
    pub server: String,
    /// What kind of process.
    pub kind: String,
    /// Database.
    pub database: Option<String>,
    /// User.
    pub user: Option<String>,
    /// Anonymous memory.
    pub anon: u64,
    /// Touched shared memory.
    pub shmem: u64,
    /// Bytes a minute that it gained in the window; `None` if it was seen once.
    pub per_minute: Option<f64>,
    /// Anonymous memory over the window.
    pub spark: Vec<u64>,
    /// Its largest contexts, as they were when they were read last.
    pub contexts: Vec<LabelledBytes>,
}

/// Contexts of one name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct LabelledBytes {
    /// Their name.
    pub label: String,
    /// Their bytes.
    pub bytes: u64,
}

/// What the service takes, and what it could not do.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Figures {
    /// Seconds since it started.
    pub up_seconds: f64,
    /// Looks at all processes.
    pub looks: u64,
    /// Looks that came so late that others were left out.
    pub looks_left_out: u64,
    /// Looks that could not be written to the series.
    pub not_stored: u64,
    /// Why the last could not, if it could not.
    pub store_trouble: Option<String>,
    /// Processor seconds of the service itself.
    pub cpu_seconds: f64,
    /// The same in the last minute.
    pub cpu_seconds_last_minute: f64,
    /// Bytes that it read, of files and of other processes' memory.
    pub read_bytes: u64,
    /// The same in the last minute.
    pub read_bytes_last_minute: u64,
    /// Anonymous memory of the service.
    pub own_bytes: u64,
    /// Bytes of the series.
    pub series_bytes: u64,
    /// Processes that could not be looked at, in all looks.
    pub unseen: u64,
    /// Contexts that were not read, by reason, in all.
    pub unread: UnreadFigures,
    /// Captures that were meant to begin and might not.
    pub held_back: Trouble,
    /// Deliveries of verdicts and profiles that failed.
    pub undelivered: Trouble,
}

/// [`Unread`], summed up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct UnreadFigures {
    /// The process had hardly changed.
    pub unchanged: u64,
    /// The budget was used up.
    pub budget: u64,
    /// The server is not known.
    pub unknown: u64,
    /// They could not be read.
    pub failed: u64,
}

impl std::ops::AddAssign<Unread> for UnreadFigures {
    fn add_assign(&mut self, more: Unread) {
        self.unchanged += more.unchanged;
        self.budget += more.budget;
        self.unknown += more.unknown;
        self.failed += more.failed;
    }
}

/// A number that only grows, and what it grew by in the last minute.
#[derive(Debug, Default)]
pub(super) struct Meter {
    past: VecDeque<(i64, f64)>,
}

impl Meter {
    /// Notes its value, and gives what it grew by in the last minute.
    pub(super) fn note(&mut self, at_ms: i64, value: f64) -> f64 {
        let past = &mut self.past;
        past.push_back((at_ms, value));
        while past.len() > 2 && past.get(1).is_some_and(|(at, _)| at_ms - at >= 60_000) {
            past.pop_front();
        }
        let (first_ms, first) = past.front().copied().unwrap_or((at_ms, value));
        let minutes = (at_ms - first_ms) as f64 / 60_000.0;
        // In the first minute, what it would be at this pace.
        if minutes > 0.0 { (value - first) / minutes } else { 0.0 }
    }
}

/// The processes of a look, the fastest growing first.
pub(super) fn processes(
    look: &Look,
    history: &History,
    last_contexts: &HashMap<ProcessId, Vec<ContextBytes>>,
    row: impl Fn(ProcessId) -> Option<i64>,
) -> Vec<ProcessView> {
    let mut processes: Vec<ProcessView> = look
        .processes
        .iter()
        .map(|seen| {
            let contexts = last_contexts.get(&seen.id).into_iter().flatten();
            ProcessView {
                row: row(seen.id),
                pid: seen.id.pid,
                server: seen.server.clone(),
                kind: seen.process.parsed.kind.clone(),
                database: seen.process.parsed.database.clone(),
                user: seen.process.parsed.user.clone(),
                anon: seen.memory().own(),
                shmem: seen.memory().rss_shmem,
                per_minute: history.slope(seen.id),
                spark: history.spark(seen.id, SPARKS),
                contexts: contexts
                    .map(|context| LabelledBytes { label: context.label.clone(), bytes: context.bytes })
                    .collect(),
            }
        })
        .collect();
    processes.sort_by(|a, b| {
        let growth = |process: &ProcessView| process.per_minute.unwrap_or(0.0);
        growth(b).total_cmp(&growth(a)).then(b.anon.cmp(&a.anon)).then(a.pid.cmp(&b.pid))
    });
    processes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_does_not_look_is_not_well() {
        let settings = Settings { interval_seconds: 5.0, ..Settings::default() };
        let view = View { looked_ms: 1_000_000, settings, ..View::default() };
        assert!(view.is_current(1_000_000) && view.is_current(1_064_000) && view.is_current(999_000));
        assert!(!view.is_current(1_066_000));
    }

    #[test]
    fn a_meter_goes_by_the_minute() {
        let mut meter = Meter::default();
        assert_eq!(meter.note(0, 100.0), 0.0);
        assert_eq!(meter.note(30_000, 101.0), 2.0);
        for at in 2..10 {
            meter.note(at * 30_000, 100.0 + at as f64);
        }
        assert_eq!(meter.note(300_000, 110.0), 2.0);
    }
}
