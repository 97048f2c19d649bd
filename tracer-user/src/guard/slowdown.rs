//! How much slower the process will be while it is recorded, and whether that is allowed.

use std::time::Duration;

use super::ProbeCosts;

/// What was counted in a moment before recording.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EventRates {
    /// CPU time that the process used meanwhile, probes included.
    pub cpu_ns: u64,
    /// Hits of probes on emulated instructions.
    pub emulated: u64,
    /// Hits of probes on instructions that are single-stepped.
    pub stepped: u64,
    /// Returns.
    pub returns: u64,
    /// Allocations, of which each will have its stack walked.
    pub allocations: u64,
}

/// Fewer hits than this say nothing about the process at work.
const LEAST_HITS: u64 = 200;

/// The least that PostgreSQL does beside each allocation, in nanoseconds: `pgbench -S`, its
/// busiest, does 450 (10,000 transactions of 221 allocations a second). What is left after the
/// traps is the difference of two large numbers, and a divisor near zero would call any busy
/// process too slow.
const LEAST_WORK_NS: f64 = 300.0;

/// CPU time that is the process's own, when `overhead_ns` of it is not; `None` if it did too
/// little to tell.
fn own_work_ns(rates: &EventRates, overhead_ns: f64) -> Option<f64> {
    if rates.emulated + rates.stepped < LEAST_HITS {
        return None;
    }
    Some((rates.cpu_ns as f64 - overhead_ns).max(rates.allocations as f64 * LEAST_WORK_NS).max(1.0))
}

fn record_ns(rates: &EventRates, costs: &ProbeCosts) -> f64 {
    rates.allocations as f64 * costs.record_ns
}

/// How many times slower than without probes the process will be at work, from hits that were
/// counted and not recorded; `None` if it did too little to tell.
pub fn expected_slowdown(rates: &EventRates, costs: &ProbeCosts) -> Option<f64> {
    let traps = trap_ns(rates, costs);
    let work = own_work_ns(rates, traps)?;
    Some((work + traps + record_ns(rates, costs)) / work)
}

/// How many times slower the process is while it is recorded: `rates` are of that time.
pub fn observed_slowdown(rates: &EventRates, costs: &ProbeCosts) -> Option<f64> {
    let work = own_work_ns(rates, trap_ns(rates, costs) + record_ns(rates, costs))?;
    Some(rates.cpu_ns as f64 / work)
}

fn trap_ns(rates: &EventRates, costs: &ProbeCosts) -> f64 {
    rates.emulated as f64 * costs.emulated_ns
        + rates.stepped as f64 * costs.stepped_ns
        + rates.returns as f64 * costs.return_ns
}

/// What to do with a capture that will slow its process down.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decision {
    /// It may run as asked.
    Go,
    /// It may run for this long.
    Shorten(Duration),
    /// It may not run.
    Refuse,
}

/// The shortest capture that is worth its probes.
const SHORTEST: Duration = Duration::from_secs(2);

/// Compares with what is allowed: what a capture costs is slowdown times duration, so a process
/// that would be slowed twice as much as allowed is recorded half as long, down to two seconds.
pub fn decide(slowdown: f64, most: f64, duration: Duration) -> Decision {
    if slowdown <= most {
        return Decision::Go;
    }
    let shorter = duration.mul_f64(most / slowdown);
    if shorter >= SHORTEST.min(duration) { Decision::Shorten(shorter) } else { Decision::Refuse }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COSTS: ProbeCosts =
        ProbeCosts { emulated_ns: 700.0, stepped_ns: 10_000.0, return_ns: 600.0, record_ns: 2500.0 };

    #[test]
    fn a_busy_backend() {
        // 0.5 s: 200,000 allocations and 100,000 other hits take 0.33 s of traps, which leaves
        // 850 ns for each allocation.
        let rates = EventRates {
            cpu_ns: 500_000_000,
            emulated: 300_000,
            stepped: 0,
            returns: 200_000,
            allocations: 200_000,
        };
        let slowdown = expected_slowdown(&rates, &COSTS).expect("busy");
        assert!((slowdown - (1.0 + (1650.0 + 2500.0) / 850.0)).abs() < 0.01, "{slowdown}");
    }

    #[test]
    fn an_idle_one_says_nothing() {
        assert_eq!(expected_slowdown(&EventRates::default(), &COSTS), None);
    }

    #[test]
    fn what_is_seen_agrees_with_what_was_expected() {
        let before = EventRates {
            cpu_ns: 500_000_000,
            emulated: 300_000,
            stepped: 0,
            returns: 200_000,
            allocations: 200_000,
        };
        // The same work while recording takes half a second more.
        let during = EventRates { cpu_ns: 1_000_000_000, ..before };
        let expected = expected_slowdown(&before, &COSTS).expect("busy");
        let observed = observed_slowdown(&during, &COSTS).expect("busy");
        assert!((expected - observed).abs() < 0.01, "{expected} {observed}");
    }

    #[test]
    fn costs_that_were_measured_too_high_do_not_end_a_capture() {
        // More for the traps than the process used in all: a noisy machine.
        let rates = EventRates {
            cpu_ns: 100_000_000,
            emulated: 300_000,
            stepped: 0,
            returns: 200_000,
            allocations: 200_000,
        };
        let slowdown = expected_slowdown(&rates, &COSTS).expect("busy");
        assert!(slowdown < 15.0, "{slowdown}");
    }

    #[test]
    fn work_that_allocates_little_is_not_taken_for_overhead() {
        // A checkpointer: a second of CPU, a thousand allocations.
        let rates = EventRates {
            cpu_ns: 1_000_000_000,
            emulated: 1500,
            stepped: 0,
            returns: 1000,
            allocations: 1000,
        };
        assert!(observed_slowdown(&rates, &COSTS).expect("busy") < 1.01);
        // Single-stepped probes in a tight loop of allocations are seen for what they cost.
        let rates = EventRates {
            cpu_ns: 1_000_000_000,
            emulated: 0,
            stepped: 76_000,
            returns: 70_600,
            allocations: 70_600,
        };
        assert!(observed_slowdown(&rates, &COSTS).expect("busy") > 40.0);
    }

    #[test]
    fn too_slow_is_shortened_and_then_refused() {
        let thirteen = Duration::from_secs(13);
        assert_eq!(decide(15.0, 15.0, thirteen), Decision::Go);
        assert_eq!(decide(30.0, 15.0, thirteen), Decision::Shorten(Duration::from_millis(6500)));
        assert_eq!(decide(150.0, 15.0, thirteen), Decision::Refuse);
        assert_eq!(decide(150.0, 15.0, Duration::from_secs(1)), Decision::Refuse);
    }
}
