//! Attach, count, record, settle, detach.

mod afford;
mod budget;
mod clear;
mod windows;

use std::{
    collections::{HashMap, HashSet},
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
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
    CaptureError, Chosen, Cycle, Detaching, Drained, Figures, Filter, Interrupts, LiveFeed, Look, Looks,
    Mapper, Mappings, Overhead, Prepared, Processes, Progress, RecordOptions, Recording, Stretch, Used,
    cost::CostWatch, detach::hand_over, recording::Stop,
};
use crate::{
    addr::AbsAddr,
    bpf::{Attached, ControlPage, Counters, Probe, RawSnapshot, RawStack, Tracer, take_snapshot},
    guard::{Manner, ProbeCosts, Watchdog, Yardstick},
    probe::ProbeSite,
    profile::Windows,
    target::{CpuTime, exe_link},
};

/// Equal parts of the record window: enough to tell a steady leak from a cache that fills, few
/// enough that a slow leak is in each.
pub(super) const SLICES: u64 = 10;

/// Most allocations are of fewer bytes.
const MOST_ARE_SMALLER: u64 = 1024;

/// How often everything is looked at.
const TICK: Duration = Duration::from_millis(50);
/// Without a sign of life for this long, the programs stop recording.
const DEADLINE: Duration = Duration::from_secs(5);

const JIT_ADVICE: &str = "stacks below queries that were compiled at run time end at [jit], since such code has no unwind table in any file: SET jit = off in the session, or ALTER SYSTEM SET jit = off and reload, and capture again to see what called them";

/// How the recording went.
struct Recorded {
    cycles: Vec<Cycle>,
    /// What ended the recording, and what ended everything.
    stop: Stop,
    end: Stop,
    settled_for: Duration,
    /// What the processes had used when recording ended.
    cpu: CpuTime,
    windows: Option<Windows>,
}

/// Everything that a running capture holds.
pub struct Recorder<'a> {
    prepared: &'a mut Prepared,
    tracer: Tracer,
    attached: Attached,
    watchdog: Arc<Watchdog>,
    interrupts: &'a mut Interrupts,
    progress: &'a Progress,
    /// Of the one process of a capture of one.
    pidfd: Option<OwnedFd>,
    yardstick: Yardstick,
    options: RecordOptions,
    processes: Processes,
    mapper: Mapper,
    stacks: Vec<RawStack>,
    /// Bytes allocated and not freed, by stack, at moments while recording.
    held: Vec<(u64, HashMap<u32, u64>)>,
    /// Bytes of used chunks in contexts by their label, at the same moments, where only blocks are traced.
    used: Vec<(u64, Used)>,
    /// Code outside of every known object that was not looked at yet.
    unknown_code: Vec<(u32, AbsAddr)>,
    run_time_code: HashSet<(usize, AbsAddr)>,
    /// Whoever watches, if somebody does.
    live: Option<LiveFeed>,
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
        chosen: Option<(&Chosen, Filter)>,
        costs: ProbeCosts,
        interrupts: &'a mut Interrupts,
        progress: &'a Progress,
        options: RecordOptions,
    ) -> Result<Self, CaptureError> {
        let pid = prepared.process.pid;
        let pidfd = match chosen {
            Some(_) => None,
            None => Some(prepared.process.open_pidfd()?),
        };
        let watchdog = Arc::new(Watchdog::start().map_err(CaptureError::Watchdog)?);
        let mut processes = match chosen {
            None => {
                prepared.mappings.upload(tracer.walks())?;
                Processes::one(prepared, options.show_queries)
            }
            Some((chosen, filter)) => {
                Processes::several(prepared, &mut tracer, chosen, filter, options.show_queries)?
            }
        };
        tracer.watch_process()?;
        let before = processes.first_cpu();
        let untouched = processes.cpu().since(before);
        // Which sizes a process asks for is not known yet; most are small in all that were looked at.
        let selection = tracer.limits().selection;
        let costs = costs.of_a_part(selection.min_size.max(selection.sample) >= MOST_ARE_SMALLER);
        let loads = tracer.take_loads().ok_or(CaptureError::LoadsTaken)?;
        let mappings = std::mem::replace(&mut prepared.mappings, Mappings::none());
        let mapper = Mapper::start(mappings, Arc::clone(tracer.walks()), loads, processes.are_one())
            .map_err(CaptureError::Thread)?;
        let mut recorder = Self {
            prepared,
            tracer,
            attached: Attached::default(),
            watchdog,
            interrupts,
            progress,
            pidfd,
            yardstick: Yardstick::new(costs, untouched),
            options,
            processes,
            mapper,
            stacks: Vec::new(),
            held: Vec::new(),
            used: Vec::new(),
            unknown_code: Vec::new(),
            run_time_code: HashSet::new(),
            live: None,
            notes: Vec::new(),
        };
        if options.overhead == Overhead::Full {
            recorder.set_probes()?;
        }
        // Between the look at the process and the probes, the pid may have become another's.
        if !recorder.prepared.is_there() {
            return Err(CaptureError::GoneTooEarly { pid });
        }
        if recorder.prepared.observed().is_none() {
            recorder.notes.push(
                "the memory contexts of the process cannot be read: their paths and sizes are missing"
                    .to_owned(),
            );
        }
        Ok(recorder)
    }

    /// Tells what is live while it records.
    pub fn tell_live(&mut self, feed: LiveFeed) {
        self.live = Some(feed);
    }

    /// Sets every probe, switched off.
    fn set_probes(&mut self) -> Result<(), CaptureError> {
        let pid = self.prepared.process.pid;
        // Others of the same program hit the probes of several processes, and are passed over.
        let probed = chosen_pid(pid, self.processes.are_one());
        let binary = exe_link(pid);
        for (object, probes) in groups(&self.prepared.plan.sites, &binary) {
            self.watchdog.beat();
            let before = self.attached.len();
            self.attached
                .add_alike(&mut self.tracer, probed, object, &probes)
                .map_err(|error| self.prepared.refused(error))?;
            hand_over(&self.attached, before, &self.watchdog).map_err(CaptureError::Watchdog)?;
        }
        let loader = self.mapper.lock().loader_probe(pid);
        let trouble = match loader {
            Some((loader, offset)) => {
                let before = self.attached.len();
                let set = self.attached.add_loader(&mut self.tracer, probed, &loader, offset);
                hand_over(&self.attached, before, &self.watchdog).map_err(CaptureError::Watchdog)?;
                set.err().map(|error| error.to_string())
            }
            None => Some("the dynamic loader has no _dl_debug_state".to_owned()),
        };
        if let Some(why) = trouble {
            let note = format!("libraries that are loaded while recording are noticed late: {why}");
            if !self.notes.contains(&note) {
                self.notes.push(note);
            }
        }
        // What was loaded before the loader had its probe.
        self.processes.look_at_mappings(&self.mapper, &self.tracer);
        Ok(())
    }

    /// Counts, records, settles and detaches.
    ///
    /// # Errors
    /// If it would cost too much, if nothing could be recorded, or if the kernel refuses.
    pub async fn run(mut self) -> Result<Recording, CaptureError> {
        let pid = self.prepared.process.pid;
        let expected_slowdown = match self.options.overhead {
            Overhead::Full => self.count().await?,
            Overhead::Share(_) => None,
        };
        self.processes.look_at_memory(0);
        let started = jiff::Timestamp::now();
        let cpu_before = self.processes.cpu();
        self.processes.recording_begins();
        let recorded = match self.options.overhead {
            Overhead::Full => self.record_at_once().await?,
            Overhead::Share(share) => self.record_in_windows(share).await?,
        };
        let Recorded { cycles, stop, end, settled_for, cpu, windows } = recorded;
        let cpu_ns = cpu.since(cpu_before).total_ns;
        self.processes.look_at_memory(2);
        if stop == Stop::Interrupted && settled_for.is_zero() && !self.options.settle.is_zero() {
            self.notes
                .push("interrupted before settling: what was in flight is among the survivors".to_owned());
        }
        self.processes.look_a_last_time(&self.tracer);
        let foreign = if self.processes.are_one() { None } else { Some(self.tracer.foreign_processes()?) };
        let counters = self.tracer.counters()?;
        let hits = self.tracer.site_hits()?;
        self.sort_unknown_code();
        self.prepared.mappings = self.mapper.end();
        let detaching = Detaching::start(self.attached, self.watchdog, Manner::Together);
        check_hits(pid, &hits, cpu_ns, self.prepared.has_contexts(), &mut self.notes)?;
        let exited = matches!(end, Stop::Exited | Stop::Replaced);
        if !self.run_time_code.is_empty() {
            self.notes.push(JIT_ADVICE.to_owned());
        }
        let described = self.processes.described(&cycles);
        let memory = described.numbers.iter().filter_map(|number| self.processes.traced.get(number));
        let memory = memory.map(|traced| traced.memory).collect();
        let (processes, queries) = self.processes.watched(&described.numbers);
        let drained = Drained {
            stacks: self.stacks,
            cycles,
            exited,
            run_time_code: self.run_time_code,
            block_makers: self.prepared.block_makers(),
            processes,
            queries,
            only_blocks: self.options.only_blocks,
            used: self.used,
            held: self.held,
            samples: self.tracer.limits().selection.is_sampled(),
        };
        Ok(Recording {
            recorded_for: Duration::from_nanos(drained.timeline().length_ns()),
            drained,
            started,
            settled_for,
            end: end.reason(),
            cpu_ns,
            memory,
            described,
            foreign,
            expected_slowdown,
            windows,
            counters,
            hits,
            notes: self.notes,
            detaching,
        })
    }

    /// Records everything for as long as was asked for, and settles.
    async fn record_at_once(&mut self) -> Result<Recorded, CaptureError> {
        let start = Instant::now();
        let start_ns = monotonic_ns();
        self.tracer.control().advance(Phase::Count, Phase::Record);
        tracing::debug!("recording begins");
        // While everything is recorded, so that what is allocated meanwhile is known.
        self.look(|looks| &mut looks.before);
        let stop = self.record(start, start_ns).await?;
        let recorded_for = start.elapsed();
        tracing::debug!("recording has ended");
        let cpu = self.processes.cpu();
        if stop == Stop::MapFull {
            self.say_that_it_was_full(recorded_for);
        }

        // Likewise.
        self.look(|looks| &mut looks.recorded);
        self.processes.look_at_memory(1);
        let recorded = self.begin_settling()?;
        self.processes.recording_has_ended();
        self.walk_chunks(|looks| &mut looks.recorded, &recorded);
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
        let settled_for = if ended { Duration::ZERO } else { settle_start.elapsed() };
        self.progress.end();
        self.look(|looks| &mut looks.survived);
        // Programs off, then read: the maps stand still, and the process has not to wait for us
        // to be rid of its probes.
        self.tracer.control().advance(Phase::Settle, Phase::Off);
        self.watchdog.beat();
        let survived = self.snapshot()?;
        self.walk_chunks(|looks| &mut looks.survived, &survived);
        let length_ns = recorded_for.as_nanos() as u64;
        let stretch = Stretch { start_ns, length_ns, stands_for_ns: length_ns };
        let cycles = vec![Cycle { stretch, recorded, survived }];
        Ok(Recorded { cycles, stop, end, settled_for, cpu, windows: None })
    }

    /// Records nothing new from here on; what was there then.
    fn begin_settling(&mut self) -> Result<RawSnapshot, CaptureError> {
        self.tracer.control().advance(Phase::Record, Phase::Settle);
        self.watchdog.beat();
        self.snapshot()
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

    /// A phase that is shown.
    async fn phase(
        &mut self,
        name: &'static str,
        length: Duration,
        guarded: bool,
    ) -> Result<Stop, CaptureError> {
        self.progress.begin(name, length);
        self.wait(length, guarded).await
    }

    /// Waits, and does meanwhile all that has to be done.
    async fn wait(&mut self, length: Duration, guarded: bool) -> Result<Stop, CaptureError> {
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
                _ if self.pidfd.as_ref().is_some_and(has_ended) => return Ok(Stop::Exited),
                _ if !self.processes.are_one() && !self.processes.are_there() => return Ok(Stop::Exited),
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
        self.allow();
        self.drain();
        self.processes.follow_births_and_ends(self.prepared, &self.mapper, &self.tracer)?;
        let counters = self.tracer.counters()?;
        if self.tracer.control().phase() == Some(Phase::Record) {
            let now = monotonic_ns();
            self.processes.look_at_statements(now);
            // Twice in each slice.
            let due = self.options.duration.as_nanos() as u64 / (2 * SLICES);
            if self.held.last().is_none_or(|(last, _)| now - last >= due) {
                self.held.push((now, self.tracer.held_by_stack()?));
                if self.options.only_blocks {
                    let (watchdog, control) = (&self.watchdog, self.tracer.control());
                    let used = self.processes.used_by_label(|| {
                        watchdog.beat();
                        allow(control);
                    });
                    self.used.push((now, used));
                }
            }
        }
        self.look_at_what_is_live();
        // Dead chunks stay until their address is used again.
        let watchdog = &self.watchdog;
        self.tracer.sweep_when_filling(&|control| {
            watchdog.beat();
            allow(control);
        })?;
        self.progress.update(Figures {
            recorded: counters.get(Counter::Recorded),
            records: self.tracer.records(),
            stacks: counters.get(Counter::StacksNew),
            lost: counters.iter().filter(|(info, _)| info.class == Class::Loss).map(|(_, value)| value).sum(),
        });
        Ok(counters)
    }

    /// Tells what is live while everything is recorded. Windows are short, and told at their end.
    fn look_at_what_is_live(&mut self) {
        let records = self.tracer.control().phase() == Some(Phase::Record);
        let is_wanted = records && self.options.overhead == Overhead::Full;
        if is_wanted && self.live.as_ref().is_some_and(LiveFeed::is_due) {
            let begun = Instant::now();
            match self.snapshot() {
                Ok(snapshot) => self.say_what_is_live(&snapshot, begun),
                // The recording is worth more than a look at it.
                Err(error) => {
                    tracing::debug!("what is live is told no more: {error}");
                    self.live = None;
                }
            }
        }
    }

    fn say_what_is_live(&mut self, snapshot: &RawSnapshot, begun: Instant) {
        if let Some(live) = &mut self.live {
            live.look(snapshot, &self.stacks, begun);
        }
    }

    /// Lets the programs record for some seconds more.
    fn allow(&self) {
        allow(self.tracer.control());
    }

    fn drain(&mut self) {
        let new = self.tracer.new_stacks();
        let cut = new.iter().filter(|stack| stack.end == Some(WalkEnd::UnknownMapping));
        self.unknown_code.extend(cut.filter_map(|stack| Some((stack.mapset, *stack.frames.last()?))));
        self.stacks.extend(new);
        if let Some((mapset, _)) = self.unknown_code.last().copied()
            && self.look_again(mapset)
        {
            self.sort_unknown_code();
        }
    }

    /// Reads mappings again because a stack led to unknown code, which it does not all the time.
    fn look_again(&mut self, mapset: u32) -> bool {
        let mut seen = self.tracer.processes().all().filter(|seen| seen.is_followed());
        let Some(seen) = seen.find(|seen| seen.mapset == mapset) else { return false };
        if !self.mapper.lock().is_due() {
            return false;
        }
        self.mapper.look_at(&seen);
        true
    }

    /// Tells code that was made at run time from libraries that were loaded meanwhile.
    fn sort_unknown_code(&mut self) {
        let mappings = self.mapper.lock();
        let of_space = self.unknown_code.drain(..).map(|(mapset, address)| (mappings.space(mapset), address));
        self.run_time_code
            .extend(of_space.filter(|(space, address)| mappings.is_run_time_code(*space, *address)));
    }

    /// Reads the contexts of those processes that can be read.
    fn look(&mut self, moment: impl Fn(&mut Looks) -> &mut Option<Look>) {
        self.processes.look_at_contexts(moment, monotonic_ns, || self.watchdog.beat());
        self.watchdog.beat();
    }

    fn walk_chunks(&mut self, moment: impl Fn(&mut Looks) -> &mut Option<Look>, snapshot: &RawSnapshot) {
        self.watchdog.beat();
        self.processes.walk_chunks(moment, snapshot, || self.watchdog.beat());
    }

    fn snapshot(&mut self) -> Result<RawSnapshot, CaptureError> {
        let begun = Instant::now();
        let snapshot = take_snapshot(&self.tracer, &self.processes.gone(), &|| {
            self.watchdog.beat();
            self.allow();
        })?;
        tracing::debug!("{} records drained in {:?}", snapshot.records, begun.elapsed());
        // After the maps, so that no chunk in them has a stack that is not here.
        self.drain();
        Ok(snapshot)
    }
}

/// Lets the programs record for some seconds more.
fn allow(control: &ControlPage) {
    control.allow_until(monotonic_ns() + DEADLINE.as_nanos() as u64);
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

/// Probes of one file with the same programs, which can be set together.
fn groups<'a>(sites: &'a [ProbeSite], binary: &'a Path) -> Vec<(&'a Path, Vec<Probe<'a>>)> {
    let mut groups: Vec<(&Path, Vec<Probe<'_>>)> = Vec::new();
    for site in sites {
        let object = site.library.as_ref().map_or(binary, |library| &*library.link);
        let probe = Probe::of(site);
        let is_alike = |(path, probes): &&mut (&Path, Vec<Probe<'_>>)| {
            *path == object && probes.first().is_some_and(|first| first.programs() == probe.programs())
        };
        match groups.iter_mut().find(is_alike) {
            Some((_, probes)) => probes.push(probe),
            None => groups.push((object, vec![probe])),
        }
    }
    groups
}

/// Whose calls probes are for: of one process, or of all that run its program.
fn chosen_pid(pid: u32, is_one: bool) -> Option<u32> {
    is_one.then_some(pid)
}

/// Whether the process behind a pidfd has ended.
fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut poll = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid entry.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
}
