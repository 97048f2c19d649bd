//! Ratios within a round, and their intervals over rounds.

use std::collections::BTreeMap;

use statrs::distribution::{ContinuousCDF as _, StudentsT};

use crate::{
    rivals::{FLOOR, NOTHING},
    rounds::Round,
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

/// Microseconds of a transaction in one round, by rival.
pub(crate) struct Times(BTreeMap<String, f64>);

impl Times {
    pub(crate) fn of(round: &Round) -> Self {
        let mut all: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for time in &round.times {
            all.entry(time.rival.clone()).or_default().push(time.each_us);
        }
        Self(
            all.into_iter()
                .map(|(rival, times)| (rival, times.iter().sum::<f64>() / times.len() as f64))
                .collect(),
        )
    }

    pub(crate) fn get(&self, rival: &str) -> Option<f64> {
        self.0.get(rival).copied()
    }

    /// What a rival adds to a transaction.
    pub(crate) fn added(&self, rival: &str) -> Option<f64> {
        Some(self.get(rival)? - self.get(NOTHING)?)
    }

    /// The same as a part of what another one adds.
    pub(crate) fn added_to(&self, rival: &str, other: &str) -> Option<f64> {
        Some(self.added(rival)? / self.added(other)?)
    }

    pub(crate) fn added_to_floor(&self, rival: &str) -> Option<f64> {
        self.added_to(rival, FLOOR)
    }

    /// Throughput beside that without anything.
    pub(crate) fn throughput(&self, rival: &str) -> Option<f64> {
        Some(self.get(NOTHING)? / self.get(rival)?)
    }
}
