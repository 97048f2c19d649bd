//! The processes of a capture, from the first look at them to their end.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use tracer_ebpf::abi::{Family, ProcessState};

use super::{
    Activity, CaptureError, Cycle, History, Look, Looks, Mapper, Prepared, Used, Watched,
    mappings::ONLY_PROCESS,
    scope::{Chosen, Filter, ScopeError, application_name, is_settled, leader_pid},
    used_by_label,
};
use crate::{
    addr::Bias,
    bpf::{ProcessTable, RawSnapshot, SeenProcess, Tracer},
    census::{self, Observed},
    probe::exported_variable,
    profile::{EndedProcesses, Query, TracedProcess},
    target::{
        Binary, CpuTime, Memory, POSTMASTER, ProcessId, ProcessMemory, ReadMemory as _, Title, command_line,
        cpu_time, parse_title, stat, status,
    },
};

/// What every child of a postmaster has inherited from it: when it was started, in microseconds.
const START_TIME: &str = "PgStartTime";
/// A new process whose title does not say for so long what it is, is judged by what it says.
const UNSETTLED: Duration = Duration::from_secs(2);
/// What has ended is swept out this often.
const PURGE_EVERY: Duration = Duration::from_millis(500);
/// The kind of a process that had its postmaster's title until it ended.
const STARTING: &str = "starting";
/// Added to the kind of a process that ended before its application was asked for, if that is a condition.
const UNKNOWN_APPLICATION: &str = ", application unknown";
/// Statements of so many processes are looked at twenty times a second; of more, each less often.
const ACTIVITIES_A_TICK: usize = 64;

/// A process that is traced.
#[derive(Debug)]
pub struct Traced {
    /// Which.
    pub process: ProcessId,
    /// Its title, and the same in parts.
    pub title_text: String,
    title: Title,
    application: Option<String>,
    /// Its contexts before, between and after.
    pub looks: Looks,
    /// Its memory when recording began, when it ended, and at the end.
    pub memory: [Option<Memory>; 3],
    /// When it was born (`CLOCK_MONOTONIC`), if the capture was there before it.
    pub born_ns: Option<u64>,
    observed: Option<Observed>,
    activity: Activity,
    cpu: CpuTime,
    recorded: (u64, u64),
    has_ended: bool,
}

/// A process that was born while the capture ran, and has not said yet what it is.
#[derive(Debug)]
struct Undecided {
    since: Instant,
    process: ProcessId,
}

/// All of them, by their number.
#[derive(Debug)]
pub struct Processes {
    /// Those that are recorded, or were.
    pub traced: BTreeMap<u32, Traced>,
    filter: Filter,
    /// Postmasters whose new children are asked for.
    families: Vec<ProcessId>,
    undecided: BTreeMap<u32, Undecided>,
    /// Numbers of processes that are not wanted, and are there.
    left_out: HashSet<u32>,
    /// Numbers whose records are still to be swept out.
    to_purge: HashSet<u32>,
    purged_at: Instant,
    ended: BTreeMap<String, EndedProcesses>,
    show_queries: bool,
    is_one: bool,
    looked_until: u32,
    /// When recording began, in ticks since the host did.
    recording_since: Option<u64>,
    has_recorded: bool,
    /// CPU time of those that are no longer in the list.
    cpu_of_ended: CpuTime,
}

impl Processes {
    /// The one process of a capture of one.
    pub fn one(prepared: &Prepared, show_queries: bool) -> Self {
        let mut processes = Self::none(Filter::default(), show_queries, true);
        let traced = Traced {
            process: prepared.process,
            title_text: prepared.title_text.clone(),
            title: prepared.title.clone(),
            application: None,
            looks: Looks::default(),
            memory: [None; 3],
            born_ns: None,
            observed: prepared.observed(),
            activity: Activity::of(prepared, prepared.process.pid, prepared.bias, show_queries),
            cpu: prepared.cpu,
            recorded: (0, 0),
            has_ended: false,
        };
        processes.traced.insert(ONLY_PROCESS, traced);
        processes
    }

    fn none(filter: Filter, show_queries: bool, is_one: bool) -> Self {
        Self {
            traced: BTreeMap::new(),
            filter,
            families: Vec::new(),
            undecided: BTreeMap::new(),
            left_out: HashSet::new(),
            to_purge: HashSet::new(),
            purged_at: Instant::now(),
            ended: BTreeMap::new(),
            show_queries,
            is_one,
            looked_until: 0,
            recording_since: None,
            has_recorded: false,
            cpu_of_ended: CpuTime::default(),
        }
    }

    /// Tells the programs which processes are meant, those that are there and those to come.
    ///
    /// # Errors
    /// If they do not run one program, or the kernel refuses.
    pub fn several(
        prepared: &mut Prepared,
        tracer: &mut Tracer,
        chosen: &Chosen,
        filter: Filter,
        show_queries: bool,
    ) -> Result<Self, CaptureError> {
        let mut processes = Self::none(filter, show_queries, false);
        // The first space is that of the process that was looked at.
        let walks = Arc::clone(tracer.walks());
        let first = prepared.mappings.set_of(&walks, prepared.process.pid)?;
        prepared.mappings.keep(first);
        for pid in &chosen.postmasters {
            let postmaster = ProcessId::of(*pid)?;
            same_program(prepared, *pid)?;
            let mapset = prepared.mappings.set_of(&walks, *pid)?;
            prepared.mappings.keep(mapset);
            let bias = prepared.mappings.main_bias(mapset);
            let no_family = |why: &str| ScopeError::NoFamily { pid: *pid, why: why.to_owned() };
            let variable = exported_variable(&prepared.image, START_TIME)
                .ok_or_else(|| no_family("its program exports no PgStartTime"))?
                .in_process(bias);
            let value =
                ProcessMemory::new(*pid).word(variable).map_err(|error| no_family(&error.to_string()))?;
            if value == 0 {
                return Err(no_family("it is just starting").into());
            }
            // Where a server writes titles over its arguments (`src/backend/utils/misc/ps_status.c`).
            let title_address = stat(*pid)?.arguments_at.unwrap_or(0);
            let family = Family { address: variable.0, value, mapset: mapset.into(), title_address };
            if !tracer.follow_children(family) {
                return Err(ScopeError::TooManyServers.into());
            }
            processes.families.push(postmaster);
        }
        for pid in &chosen.pids {
            same_program(prepared, *pid)?;
            match processes.add(prepared, tracer, *pid) {
                Ok(()) => {}
                // One of many may end meanwhile.
                Err(CaptureError::Process(error))
                    if chosen.pids.len() > 1 || !processes.families.is_empty() =>
                {
                    tracing::debug!("process {pid} is left out: {error}");
                }
                Err(error) => return Err(error),
            }
        }
        for pid in &chosen.left_out {
            if let Some(number) = tracer.follow(*pid, first)? {
                tracer.processes().advance(number, ProcessState::Followed, ProcessState::LeftOut);
                processes.left_out.insert(number);
            }
        }
        Ok(processes)
    }

    fn add(&mut self, prepared: &mut Prepared, tracer: &Tracer, pid: u32) -> Result<(), CaptureError> {
        let process = ProcessId::of(pid)?;
        let cpu = cpu_time(pid)?;
        let mapset = prepared.mappings.set_of(tracer.walks(), pid)?;
        let Some(number) = tracer.follow(pid, mapset)? else {
            return Err(ScopeError::TooMany { count: self.traced.len() }.into());
        };
        let traced = self.traced(prepared, process, prepared.mappings.main_bias(mapset), cpu, None);
        self.traced.insert(number, traced);
        Ok(())
    }

    fn traced(
        &self,
        prepared: &Prepared,
        process: ProcessId,
        bias: Bias,
        cpu: CpuTime,
        born_ns: Option<u64>,
    ) -> Traced {
        let pid = process.pid;
        let title_text = command_line(pid).unwrap_or_default();
        Traced {
            process,
            title: parse_title(&title_text),
            title_text,
            application: application_name(pid, &prepared.image, bias),
            looks: Looks { before: born_ns.map(Look::of_nothing), ..Looks::default() },
            memory: [None; 3],
            born_ns,
            observed: prepared.observed_in(process, bias),
            activity: Activity::of(prepared, pid, bias, self.show_queries),
            cpu,
            recorded: (0, 0),
            has_ended: false,
        }
    }

    /// Whether there is one process only, by its pid.
    pub fn are_one(&self) -> bool {
        self.is_one
    }

    /// Those that are there.
    fn alive(&mut self) -> impl Iterator<Item = (&u32, &mut Traced)> {
        self.traced.iter_mut().filter(|(_, traced)| !traced.has_ended)
    }

    /// Whether something is still there, or may still come.
    pub fn are_there(&self) -> bool {
        self.traced.values().any(|traced| !traced.has_ended)
            || !self.undecided.is_empty()
            || self.families.iter().any(|family| family.is_same())
    }

    /// Numbers whose records count no more.
    pub fn gone(&self) -> HashSet<u32> {
        let ended = self.traced.iter().filter(|(_, traced)| traced.has_ended && !self.is_one);
        ended
            .map(|(number, _)| *number)
            .chain(self.left_out.iter().chain(&self.to_purge).copied())
            .chain(self.undecided.keys().copied())
            .collect()
    }

    /// CPU time of all of them, of those that have ended as it was last seen.
    pub fn cpu(&mut self) -> CpuTime {
        let mut sum = self.cpu_of_ended;
        for traced in self.traced.values_mut() {
            if !traced.has_ended {
                traced.cpu = cpu_time(traced.process.pid).unwrap_or(traced.cpu);
            }
            sum += traced.cpu;
        }
        sum
    }

    /// CPU time of all of them when they were first looked at.
    pub fn first_cpu(&self) -> CpuTime {
        let mut sum = CpuTime::default();
        self.traced.values().for_each(|traced| sum += traced.cpu);
        sum
    }

    /// Reads the mappings of all that are there: what was loaded before the loader had its probe.
    pub fn look_at_mappings(&mut self, mapper: &Mapper, tracer: &Tracer) {
        let numbers: Vec<u32> = self.alive().map(|(number, _)| *number).collect();
        for seen in numbers.into_iter().filter_map(|number| tracer.processes().seen(number)) {
            mapper.look_at(&seen);
        }
    }

    /// Notes who was born and who has ended, and sweeps out what they leave.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn follow_births_and_ends(
        &mut self,
        prepared: &Prepared,
        mapper: &Mapper,
        tracer: &Tracer,
    ) -> Result<(), CaptureError> {
        if self.is_one {
            return Ok(());
        }
        let table = tracer.processes();
        let unknown: Vec<SeenProcess> = table.all().filter(|seen| !self.knows(seen.number)).collect();
        for seen in unknown {
            let number = seen.number;
            match ProcessId::of(seen.pid) {
                Ok(process) => {
                    self.undecided.insert(number, Undecided { since: Instant::now(), process });
                }
                // It was there for less than a look.
                Err(_) => self.end_unseen(prepared, mapper, number, &seen),
            }
        }
        self.decide(prepared, mapper, table);
        let ended: Vec<(u32, SeenProcess)> = (self.traced.iter())
            .filter(|(_, traced)| !traced.has_ended)
            .map(|(number, _)| *number)
            .chain(self.left_out.iter().copied())
            .filter_map(|number| Some((number, table.seen(number)?)))
            .filter(|(_, seen)| has_ended(seen.state))
            .collect();
        for (number, seen) in ended {
            if self.left_out.remove(&number) {
                self.to_purge.insert(number);
            } else {
                let kind = self.traced.get(&number).map(|traced| traced.title.kind.clone());
                self.end(number, &seen, kind);
            }
        }
        if !self.to_purge.is_empty() && self.purged_at.elapsed() >= PURGE_EVERY {
            self.purged_at = Instant::now();
            tracer.purge(&self.to_purge)?;
            self.to_purge.clear();
        }
        Ok(())
    }

    fn knows(&self, number: u32) -> bool {
        self.traced.contains_key(&number)
            || self.undecided.contains_key(&number)
            || self.left_out.contains(&number)
            || self.to_purge.contains(&number)
    }

    /// Follows new processes for good, or not.
    fn decide(&mut self, prepared: &Prepared, mapper: &Mapper, table: &ProcessTable) {
        let mut undecided = std::mem::take(&mut self.undecided);
        undecided.retain(|number, new| {
            let Some(seen) = table.seen(*number) else { return false };
            let pid = new.process.pid;
            if has_ended(seen.state) || !new.process.is_same() {
                self.end_unseen(prepared, mapper, *number, &seen);
                return false;
            }
            let title = parse_title(&command_line(pid).unwrap_or_default());
            let settled = is_settled(&title) || new.since.elapsed() > UNSETTLED;
            if !settled && !self.filter.is_empty() {
                return true;
            }
            let bias = mapper.main_bias(seen.mapset);
            if self.allows(prepared, &title, pid, bias) {
                if table.advance(*number, ProcessState::New, ProcessState::Followed) {
                    // One may be there for long before its first hit.
                    let is_born = self.recording_since.is_some_and(|since| new.process.start_ticks >= since);
                    let born_ns = is_born.then_some(seen.born_ns);
                    let traced = self.traced(prepared, new.process, bias, CpuTime::default(), born_ns);
                    self.traced.insert(*number, traced);
                }
            } else if table.advance(*number, ProcessState::New, ProcessState::LeftOut) {
                self.left_out.insert(*number);
                self.to_purge.insert(*number);
            }
            // One that has ended just now is told by the next look.
            !self.traced.contains_key(number) && !self.left_out.contains(number)
        });
        undecided.append(&mut self.undecided);
        self.undecided = undecided;
    }

    /// Whether a process is asked for. What a parallel worker is for is said of its leader, which runs the
    /// same program at the same place.
    fn allows(&self, prepared: &Prepared, title: &Title, pid: u32, bias: Bias) -> bool {
        self.allows_by(title, || application_name(leader_pid(title).unwrap_or(pid), &prepared.image, bias))
    }

    fn allows_by(&self, title: &Title, application: impl FnOnce() -> Option<String>) -> bool {
        let leader = leader_pid(title).and_then(|pid| command_line(pid).ok()).map(|text| parse_title(&text));
        self.filter.allows(title, leader.as_ref().unwrap_or(title), application)
    }

    /// A process has ended before it was looked at: it was what the programs have copied of its title. Its
    /// application cannot be asked for any more, unless it is that of its leader.
    fn end_unseen(&mut self, prepared: &Prepared, mapper: &Mapper, number: u32, seen: &SeenProcess) {
        let title = match parse_title(&seen.title) {
            title if title.kind == POSTMASTER => Title { kind: STARTING.to_owned(), ..title },
            title => title,
        };
        let is_told = self.filter.applications.is_empty() || leader_pid(&title).is_some();
        let kind = if is_told {
            let wanted = self.allows(prepared, &title, seen.pid, mapper.main_bias(seen.mapset));
            wanted.then_some(title.kind)
        } else {
            let may_be = self.allows_by(&title, || self.filter.applications.first().cloned());
            may_be.then(|| format!("{}{UNKNOWN_APPLICATION}", title.kind))
        };
        self.end(number, seen, kind);
    }

    /// `kind`: unless it was not asked for.
    fn end(&mut self, number: u32, seen: &SeenProcess, kind: Option<String>) {
        self.to_purge.insert(number);
        if let Some(traced) = self.traced.get_mut(&number) {
            traced.has_ended = true;
            traced.recorded = (seen.recorded, seen.recorded_bytes);
            // Nothing of it will be in any result, and there may be thousands.
            if !self.has_recorded {
                self.cpu_of_ended += traced.cpu;
                self.traced.remove(&number);
            }
        }
        let Some(kind) = kind else { return };
        let sums = self
            .ended
            .entry(kind.clone())
            .or_insert_with(|| EndedProcesses { kind, ..EndedProcesses::default() });
        sums.count += 1;
        sums.recorded += seen.recorded;
        sums.recorded_bytes += seen.recorded_bytes;
    }

    /// Recording begins: what is born from now on had nothing before.
    pub fn recording_begins(&mut self) {
        self.recording_since = Some(ticks_since_boot());
    }

    /// Recording has ended, and what everybody holds was read: whoever ends from here on is in it.
    pub fn recording_has_ended(&mut self) {
        self.has_recorded = true;
    }

    /// Looks at the statements that run.
    pub fn look_at_statements(&mut self, now_ns: u64) {
        let from = self.looked_until;
        let alive: Vec<u32> = self.alive().map(|(number, _)| *number).collect();
        let start = alive.partition_point(|number| *number < from);
        let turn = alive[start..].iter().chain(&alive[..start]).take(ACTIVITIES_A_TICK);
        for number in turn {
            if let Some(traced) = self.traced.get_mut(number) {
                traced.activity.look(now_ns);
                self.looked_until = number + 1;
            }
        }
    }

    /// Takes a look at the contexts of each, for one of the moments that count; `beat` between two of them.
    pub fn look_at_contexts(
        &mut self,
        moment: impl Fn(&mut Looks) -> &mut Option<Look>,
        now_ns: impl Fn() -> u64,
        beat: impl Fn(),
    ) {
        for (_, traced) in self.alive() {
            let look = Look::take(traced.observed.as_ref(), now_ns());
            *moment(&mut traced.looks) = look;
            beat();
        }
    }

    /// What is used of the contexts of each process, as far as there is time for it. Always the same ones come first, so
    /// that some are in every look. `beat` between two of them.
    pub fn used_by_label(&mut self, beat: impl Fn()) -> Used {
        // They are recorded meanwhile, and their stacks have to be drained.
        let end = Instant::now() + Duration::from_millis(200);
        let mut used = Used::new();
        for (number, traced) in self.alive() {
            let time = end.saturating_duration_since(Instant::now());
            if time.is_zero() {
                break;
            }
            let limits = census::Limits { time, ..census::Limits::default() };
            let census = traced.observed.as_ref().and_then(|observed| observed.census(limits).ok());
            if let Some(census) = census.filter(|census| census.troubles.cut == 0) {
                used.insert(*number, used_by_label(&census.contexts));
            }
            beat();
        }
        used
    }

    /// Walks the chunks of what was looked at.
    pub fn walk_chunks(
        &mut self,
        moment: impl Fn(&mut Looks) -> &mut Option<Look>,
        snapshot: &RawSnapshot,
        beat: impl Fn(),
    ) {
        for (number, traced) in &mut self.traced {
            let Some(of_process) = snapshot.processes.get(number) else { continue };
            let mut look = moment(&mut traced.looks).take();
            if let (Some(look), Some(observed)) = (&mut look, &traced.observed) {
                look.walk_chunks(observed, traced.looks.before.as_ref(), of_process);
            }
            *moment(&mut traced.looks) = look;
            beat();
        }
    }

    /// Takes survivors of windows out of their snapshots that are no longer there, by one look at their contexts;
    /// how many. What cannot be looked at stays. `of_long_life`: only where the context itself is still there.
    /// `beat` between two processes.
    pub fn drop_gone(&self, cycles: &mut [Cycle], of_long_life: bool, beat: impl Fn()) -> u64 {
        let mut gone = 0;
        for (number, traced) in &self.traced {
            let Some(observed) = &traced.observed else { continue };
            let of_process = cycles.iter().filter_map(|cycle| cycle.survived.processes.get(number));
            let contexts: HashSet<u64> =
                of_process.flat_map(|process| &process.chunks).map(|chunk| chunk.context).collect();
            beat();
            let Some(look) = Look::at_chunks(observed, &contexts) else { continue };
            beat();
            for cycle in &mut *cycles {
                if let Some(of_process) = cycle.survived.processes.get_mut(number) {
                    gone += look.drop_gone(of_process, of_long_life, &cycle.survived.names);
                }
            }
        }
        gone
    }

    /// Notes how much memory each takes, for the moment with that index.
    pub fn look_at_memory(&mut self, moment: usize) {
        for (_, traced) in self.alive() {
            traced.memory[moment] = status(traced.process.pid).ok().and_then(|status| status.memory);
        }
    }

    /// Their titles as they are at the end, and what was recorded of each.
    pub fn look_a_last_time(&mut self, tracer: &Tracer) {
        if self.is_one {
            return;
        }
        for (number, traced) in self.alive() {
            if let Some(seen) = tracer.processes().seen(*number).filter(|seen| seen.number == *number) {
                traced.recorded = (seen.recorded, seen.recorded_bytes);
            }
            let title = command_line(traced.process.pid).unwrap_or_default();
            if !title.is_empty() && traced.process.is_same() {
                traced.title = parse_title(&title);
                traced.title_text = title;
            }
        }
    }

    /// What the reader of a capture has to know of each that is in a snapshot or still there, and of those
    /// that have ended.
    pub fn described(&self, cycles: &[Cycle]) -> Described {
        let record_start_ns = cycles.first().map_or(0, |cycle| cycle.stretch.start_ns);
        let mut described =
            Described { ended: self.ended.values().cloned().collect(), ..Described::default() };
        let snapshots = cycles.iter().flat_map(|cycle| [&cycle.recorded, &cycle.survived]);
        let in_snapshots: HashSet<u32> =
            snapshots.flat_map(|snapshot| snapshot.processes.keys()).copied().collect();
        for (number, traced) in &self.traced {
            if traced.has_ended && !in_snapshots.contains(number) {
                continue;
            }
            described.numbers.push(*number);
            let Title { kind, database, user, .. } = traced.title.clone();
            let (recorded, recorded_bytes) = traced.recorded;
            described.processes.push(TracedProcess {
                pid: traced.process.pid,
                kind,
                database,
                user,
                application: traced.application.clone(),
                title: traced.title_text.clone(),
                born_ns: traced.born_ns.map(|born_ns| born_ns.saturating_sub(record_start_ns)),
                rss_anon_start: traced.memory[0].map(|memory| memory.rss_anon),
                rss_anon_end: traced.memory[2].map(|memory| memory.rss_anon),
                recorded,
                recorded_bytes,
            });
        }
        described
    }

    /// What was seen of each from outside, in the order of `numbers`, and the statements of all.
    pub fn watched(self, numbers: &[u32]) -> (BTreeMap<u32, Watched>, Vec<Query>) {
        let (mut watched, mut queries) = (BTreeMap::new(), Vec::new());
        let mut known: HashMap<(Option<i64>, String), u32> = HashMap::new();
        for (number, traced) in self.traced {
            let Some(index) = numbers.iter().position(|known| *known == number) else { continue };
            let mut history = traced.activity.end();
            let numbers: Vec<u32> = (history.queries.drain(..))
                .map(|query| {
                    let next = queries.len() as u32;
                    let key = (query.id, query.statement.clone());
                    let number = *known.entry(key).or_insert(next);
                    if number == next {
                        queries.push(Query { samples: 0, ..query.clone() });
                    }
                    queries[number as usize].samples += query.samples;
                    number
                })
                .collect();
            for look in &mut history.looks {
                look.query = look.query.and_then(|query| numbers.get(query as usize).copied());
            }
            let history = History { queries: Vec::new(), looks: history.looks };
            watched.insert(number, Watched { index: index as u32, looks: traced.looks, history });
        }
        (watched, queries)
    }
}

/// Processes as a capture describes them.
#[derive(Debug, Default)]
pub struct Described {
    /// Their numbers.
    pub numbers: Vec<u32>,
    /// What they are, in the same order.
    pub processes: Vec<TracedProcess>,
    /// Those that have ended.
    pub ended: Vec<EndedProcesses>,
}

/// The clock that `/proc/PID/stat` has starts of processes by.
fn ticks_since_boot() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid buffer; this clock always exists. A call without pointers.
    let a_second = unsafe {
        libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time);
        libc::sysconf(libc::_SC_CLK_TCK).unsigned_abs()
    };
    time.tv_sec.unsigned_abs() * a_second + time.tv_nsec.unsigned_abs() * a_second / 1_000_000_000
}

fn has_ended(state: ProcessState) -> bool {
    matches!(state, ProcessState::Ended | ProcessState::Replaced)
}

/// Probes are at places of one file.
fn same_program(prepared: &Prepared, pid: u32) -> Result<(), CaptureError> {
    let binary = Binary::of(pid)?;
    if binary.identity == prepared.binary.identity {
        return Ok(());
    }
    Err(ScopeError::DifferentPrograms {
        first: prepared.process.pid,
        first_program: prepared.binary.path.clone(),
        other: pid,
        other_program: binary.path,
    }
    .into())
}
