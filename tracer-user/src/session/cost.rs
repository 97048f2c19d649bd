//! Looks again and again at what recording really costs.

use std::time::{Duration, Instant};

use tracer_ebpf::abi::SiteHits;

use crate::{
    guard::{EventRates, Yardstick, observed_slowdown},
    target::CpuTime,
};

/// How often: less would be too few ticks of the kernel's clock to tell user mode by.
const EVERY: Duration = Duration::from_secs(2);
/// A little above what is allowed is noise; this much, twice in a row, is not.
const TOLERANCE: f64 = 1.5;

/// What was counted up to one moment.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    cpu: CpuTime,
    hits: Vec<SiteHits>,
    timed: u64,
    timed_ns: u64,
}

impl Sample {
    /// `timed` allocations took `timed_ns` to record.
    pub(super) fn new(cpu: CpuTime, hits: Vec<SiteHits>, timed: u64, timed_ns: u64) -> Self {
        Self { cpu, hits, timed, timed_ns }
    }

    fn hits_since(&self, before: &Self) -> Vec<SiteHits> {
        self.hits
            .iter()
            .zip(&before.hits)
            .map(|(now, then)| SiteHits {
                entries: now.entries.saturating_sub(then.entries),
                returns: now.returns.saturating_sub(then.returns),
                unawaited: now.unawaited.saturating_sub(then.unawaited),
            })
            .collect()
    }
}

/// Compares with what is allowed.
#[derive(Debug)]
pub(super) struct CostWatch {
    at: Instant,
    last: Sample,
    yardstick: Yardstick,
    strikes: u32,
}

impl CostWatch {
    /// From now on.
    pub(super) fn new(first: Sample, yardstick: Yardstick) -> Self {
        Self { at: Instant::now(), last: first, yardstick, strikes: 0 }
    }

    /// Whether it is time to look.
    pub(super) fn is_due(&self) -> bool {
        self.at.elapsed() >= EVERY
    }

    /// The slowdown, if it is too high.
    pub(super) fn look(
        &mut self,
        sample: Sample,
        allowed: f64,
        rates: impl FnOnce(&[SiteHits], CpuTime) -> EventRates,
    ) -> Option<f64> {
        let rates = rates(&sample.hits_since(&self.last), sample.cpu.since(self.last.cpu));
        let timed = sample.timed.saturating_sub(self.last.timed);
        let record_ns = match timed {
            0 => self.yardstick.costs.record_ns,
            _ => sample.timed_ns.saturating_sub(self.last.timed_ns) as f64 / timed as f64,
        };
        self.at = Instant::now();
        self.last = sample;
        let slowdown = observed_slowdown(&rates, record_ns, &self.yardstick);
        tracing::debug!(?rates, record_ns, ?slowdown, "cost of recording");
        match slowdown {
            Some(slowdown) if slowdown > allowed * TOLERANCE => self.strikes += 1,
            _ => self.strikes = 0,
        }
        slowdown.filter(|_| self.strikes >= 2)
    }
}
