//! A capture from options to a finished [`Capture`].

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tracer_ebpf::{
    abi::SiteHits,
    counters::{Class, Counter},
    sampling::Selection,
    site::Role,
};
use tracing::debug;

use super::{
    Allocators, CaptureError, Chosen, Detaching, Interrupts, LiveFeed, Prepared, Progress, RecordOptions,
    Recorder, Recording, Scope, add_used, assemble, memory_growth, prepare, record::SLICES, sum_of_growths,
};
use crate::{
    addr::AbsAddr,
    bpf::{ContextNames, Limits, Mechanism, ProcessSnapshot, Tracer},
    guard::{
        CaptureLock, check_memory, go_first_when_memory_is_short, measure_probe_costs, prove_return_probes,
    },
    probe::{CostClass, ProbeSite, static_functions},
    profile::{
        Capture, CounterValue, Frame, Group, MemoryGrowth, Profile, SCHEMA, SEVERAL, Sampling, SiteReport,
        Tally, Target, Tool, Window, Windows,
    },
    render::units::counted,
    symbolize::{DebugFiles, Debuginfod, OsRelease, Symbolizer, run_time_frame},
    target::{Memory, POSTMASTER, cgroup_memory, mem_available_bytes},
    unwind::cache::TableCache,
};

/// What is asked for.
#[derive(Clone, Debug)]
pub struct CaptureOptions {
    /// Which processes.
    pub scope: Scope,
    /// How to record it.
    pub record: RecordOptions,
    /// Kernel memory for the maps, if that is not left to pgleak.
    pub map_memory: Option<u64>,
    /// What is traced.
    pub allocators: Allocators,
    /// Record only what is allocated in contexts of this name.
    pub context: Option<String>,
    /// Record only some allocations, by their size.
    pub selection: Selection,
    /// How probes are attached; the best way that there is if that is not said.
    pub mechanism: Option<Mechanism>,
    /// Whether unwind tables are kept on disk, and taken from there.
    pub table_cache: bool,
    /// Whether what is live is told on standard output while one process is recorded ([`LiveFeed`]).
    pub live: bool,
}

/// What stacks may be named with beside what the process and this host have.
#[derive(Debug)]
pub struct Naming {
    /// Asked, after the probes are gone, for debug files that this host does not have.
    pub debuginfod: Option<Debuginfod>,
    /// Set when the user does not want to wait for it.
    pub hurry: Arc<AtomicBool>,
}

/// Kernel memory for the maps of a capture of one process, and of several.
const MAP_MEMORY: [u64; 2] = [64 << 20, 256 << 20];

/// Processes that were looked at and that nobody else may capture now.
#[derive(Debug)]
pub struct Ready {
    prepared: Prepared,
    /// Unless it is one process.
    chosen: Option<Chosen>,
    _locks: Vec<CaptureLock>,
}

/// Looks at the processes and takes their locks.
///
/// # Errors
/// If they cannot be captured.
pub fn ready(options: &CaptureOptions) -> Result<Ready, CaptureError> {
    // Without one, a capture begins some hundredths of a second later.
    let opened = options.table_cache.then(TableCache::of_user).transpose();
    let cache = opened.unwrap_or_else(|error| {
        debug!("{error}");
        None
    });
    let chosen = match options.scope.only_one() {
        Some(_) => None,
        None => Some(options.scope.choose()?),
    };
    // New processes are as their postmaster.
    let first = match &chosen {
        Some(chosen) => chosen.postmasters.first().or(chosen.pids.first()).copied(),
        None => options.scope.only_one(),
    };
    let mut prepared = prepare(first.ok_or(CaptureError::Nobody)?, cache)?;
    prepared.choose(options.allocators)?;
    let pids = match &chosen {
        // A second capture of a server waits for the first, whatever it asks for.
        Some(chosen) => chosen.postmasters.iter().chain(&chosen.pids).copied().collect::<BTreeSet<u32>>(),
        None => BTreeSet::from([prepared.process.pid]),
    };
    let locks = pids.into_iter().map(CaptureLock::take).collect::<Result<_, _>>()?;
    Ok(Ready { prepared, chosen, _locks: locks })
}

/// Captures the process. Its probes are on their way out when this returns; they are gone when
/// [`Detaching`] is dropped.
///
/// # Errors
/// Whatever keeps it from a result that can be trusted.
pub async fn capture(
    ready: Ready,
    options: &CaptureOptions,
    naming: Naming,
    interrupts: &mut Interrupts,
    progress: &Progress,
) -> Result<(Capture, Detaching), CaptureError> {
    let Ready { mut prepared, chosen, _locks } = ready;
    match &chosen {
        None => say_what_it_is(&prepared, progress),
        Some(chosen) => say_what_they_are(&prepared, chosen, progress),
    }

    let limits = limits(options, &prepared, chosen.as_ref())?;
    progress.say(&format!(
        "kernel maps: {} MiB, {} live chunks, {} unwind rows; pgleak itself: up to {} MiB",
        limits.bytes().div_ceil(1 << 20),
        limits.live,
        prepared.mappings.table_sizes().0,
        limits.user_bytes().div_ceil(1 << 20),
    ));
    if let Err(error) = go_first_when_memory_is_short() {
        progress.say(&format!("cannot make pgleak the first to go when memory is short: {error}"));
    }
    let mut names = ContextNames::of(&prepared.plan.layout);
    if !can_foresee(options, &prepared) {
        names.sets = None;
    }
    let mut tracer = match options.mechanism {
        Some(mechanism) => Tracer::load_for(limits, names, mechanism)?,
        // What it forks has its breakpoints, and loses them at the first hit only if they are of perf events
        // (`uprobe_perf_func` says so to the kernel, `uprobe_prog_run` does not; 6.18).
        None if chosen.is_none() && prepared.title.kind == POSTMASTER => Tracer::load(limits, names)?,
        None => Tracer::load_for_the_best(limits, names)?,
    };
    debug!("probes by {}", tracer.mechanism().name());
    if let Some(name) = &options.context {
        tracer.control().record_only(name);
    }
    let costs = measure_probe_costs(&mut tracer)?;
    if prepared.is_filtered() {
        prove_return_probes(&mut tracer, prepared.process.pid)?;
    }
    let record = options.record;
    let asked = chosen.as_ref().map(|chosen| (chosen, options.scope.filter.clone()));
    let is_watched = options.live && chosen.is_none();
    let live = is_watched.then(|| LiveFeed::start(prepared.process.pid, known_functions(&prepared)));
    let mut recorder = Recorder::attach(&mut prepared, tracer, asked, costs, interrupts, progress, record)?;
    match live {
        Some(Ok(feed)) => recorder.tell_live(feed),
        Some(Err(error)) => progress.say(&format!("what is live cannot be told: {error}")),
        None => {}
    }
    let recording = recorder.run().await?;

    progress.say("naming the stacks");
    let Naming { debuginfod, hurry } = naming;
    let only = options.context.clone();
    let selection = options.selection;
    let named = move || {
        let capture = finish(&prepared, &recording, &record, (only.as_deref(), selection), debuginfod);
        (capture, recording.detaching)
    };
    Ok(interrupts.during(named, || hurry.store(true, Ordering::Relaxed)).await)
}

/// Whether returns may go unseen. What malloc gives within an allocation is known to be that by the open call; one that is
/// left out is foreseen or not, and opens none.
fn can_foresee(options: &CaptureOptions, prepared: &Prepared) -> bool {
    let leaves_out = options.selection.is_partial() || options.context.is_some();
    prepared.has_contexts() && !(options.allocators == Allocators::All && leaves_out)
}

/// From what was recorded to what is written.
fn finish(
    prepared: &Prepared,
    recording: &Recording,
    options: &RecordOptions,
    (only, selection): (Option<&str>, Selection),
    debuginfod: Option<Debuginfod>,
) -> Capture {
    let pid = prepared.process.pid;
    let slices = recording.drained.timeline().slices(SLICES);
    let mappings = &prepared.mappings;
    let frame = |mapset, address, is_return| mappings.frame(mapset, address, is_return);
    let begun = Instant::now();
    let profile = assemble(&recording.drained, &slices, &frame);
    debug!("{} groups assembled in {:?}", profile.groups.len(), begun.elapsed());
    let known = known_functions(prepared);
    let debug_roots = vec![PathBuf::from(format!("/proc/{pid}/root")), PathBuf::from("/")];
    let files = DebugFiles::below(debug_roots).with_debuginfod(debuginfod);
    let mut symbolizer = Symbolizer::new(mappings.all_modules(), known, files);
    let run_time_code = &recording.drained.run_time_code;
    let begun = Instant::now();
    let profile = profile.map_frames(|frame| {
        if run_time_code.contains(&(frame.space, frame.address)) {
            run_time_frame(frame.address)
        } else {
            symbolizer.frame(frame.space, frame.address, frame.is_return)
        }
    });

    debug!(
        "{} frames of {} stacks named in {:?}",
        profile.frames.len(),
        profile.stacks.len(),
        begun.elapsed()
    );
    let mut notes: Vec<String> = recording.notes.clone();
    if let Some(name) = only {
        notes.push(format!("only what was allocated in contexts named {name} was recorded (--context)"));
    }
    let called = prepared.plan.sites.iter().zip(&recording.hits).filter(|(_, hits)| hits.entries > 0);
    notes.extend(
        called.filter_map(|(site, _)| {
            site.note.as_ref().map(|note| format!("{}: {note}", site.function.name()))
        }),
    );
    notes.extend(
        prepared
            .plan
            .not_followed
            .iter()
            .map(|(kind, why)| format!("nothing in {kind} contexts was traced: {why}")),
    );
    notes.extend(mappings.notes());
    if let Some(others) = recording.foreign.filter(|others| *others > 0) {
        notes.push(format!(
            "{} of the same program hit the probes without being asked for: each hit cost a trap",
            counted(others as u64, "other process")
        ));
    }
    notes.extend(symbolizer.notes().iter().map(ToString::to_string));
    notes.extend(symbolizer.advice(&OsRelease::of_process(pid)));
    let modules = symbolizer.modules();
    let drained = &recording.drained;
    // Sums; of several processes, of those that were there.
    let sum = |moment: usize, of: fn(&Memory) -> u64| {
        let known = recording.memory.iter().filter_map(|memory| memory[moment].as_ref().map(of));
        known.fold(None, |sum, bytes| Some(sum.unwrap_or(0) + bytes))
    };
    let nothing = ProcessSnapshot::default();
    let recorded = drained.cycles.last().map(|cycle| &cycle.recorded);
    let begun = Instant::now();
    let growths = drained.processes.iter().filter_map(|(number, watched)| {
        let memory = recording.memory.get(watched.index as usize)?;
        let anon = [0, 1].map(|moment| memory[moment].map(|memory: Memory| memory.rss_anon));
        // A process that was born meanwhile had nothing.
        let is_born = recording.described.processes.get(watched.index as usize)?.born_ns.is_some();
        let anon = if is_born { [Some(0), anon[1]] } else { anon };
        // Chunks of windows are some of all.
        let of_process = match recording.windows {
            Some(_) => &nothing,
            None => recorded?.processes.get(number)?,
        };
        memory_growth(&watched.looks, of_process, anon, options.only_blocks)
    });
    let mut memory = sum_of_growths(growths);
    if let Some(memory) = &mut memory {
        add_used(memory, &recording.drained.used, &recording.drained.timeline(), &slices);
        match &recording.windows {
            Some(windows) => by_windows(memory, &profile, windows),
            None if selection.is_sampled() || profile.no_blocks.is_some() => {
                by_groups(memory, &profile, 1.0, |group| group.recorded)
            }
            None => {}
        }
    }
    debug!("contexts compared in {:?}", begun.elapsed());
    let are_several = recording.foreign.is_some();
    let title = &prepared.title;
    let (kind, title_text) = match are_several {
        true => (SEVERAL.to_owned(), format!("{} and others", prepared.title_text)),
        false => (title.kind.clone(), prepared.title_text.clone()),
    };
    Capture {
        schema: SCHEMA,
        tool: Tool { name: "pgleak".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() },
        target: Target {
            pid,
            kind,
            database: title.database.clone().filter(|_| !are_several),
            user: title.user.clone().filter(|_| !are_several),
            title: title_text,
            server: prepared.plan.version.full.clone(),
            product: prepared.plan.version.product.to_string(),
            major: prepared.plan.version.major,
            binary: prepared.binary.path.display().to_string(),
            build_id: prepared.image.build_id().cloned(),
            host: read_line("/proc/sys/kernel/hostname"),
            kernel: read_line("/proc/sys/kernel/osrelease"),
            rss_anon_start: sum(0, |memory| memory.rss_anon),
            rss_anon_end: sum(2, |memory| memory.rss_anon),
            // Shared by all.
            rss_shmem_end: recording.memory.iter().filter_map(|memory| Some(memory[2]?.rss_shmem)).max(),
        },
        processes: if are_several { recording.described.processes.clone() } else { Vec::new() },
        ended: recording.described.ended.clone(),
        window: Window {
            started: recording.started.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            record_ns: nanos(recording.recorded_for),
            settle_ns: nanos(recording.settled_for),
            requested_record_ns: nanos(options.duration),
            requested_settle_ns: nanos(options.settle),
            slices,
            end: recording.end,
            target_cpu_ns: recording.cpu_ns,
            windows: recording.windows.clone(),
            sampling: selection.is_partial().then(|| Sampling {
                min_size: selection.min_size,
                mean_bytes: selection.sample,
                recorded: recording.counters.get(Counter::Recorded),
                left_out: recording.counters.get(Counter::LeftOut),
            }),
            expected_slowdown: recording.expected_slowdown.map(|slowdown| (slowdown * 100.0).round() / 100.0),
        },
        sites: sites(prepared, recording),
        modules,
        profile,
        queries: drained.queries.clone(),
        memory,
        counters: counters(recording),
        notes,
    }
}

/// Functions that pgleak found out itself, by the address of their first instruction in the process.
fn known_functions(prepared: &Prepared) -> BTreeMap<AbsAddr, String> {
    let sites = prepared.plan.sites.iter().chain(&prepared.not_probed);
    let probed =
        sites.map(|site| (site.function.address.in_process(site.bias(prepared.bias)), site.function.name()));
    let found = static_functions(&prepared.image, &prepared.functions).into_iter();
    let found = found.map(|(address, name)| (address.in_process(prepared.bias), name));
    probed.chain(found).map(|(address, name)| (address, name.to_owned())).collect()
}

/// What was traced in windows, as much as would have been seen of all the work.
fn by_windows(memory: &mut MemoryGrowth, profile: &Profile<Frame>, windows: &Windows) {
    by_groups(memory, profile, windows.work.max(f64::MIN_POSITIVE), |group| group.survived);
}

/// What was traced as groups have it, which are `part` of all; how much was not cannot be told then.
fn by_groups(memory: &mut MemoryGrowth, profile: &Profile<Frame>, part: f64, of: fn(&Group) -> Tally) {
    let scaled = |bytes: u64| (bytes as f64 / part) as u64;
    for growth in &mut memory.by_label {
        let of_label = profile.groups.iter().filter(|group| profile.place(group).label() == growth.label);
        let mut sum = Tally::default();
        of_label.for_each(|group| sum += of(group));
        growth.traced = scaled(sum.held);
        growth.requested = scaled(sum.requested);
        growth.untraced = None;
    }
}

fn say_what_it_is(prepared: &Prepared, progress: &Progress) {
    let version = &prepared.plan.version;
    let title = &prepared.title;
    let of = |text: &Option<String>, what: &str| {
        text.as_ref().map_or(String::new(), |text| format!(", {what} {text}"))
    };
    progress.say(&format!(
        "process {} is a {} of {version}{}{}",
        prepared.process.pid,
        title.kind,
        of(&title.database, "database"),
        of(&title.user, "user")
    ));
}

fn say_what_they_are(prepared: &Prepared, chosen: &Chosen, progress: &Progress) {
    let mut text = format!(
        "{} processes of {}; their probes are at every process of this program, where each hit of one that is not \
         asked for costs a trap",
        chosen.pids.len(),
        prepared.plan.version
    );
    if let [postmaster, ..] = chosen.postmasters[..] {
        text += &format!("; new processes of postmaster {postmaster}");
        text += if chosen.postmasters.len() > 1 { " and others" } else { "" };
        text += " are followed from their birth";
    }
    progress.say(&text);
}

/// Sizes the maps and checks that there is room for them.
fn limits(
    options: &CaptureOptions,
    prepared: &Prepared,
    chosen: Option<&Chosen>,
) -> Result<Limits, CaptureError> {
    let (rows, pages) = prepared.mappings.table_sizes();
    let given = options.map_memory.unwrap_or(MAP_MEMORY[usize::from(chosen.is_some())]);
    let (limits, least) = match chosen {
        None => (Limits::within(given, rows, pages), Limits::least_bytes(rows, pages)),
        Some(Chosen { pids, .. }) => (
            Limits::within_for_several(given, rows, pages, pids.len()),
            Limits::least_bytes_for_several(rows, pages, pids.len()),
        ),
    };
    let limits = limits
        .ok_or(CaptureError::MapMemory { given_mib: given >> 20, least_mib: least.div_ceil(1 << 20) })?;
    let limits = Limits { selection: options.selection, ..limits };
    // Kernel maps are charged to the cgroup of the process that makes them: pgleak's own.
    let cgroup = cgroup_memory(std::process::id()).ok().flatten();
    check_memory(
        limits.bytes() + limits.user_bytes(),
        mem_available_bytes(),
        cgroup.map(|cgroup| cgroup.headroom_bytes()),
    )?;
    Ok(limits)
}

fn sites(prepared: &Prepared, recording: &Recording) -> Vec<SiteReport> {
    let hits = recording.hits.iter();
    prepared.plan.sites.iter().zip(hits).map(|(site, hits)| site_report(site, hits)).collect()
}

/// What a capture says of a site.
fn site_report(site: &ProbeSite, hits: &SiteHits) -> SiteReport {
    let role = site.site.role;
    SiteReport {
        function: site.function.name().to_owned(),
        role: role_name(role).to_owned(),
        function_address: site.function.address,
        probe_address: site.probe,
        instruction: site.instruction.clone(),
        cost_class: match site.cost {
            CostClass::Emulated => "emulated",
            CostClass::SingleStepped => "single-stepped",
        }
        .to_owned(),
        found_by: site.function.found_by.to_string(),
        library: site.library.as_ref().map(|library| library.path.display().to_string()),
        entries: hits.entries,
        returns: role.needs_return().then_some(hits.returns),
        unawaited: hits.unawaited,
    }
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Alloc | Role::AllocInto => "alloc",
        Role::Free => "free",
        Role::Realloc => "realloc",
        Role::Reset => "reset",
        Role::Delete => "delete",
        Role::Create => "create",
    }
}

fn counters(recording: &Recording) -> Vec<CounterValue> {
    let value = |(info, value): (&tracer_ebpf::counters::CounterInfo, u64)| CounterValue {
        name: info.name.to_owned(),
        value,
        loss: info.class == Class::Loss,
        meaning: info.meaning.to_owned(),
    };
    recording.counters.iter().map(value).collect()
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn read_line(path: &str) -> String {
    std::fs::read_to_string(path).map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}
