//! Attach, count, record, settle, detach.

use std::{
    os::fd::{AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use tracer_ebpf::{
    abi::{Phase, SiteHits},
    counters::{Class, Counter},
    site::Role,
    unwind::WalkEnd,
};

use super::{CaptureError, Drained, Figures, Interrupts, Prepared, Progress};
use crate::{
    bpf::{Attached, Counters, Probe, RawSnapshot, RawStack, Tracer, take_snapshot},
    guard::{Decision, EventRates, ProbeCosts, Watchdog, decide, expected_slowdown, observed_slowdown},
    profile::EndReason,
    target::{Memory, cpu_time_ns, exe_link, status},
};

/// How often everything is looked at.
const TICK: Duration = Duration::from_millis(50);
/// How long hits are counted before recording.
const COUNT_FOR: Duration = Duration::from_millis(500);
/// Without a sign of life for this long, the programs stop recording.
const DEADLINE: Duration = Duration::from_secs(5);
/// How often the slowdown is looked at while recording.
const LOOK_AT_COST: Duration = Duration::from_secs(1);
/// A little above what is allowed is noise; this much, twice in a row, is not.
const TOLERANCE: f64 = 1.5;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct RecordOptions {
    /// How long to record.
    pub duration: Duration,
    /// How long to settle.
    pub settle: Duration,
    /// The most slowdown.
    pub max_slowdown: f64,
    /// Whatever it costs.
    pub force: bool,
}

/// What came out.
#[derive(Debug)]
pub struct Recording {
    /// What was drained.
    pub drained: Drained,
    /// Wall-clock start of recording.
    pub started: jiff::Timestamp,
    /// How long was recorded.
    pub recorded_for: Duration,
    /// How long was settled.
    pub settled_for: Duration,
    /// Why it ended.
    pub end: EndReason,
    /// CPU time of the process while recording.
    pub cpu_ns: u64,
    /// Its memory when recording began.
    pub memory_start: Option<Memory>,
    /// Its memory when settling ended.
    pub memory_end: Option<Memory>,
    /// What was expected of it.
    pub expected_slowdown: Option<f64>,
    /// What was counted.
    pub counters: Counters,
    /// Hits of each site.
    pub hits: Vec<SiteHits>,
    /// Things that a reader has to know.
    pub notes: Vec<String>,
}

/// Everything that a running capture holds.
pub struct Recorder<'a> {
    prepared: &'a mut Prepared,
    tracer: Tracer,
    attached: Attached,
    watchdog: Watchdog,
    interrupts: Interrupts,
    progress: &'a mut Progress,
    pidfd: OwnedFd,
    costs: ProbeCosts,
    options: RecordOptions,
    stacks: Vec<RawStack>,
    notes: Vec<String>,
}

/// Why a phase ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    TimeOver,
    Interrupted,
    Exited,
    Replaced,
    TooSlow,
}

impl Stop {
    fn reason(self) -> EndReason {
        match self {
            Self::TimeOver => EndReason::Completed,
            Self::Interrupted => EndReason::Interrupted,
            Self::Exited => EndReason::TargetExited,
            Self::Replaced => EndReason::TargetExec,
            Self::TooSlow => EndReason::TooSlow,
        }
    }
}

impl<'a> Recorder<'a> {
    /// Gives the kernel its tables and attaches every probe, switched off.
    ///
    /// # Errors
    /// If the kernel refuses; probes that were set are taken away again.
    pub fn attach(
        prepared: &'a mut Prepared,
        mut tracer: Tracer,
        costs: ProbeCosts,
        interrupts: Interrupts,
        progress: &'a mut Progress,
        options: RecordOptions,
    ) -> Result<Self, CaptureError> {
        let pid = prepared.process.pid;
        let pidfd = prepared.process.open_pidfd()?;
        let watchdog = Watchdog::start().map_err(CaptureError::Watchdog)?;
        prepared.mappings.upload(&tracer)?;
        tracer.watch_process()?;
        let mut attached = Attached::default();
        for site in &prepared.plan.sites {
            let (function, role) = (site.function.name, site.site.role);
            let probe = Probe { function, role, offset: site.offset, cookie: site.site.pack() };
            attached.add(&mut tracer, pid, &exe_link(pid), probe)?;
        }
        // Between the look at the process and the probes, the pid may have become another's.
        if !prepared.process.is_same() || !prepared.binary.is_same(pid) {
            return Err(CaptureError::GoneTooEarly { pid });
        }
        Ok(Self {
            prepared,
            tracer,
            attached,
            watchdog,
            interrupts,
            progress,
            pidfd,
            costs,
            options,
            stacks: Vec::new(),
            notes: Vec::new(),
        })
    }

    /// Counts, records, settles and detaches.
    ///
    /// # Errors
    /// If it would cost too much, if nothing could be recorded, or if the kernel refuses.
    pub async fn run(mut self) -> Result<(Recording, Interrupts), CaptureError> {
        let pid = self.prepared.process.pid;
        let expected_slowdown = self.count().await?;

        let memory_of = || status(pid).ok().and_then(|status| status.memory);
        let memory_start = memory_of();
        let started = jiff::Timestamp::now();
        let cpu_before = cpu_time_ns(pid).unwrap_or(0);
        let record_start = Instant::now();
        let record_start_ns = monotonic_ns();
        self.tracer.control().advance(Phase::Count, Phase::Record);
        let stop = self.phase("recording", self.options.duration, true).await?;
        let recorded_for = record_start.elapsed();
        let cpu_ns = cpu_time_ns(pid).unwrap_or(0).saturating_sub(cpu_before);

        self.tracer.control().advance(Phase::Record, Phase::Settle);
        let recorded = self.snapshot()?;
        let mut end = stop;
        let settle_start = Instant::now();
        let ended = matches!(stop, Stop::Exited | Stop::Replaced | Stop::Interrupted);
        if !ended && !self.options.settle.is_zero() {
            // Nothing new is recorded from here on, so the dearest probes can go.
            let allocations = self.attached.take_role(Role::Alloc);
            let removal = std::thread::spawn(move || allocations.detach_in_order());
            let settled = self.phase("settling", self.options.settle, false).await?;
            if end == Stop::TimeOver {
                end = settled;
            }
            // A panic there has nothing to tell: the links are gone either way.
            let _ = removal.join();
        }
        let memory_end = memory_of();
        let settled_for = if ended { Duration::ZERO } else { settle_start.elapsed() };
        if stop == Stop::Interrupted && !self.options.settle.is_zero() {
            self.notes
                .push("interrupted before settling: what was in flight is among the survivors".to_owned());
        }
        self.progress.end();
        // Probes off, then read: the maps stand still.
        self.tracer.control().advance(Phase::Settle, Phase::Off);
        std::mem::take(&mut self.attached).detach();
        let survived = self.snapshot()?;
        let counters = self.tracer.counters()?;
        let hits = self.tracer.site_hits()?;
        self.check_hits(&hits, cpu_ns)?;
        let exited = matches!(end, Stop::Exited | Stop::Replaced);
        let drained = Drained { stacks: self.stacks, recorded, survived, record_start_ns, exited };
        let recording = Recording {
            drained,
            started,
            recorded_for,
            settled_for,
            end: end.reason(),
            cpu_ns,
            memory_start,
            memory_end,
            expected_slowdown,
            counters,
            hits,
            notes: self.notes,
        };
        Ok((recording, self.interrupts))
    }

    /// Counts hits for a moment and decides whether recording is affordable.
    async fn count(&mut self) -> Result<Option<f64>, CaptureError> {
        let pid = self.prepared.process.pid;
        let before = cpu_time_ns(pid)?;
        self.tracer.control().advance(Phase::Off, Phase::Count);
        match self.phase("counting", COUNT_FOR, false).await? {
            Stop::TimeOver | Stop::TooSlow => {}
            Stop::Interrupted => return Err(CaptureError::InterruptedTooEarly),
            Stop::Exited | Stop::Replaced => return Err(CaptureError::GoneTooEarly { pid }),
        }
        let cpu_ns = cpu_time_ns(pid)?.saturating_sub(before);
        let rates = self.rates(&self.tracer.site_hits()?, cpu_ns);
        let Some(slowdown) = expected_slowdown(&rates, &self.costs) else {
            self.progress
                .say("the process is nearly idle now: its slowdown cannot be foreseen and will be watched");
            return Ok(None);
        };
        let per_second = rates.allocations as f64 / COUNT_FOR.as_secs_f64();
        self.progress.say(&format!(
            "{per_second:.0} allocations a second: while recording, the process will take about {slowdown:.1} times as long for its work; no other process is slowed down"
        ));
        let most = self.options.max_slowdown;
        match decide(slowdown, most, self.options.duration) {
            Decision::Go => {}
            _ if self.options.force => {
                self.progress.say("that is more than --max-slowdown, and --force was given");
            }
            Decision::Shorten(shorter) => {
                let note = format!(
                    "recording was shortened to {:.1} s: it was expected to make the process {slowdown:.0} times slower, and --max-slowdown is {most}",
                    shorter.as_secs_f64()
                );
                self.progress.say(&note);
                self.notes.push(note);
                self.options.duration = shorter;
            }
            Decision::Refuse => return Err(CaptureError::TooSlow { pid, slowdown, most }),
        }
        Ok(Some(slowdown))
    }

    /// Waits until the phase is over, and does meanwhile all that has to be done.
    async fn phase(
        &mut self,
        name: &'static str,
        length: Duration,
        guarded: bool,
    ) -> Result<Stop, CaptureError> {
        self.progress.begin(name, length);
        let end = Instant::now() + length;
        let mut cost = CostWatch::new(self)?;
        loop {
            self.tick()?;
            match self.tracer.control().phase() {
                Some(Phase::Exited) => return Ok(Stop::Exited),
                Some(Phase::Replaced) => return Ok(Stop::Replaced),
                _ if has_ended(&self.pidfd) => return Ok(Stop::Exited),
                _ => {}
            }
            if guarded && cost.is_too_high(self)? {
                return Ok(Stop::TooSlow);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Stop::TimeOver);
            }
            tokio::select! {
                () = tokio::time::sleep(left.min(TICK)) => {}
                () = self.interrupts.requested() => return Ok(Stop::Interrupted),
            }
        }
    }

    fn tick(&mut self) -> Result<(), CaptureError> {
        self.watchdog.beat();
        self.tracer.control().allow_until(monotonic_ns() + DEADLINE.as_nanos() as u64);
        self.drain();
        let counters = self.tracer.counters()?;
        let live = counters.get(Counter::LiveInserted).saturating_sub(counters.get(Counter::LiveRemoved));
        // Dead chunks stay until their address is used again. Half full is early enough.
        if live > u64::from(self.tracer.limits().live) / 2 {
            self.tracer.doom_dead_chunks()?;
        }
        self.progress.update(Figures {
            recorded: counters.get(Counter::Recorded),
            live,
            stacks: counters.get(Counter::StacksNew),
            lost: counters.iter().filter(|(info, _)| info.class == Class::Loss).map(|(_, value)| value).sum(),
        });
        Ok(())
    }

    fn drain(&mut self) {
        let new = self.tracer.new_stacks();
        let unknown = new.iter().any(|stack| stack.end == Some(WalkEnd::UnknownMapping));
        self.stacks.extend(new);
        if unknown {
            self.prepared.mappings.look_again(&self.tracer);
        }
    }

    fn snapshot(&mut self) -> Result<RawSnapshot, CaptureError> {
        let snapshot = take_snapshot(&self.tracer)?;
        // After the maps, so that no chunk in them has a stack that is not here.
        self.drain();
        Ok(snapshot)
    }

    fn rates(&self, hits: &[SiteHits], cpu_ns: u64) -> EventRates {
        let mut rates = EventRates { cpu_ns, ..EventRates::default() };
        for (index, (hits, site)) in hits.iter().zip(&self.prepared.plan.sites).enumerate() {
            if self.prepared.is_emulated(index) {
                rates.emulated += hits.entries;
            } else {
                rates.stepped += hits.entries;
            }
            rates.returns += hits.returns;
            if site.site.role == Role::Alloc {
                rates.allocations += hits.entries;
            }
        }
        rates
    }

    fn check_hits(&mut self, hits: &[SiteHits], cpu_ns: u64) -> Result<(), CaptureError> {
        /// Less CPU time than this is a process that waits: there may be nothing to see.
        const BUSY: Duration = Duration::from_millis(200);
        let entries: u64 = hits.iter().map(|hits| hits.entries).sum();
        if entries > 0 {
            return Ok(());
        }
        if u128::from(cpu_ns) >= BUSY.as_nanos() {
            return Err(CaptureError::NeverHit {
                pid: self.prepared.process.pid,
                cpu_ms: cpu_ns / 1_000_000,
            });
        }
        self.notes.push(
            "the process was idle: it made no call of its allocator, so this says nothing about a leak"
                .to_owned(),
        );
        Ok(())
    }
}

/// Looks once a second at what recording really costs.
struct CostWatch {
    at: Instant,
    cpu_ns: u64,
    hits: Vec<SiteHits>,
    strikes: u32,
}

impl CostWatch {
    fn new(recorder: &Recorder<'_>) -> Result<Self, CaptureError> {
        Ok(Self {
            at: Instant::now(),
            cpu_ns: cpu_time_ns(recorder.prepared.process.pid).unwrap_or(0),
            hits: recorder.tracer.site_hits()?,
            strikes: 0,
        })
    }

    fn is_too_high(&mut self, recorder: &mut Recorder<'_>) -> Result<bool, CaptureError> {
        if recorder.options.force || self.at.elapsed() < LOOK_AT_COST {
            return Ok(false);
        }
        let next = Self { strikes: self.strikes, ..Self::new(recorder)? };
        let since: Vec<SiteHits> = next
            .hits
            .iter()
            .zip(&self.hits)
            .map(|(now, then)| SiteHits {
                entries: now.entries.saturating_sub(then.entries),
                returns: now.returns.saturating_sub(then.returns),
            })
            .collect();
        let rates = recorder.rates(&since, next.cpu_ns.saturating_sub(self.cpu_ns));
        *self = next;
        let most = recorder.options.max_slowdown * TOLERANCE;
        match observed_slowdown(&rates, &recorder.costs) {
            Some(slowdown) if slowdown > most => self.strikes += 1,
            _ => self.strikes = 0,
        }
        if self.strikes < 2 {
            return Ok(false);
        }
        let note = format!(
            "recording ended early: it made the process more than {most:.0} times slower (--max-slowdown {})",
            recorder.options.max_slowdown
        );
        recorder.progress.say(&note);
        recorder.notes.push(note);
        Ok(true)
    }
}

/// `CLOCK_MONOTONIC`, the clock of `bpf_ktime_get_ns`.
fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid buffer; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// Whether the process behind a pidfd has ended.
fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut poll = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid entry.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
}
