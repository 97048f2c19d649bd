//! How much slower the process will be while it is recorded, and whether that is allowed.

use std::time::Duration;

use super::ProbeCosts;
use crate::target::CpuTime;

/// What was counted for a moment, before recording or during it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EventRates {
    /// CPU time that the process used meanwhile, probes included.
    pub cpu: CpuTime,
    /// Hits of probes on emulated instructions.
    pub emulated: u64,
    /// Hits of probes on instructions that are single-stepped.
    pub stepped: u64,
    /// Returns.
    pub returns: u64,
    /// Allocations, of which each will have its stack walked.
    pub allocations: u64,
}

/// What was found out about this machine and this process.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yardstick {
    /// What probes cost here.
    pub costs: ProbeCosts,
    /// CPU time for each part of it in user mode, as the process was before it was touched: what
    /// it does in system calls is its own work too. At least 1.
    pub total_per_user: f64,
}

impl Yardstick {
    /// Less user time than this is too few ticks of the kernel's clock to make a ratio of.
    const LEAST_USER_NS: u64 = 100_000_000;

    /// From what the process used before it was touched. Unless that says enough, all its work is
    /// taken to be in user mode, which makes a slowdown look larger and never smaller.
    pub fn new(costs: ProbeCosts, untouched: CpuTime) -> Self {
        let total_per_user = if untouched.user_ns < Self::LEAST_USER_NS {
            1.0
        } else {
            (untouched.total_ns as f64 / untouched.user_ns as f64).max(1.0)
        };
        Self { costs, total_per_user }
    }
}

/// Fewer hits than this say nothing about the process at work.
const LEAST_HITS: u64 = 200;

/// The least that a server does beside each allocation, in nanoseconds. A loop of nothing but
/// `palloc` and `pfree` does 60 on 6.18 in a virtual machine, `pgbench -S` 270 to 450.
const LEAST_WORK_NS: f64 = 60.0;

/// CPU time that is the process's own, when `overhead_ns` of it is not; `None` if it did too
/// little to tell.
fn own_work_ns(rates: &EventRates, overhead_ns: f64, yardstick: &Yardstick) -> Option<f64> {
    if rates.emulated + rates.stepped < LEAST_HITS {
        return None;
    }
    let cpu = rates.cpu.total_ns as f64;
    let own = if overhead_ns <= cpu / 2.0 {
        cpu - overhead_ns
    } else {
        // The difference of two large numbers says little. Probes run in the kernel, so that what
        // is left in user mode is the process's.
        (rates.cpu.user_ns as f64 * yardstick.total_per_user).min(cpu / 2.0)
    };
    Some(own.max(rates.allocations as f64 * LEAST_WORK_NS).max(1.0))
}

/// How many times slower than without probes the process will be at work, from hits that were
/// counted and not recorded; `None` if it did too little to tell.
pub fn expected_slowdown(rates: &EventRates, yardstick: &Yardstick) -> Option<f64> {
    let traps = trap_ns(rates, &yardstick.costs);
    let work = own_work_ns(rates, traps, yardstick)?;
    // What the traps took is known in sum; if that is less than was reckoned, recording will take
    // less too, since both scale with the machine.
    let taken = (rates.cpu.total_ns as f64 - work).max(0.0);
    let scale = if traps > taken { taken / traps } else { 1.0 };
    let record = rates.allocations as f64 * yardstick.costs.record_ns;
    Some((work + (traps + record) * scale) / work)
}

/// How many times slower the process is while it is recorded: `rates` are of that time, and each
/// recorded allocation took `record_ns` beside its traps.
pub fn observed_slowdown(rates: &EventRates, record_ns: f64, yardstick: &Yardstick) -> Option<f64> {
    let overhead = trap_ns(rates, &yardstick.costs) + rates.allocations as f64 * record_ns;
    let work = own_work_ns(rates, overhead, yardstick)?;
    Some((rates.cpu.total_ns as f64 / work).max(1.0))
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

/// How long a process may be recorded that is slowed down just as much as allowed: the default
/// duration. What a capture costs is slowdown times duration, so one that is slowed twice as much
/// may be recorded half as long.
const AFFORDABLE: Duration = Duration::from_secs(13);

/// Compares with what is allowed.
pub fn decide(slowdown: f64, most: f64, duration: Duration) -> Decision {
    if slowdown <= most {
        return Decision::Go;
    }
    let affordable = AFFORDABLE.mul_f64(most / slowdown);
    if duration <= affordable {
        Decision::Go
    } else if affordable >= SHORTEST {
        Decision::Shorten(affordable)
    } else {
        Decision::Refuse
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COSTS: ProbeCosts =
        ProbeCosts { emulated_ns: 700.0, stepped_ns: 10_000.0, return_ns: 600.0, record_ns: 2200.0 };
    const YARDSTICK: Yardstick = Yardstick { costs: COSTS, total_per_user: 1.6 };

    fn cpu(total_ms: f64, user_ms: f64) -> CpuTime {
        CpuTime { total_ns: (total_ms * 1e6) as u64, user_ns: (user_ms * 1e6) as u64 }
    }

    fn rates(cpu: CpuTime, allocations: u64, others: u64) -> EventRates {
        EventRates { cpu, emulated: allocations + others, stepped: 0, returns: allocations, allocations }
    }

    /// `pgbench -S` on PostgreSQL 15: 1,200 transactions of 221 allocations and 56 other calls in
    /// half a second of counting, 10,500 a second untouched and 1,000 recorded.
    #[test]
    fn a_busy_backend() {
        let counted = rates(cpu(500.0, 66.0), 265_000, 67_000);
        let slowdown = expected_slowdown(&counted, &YARDSTICK).expect("busy");
        assert!((8.0..14.0).contains(&slowdown), "{slowdown}");
        let recorded = rates(cpu(1000.0, 55.0), 221_000, 56_000);
        let slowdown = observed_slowdown(&recorded, 2200.0, &YARDSTICK).expect("busy");
        assert!((8.0..14.0).contains(&slowdown), "{slowdown}");
    }

    /// Measured: 27,000 allocations in 1.65 ms, all in user mode, took 95 times as long with 29
    /// frames above them and 300 times with 124.
    #[test]
    fn a_loop_of_allocations() {
        let all_own = Yardstick { total_per_user: 1.0, ..YARDSTICK };
        // 300 rounds in half a second of counting.
        let once = 1.65 + 27_000.0 * 1300.0 / 1e6;
        let rounds = f64::floor(500.0 / once);
        let counted = rates(cpu(500.0, rounds * 1.65), (rounds * 27_000.0) as u64, 0);
        let expected = expected_slowdown(&counted, &all_own).expect("busy");
        assert!((50.0..100.0).contains(&expected), "{expected}");
        for (record_ns, real) in [(4400.0, 95.0), (17_000.0, 300.0)] {
            let once = 1.65 + 27_000.0 * (1300.0 + record_ns) / 1e6;
            let rounds = 1000.0 / once;
            let recorded = rates(cpu(1000.0, rounds * 1.65), (rounds * 27_000.0) as u64, 0);
            let observed = observed_slowdown(&recorded, record_ns, &all_own).expect("busy");
            assert!((real * 0.8..real * 1.2).contains(&observed), "{observed} instead of {real}");
            // Also when the kernel's clock saw no tick in user mode.
            let unseen = EventRates { cpu: cpu(1000.0, 0.0), ..recorded };
            assert!(observed_slowdown(&unseen, record_ns, &all_own).expect("busy") >= real * 0.8);
        }
    }

    #[test]
    fn an_idle_one_says_nothing() {
        assert_eq!(expected_slowdown(&EventRates::default(), &YARDSTICK), None);
    }

    #[test]
    fn costs_that_were_measured_too_high_do_not_end_a_capture() {
        // More for the traps than the process used in all: a noisy machine.
        let rates = rates(cpu(100.0, 12.0), 200_000, 100_000);
        let slowdown = expected_slowdown(&rates, &YARDSTICK).expect("busy");
        assert!(slowdown < 15.0, "{slowdown}");
    }

    #[test]
    fn work_that_allocates_little_is_not_taken_for_overhead() {
        // A checkpointer: a second of CPU in system calls, a thousand allocations.
        let rates = rates(cpu(1000.0, 10.0), 1000, 500);
        assert!(observed_slowdown(&rates, 2200.0, &YARDSTICK).expect("busy") < 1.01);
        // Single-stepped probes in a tight loop of allocations are seen for what they cost.
        let rates = EventRates {
            cpu: cpu(1000.0, 12.0),
            emulated: 0,
            stepped: 76_000,
            returns: 70_600,
            allocations: 70_600,
        };
        assert!(observed_slowdown(&rates, 2200.0, &YARDSTICK).expect("busy") > 40.0);
    }

    #[test]
    fn the_work_in_system_calls_is_learnt_while_the_process_is_untouched() {
        assert_eq!(Yardstick::new(COSTS, cpu(400.0, 200.0)).total_per_user, 2.0);
        assert_eq!(Yardstick::new(COSTS, cpu(400.0, 50.0)).total_per_user, 1.0, "too few ticks");
    }

    #[test]
    fn too_slow_is_shortened_and_then_refused() {
        let thirteen = Duration::from_secs(13);
        assert_eq!(decide(15.0, 15.0, thirteen), Decision::Go);
        assert_eq!(decide(30.0, 15.0, thirteen), Decision::Shorten(Duration::from_millis(6500)));
        assert_eq!(decide(150.0, 15.0, thirteen), Decision::Refuse);
        // What a long capture would be shortened to can be asked for, too.
        assert_eq!(decide(30.0, 15.0, Duration::from_secs(6)), Decision::Go);
        assert_eq!(decide(30.0, 15.0, Duration::from_secs(60)), Decision::Shorten(thirteen / 2));
        assert_eq!(decide(150.0, 15.0, Duration::from_secs(1)), Decision::Go);
        assert_eq!(decide(1500.0, 15.0, Duration::from_secs(1)), Decision::Refuse);
    }
}
