//! Ratios within a round, and their intervals over rounds.

use std::collections::BTreeMap;

use statrs::distribution::{ContinuousCDF as _, StudentsT};

use crate::{
    rivals::NOTHING,
    rounds::{Round, Time},
};

/// A mean with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Estimate {
    pub(crate) low: f64,
    pub(crate) mean: f64,
    pub(crate) high: f64,
    pub(crate) rounds: usize,
}

impl Estimate {
    /// The geometric mean of ratios, its interval by Student's t on their logarithms; `None` of fewer than three.
    pub(crate) fn of(ratios: &[f64]) -> Option<Self> {
        let logs: Vec<f64> = ratios.iter().filter(|ratio| **ratio > 0.0).map(|ratio| ratio.ln()).collect();
        let count = logs.len() as f64;
        // A ratio that is no number of this kind says that the round is noise, which may not be left out.
        if logs.len() < 3 || logs.len() < ratios.len() {
            return None;
        }
        let mean = logs.iter().sum::<f64>() / count;
        let variance = logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / (count - 1.0);
        let student = StudentsT::new(0.0, 1.0, count - 1.0).ok()?;
        let half = student.inverse_cdf(0.975) * (variance / count).sqrt();
        Some(Self {
            low: (mean - half).exp(),
            mean: mean.exp(),
            high: (mean + half).exp(),
            rounds: logs.len(),
        })
    }
}

/// What ratios come to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Summary {
    /// There are none.
    Nothing,
    /// Too few for an interval: their geometric mean, and how many.
    Few(f64, usize),
    /// One of them is none of two times, because what was added is less than what drifts.
    Noise,
    /// All is well.
    Known(Estimate),
}

impl Summary {
    pub(crate) fn of(ratios: &[f64]) -> Self {
        if ratios.is_empty() {
            return Self::Nothing;
        }
        // NaN, too.
        if !ratios.iter().all(|ratio| *ratio > 0.0 && ratio.is_finite()) {
            return Self::Noise;
        }
        let mean = (ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / ratios.len() as f64).exp();
        Estimate::of(ratios).map_or(Self::Few(mean, ratios.len()), Self::Known)
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nothing => out.write_str("–"),
            Self::Few(mean, 1) => write!(out, "{mean:.2} (1 round)"),
            Self::Few(mean, rounds) => write!(out, "{mean:.2} ({rounds} rounds)"),
            Self::Noise => out.write_str("noise"),
            Self::Known(estimate) => {
                write!(out, "{:.2} ({:.2}–{:.2})", estimate.mean, estimate.low, estimate.high)
            }
        }
    }
}

/// Microseconds of a transaction in one round, by rival: by the clock, and of the backend's processor.
pub(crate) struct Times {
    all: BTreeMap<String, f64>,
    cpu: BTreeMap<String, f64>,
}

impl Times {
    pub(crate) fn of(round: &Round) -> Self {
        Self { all: means(round, |time| time.each_us), cpu: means(round, |time| time.cpu_us) }
    }

    pub(crate) fn get(&self, rival: &str) -> Option<f64> {
        self.all.get(rival).copied()
    }

    /// What a rival adds to a transaction: of the backend's processor, or by the clock where that was not noted.
    pub(crate) fn added(&self, rival: &str) -> Option<f64> {
        let cpu = |rival: &str| self.cpu.get(rival);
        match (cpu(rival), cpu(NOTHING)) {
            (Some(with), Some(without)) => Some(with - without),
            _ => Some(self.get(rival)? - self.get(NOTHING)?),
        }
    }

    /// The same as a part of what another one adds.
    pub(crate) fn added_to(&self, rival: &str, other: &str) -> Option<f64> {
        Some(self.added(rival)? / self.added(other)?)
    }

    /// Throughput beside that without anything.
    pub(crate) fn throughput(&self, rival: &str) -> Option<f64> {
        Some(self.get(NOTHING)? / self.get(rival)?)
    }
}

/// By rival.
fn means(round: &Round, of: impl Fn(&Time) -> Option<f64>) -> BTreeMap<String, f64> {
    let mut all: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (time, us) in round.times.iter().filter_map(|time| Some((time, of(time)?))) {
        all.entry(&time.rival).or_default().push(us);
    }
    let mean = |times: Vec<f64>| times.iter().sum::<f64>() / times.len() as f64;
    all.into_iter().map(|(rival, times)| (rival.to_owned(), mean(times))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_over_rounds() {
        let Summary::Known(estimate) = Summary::of(&[1.0, 2.0, 4.0]) else { panic!("three are enough") };
        assert!((estimate.mean - 2.0).abs() < 1e-9 && estimate.rounds == 3);
        // t(0.975, 2) = 4.3027; the deviation of the logarithms is ln 2.
        let half = 4.3027 * 2f64.ln() / 3f64.sqrt();
        assert!((estimate.high.ln() - 2f64.ln() - half).abs() < 1e-3, "{estimate:?}");
        assert!((estimate.low.ln() - 2f64.ln() + half).abs() < 1e-3, "{estimate:?}");
    }

    #[test]
    fn what_cannot_be_known_is_not_said() {
        assert_eq!(Summary::of(&[]), Summary::Nothing);
        assert_eq!(Summary::of(&[1.0, 2.0, 3.0, -0.1]), Summary::Noise);
        assert_eq!(Summary::of(&[1.0, f64::NAN, 3.0]), Summary::Noise);
        assert_eq!(Summary::of(&[2.0]).to_string(), "2.00 (1 round)");
    }

    #[test]
    fn what_is_added_is_beyond_the_mean_of_nothing() {
        let time = |rival: &str, each_us| Time { rival: rival.into(), each_us, ..Time::default() };
        let times = vec![
            time(NOTHING, Some(9.0)),
            time("floor", Some(30.0)),
            time("perf", None),
            time(NOTHING, Some(11.0)),
            time("pgleak", Some(40.0)),
        ];
        let round = Round { build: String::new(), load: String::new(), began: 0, conditions: None, times };
        let times = Times::of(&round);
        assert_eq!(times.added_to("pgleak", "floor"), Some(1.5));
        assert_eq!(times.throughput("pgleak"), Some(0.25));
        assert_eq!((times.get("perf"), times.added_to("perf", "floor")), (None, None));
        // Of the processor, where that is known of both.
        let cpu = |rival: &str, each_us, cpu_us| Time {
            rival: rival.into(),
            each_us: Some(each_us),
            cpu_us: Some(cpu_us),
            ..Time::default()
        };
        let times = vec![cpu(NOTHING, 10.0, 6.0), cpu("floor", 31.0, 26.0), cpu("pgleak", 50.0, 30.0)];
        let round = Round { build: String::new(), load: String::new(), began: 0, conditions: None, times };
        let times = Times::of(&round);
        assert_eq!((times.added_to("pgleak", "floor"), times.throughput("pgleak")), (Some(1.2), Some(0.2)));
    }
}
