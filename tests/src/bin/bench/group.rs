//! Rounds of one build and load, and what they say of each rival.

use std::collections::BTreeMap;

use crate::{
    ratio::{Summary, Times},
    rounds::{Round, Time},
};

/// All rounds of a build and a load.
pub(crate) struct Group<'a> {
    pub(crate) build: &'a str,
    pub(crate) load: &'a str,
    rounds: Vec<&'a Round>,
    times: Vec<Times>,
}

impl<'a> Group<'a> {
    /// By build, then by load, as they are first met.
    pub(crate) fn all(rounds: &'a [Round]) -> Vec<Self> {
        let mut groups: BTreeMap<(&str, usize), Group<'a>> = BTreeMap::new();
        let mut loads: Vec<&str> = Vec::new();
        for round in rounds {
            let place = loads.iter().position(|load| *load == round.load).unwrap_or_else(|| {
                loads.push(&round.load);
                loads.len() - 1
            });
            let group = groups.entry((&round.build, place)).or_insert_with(|| Group {
                build: &round.build,
                load: &round.load,
                rounds: Vec::new(),
                times: Vec::new(),
            });
            group.rounds.push(round);
            group.times.push(Times::of(round));
        }
        groups.into_values().collect()
    }

    pub(crate) fn rounds(&self) -> usize {
        self.rounds.len()
    }

    fn looks(&self, rival: &str) -> impl Iterator<Item = &Time> {
        self.rounds.iter().flat_map(|round| &round.times).filter(move |time| time.rival == rival)
    }

    /// Whether it was looked at, or should have been.
    pub(crate) fn has(&self, rival: &str) -> bool {
        self.looks(rival).next().is_some()
    }

    /// How often it has failed.
    pub(crate) fn failed(&self, rival: &str) -> usize {
        self.looks(rival).filter(|time| time.each_us.is_none()).count()
    }

    /// In how many rounds its time is known.
    pub(crate) fn known(&self, rival: &str) -> usize {
        self.times.iter().filter(|times| times.get(rival).is_some()).count()
    }

    /// What it has said that it lost, if it has said anything.
    pub(crate) fn lost(&self, rival: &str) -> Option<u64> {
        self.looks(rival).filter_map(|time| time.lost).fold(None, |sum, lost| Some(sum.unwrap_or(0) + lost))
    }

    /// The median of a transaction's times, in microseconds.
    pub(crate) fn median_us(&self, rival: &str) -> Option<f64> {
        let mut each: Vec<f64> = self.times.iter().filter_map(|times| times.get(rival)).collect();
        each.sort_by(f64::total_cmp);
        each.get(each.len() / 2).copied()
    }

    /// What it adds to a transaction, as a part of what another one adds.
    pub(crate) fn added_to(&self, rival: &str, other: &str) -> Summary {
        self.summary(|times| times.added_to(rival, other))
    }

    /// Throughput as a part of that without anything.
    pub(crate) fn throughput(&self, rival: &str) -> Summary {
        self.summary(|times| times.throughput(rival))
    }

    fn summary(&self, of: impl Fn(&Times) -> Option<f64>) -> Summary {
        Summary::of(&self.times.iter().filter_map(of).collect::<Vec<_>>())
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use crate::rounds::{Round, Time};

    /// Rounds of a build and a load, whose times are these, jittered by a hundredth; `None` is a failure.
    pub(crate) fn rounds(build: &str, load: &str, times: &[(&str, Option<f64>)]) -> Vec<Round> {
        let round = |number: u32| {
            let factor = 1.0 + f64::from(number % 3) / 100.0;
            let time = |(rival, each_us): &(&str, Option<f64>)| Time {
                rival: (*rival).to_owned(),
                each_us: each_us.map(|us| if *rival == "nothing" { us } else { us * factor }),
                cpu_us: None,
                lost: rival.starts_with("pgleak").then_some(0),
                error: each_us.is_none().then(|| "no such program".to_owned()),
            };
            Round {
                build: build.into(),
                load: load.into(),
                began: 1_800_000_000,
                conditions: None,
                times: times.iter().map(time).collect(),
            }
        };
        (0..6).map(round).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_and_are_no_times() {
        let mut rounds = testing::rounds(
            "npm-17.10",
            "select",
            &[("nothing", Some(10.0)), ("pgleak", Some(30.0)), ("perf", None)],
        );
        rounds.extend(testing::rounds("debian-15", "select", &[("nothing", Some(10.0))]));
        let groups = Group::all(&rounds);
        assert_eq!(groups.iter().map(|group| group.build).collect::<Vec<_>>(), ["debian-15", "npm-17.10"]);
        let group = &groups[1];
        assert_eq!((group.failed("perf"), group.known("perf"), group.lost("perf")), (6, 0, None));
        assert_eq!((group.failed("pgleak"), group.known("pgleak"), group.lost("pgleak")), (0, 6, Some(0)));
        assert!(group.has("perf") && !groups[0].has("perf"));
        assert_eq!(group.added_to("pgleak", "perf"), Summary::Nothing);
    }
}
