//! Whether a capture may begin now: the budget, and what was captured of late.

use std::{collections::HashSet, time::Duration};

use super::{
    config::Budget,
    history::{Grower, Growing},
    record::{Record, Status, Subject, Trigger},
};
use crate::{
    render::units::{bytes, rate},
    target::ProcessId,
};

/// Why a capture may not begin now.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(super) enum Refusal {
    /// As many are being made as may be.
    #[error("{0} captures are being made already, which is as many as budget.at_once allows; wait for them")]
    TooMany(u32),
    /// It is being captured.
    #[error("process {0} is being captured already, as number {1}")]
    Running(u32, i64),
    /// A budget is used up.
    #[error(
        "probes were set{} for {used:.0} s in the last hour, and budget.{key} allows {allowed:.0} s; a capture of \
         {planned:.0} s has to wait", in_process(*process)
    )]
    UsedUp {
        /// The process that it is of, if it is of one.
        process: Option<u32>,
        /// Which budget.
        key: &'static str,
        /// Seconds that were used.
        used: f64,
        /// Seconds that there are.
        allowed: f64,
        /// Seconds that would be used.
        planned: f64,
    },
    /// What is left is for others.
    #[error(
        "of the {left:.0} s that budget.probed_per_hour has left for this hour, {kept:.0} s are kept for {servers} other servers that \
         had no capture yet; a capture of {planned:.0} s has to wait"
    )]
    Kept {
        /// How many they are.
        servers: usize,
        /// Seconds that are left.
        left: f64,
        /// Seconds that are kept of those.
        kept: f64,
        /// Seconds that would be used.
        planned: f64,
    },
    /// The same is being captured.
    #[error("capture {0} is looking at this already")]
    Looking(i64),
    /// The same was captured of late.
    #[error("capture {number} has looked at this already; again after {} min", left.as_secs().div_ceil(60))]
    CoolDown {
        /// Which capture.
        number: i64,
        /// For how much longer.
        left: Duration,
    },
}

fn in_process(process: Option<u32>) -> String {
    process.map_or_else(String::new, |pid| format!(" in process {pid}"))
}

const HOUR_MS: i64 = 3_600_000;

/// After a capture that failed: a lock, a full disk or a busy process may be another matter then.
const AFTER_FAILURE: Duration = Duration::from_secs(600);

/// What counts for a decision.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now<'a> {
    /// Milliseconds since 1970.
    pub at_ms: i64,
    /// This boot of the host.
    pub boot: &'a str,
    /// Captures of the last while, in any order.
    pub records: &'a [Record],
    /// What captures may cost.
    pub budget: &'a Budget,
    /// For how long one more has probes.
    pub planned: Duration,
    /// The servers that there are to capture.
    pub servers: &'a HashSet<String>,
}

impl Now<'_> {
    fn running(&self) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(|record| record.status == Status::Running)
    }

    /// The capture of a process that is being made.
    pub(super) fn running_of(&self, id: ProcessId) -> Option<&Record> {
        self.running().find(|record| self.is_of(record, id))
    }

    /// Whether there is room for one more capture.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn has_room(&self, subject: &Subject) -> Result<(), Refusal> {
        let (id, budget) = (subject.id(), self.budget);
        if let Some(record) = self.running_of(id) {
            return Err(Refusal::Running(id.pid, record.number.0));
        }
        if self.running().count() >= budget.at_once as usize {
            return Err(Refusal::TooMany(budget.at_once));
        }
        let fits = |key, allowed: Duration, process: Option<u32>| {
            let used = self.used(|record| process.is_none() || self.is_of(record, id));
            let (allowed, planned) = (allowed.as_secs_f64(), self.planned.as_secs_f64());
            match used + planned > allowed {
                true => Err(Refusal::UsedUp { process, key, used, allowed, planned }),
                false => Ok(()),
            }
        };
        fits("probed_per_hour", budget.probed_per_hour, None)?;
        fits("probed_per_hour_and_process", budget.probed_per_hour_and_process, Some(id.pid))
    }

    /// Whether one more capture of a server that had one leaves room for one of each that had none, which would have probes
    /// for `each`. No more than half of the budget is kept: where there are many servers, most of them want nothing.
    ///
    /// # Errors
    /// What is kept.
    pub(super) fn leaves_room_for_others(&self, server: &str, each: Duration) -> Result<(), Refusal> {
        let has_had = |server: &str| self.used(|record| record.subject.server == server) > 0.0;
        if !has_had(server) {
            return Ok(());
        }
        let servers = self.servers.iter().filter(|other| *other != server && !has_had(other)).count();
        let allowed = self.budget.probed_per_hour.as_secs_f64();
        let kept = (each.as_secs_f64() * servers as f64).min(allowed / 2.0);
        let (left, planned) = (allowed - self.used(|_| true), self.planned.as_secs_f64());
        match planned + kept > left {
            true => Err(Refusal::Kept { servers, left, kept, planned }),
            false => Ok(()),
        }
    }

    /// Seconds with probes in the last hour, of captures that count.
    fn used(&self, counts: impl Fn(&Record) -> bool) -> f64 {
        let recent = |record: &&Record| {
            record.status == Status::Running
                || record.ended_ms.is_none_or(|ended| ended > self.at_ms - HOUR_MS && ended <= self.at_ms)
        };
        let counted = self.records.iter().filter(recent).filter(|record| counts(record));
        counted.map(|record| record.probed_seconds).sum()
    }

    /// Whether what grows was not captured of late, be it in another process of the same server.
    ///
    /// # Errors
    /// Which capture that was.
    pub(super) fn is_news(&self, grower: &Grower) -> Result<(), Refusal> {
        let mut blocked: Option<(i64, i64)> = None;
        // Captures in vain of the same, one after the other: each makes the next wait for longer.
        let mut in_vain = 0;
        let mut records: Vec<&Record> =
            self.records.iter().filter(|record| self.is_same(record, grower)).collect();
        records.sort_by_key(|record| record.begun_ms);
        for record in records {
            // One that is being made is looking at it.
            let Some(ended_ms) = record.ended_ms else { return Err(Refusal::Looking(record.number.0)) };
            let wait = match record.status {
                // It says nothing of what grows.
                Status::Failed => AFTER_FAILURE,
                _ if record.found_growth() => self.budget.cool_down,
                _ => {
                    in_vain += 1;
                    let doubled = 2_u32.saturating_pow(in_vain - 1);
                    self.budget.cool_down_without_leak.saturating_mul(doubled).min(self.budget.cool_down)
                }
            };
            let until = ended_ms.saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX));
            // One that ended in the future ended before the clock was set back.
            if until > self.at_ms && ended_ms <= self.at_ms && blocked.is_none_or(|(_, later)| until > later)
            {
                blocked = Some((record.number.0, until));
            }
        }
        match blocked {
            Some((number, until)) => {
                let left = u64::try_from(until - self.at_ms).unwrap_or(0);
                Err(Refusal::CoolDown { number, left: Duration::from_millis(left) })
            }
            None => Ok(()),
        }
    }

    fn is_of(&self, record: &Record, id: ProcessId) -> bool {
        record.boot == self.boot && record.subject.id() == id
    }

    /// Whether a capture was of what grows now. Contexts of one name in one server are the same, whichever process has
    /// them: fifty backends of one application leak the same thing. In one process, growth that no other context
    /// explains is the same.
    fn is_same(&self, record: &Record, grower: &Grower) -> bool {
        if record.subject.server != grower.server {
            return false;
        }
        let shares_context =
            grower.context.as_deref().is_some_and(|context| record.contexts().any(|name| name == context));
        let names_another = grower.what == Growing::Context && record.contexts().next().is_some();
        shares_context || (self.is_of(record, grower.id) && !names_another)
    }
}

fn minutes(time: Duration) -> String {
    match time.as_secs() {
        seconds @ ..120 => format!("{seconds} s"),
        seconds => format!("{} min", seconds / 60),
    }
}

impl Grower {
    /// Why it is to be captured.
    pub(super) fn trigger(&self) -> Trigger {
        if self.rise.is_some() { Trigger::Growth } else { Trigger::Limit }
    }

    /// The same in a sentence.
    pub(super) fn why(&self) -> String {
        let what = match (self.what, &self.context) {
            (Growing::Context, Some(context)) => format!("context {context}"),
            _ => "its anonymous memory".to_owned(),
        };
        match &self.rise {
            Some(rise) => {
                let mostly = match (self.what, &self.context) {
                    (Growing::Process, Some(context)) => format!(", most of it in {context}"),
                    _ => String::new(),
                };
                format!(
                    "{what} kept growing for {}, by {} ({} a minute), to {}{mostly}",
                    minutes(rise.over),
                    rate(rise.per_minute / 60.0),
                    bytes(rise.per_minute as u64),
                    bytes(self.bytes),
                )
            }
            None => format!("{what} is {}, above its limit", bytes(self.bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;
    use crate::watch::{growth::Rise, record::CaptureNumber, testing};

    const PROCESS: ProcessId = ProcessId { pid: 7, start_ticks: 70 };
    const OTHER: ProcessId = ProcessId { pid: 8, start_ticks: 80 };

    fn record(
        number: i64,
        id: ProcessId,
        context: Option<&str>,
        leak: Option<&str>,
        ended_min: i64,
    ) -> Record {
        let mut record = testing::record(number, leak);
        (record.subject.pid, record.subject.start_ticks) = (id.pid, id.start_ticks);
        record.subject.context = context.map(str::to_owned);
        (record.begun_ms, record.ended_ms) = (ended_min * 60_000 - 1000, Some(ended_min * 60_000));
        record
    }

    fn grower(id: ProcessId, what: Growing, context: Option<&str>) -> Grower {
        let rise = Rise { per_minute: 2e6, from: 0, to: 1, over: Duration::from_secs(500) };
        Grower {
            id,
            server: "/data".to_owned(),
            what,
            rise: Some(rise),
            bytes: 1 << 30,
            context: context.map(str::to_owned),
            growing: Vec::new(),
        }
    }

    fn now<'a>(records: &'a [Record], budget: &'a Budget, at_min: i64) -> Now<'a> {
        static NONE: LazyLock<HashSet<String>> = LazyLock::new(HashSet::new);
        let (at_ms, planned) = (at_min * 60_000, Duration::from_secs(15));
        Now { at_ms, boot: "boot", records, budget, planned, servers: &NONE }
    }

    fn subject(id: ProcessId) -> Subject {
        record(0, id, None, None, 0).subject
    }

    #[test]
    fn a_leak_is_captured_once_and_not_again_in_each_backend() {
        let budget = Budget::default();
        let records = [record(1, PROCESS, Some("ExecutorState"), Some("Leaky"), 10)];
        let now = now(&records, &budget, 20);
        for same in [
            grower(PROCESS, Growing::Process, None),
            grower(PROCESS, Growing::Process, Some("Leaky")),
            grower(OTHER, Growing::Process, Some("Leaky")),
            grower(OTHER, Growing::Context, Some("Leaky")),
            grower(OTHER, Growing::Context, Some("ExecutorState")),
        ] {
            assert!(matches!(now.is_news(&same), Err(Refusal::CoolDown { number: 1, .. })), "{same:?}");
        }
        for other in [
            grower(PROCESS, Growing::Context, Some("Another")),
            grower(OTHER, Growing::Process, None),
            grower(OTHER, Growing::Process, Some("Another")),
        ] {
            assert_eq!(now.is_news(&other), Ok(()), "{other:?}");
        }
        let elsewhere = Grower { server: "/other".to_owned(), ..grower(PROCESS, Growing::Process, None) };
        assert_eq!(now.is_news(&elsewhere), Ok(()));
    }

    #[test]
    fn one_leak_is_mostly_in_several_contexts() {
        let budget = Budget::default();
        let mut captured = record(1, PROCESS, Some("CachedPlanSource"), Some("CachedPlanSource"), 10);
        captured.subject.growing = vec!["CachedPlanSource".to_owned(), "SPI Plan".to_owned()];
        let records = [captured];
        let now = now(&records, &budget, 20);
        for context in ["CachedPlanSource", "SPI Plan"] {
            assert!(now.is_news(&grower(PROCESS, Growing::Context, Some(context))).is_err(), "{context}");
        }
        assert_eq!(now.is_news(&grower(PROCESS, Growing::Context, Some("Another"))), Ok(()));
    }

    #[test]
    fn it_is_news_again_after_the_cool_down() {
        let budget = Budget { cool_down: Duration::from_secs(3600), ..Budget::default() };
        let records = [record(1, PROCESS, None, Some("Leaky"), 10)];
        let leak = grower(PROCESS, Growing::Process, Some("Leaky"));
        assert!(now(&records, &budget, 69).is_news(&leak).is_err());
        assert_eq!(now(&records, &budget, 71).is_news(&leak), Ok(()));
    }

    #[test]
    fn captures_in_vain_wait_longer_each_time() {
        let budget = Budget { cool_down_without_leak: Duration::from_secs(600), ..Budget::default() };
        let mut records = vec![record(1, PROCESS, Some("Cache"), None, 10)];
        let same = grower(PROCESS, Growing::Process, Some("Cache"));
        assert!(now(&records, &budget, 19).is_news(&same).is_err());
        assert_eq!(now(&records, &budget, 21).is_news(&same), Ok(()));
        records.push(record(2, PROCESS, Some("Cache"), None, 22));
        assert!(now(&records, &budget, 41).is_news(&same).is_err());
        assert_eq!(now(&records, &budget, 43).is_news(&same), Ok(()));
    }

    #[test]
    fn a_failure_waits_for_a_while_and_what_runs_is_no_news() {
        let budget = Budget::default();
        let mut failed = record(1, PROCESS, Some("Leaky"), None, 10);
        (failed.status, failed.findings) = (Status::Failed, None);
        let records = [failed.clone(), Record { number: CaptureNumber(2), ..failed.clone() }];
        let same = grower(PROCESS, Growing::Process, Some("Leaky"));
        assert!(now(&records, &budget, 19).is_news(&same).is_err());
        assert_eq!(now(&records, &budget, 21).is_news(&same), Ok(()));
        let running = [Record { status: Status::Running, ended_ms: None, ..failed }];
        let elsewhere = grower(OTHER, Growing::Process, Some("Leaky"));
        assert_eq!(now(&running, &budget, 10).is_news(&elsewhere), Err(Refusal::Looking(1)));
    }

    fn used_up(result: Result<(), Refusal>) -> &'static str {
        match result {
            Err(Refusal::UsedUp { key, .. }) => key,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_budget_is_of_an_hour_and_of_a_process() {
        let budget = Budget {
            probed_per_hour: Duration::from_secs(60),
            probed_per_hour_and_process: Duration::from_secs(40),
            ..Budget::default()
        };
        let (process, other) = (subject(PROCESS), subject(OTHER));
        let mut records = vec![record(1, PROCESS, None, None, 10)];
        assert_eq!(now(&records, &budget, 20).has_room(&process), Ok(()));
        records.push(record(2, PROCESS, None, None, 15));
        assert_eq!(used_up(now(&records, &budget, 20).has_room(&process)), "probed_per_hour_and_process");
        assert_eq!(now(&records, &budget, 20).has_room(&other), Ok(()));
        records.push(record(3, OTHER, None, None, 15));
        records.push(record(4, OTHER, None, None, 15));
        assert_eq!(used_up(now(&records, &budget, 20).has_room(&other)), "probed_per_hour");
        // An hour later.
        assert_eq!(now(&records, &budget, 76).has_room(&other), Ok(()));
        // After a restart of the host, a pid is somebody else's.
        let next = Now { boot: "next", planned: Duration::from_secs(1), ..now(&records[..2], &budget, 20) };
        assert_eq!(next.has_room(&process), Ok(()));
    }

    #[test]
    fn one_server_leaves_something_for_the_others() {
        let budget = Budget {
            probed_per_hour: Duration::from_secs(60),
            probed_per_hour_and_process: Duration::from_secs(60),
            ..Budget::default()
        };
        let records = [record(1, PROCESS, None, None, 10), record(2, PROCESS, None, None, 15)];
        let servers = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<HashSet<_>>();
        let (alone, two, three) =
            (servers(&["/data"]), servers(&["/data", "/other"]), servers(&["/data", "/other", "/third"]));
        let leaves = |servers, server| {
            let now = Now { servers, ..now(&records, &budget, 20) };
            now.leaves_room_for_others(server, Duration::from_secs(10))
        };
        // 30 s of 60 are left, and one takes 15.
        assert_eq!(leaves(&alone, "/data"), Ok(()));
        assert_eq!(leaves(&two, "/data"), Ok(()));
        let kept = |kept, servers| Err(Refusal::Kept { servers, left: 30.0, kept, planned: 15.0 });
        assert_eq!(leaves(&three, "/data"), kept(20.0, 2));
        assert_eq!(leaves(&three, "/other"), Ok(()));
        let many: HashSet<String> = (0..100).map(|index| format!("/{index}")).collect();
        assert_eq!(leaves(&many, "/data"), kept(30.0, 100));
    }

    #[test]
    fn what_runs_keeps_others_waiting() {
        let budget = Budget::default();
        let mut running = record(1, PROCESS, None, None, 10);
        (running.status, running.ended_ms, running.findings) = (Status::Running, None, None);
        let records = [running];
        assert_eq!(now(&records, &budget, 10).has_room(&subject(PROCESS)), Err(Refusal::Running(7, 1)));
        assert_eq!(now(&records, &budget, 10).has_room(&subject(OTHER)), Err(Refusal::TooMany(1)));
        let two = Budget { at_once: 2, ..budget };
        assert_eq!(now(&records, &two, 10).has_room(&subject(OTHER)), Ok(()));
    }

    #[test]
    fn the_reason_is_told_in_a_sentence() {
        let why = grower(PROCESS, Growing::Process, Some("Leaky")).why();
        assert_eq!(
            why,
            "its anonymous memory kept growing for 8 min, by 32.6 KiB/s (1.91 MiB a minute), to 1.00 GiB, most of it in Leaky"
        );
    }
}
