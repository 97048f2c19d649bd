//! What each process held over the last while, and which of them keep growing.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use super::{
    config::Triggers,
    growth::{Point, Rise, keeps_growing},
    observe::{ContextBytes, Look, MOST_LABELS, Seen},
};
use crate::target::ProcessId;

/// The courses of all processes that are alive.
#[derive(Debug, Default)]
pub(super) struct History {
    courses: HashMap<ProcessId, Course>,
    window: Duration,
}

/// What one process held.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Course {
    /// Its anonymous memory.
    pub anon: VecDeque<Point>,
    /// Bytes of its contexts, by name.
    pub contexts: HashMap<String, VecDeque<Point>>,
}

/// Something that should be captured, and why.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Grower {
    /// The process.
    pub id: ProcessId,
    /// Its server.
    pub server: String,
    /// What grows, or is too large.
    pub what: Growing,
    /// How it grows; `None` for what is only large.
    pub rise: Option<Rise>,
    /// Bytes that it holds now.
    pub bytes: u64,
    /// The context that gained most, as far as that was seen.
    pub context: Option<String>,
    /// All contexts of the process that keep growing, however slowly.
    pub growing: Vec<String>,
}

/// What grows, or is too large.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Growing {
    /// The anonymous memory of a process.
    Process,
    /// Contexts of one name in it.
    Context,
}

/// For so long a process may be missed.
const MISSED_MS: i64 = 60_000;

/// A context has gained most of what its process has if it gained so much of it.
const MOST_OF_IT: f64 = 0.5;

impl History {
    /// For so long.
    pub(super) fn new(window: Duration) -> Self {
        Self { courses: HashMap::new(), window }
    }

    /// Changes that; what is there is kept.
    pub(super) fn set_window(&mut self, window: Duration) {
        self.window = window;
    }

    /// Puts back what was seen by an earlier run.
    pub(super) fn restore(&mut self, id: ProcessId, course: Course) {
        self.courses.insert(id, course);
    }

    /// Adds a look, and forgets what is too old or has ended.
    pub(super) fn add(&mut self, look: &Look) {
        let alive: HashMap<ProcessId, &Seen> = look.processes.iter().map(|seen| (seen.id, seen)).collect();
        // One that could not be looked at once is not forgotten for that.
        let lately = |course: &Course| {
            course.anon.back().is_some_and(|point| (0..MISSED_MS).contains(&(look.at_ms - point.at_ms)))
        };
        self.courses.retain(|id, course| alive.contains_key(id) || lately(course));
        // One point more than the window, so that it is covered.
        let window_ms = i64::try_from(self.window.as_millis()).unwrap_or(i64::MAX);
        let oldest = look.at_ms.saturating_sub(window_ms.saturating_add(window_ms / 10));
        for (id, seen) in alive {
            let course = self.courses.entry(id).or_default();
            push(&mut course.anon, Point { at_ms: look.at_ms, bytes: seen.memory().own() }, oldest);
            if let Some(contexts) = &seen.contexts {
                course.end_those_that_went(contexts, look.at_ms);
            }
            for context in seen.contexts.iter().flatten() {
                let points = course.contexts.entry(context.label.clone()).or_default();
                push(points, Point { at_ms: look.at_ms, bytes: context.bytes }, oldest);
            }
            course.contexts.retain(|_, points| points.back().is_some_and(|point| point.at_ms >= oldest));
        }
    }

    /// What keeps growing or is too large, that with most growth first.
    pub(super) fn growers(&mut self, look: &Look, triggers: &Triggers) -> Vec<Grower> {
        let mut growers: Vec<Grower> =
            look.processes.iter().flat_map(|seen| self.growers_of(seen, triggers)).collect();
        let rate = |grower: &Grower| grower.rise.map_or(0.0, |rise| rise.per_minute);
        growers.sort_by(|a, b| rate(b).total_cmp(&rate(a)).then(b.bytes.cmp(&a.bytes)));
        growers
    }

    fn growers_of(&mut self, seen: &Seen, triggers: &Triggers) -> Vec<Grower> {
        let Some(course) = self.courses.get_mut(&seen.id) else { return Vec::new() };
        let (growth, limit) = (&triggers.growth, &triggers.limit);
        let anon = rise(&mut course.anon, growth.window).filter(|_| growth.enabled);
        let anon_bytes = seen.memory().own();
        let mut growers = Vec::new();
        let mut contexts: Vec<(String, Option<Rise>, u64)> = Vec::new();
        for (label, points) in &mut course.contexts {
            let bytes = points.back().map_or(0, |point| point.bytes);
            contexts.push((label.clone(), rise(points, growth.window), bytes));
        }
        let growing = |(label, rise, _): &(String, Option<Rise>, u64)| rise.is_some().then(|| label.clone());
        let growing: Vec<String> = contexts.iter().filter_map(growing).collect();
        let grower = |what, rise, bytes, context| Grower {
            id: seen.id,
            server: seen.server.clone(),
            what,
            rise,
            bytes,
            context,
            growing: growing.clone(),
        };
        let fast = |rise: &Rise, least: u64| rise.per_minute >= least as f64;
        for (label, rise, bytes) in &contexts {
            let rise = rise.filter(|rise| growth.enabled && fast(rise, growth.context_per_minute));
            if rise.is_some() || limit.context.is_some_and(|limit| *bytes >= limit) {
                growers.push(grower(Growing::Context, rise, *bytes, Some(label.clone())));
            }
        }
        let rise = anon.filter(|rise| fast(rise, growth.process_per_minute));
        if rise.is_some() || limit.process.is_some_and(|limit| anon_bytes >= limit) {
            let context = course.fastest(rise.map(|rise| rise.to.saturating_sub(rise.from)));
            growers.push(grower(Growing::Process, rise, anon_bytes, context));
        }
        growers
    }

    /// Bytes a minute that a process gains, by the ends of what was seen.
    pub(super) fn slope(&self, id: ProcessId) -> Option<f64> {
        let anon = &self.courses.get(&id)?.anon;
        let (first, last) = (anon.front()?, anon.back()?);
        let minutes = (last.at_ms - first.at_ms) as f64 / 60_000.0;
        (minutes > 0.0).then(|| (last.bytes as f64 - first.bytes as f64) / minutes)
    }

    /// Anonymous memory of a process over the window, in at most so many values.
    pub(super) fn spark(&self, id: ProcessId, most: usize) -> Vec<u64> {
        let Some(course) = self.courses.get(&id) else { return Vec::new() };
        let step = course.anon.len().div_ceil(most.max(1)).max(1);
        // Counted from the newest, which is always there.
        let mut spark: Vec<u64> = course.anon.iter().rev().step_by(step).map(|point| point.bytes).collect();
        spark.reverse();
        spark
    }

    /// The processes by what they gained, the fastest first; those that gained nothing are not among them.
    pub(super) fn fastest<'a>(&self, look: &'a Look) -> Vec<(&'a Seen, f64)> {
        let slopes = look.processes.iter().filter_map(|seen| Some((seen, self.slope(seen.id)?)));
        let mut fastest: Vec<_> = slopes.filter(|(_, slope)| *slope > 0.0).collect();
        fastest.sort_by(|a, b| b.1.total_cmp(&a.1));
        fastest
    }
}

impl Course {
    /// Contexts that are not in a reading hold nothing, or less than the least that is in it where it was cut.
    fn end_those_that_went(&mut self, contexts: &[ContextBytes], at_ms: i64) {
        let is_cut = contexts.len() >= MOST_LABELS;
        let least = contexts.last().filter(|_| is_cut).map_or(0, |context| context.bytes);
        for (label, points) in &mut self.contexts {
            if contexts.iter().any(|context| context.label == *label) {
                continue;
            }
            let last = points.back().map_or(0, |point| point.bytes);
            points.push_back(Point { at_ms, bytes: last.min(least) });
        }
    }

    /// The context that gained most of what the process gained; of an unknown gain, most at all.
    fn fastest(&self, gained: Option<u64>) -> Option<String> {
        let gain = |points: &VecDeque<Point>| {
            let (first, last) = (points.front()?, points.back()?);
            last.bytes.checked_sub(first.bytes).filter(|gain| *gain > 0)
        };
        let (label, most) = self
            .contexts
            .iter()
            .filter_map(|(label, points)| Some((label, gain(points)?)))
            .max_by_key(|(_, gain)| *gain)?;
        let enough = gained.map_or(0.0, |gained| gained as f64 * MOST_OF_IT);
        (most as f64 >= enough).then(|| label.clone())
    }
}

fn push(points: &mut VecDeque<Point>, point: Point, oldest: i64) {
    // The clock was set back: what was in the future is of no use.
    while points.back().is_some_and(|last| last.at_ms > point.at_ms) {
        points.pop_back();
    }
    points.push_back(point);
    while points.front().is_some_and(|point| point.at_ms < oldest) {
        points.pop_front();
    }
}

fn rise(points: &mut VecDeque<Point>, window: Duration) -> Option<Rise> {
    keeps_growing(points.make_contiguous(), window)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        target::{Memory, testing::server},
        watch::observe::ContextBytes,
    };

    fn look(at_s: i64, anon: u64, leaky: u64) -> Look {
        let memory = Memory { rss_anon: anon, ..Memory::default() };
        let process = server(7, "postgres: a b [local] idle", memory, None);
        let contexts = vec![
            ContextBytes { label: "CacheMemoryContext".to_owned(), bytes: 1 << 20, contexts: 1 },
            ContextBytes { label: "Leaky".to_owned(), bytes: leaky, contexts: 1 },
        ];
        let seen = Seen { id: process.id(), process, server: "/data".to_owned(), contexts: Some(contexts) };
        Look { at_ms: at_s * 1000, processes: vec![seen], ..Look::default() }
    }

    fn course(anon: impl Fn(u64) -> u64, leaky: impl Fn(u64) -> u64) -> Vec<Grower> {
        let triggers = Triggers::default();
        let mut history = History::new(triggers.growth.window);
        let mut last = Look::default();
        for at in 0..=140 {
            last = look(at * 5, anon(at as u64), leaky(at as u64));
            history.add(&last);
        }
        history.growers(&last, &triggers)
    }

    #[test]
    fn a_process_that_grows_is_named_with_the_context_that_does() {
        // 2.4 MiB a minute in all.
        let growers = course(|at| 5_000_000 + at * 210_000, |at| 8192 + at * 200_000);
        let what: Vec<_> = growers.iter().map(|grower| (grower.what, grower.context.as_deref())).collect();
        assert_eq!(what, [(Growing::Process, Some("Leaky")), (Growing::Context, Some("Leaky"))]);
    }

    #[test]
    fn growth_outside_of_contexts_is_not_put_on_one() {
        let growers = course(|at| 5_000_000 + at * 210_000, |at| 8192 + at * 100);
        assert_eq!(growers.len(), 1);
        assert_eq!(growers[0].context, None);
    }

    #[test]
    fn slow_growth_is_below_the_rate_and_a_limit_is_another_matter() {
        assert_eq!(course(|at| 5_000_000 + at * 1000, |_| 8192), []);
        let mut history = History::new(Duration::from_secs(600));
        let look = look(5, 3 << 30, 8192);
        history.add(&look);
        let mut triggers = Triggers::default();
        assert_eq!(history.growers(&look, &triggers), []);
        triggers.limit.process = Some(2 << 30);
        let growers = history.growers(&look, &triggers);
        assert_eq!((growers.len(), growers[0].rise), (1, None));
    }

    #[test]
    fn a_context_that_comes_and_goes_does_not_grow() {
        let triggers = Triggers::default();
        let mut history = History::new(triggers.growth.window);
        let mut last = Look::default();
        for at in 0..=140 {
            // Statements of increasing size, with nothing between them.
            last = look(at * 5, 5_000_000, 1_000_000 * (1 + at as u64));
            if at % 7 == 0
                && let Some(contexts) = &mut last.processes[0].contexts
            {
                contexts.truncate(1);
            }
            history.add(&last);
        }
        assert_eq!(history.growers(&last, &triggers), []);
    }

    #[test]
    fn a_clock_that_is_set_back_is_survived() {
        let mut history = History::new(Duration::from_secs(600));
        history.add(&look(100_000, 1 << 20, 8192));
        let now = look(5, 2 << 20, 8192);
        history.add(&now);
        assert_eq!(history.spark(now.processes[0].id, 10), [2 << 20]);
    }

    #[test]
    fn memory_in_swap_is_memory() {
        let mut seen = look(5, 1 << 20, 8192);
        seen.processes[0].process.memory.swap = 3 << 30;
        let mut history = History::new(Duration::from_secs(600));
        history.add(&seen);
        let mut triggers = Triggers::default();
        triggers.limit.process = Some(2 << 30);
        assert_eq!(history.growers(&seen, &triggers).len(), 1);
    }

    #[test]
    fn what_has_ended_is_forgotten() {
        let mut history = History::new(Duration::from_secs(600));
        let first = look(5, 1 << 20, 8192);
        history.add(&first);
        assert!(history.courses.contains_key(&first.processes[0].id));
        history.add(&Look { at_ms: 10_000, ..Look::default() });
        assert!(history.courses.contains_key(&first.processes[0].id), "it was missed once");
        history.add(&Look { at_ms: 100_000, ..Look::default() });
        assert!(history.courses.is_empty());
    }
}
