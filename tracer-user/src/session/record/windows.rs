//! Recording in windows: attach, record, settle, take every probe away, and again, as far as the budget goes.
//!
//! What probes add is not what the kernel's clocks say of user mode and kernel mode: a tick that is due while a
//! trap is handled counts as user mode. So the process's speed is measured by what it does: of the probed functions
//! the one that is called least, and often enough, is counted for a moment while nothing else is attached.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tracer_ebpf::{
    abi::{Phase, SiteHits},
    site::Role,
};

use super::{Recorded, Recorder, Stop, chosen_pid, hand_over, monotonic_ns};
use crate::{
    bpf::{Attached, Probe},
    guard::{Manner, ProbeCosts},
    probe::CostClass,
    profile::Windows,
    session::{CaptureError, Cycle, Detaching, Stretch},
    target::exe_link,
};

/// How long the speed without probes is measured before each window.
const MEASURE: Duration = Duration::from_millis(100);
/// A pause is longer by up to this part of it, by chance.
const JITTER: f64 = 0.5;
/// Fewer calls than this say nothing about speed.
const LEAST_CALLS: u64 = 50;
/// What speed is told by may itself slow the process down by this part.
const MOST_SLOWED: f64 = 0.15;
/// A trap in a server takes this much longer than in a loop of nothing else: 2.0 us for what takes 1.3.
const IN_PLACE: f64 = 1.5;

/// What was seen of one window.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// CPU time of the processes while recording and while settling.
    record_ns: u64,
    settle_ns: u64,
    /// Calls while recording, by site.
    hits: Vec<SiteHits>,
}

/// Calls of one site without other probes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Speed {
    calls: u64,
    cpu_ns: u64,
}

/// What probes have added, and what they may.
#[derive(Clone, Debug)]
struct Budget {
    /// The part of all time that may be added.
    share: f64,
    costs: ProbeCosts,
    /// What each site costs, and whether it allocates.
    sites: Vec<(CostClass, bool)>,
    seen: Vec<Seen>,
    /// The site that speed is told by, and what was seen of it.
    yardstick: Option<usize>,
    is_final: bool,
    speed: Speed,
    /// What all measuring has added.
    measuring_ns: f64,
}

impl Budget {
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

    fn added_ns(&self) -> f64 {
        self.seen.iter().map(|seen| self.added_by(seen)).sum::<f64>() + self.measuring_ns
    }

    /// How long after the beginning as much may have been added.
    fn earned_after(&self, added_ns: f64) -> Duration {
        Duration::from_nanos((added_ns / self.share) as u64)
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

    /// Chooses the site that speed is told by: first the one that is called least; when that has said how fast the
    /// process is, the one that is called most of those that hardly slow it down.
    fn choose_yardstick(&mut self) {
        let is_cheap = |site: &usize| self.sites[*site].0 == CostClass::Emulated;
        let sites = (0..self.sites.len()).filter(is_cheap);
        let Some(now) = self.yardstick else {
            let is_called = |site: &usize| self.calls(*site) >= self.seen.len() as u64 * 3;
            self.yardstick = sites.filter(is_called).min_by_key(|site| self.calls(*site));
            return;
        };
        let Some(own_per_call) = self.own_per_call().filter(|_| !self.is_final) else { return };
        let trap_ns = self.trap_ns(CostClass::Emulated);
        let slows_by = |site: &usize| {
            let own_ns = own_per_call * self.calls(now) as f64 / self.calls(*site).max(1) as f64;
            trap_ns / own_ns
        };
        let better = sites.filter(|site| slows_by(site) <= MOST_SLOWED).max_by_key(|site| self.calls(*site));
        self.is_final = true;
        if let Some(better) = better.filter(|better| *better != now) {
            self.yardstick = Some(better);
            self.speed = Speed::default();
        }
    }
}

impl Recorder<'_> {
    /// Records for as long as was asked for, in windows that add no more than `share` of the time.
    pub(super) async fn record_in_windows(&mut self, share: f64) -> Result<Recorded, CaptureError> {
        let begun = Instant::now();
        let sites = self.prepared.plan.sites.iter();
        let mut budget = Budget {
            share,
            costs: self.yardstick.costs,
            sites: sites.map(|site| (site.cost, site.site.role.is_alloc())).collect(),
            seen: Vec::new(),
            yardstick: None,
            is_final: false,
            speed: Speed::default(),
            measuring_ns: 0.0,
        };
        let (length, settle) = (self.options.duration, self.options.settle);
        let record = self.options.overhead.window(length);
        let cpu_before = self.processes.cpu();
        self.progress.begin("recording in windows", length);
        self.look(|looks| &mut looks.before);
        let (mut cycles, mut gone): (Vec<Cycle>, u64) = (Vec::new(), 0);
        let mut settled_for = Duration::ZERO;
        let mut removal: Option<Detaching> = None;
        let end = loop {
            // The probes of the last window have to be gone before their numbers are used again.
            drop(removal.take());
            match self.measure_speed(&mut budget).await {
                Ok(()) => {}
                // What was recorded of it until then is there.
                Err(CaptureError::GoneTooEarly { .. }) => break Stop::Exited,
                Err(error) => return Err(error),
            }
            if let Some(last) = cycles.last_mut() {
                gone += self.drop_gone(std::slice::from_mut(last), false);
            }
            self.cleared += self.tracer.clear_chunks()?;
            match self.set_probes() {
                Ok(()) => {}
                Err(CaptureError::GoneTooEarly { .. }) if !cycles.is_empty() => break Stop::Exited,
                Err(error) => return Err(error),
            }
            let (cpu, hits) = (self.processes.cpu(), self.tracer.site_hits()?);
            let start_ns = monotonic_ns();
            self.allow();
            self.tracer.control().advance(Phase::Off, Phase::Record);
            let mut seen = Seen::default();
            let stop = loop {
                let stop = self.wait(record, true).await?;
                seen.record_ns = self.processes.cpu().since(cpu).total_ns;
                seen.hits = since(&self.tracer.site_hits()?, &hits);
                let left = length.saturating_sub(begun.elapsed());
                let added = budget.added_ns() + budget.added_by(&seen);
                let is_affordable = budget.earned_after(added) <= begun.elapsed();
                if stop != Stop::TimeOver || !is_affordable || left < record + settle {
                    break stop;
                }
            };
            let length_ns = monotonic_ns() - start_ns;
            let (cpu, settle_start) = (self.processes.cpu(), Instant::now());
            let recorded = self.begin_settling()?;
            let is_over = matches!(stop, Stop::Exited | Stop::Replaced);
            let settled = if is_over { stop } else { self.wait(settle, false).await? };
            self.tracer.control().advance(Phase::Settle, Phase::Off);
            removal = Some(self.take_probes());
            settled_for += settle_start.elapsed();
            seen.settle_ns = self.processes.cpu().since(cpu).total_ns;
            let survived = self.snapshot()?;
            budget.seen.push(seen);
            let stretch = Stretch { start_ns, length_ns, stands_for_ns: 0 };
            cycles.push(Cycle { stretch, recorded, survived });
            if let Some(early) = [stop, settled].into_iter().find(|stop| *stop != Stop::TimeOver) {
                break early;
            }
            // Some more by chance, lest windows fall in with what the process does at regular times.
            let earned = budget.earned_after(budget.added_ns()).saturating_sub(begun.elapsed());
            let pause = earned + earned.mul_f64(JITTER * fastrand::f64());
            let left = length.saturating_sub(begun.elapsed());
            // What another window adds must be earned until the end.
            let each = budget.added_ns() / budget.seen.len() as f64;
            let is_last = budget.earned_after(budget.added_ns() + each) > length
                || left < pause + MEASURE + record + settle;
            let paused = self.wait(if is_last { left } else { pause }, false).await?;
            if is_last || paused != Stop::TimeOver {
                break paused;
            }
        };
        drop(removal);
        // The last window's speed, too.
        if end == Stop::TimeOver {
            match self.measure_speed(&mut budget).await {
                Ok(()) | Err(CaptureError::GoneTooEarly { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        self.progress.end();
        // What was freed between two windows is not known.
        if cycles.len() > 1 {
            self.held.clear();
        }
        let wall_ns = begun.elapsed().as_nanos() as u64;
        let cpu = self.processes.cpu();
        let all_own = (cpu.since(cpu_before).total_ns as f64 - budget.added_ns()).max(1.0);
        let own: Vec<f64> = budget.seen.iter().map(|seen| budget.own_ns(seen)).collect();
        let work = match &cycles[..] {
            // Without a pause, all of it but for what came while probes were set.
            [one] => one.stretch.length_ns as f64 / wall_ns.max(1) as f64,
            _ => own.iter().sum::<f64>() / all_own,
        };
        let work = work.min(1.0);
        stand_for(&mut cycles, work * wall_ns as f64);
        self.look(|looks| &mut looks.recorded);
        self.processes.look_at_memory(1);
        self.processes.recording_has_ended();
        self.look(|looks| &mut looks.survived);
        if let Some(last) = cycles.last_mut() {
            gone += self.drop_gone(std::slice::from_mut(last), false);
        }
        gone += self.drop_gone(&mut cycles, true);
        let windows = Windows {
            count: cycles.len() as u64,
            wall_ns,
            record_ns: cycles.iter().map(|cycle| cycle.stretch.length_ns).sum(),
            work,
            allowed: share,
            added: budget.added_ns() / wall_ns.max(1) as f64,
            gone,
        };
        tracing::debug!(yardstick = ?budget.yardstick, speed = ?budget.speed, "windows");
        Ok(Recorded { cycles, stop: end, end, settled_for, cpu, windows: Some(windows) })
    }

    fn drop_gone(&self, cycles: &mut [Cycle], of_long_life: bool) -> u64 {
        self.processes.drop_gone(cycles, of_long_life, || self.watchdog.beat())
    }

    /// Counts calls of one function for a moment, with no other probe.
    async fn measure_speed(&mut self, budget: &mut Budget) -> Result<(), CaptureError> {
        budget.choose_yardstick();
        let Some(index) = budget.yardstick else { return Ok(()) };
        let pid = self.prepared.process.pid;
        let site = &self.prepared.plan.sites[index];
        let path = site.library.as_ref().map_or_else(|| exe_link(pid), |library| library.link.clone());
        // Its entry is all that is counted, whatever it does.
        let probe = Probe { role: Role::Free, is_outside: false, ..Probe::of(site) };
        let probed = chosen_pid(pid, self.processes.are_one());
        self.attached.add(&mut self.tracer, probed, &path, probe).map_err(|error| {
            if self.prepared.is_there() { error.into() } else { CaptureError::GoneTooEarly { pid } }
        })?;
        hand_over(&self.attached, 0, &self.watchdog).map_err(CaptureError::Watchdog)?;
        let (cpu, hits) = (self.processes.cpu(), self.tracer.site_hits()?);
        self.tracer.control().advance(Phase::Off, Phase::Count);
        let _ = self.wait(MEASURE, false).await?;
        self.tracer.control().advance(Phase::Count, Phase::Off);
        let seen = since(&self.tracer.site_hits()?, &hits);
        budget.speed.cpu_ns += self.processes.cpu().since(cpu).total_ns;
        let calls = seen.get(index).map_or(0, |hits| hits.entries);
        budget.speed.calls += calls;
        budget.measuring_ns += calls as f64 * budget.trap_ns(CostClass::Emulated);
        drop(self.take_probes());
        Ok(())
    }

    /// Takes every probe away, while something else goes on.
    fn take_probes(&mut self) -> Detaching {
        let attached: Attached = std::mem::take(&mut self.attached);
        Detaching::start(attached, Arc::clone(&self.watchdog), Manner::Together)
    }
}

fn since(now: &[SiteHits], before: &[SiteHits]) -> Vec<SiteHits> {
    let minus = |(now, before): (&SiteHits, &SiteHits)| SiteHits {
        entries: now.entries.saturating_sub(before.entries),
        returns: now.returns.saturating_sub(before.returns),
    };
    now.iter().zip(before).map(minus).collect()
}

/// Each stretch for its part of what all of them stand for.
fn stand_for(cycles: &mut [Cycle], all_ns: f64) {
    let length: u64 = cycles.iter().map(|cycle| cycle.stretch.length_ns).sum();
    for cycle in cycles {
        let part = cycle.stretch.length_ns as f64 / length.max(1) as f64;
        cycle.stretch.stands_for_ns = ((all_ns * part) as u64).max(1);
    }
}
