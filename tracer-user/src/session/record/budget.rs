//! What probes add to the time of a process, and how much they may.
//!
//! That is not what the kernel's clocks say of user mode and kernel mode: a tick that is due while a trap is
//! handled counts as user mode. So the process's speed is measured by what it does: calls of one of the probed
//! functions, the yardstick, are counted for a moment while nothing else is attached.

use std::time::Duration;

use tracer_ebpf::abi::SiteHits;

use crate::{
    guard::ProbeCosts,
    probe::{CostClass, ProbeSite},
};

/// Fewer calls than this say nothing about speed.
const LEAST_CALLS: u64 = 50;
/// What is called less often in a window would not come to that soon.
const CALLS_A_WINDOW: u64 = 10;
/// What speed is told by may itself slow the process down by this part.
const MOST_SLOWED: f64 = 0.15;
/// A trap in a server takes this much longer than in a loop of nothing else: 2.0 us for what takes 1.3.
const IN_PLACE: f64 = 1.5;

/// What was seen of one window.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// CPU time of the processes while recording and while settling.
    pub(super) record_ns: u64,
    pub(super) settle_ns: u64,
    /// Calls while recording, by site.
    pub(super) hits: Vec<SiteHits>,
}

/// Calls of the yardstick without other probes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Speed {
    calls: u64,
    cpu_ns: u64,
}

/// What probes have added, and what they may.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    /// The part of all time that may be added.
    share: f64,
    costs: ProbeCosts,
    /// What each site costs, and whether it allocates.
    sites: Vec<(CostClass, bool)>,
    seen: Vec<Seen>,
    /// The site that speed is told by, and what was seen of it.
    yardstick: Option<usize>,
    /// Whether another one was looked for when the speed was known.
    is_final: bool,
    speed: Speed,
    /// What all measuring has added.
    measuring_ns: f64,
}

impl Budget {
    /// Of so much of all time, for the probes of these sites.
    pub(super) fn new(share: f64, costs: ProbeCosts, sites: &[ProbeSite]) -> Self {
        Self {
            share,
            costs,
            sites: sites.iter().map(|site| (site.cost, site.site.role.is_alloc())).collect(),
            seen: Vec::new(),
            yardstick: None,
            is_final: false,
            speed: Speed::default(),
            measuring_ns: 0.0,
        }
    }

    /// A window is over.
    pub(super) fn add(&mut self, seen: Seen) {
        self.seen.push(seen);
    }

    /// The yardstick was counted: so many calls in so much CPU time.
    pub(super) fn add_speed(&mut self, calls: u64, cpu_ns: u64) {
        self.speed.calls += calls;
        self.speed.cpu_ns += cpu_ns;
        self.measuring_ns += calls as f64 * self.trap_ns(CostClass::Emulated);
    }

    fn trap_ns(&self, cost: CostClass) -> f64 {
        IN_PLACE
            * match cost {
                CostClass::Emulated => self.costs.emulated_ns,
                CostClass::SingleStepped => self.costs.stepped_ns,
            }
    }

    /// What those hits cost by what a probe costs on pgleak itself: those of allocations, and the others.
    fn reckoned_ns(&self, hits: &[SiteHits]) -> [f64; 2] {
        let mut sums = [0.0; 2];
        for (hits, (cost, allocates)) in hits.iter().zip(&self.sites) {
            let (entries, returns) = (hits.entries as f64, hits.returns as f64);
            let each = self.trap_ns(*cost) + if *allocates { self.costs.record_ns } else { 0.0 };
            sums[usize::from(!allocates)] += entries * each + returns * self.costs.return_ns * IN_PLACE;
        }
        sums
    }

    /// CPU time of its own that the process had for what it did while a window was recorded.
    fn own_ns(&self, seen: &Seen) -> f64 {
        let cpu = seen.record_ns as f64;
        let calls = self.yardstick.and_then(|site| seen.hits.get(site)).map_or(0, |hits| hits.entries);
        if let Some(own_per_call) = self.own_per_call() {
            return (calls as f64 * own_per_call).min(cpu);
        }
        // What is reckoned may be too much, and something was its own.
        (cpu - self.reckoned_ns(&seen.hits).iter().sum::<f64>()).max(cpu / 10.0)
    }

    /// The same for all windows.
    pub(super) fn all_own_ns(&self) -> f64 {
        self.seen.iter().map(|seen| self.own_ns(seen)).sum()
    }

    /// What one window has added.
    fn added_by(&self, seen: &Seen) -> f64 {
        let own = self.own_ns(seen);
        let recording = seen.record_ns as f64 - own;
        // While settling there are no probes on allocations.
        let [allocations, others] = self.reckoned_ns(&seen.hits);
        let of_others = others / (allocations + others).max(1.0);
        let per_own = if own > 0.0 { recording * of_others / own } else { 1.0 };
        recording + seen.settle_ns as f64 * per_own / (1.0 + per_own)
    }

    /// What all windows and all measuring have added.
    pub(super) fn added_ns(&self) -> f64 {
        self.seen.iter().map(|seen| self.added_by(seen)).sum::<f64>() + self.measuring_ns
    }

    /// How long after the beginning as much may have been added.
    pub(super) fn earned_after(&self, added_ns: f64) -> Duration {
        Duration::from_nanos((added_ns / self.share) as u64)
    }

    /// Whether as much as this window has added until now may have been added so long after the beginning.
    pub(super) fn affords(&self, seen: &Seen, elapsed: Duration) -> bool {
        self.earned_after(self.added_ns() + self.added_by(seen)) <= elapsed
    }

    /// Whether there is no more room for another window like those before in a capture of that length.
    pub(super) fn is_spent(&self, length: Duration) -> bool {
        let added_ns = self.added_ns();
        self.earned_after(added_ns + added_ns / self.seen.len().max(1) as f64) > length
    }

    /// Calls of a site while recording.
    fn calls(&self, site: usize) -> u64 {
        self.seen.iter().filter_map(|seen| seen.hits.get(site)).map(|hits| hits.entries).sum()
    }

    /// CPU time of its own between two calls of the yardstick, if that is known.
    fn own_per_call(&self) -> Option<f64> {
        if self.speed.calls < LEAST_CALLS {
            return None;
        }
        let hits_ns = self.speed.calls as f64 * self.trap_ns(CostClass::Emulated);
        let cpu_ns = self.speed.cpu_ns as f64;
        Some((cpu_ns - hits_ns).max(cpu_ns / 4.0) / self.speed.calls as f64)
    }

    /// The index of the site whose calls are to be counted next. Of those that are cheap to probe it is first the one
    /// that is called least; when that has said how fast the process is, the one that is called most of those that
    /// hardly slow it down.
    pub(super) fn choose_yardstick(&mut self) -> Option<usize> {
        let enough = self.seen.len().max(1) as u64 * CALLS_A_WINDOW;
        let is_fit = |site: &usize| self.sites[*site].0 == CostClass::Emulated && self.calls(*site) >= enough;
        let sites = (0..self.sites.len()).filter(is_fit);
        let Some(now) = self.yardstick else {
            self.yardstick = sites.min_by_key(|site| self.calls(*site));
            return self.yardstick;
        };
        if let Some(own_per_call) = self.own_per_call().filter(|_| !self.is_final) {
            let trap_ns = self.trap_ns(CostClass::Emulated);
            let slows_by = |site: &usize| {
                let own_ns = own_per_call * self.calls(now) as f64 / self.calls(*site) as f64;
                trap_ns / own_ns
            };
            let better =
                sites.filter(|site| slows_by(site) <= MOST_SLOWED).max_by_key(|site| self.calls(*site));
            self.is_final = true;
            if let Some(better) = better.filter(|better| *better != now) {
                self.yardstick = Some(better);
                self.speed = Speed::default();
            }
        }
        self.yardstick
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sites that are emulated, the last one single-stepped; a trap takes 1.5 us in place.
    fn budget(sites: usize) -> Budget {
        let costs = ProbeCosts { emulated_ns: 1000.0, stepped_ns: 4000.0, return_ns: 1000.0, record_ns: 0.0 };
        let mut budget = Budget::new(0.05, costs, &[]);
        budget.sites = vec![(CostClass::Emulated, false); sites];
        budget.sites.push((CostClass::SingleStepped, true));
        budget
    }

    /// A window of 100 ms in which each site was called so often.
    fn seen(calls: &[u64]) -> Seen {
        let hits = calls.iter().map(|calls| SiteHits { entries: *calls, ..SiteHits::default() }).collect();
        Seen { record_ns: 100_000_000, settle_ns: 0, hits }
    }

    #[test]
    fn the_yardstick_is_called_often_and_slows_little() {
        let mut budget = budget(4);
        assert_eq!(budget.choose_yardstick(), None, "before anything was seen");
        // The last is called most, and is dear.
        budget.add(seen(&[20_000, 3, 400, 90, 40_000]));
        assert_eq!(budget.choose_yardstick(), Some(3), "3 calls are too few");
        budget.add_speed(40, 45_000_000);
        assert_eq!(budget.choose_yardstick(), Some(3), "it has not said yet how fast the process is");
        budget.add_speed(40, 45_000_000);
        // A call of it each 1.1 ms, of the third each 0.25 ms, of the first each 5 us.
        assert_eq!(budget.choose_yardstick(), Some(2));
        assert_eq!(budget.choose_yardstick(), Some(2), "it is looked for once");
        budget.add_speed(400, 100_000_000);
        // 400 calls take 100 ms of its own, and their traps 0.6.
        let own_ms = budget.all_own_ns() / 1e6;
        assert!((99.0..100.0).contains(&own_ms), "{own_ms}");
    }

    #[test]
    fn the_yardstick_stays_where_every_site_slows_more() {
        let mut budget = budget(3);
        budget.add(seen(&[24_000, 110, 0, 0]));
        assert_eq!(budget.choose_yardstick(), Some(1));
        // A call each 4 us: the trap makes a third of it.
        budget.add_speed(20_000, 110_000_000);
        assert_eq!(budget.choose_yardstick(), Some(1), "and not one that is never called");
    }

    #[test]
    fn what_was_added_has_to_be_earned() {
        let mut budget = budget(1);
        budget.add(seen(&[1000, 0]));
        assert_eq!(budget.choose_yardstick(), Some(0));
        // 1000 calls without other probes take 20 ms: 80 of the 100 were added.
        budget.add_speed(1000, 21_500_000);
        let added_ms = budget.added_ns() / 1e6;
        assert!((81.0..82.0).contains(&added_ms), "80, and 1.5 for measuring: {added_ms}");
        assert_eq!(budget.earned_after(50e6), Duration::from_secs(1));
        assert!(!budget.affords(&seen(&[1000, 0]), Duration::from_secs(3)));
        assert!(budget.affords(&seen(&[1000, 0]), Duration::from_secs(4)));
        assert!(budget.is_spent(Duration::from_secs(3)) && !budget.is_spent(Duration::from_secs(4)));
    }
}
