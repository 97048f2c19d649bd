//! Attach, count, record, settle, detach.

mod afford;
mod clear;

use std::{
    collections::{HashMap, HashSet},
    os::fd::{AsRawFd as _, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::io::{Interest, unix::AsyncFd};
use tracer_ebpf::{
    abi::Phase,
    counters::{Class, Counter},
    unwind::WalkEnd,
};

use self::{afford::check_hits, clear::is_clear};
use super::{
    Activity, CaptureError, Detaching, Drained, Figures, Interrupts, Look, Looks, Prepared, Progress,
    RecordOptions, Recording, cost::CostWatch, detach::hand_over, recording::Stop,
};
use crate::{
    addr::AbsAddr,
    bpf::{Attached, Counters, Probe, RawSnapshot, RawStack, Tracer, take_snapshot},
    census::Observed,
    guard::{Manner, ProbeCosts, Watchdog, Yardstick},
    target::{cpu_time, exe_link, status},
};

/// Equal parts of the record window: enough to tell a steady leak from a cache that fills, few
/// enough that a slow leak is in each.
pub(super) const SLICES: u64 = 10;

/// How often everything is looked at.
const TICK: Duration = Duration::from_millis(50);
/// Without a sign of life for this long, the programs stop recording.
const DEADLINE: Duration = Duration::from_secs(5);

const JIT_ADVICE: &str = "stacks below queries that were compiled at run time end at [jit], since such code has no unwind table in any file: SET jit = off in the session, or ALTER SYSTEM SET jit = off and reload, and capture again to see what called them";

/// Everything that a running capture holds.
pub struct Recorder<'a> {
    prepared: &'a mut Prepared,
    tracer: Tracer,
    attached: Attached,
    watchdog: Arc<Watchdog>,
    interrupts: &'a mut Interrupts,
    progress: &'a Progress,
    pidfd: OwnedFd,
    yardstick: Yardstick,
    options: RecordOptions,
    observed: Option<Observed>,
    activity: Activity,
    stacks: Vec<RawStack>,
    /// Bytes allocated and not freed, by stack, at moments while recording.
    held: Vec<(u64, HashMap<u32, u64>)>,
    /// Code outside of every known object that was not looked at yet.
    unknown_code: Vec<AbsAddr>,
    run_time_code: HashSet<AbsAddr>,
    /// What the dynamic loader has loaded up to here is known.
    loads: u32,
    notes: Vec<String>,
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
        interrupts: &'a mut Interrupts,
        progress: &'a Progress,
        options: RecordOptions,
    ) -> Result<Self, CaptureError> {
        let pid = prepared.process.pid;
        let pidfd = prepared.process.open_pidfd()?;
        let watchdog = Arc::new(Watchdog::start().map_err(CaptureError::Watchdog)?);
        prepared.mappings.upload(&tracer)?;
        tracer.watch_process()?;
        let untouched = cpu_time(pid).map(|now| now.since(prepared.cpu)).unwrap_or_default();
        let mut attached = Attached::default();
        let binary = exe_link(pid);
        for site in &prepared.plan.sites {
            watchdog.beat();
            // The kernel's word for a process that ended meanwhile is ENOENT, of all things.
            let before = attached.len();
            let object = site.library.as_ref().map_or(&*binary, |library| &*library.link);
            attached.add(&mut tracer, pid, object, Probe::of(site)).map_err(|error| {
                if prepared.is_there() { error.into() } else { CaptureError::GoneTooEarly { pid } }
            })?;
            hand_over(&attached, before, &watchdog).map_err(CaptureError::Watchdog)?;
        }
        let mut notes = Vec::new();
        match prepared.mappings.loader_probe(pid) {
            Some((loader, offset)) => {
                let before = attached.len();
                if let Err(error) = attached.add_loader(&mut tracer, pid, &loader, offset) {
                    notes.push(format!("libraries that are loaded while recording are noticed late: {error}"));
                }
                hand_over(&attached, before, &watchdog).map_err(CaptureError::Watchdog)?;
            }
            None => notes.push(
                "libraries that are loaded while recording are noticed late: the dynamic loader has no _dl_debug_state"
                    .to_owned(),
            ),
        }
        // What was loaded before the loader had its probe.
        prepared.mappings.look_now(&tracer);
        // Between the look at the process and the probes, the pid may have become another's.
        if !prepared.is_there() {
            return Err(CaptureError::GoneTooEarly { pid });
        }
        let observed = prepared.observed();
        let activity = Activity::of(prepared, options.show_queries);
        if observed.is_none() {
            notes.push(
                "the memory contexts of the process cannot be read: their paths and sizes are missing"
                    .to_owned(),
            );
        }
        Ok(Self {
            prepared,
            tracer,
            attached,
            watchdog,
            interrupts,
            progress,
            pidfd,
            yardstick: Yardstick::new(costs, untouched),
            options,
            observed,
            activity,
            stacks: Vec::new(),
            held: Vec::new(),
            unknown_code: Vec::new(),
            run_time_code: HashSet::new(),
            loads: 0,
            notes,
        })
    }

    /// Counts, records, settles and detaches.
    ///
    /// # Errors
    /// If it would cost too much, if nothing could be recorded, or if the kernel refuses.
    pub async fn run(mut self) -> Result<Recording, CaptureError> {
        let pid = self.prepared.process.pid;
        let expected_slowdown = self.count().await?;

        let memory_of = || status(pid).ok().and_then(|status| status.memory);
        let memory_start = memory_of();
        let started = jiff::Timestamp::now();
        let cpu_before = cpu_time(pid).unwrap_or_default();
        let record_start = Instant::now();
        let record_start_ns = monotonic_ns();
        self.tracer.control().advance(Phase::Count, Phase::Record);
        // While everything is recorded, so that what is allocated meanwhile is known.
        let mut looks = Looks { before: self.look(), ..Looks::default() };
        self.watchdog.beat();
        let stop = self.record(record_start, record_start_ns).await?;
        let recorded_for = record_start.elapsed();
        let cpu_ns = cpu_time(pid).unwrap_or_default().since(cpu_before).total_ns;
        if stop == Stop::MapFull {
            self.say_that_it_was_full(recorded_for);
        }

        // Likewise.
        looks.recorded = self.look();
        let memory_recorded = memory_of();
        self.tracer.control().advance(Phase::Record, Phase::Settle);
        self.watchdog.beat();
        let recorded = self.snapshot()?;
        self.walk_chunks(looks.recorded.as_mut(), looks.before.as_ref(), &recorded);
        let mut end = stop;
        let settle_start = Instant::now();
        let ended = matches!(stop, Stop::Exited | Stop::Replaced | Stop::Interrupted);
        if !ended && !self.options.settle.is_zero() {
            // Nothing new is recorded from here on, so the dearest probes can go.
            let allocations = self.attached.take_allocations();
            let removal = Detaching::start(allocations, Arc::clone(&self.watchdog), Manner::OneByOne);
            let settled = self.phase("settling", self.options.settle, false).await?;
            // Whatever ended the recording, a process that is gone has taken its chunks with it.
            if end == Stop::TimeOver || matches!(settled, Stop::Exited | Stop::Replaced) {
                end = settled;
            }
            drop(removal);
        }
        let memory_end = memory_of();
        let settled_for = if ended { Duration::ZERO } else { settle_start.elapsed() };
        if stop == Stop::Interrupted && !self.options.settle.is_zero() {
            self.notes
                .push("interrupted before settling: what was in flight is among the survivors".to_owned());
        }
        self.progress.end();
        looks.survived = self.look();
        self.watchdog.beat();
        // Programs off, then read: the maps stand still, and the process has not to wait for us
        // to be rid of its probes.
        self.tracer.control().advance(Phase::Settle, Phase::Off);
        self.watchdog.beat();
        let survived = self.snapshot()?;
        self.walk_chunks(looks.survived.as_mut(), looks.before.as_ref(), &survived);
        let counters = self.tracer.counters()?;
        let hits = self.tracer.site_hits()?;
        self.sort_unknown_code();
        let detaching = Detaching::start(self.attached, self.watchdog, Manner::Together);
        check_hits(pid, &hits, cpu_ns, self.prepared.has_contexts(), &mut self.notes)?;
        let exited = matches!(end, Stop::Exited | Stop::Replaced);
        if !self.run_time_code.is_empty() {
            self.notes.push(JIT_ADVICE.to_owned());
        }
        let drained = Drained {
            stacks: self.stacks,
            recorded,
            survived,
            record_start_ns,
            exited,
            run_time_code: self.run_time_code,
            block_makers: self.prepared.block_makers(),
            looks,
            history: self.activity.end(),
            held: self.held,
        };
        Ok(Recording {
            drained,
            started,
            recorded_for,
            settled_for,
            end: end.reason(),
            cpu_ns,
            memory_start,
            memory_recorded,
            memory_end,
            expected_slowdown,
            counters,
            hits,
            notes: self.notes,
            detaching,
        })
    }

    /// Records for as long as was asked for, and on until it is clear how the process grows if that
    /// was.
    async fn record(&mut self, start: Instant, start_ns: u64) -> Result<Stop, CaptureError> {
        let mut next = self.options.duration;
        loop {
            let stop = self.phase("recording", next, true).await?;
            let left = self.options.longest.unwrap_or_default().saturating_sub(start.elapsed());
            if stop != Stop::TimeOver
                || left.is_zero()
                || is_clear(&self.snapshot()?, start_ns, start.elapsed().as_nanos() as u64)
            {
                return Ok(stop);
            }
            self.progress.say("it is not clear yet how the process grows: recording goes on");
            next = left.min(self.options.duration);
        }
    }

    fn say_and_note(&mut self, note: String) {
        self.progress.say(&note);
        self.notes.push(note);
    }

    fn say_that_it_was_full(&mut self, after: Duration) {
        self.say_and_note(format!(
            "recording ended early, after {:.1} s: the kernel maps were full. Give more with --map-memory, or record for a shorter time",
            after.as_secs_f64()
        ));
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
        let mut cost = CostWatch::new(self.sample()?, self.yardstick);
        let ring = self.tracer.ring_fd().map_err(CaptureError::Ring)?;
        // SAFETY: an owned descriptor, always the same one, that is closed with the registration.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
            .map_err(|error| CaptureError::Ring(error.into()))?;
        let mut next_tick = Instant::now();
        loop {
            if Instant::now() < next_tick {
                // Between two ticks: stacks, and above all libraries that the process waits for.
                self.drain();
            } else {
                next_tick += TICK;
                let counters = self.tick()?;
                // What is allocated from here on is missing, so that a leak would look like a cache.
                if guarded && is_full(&counters) {
                    return Ok(Stop::MapFull);
                }
            }
            match self.tracer.control().phase() {
                Some(Phase::Exited) => return Ok(Stop::Exited),
                Some(Phase::Replaced) => return Ok(Stop::Replaced),
                _ if has_ended(&self.pidfd) => return Ok(Stop::Exited),
                _ => {}
            }
            if guarded && self.is_too_slow(&mut cost)? {
                return Ok(Stop::TooSlow);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Stop::TimeOver);
            }
            let wait = next_tick.saturating_duration_since(Instant::now()).min(left);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                ready = ring.readable() => ready.map_err(CaptureError::Ring)?.clear_ready(),
                () = self.interrupts.requested() => return Ok(Stop::Interrupted),
            }
        }
    }

    fn tick(&mut self) -> Result<Counters, CaptureError> {
        self.watchdog.beat();
        self.tracer.control().allow_until(monotonic_ns() + DEADLINE.as_nanos() as u64);
        self.drain();
        let counters = self.tracer.counters()?;
        let live = counters.get(Counter::LiveInserted).saturating_sub(counters.get(Counter::LiveRemoved));
        if self.tracer.control().phase() == Some(Phase::Record) {
            let now = monotonic_ns();
            self.activity.look(now);
            // Twice in each slice.
            let due = self.options.duration.as_nanos() as u64 / (2 * SLICES);
            if self.held.last().is_none_or(|(last, _)| now - last >= due) {
                self.held.push((now, self.tracer.held_by_stack()?));
            }
        }
        // Dead chunks stay until their address is used again.
        self.tracer.sweep_when_filling(live)?;
        self.progress.update(Figures {
            recorded: counters.get(Counter::Recorded),
            live,
            stacks: counters.get(Counter::StacksNew),
            lost: counters.iter().filter(|(info, _)| info.class == Class::Loss).map(|(_, value)| value).sum(),
        });
        Ok(counters)
    }

    fn drain(&mut self) {
        let loads = self.tracer.control().loads();
        if loads != self.loads {
            self.loads = loads;
            self.prepared.mappings.look_now(&self.tracer);
            self.tracer.control().loads_are_known(loads);
        }
        let new = self.tracer.new_stacks();
        let cut = new.iter().filter(|stack| stack.end == Some(WalkEnd::UnknownMapping));
        self.unknown_code.extend(cut.filter_map(|stack| stack.frames.last()));
        self.stacks.extend(new);
        if !self.unknown_code.is_empty() && self.prepared.mappings.look_again(&self.tracer) {
            self.sort_unknown_code();
        }
    }

    /// Tells code that was made at run time from libraries that were loaded meanwhile.
    fn sort_unknown_code(&mut self) {
        let made = |address: &AbsAddr| self.prepared.mappings.is_run_time_code(*address);
        self.run_time_code.extend(self.unknown_code.drain(..).filter(made));
    }

    /// The contexts as they are now, if the process can be read.
    fn look(&self) -> Option<Look> {
        Look::take(self.observed.as_ref(), monotonic_ns())
    }

    fn walk_chunks(&self, look: Option<&mut Look>, before: Option<&Look>, snapshot: &RawSnapshot) {
        if let (Some(look), Some(observed)) = (look, &self.observed) {
            self.watchdog.beat();
            look.walk_chunks(observed, before, snapshot);
            self.watchdog.beat();
        }
    }

    fn snapshot(&mut self) -> Result<RawSnapshot, CaptureError> {
        let snapshot = take_snapshot(&self.tracer)?;
        // After the maps, so that no chunk in them has a stack that is not here.
        self.drain();
        Ok(snapshot)
    }
}

/// Whether something was not recorded for want of room.
fn is_full(counters: &Counters) -> bool {
    [Counter::LiveFull, Counter::ContextsFull, Counter::StacksFull]
        .into_iter()
        .any(|counter| counters.get(counter) > 0)
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
