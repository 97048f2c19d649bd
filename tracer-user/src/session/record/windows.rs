//! Recording in windows: attach, record, settle, take every probe away, and again, as far as the budget goes.

use std::{
    slice,
    sync::Arc,
    time::{Duration, Instant},
};

use tracer_ebpf::{
    abi::{Phase, SiteHits},
    site::Role,
};

use super::{
    Recorded, Recorder, Stop,
    budget::{Budget, Seen},
    chosen_pid, hand_over, monotonic_ns,
};
use crate::{
    bpf::{Attached, Probe},
    guard::Manner,
    profile::Windows,
    session::{CaptureError, Cycle, Detaching, Stretch},
    target::exe_link,
};

/// How long the speed without probes is measured before each window.
const MEASURE: Duration = Duration::from_millis(100);
/// A pause is longer by up to this part of it, by chance.
const JITTER: f64 = 0.5;

/// Windows until now.
struct Course {
    begun: Instant,
    /// Of all together, of one window, and of its settling.
    length: Duration,
    record: Duration,
    settle: Duration,
    budget: Budget,
    cycles: Vec<Cycle>,
    /// Survivors of a window that have gone since.
    gone: u64,
    settled_for: Duration,
    /// The probes of the last window, on their way out.
    removal: Option<Detaching>,
}

impl Course {
    fn left(&self) -> Duration {
        self.length.saturating_sub(self.begun.elapsed())
    }

    /// A pause until what was added is earned, and some more by chance, lest windows fall in with what the process
    /// does at regular times; and whether the capture is over with it.
    fn next_pause(&self) -> (Duration, bool) {
        let earned = self.budget.earned_after(self.budget.added_ns()).saturating_sub(self.begun.elapsed());
        let pause = earned + earned.mul_f64(JITTER * fastrand::f64());
        let left = self.left();
        let is_last = self.budget.is_spent(self.length) || left < pause + MEASURE + self.record + self.settle;
        (if is_last { left } else { pause }, is_last)
    }

    /// The part of all of the process's work that was recorded.
    fn work(&self, cpu_ns: u64, wall_ns: u64) -> f64 {
        let work = match &self.cycles[..] {
            // Without a pause, all of it but for what came while probes were set.
            [one] => one.stretch.length_ns as f64 / wall_ns.max(1) as f64,
            _ => self.budget.all_own_ns() / (cpu_ns as f64 - self.budget.added_ns()).max(1.0),
        };
        work.min(1.0)
    }
}

impl Recorder<'_> {
    /// Records for as long as was asked for, in windows that add no more than `share` of the time.
    pub(super) async fn record_in_windows(&mut self, share: f64) -> Result<Recorded, CaptureError> {
        let length = self.options.duration;
        let mut course = Course {
            begun: Instant::now(),
            length,
            record: self.options.overhead.window(length),
            settle: self.options.settle,
            budget: Budget::new(share, self.yardstick.costs, &self.prepared.plan.sites),
            cycles: Vec::new(),
            gone: 0,
            settled_for: Duration::ZERO,
            removal: None,
        };
        let cpu_before = self.processes.cpu();
        self.progress.begin("recording in windows", length);
        self.look(|looks| &mut looks.before);
        let end = loop {
            match self.window_and_pause(&mut course).await {
                Ok(None) => {}
                Ok(Some(end)) => break end,
                // What was recorded of it until then is there.
                Err(CaptureError::GoneTooEarly { .. }) if !course.cycles.is_empty() => break Stop::Exited,
                Err(error) => return Err(error),
            }
        };
        drop(course.removal.take());
        // The last window's speed, too.
        if end == Stop::TimeOver {
            match self.measure_speed(&mut course.budget).await {
                Ok(_) | Err(CaptureError::GoneTooEarly { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        self.progress.end();
        // What was freed between two windows is not known.
        if course.cycles.len() > 1 {
            self.held.clear();
        }
        let wall_ns = course.begun.elapsed().as_nanos() as u64;
        let cpu = self.processes.cpu();
        let work = course.work(cpu.since(cpu_before).total_ns, wall_ns);
        stand_for(&mut course.cycles, work * wall_ns as f64);
        self.look(|looks| &mut looks.recorded);
        self.processes.look_at_memory(1);
        self.processes.recording_has_ended();
        self.look(|looks| &mut looks.survived);
        self.drop_gone_of_last(&mut course);
        course.gone += self.drop_gone(&mut course.cycles, true);
        let Course { budget, cycles, gone, settled_for, .. } = course;
        let windows = Windows {
            count: cycles.len() as u64,
            wall_ns,
            record_ns: cycles.iter().map(|cycle| cycle.stretch.length_ns).sum(),
            work,
            allowed: share,
            added: budget.added_ns() / wall_ns.max(1) as f64,
            gone,
        };
        tracing::debug!(?budget, "windows");
        Ok(Recorded { cycles, stop: end, end, settled_for, cpu, windows: Some(windows) })
    }

    /// One window and the pause after it; what ended the capture, if something did.
    async fn window_and_pause(&mut self, course: &mut Course) -> Result<Option<Stop>, CaptureError> {
        // The probes of the last window have to be gone before their numbers are used again.
        drop(course.removal.take());
        let measured = self.measure_speed(&mut course.budget).await?;
        if measured != Stop::TimeOver {
            return Ok(Some(measured));
        }
        self.drop_gone_of_last(course);
        self.tracer.clear_chunks()?;
        self.set_probes()?;
        let stop = self.window(course).await?;
        if stop != Stop::TimeOver {
            return Ok(Some(stop));
        }
        let (pause, is_last) = course.next_pause();
        let paused = self.wait(pause, false).await?;
        Ok((is_last || paused != Stop::TimeOver).then_some(paused))
    }

    /// Records, on while that is affordable, settles, and takes the probes away; what ended it.
    async fn window(&mut self, course: &mut Course) -> Result<Stop, CaptureError> {
        let (cpu, hits) = (self.processes.cpu(), self.tracer.site_hits()?);
        let start_ns = monotonic_ns();
        self.allow();
        self.tracer.control().advance(Phase::Off, Phase::Record);
        let mut seen = Seen::default();
        let stop = loop {
            let stop = self.wait(course.record, true).await?;
            seen.record_ns = self.processes.cpu().since(cpu).total_ns;
            seen.hits = since(&self.tracer.site_hits()?, &hits);
            let has_time = course.left() >= course.record + course.settle;
            if stop != Stop::TimeOver || !has_time || !course.budget.affords(&seen, course.begun.elapsed()) {
                break stop;
            }
        };
        let length_ns = monotonic_ns() - start_ns;
        let (cpu, settle_start) = (self.processes.cpu(), Instant::now());
        let recorded = self.begin_settling()?;
        let is_over = matches!(stop, Stop::Exited | Stop::Replaced);
        let settled = if is_over { stop } else { self.wait(course.settle, false).await? };
        self.tracer.control().advance(Phase::Settle, Phase::Off);
        course.removal = Some(self.take_probes());
        course.settled_for += settle_start.elapsed();
        seen.settle_ns = self.processes.cpu().since(cpu).total_ns;
        course.budget.add(seen);
        let survived = self.snapshot()?;
        self.say_what_is_live(&survived, Instant::now());
        let stretch = Stretch { start_ns, length_ns, stands_for_ns: 0 };
        course.cycles.push(Cycle { stretch, recorded, survived });
        Ok(if stop == Stop::TimeOver { settled } else { stop })
    }

    /// Forgets survivors of the last window that have gone since.
    fn drop_gone_of_last(&self, course: &mut Course) {
        if let Some(last) = course.cycles.last_mut() {
            course.gone += self.drop_gone(slice::from_mut(last), false);
        }
    }

    fn drop_gone(&self, cycles: &mut [Cycle], of_long_life: bool) -> u64 {
        self.processes.drop_gone(cycles, of_long_life, || self.watchdog.beat())
    }

    /// Counts calls of one function for a moment, with no other probe; what ended that.
    async fn measure_speed(&mut self, budget: &mut Budget) -> Result<Stop, CaptureError> {
        let Some(index) = budget.choose_yardstick() else { return Ok(Stop::TimeOver) };
        let pid = self.prepared.process.pid;
        let site = &self.prepared.plan.sites[index];
        let path = site.library.as_ref().map_or_else(|| exe_link(pid), |library| library.link.clone());
        // Its entry is all that is counted, whatever it does.
        let probe = Probe { role: Role::Free, is_outside: false, ..Probe::of(site) };
        let probed = chosen_pid(pid, self.processes.are_one());
        self.attached
            .add(&mut self.tracer, probed, &path, probe)
            .map_err(|error| self.prepared.refused(error))?;
        hand_over(&self.attached, 0, &self.watchdog).map_err(CaptureError::Watchdog)?;
        let (cpu, hits) = (self.processes.cpu(), self.tracer.site_hits()?);
        self.tracer.control().advance(Phase::Off, Phase::Count);
        let stop = self.wait(MEASURE, false).await?;
        self.tracer.control().advance(Phase::Count, Phase::Off);
        let seen = since(&self.tracer.site_hits()?, &hits);
        let cpu_ns = self.processes.cpu().since(cpu).total_ns;
        budget.add_speed(seen.get(index).map_or(0, |hits| hits.entries), cpu_ns);
        drop(self.take_probes());
        Ok(stop)
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
        unawaited: now.unawaited.saturating_sub(before.unawaited),
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
