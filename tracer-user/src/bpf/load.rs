//! Loads the eBPF object and holds its maps.

use std::{
    collections::HashSet,
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    sync::Arc,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader, VerifierLogLevel,
    maps::{Map, MapData, MapError as AyaMapError, RingBuf},
    programs::{ProgramError, ProgramType, RawTracePoint, UProbe},
    sys::is_helper_supported,
};
use tracer_ebpf::{
    abi::{
        Context, DOOMED_SLOTS, Family, Live, MAX_FAMILIES, Measured, Name, PROCESS_SLOTS, Parts,
        ProcessState, SiteHits, StackTotals, key_process,
    },
    counters::{COUNTERS, Counter, CounterInfo, OWN},
    foresee::SetFields,
    sampling::ONE,
    site::is_pool,
};

use super::{
    Limits, MapError,
    control::ControlPage,
    multi::{Mechanism, MultiPrograms, SESSION_SUFFIX},
    nursery::Nursery,
    processes::ProcessTable,
    rawmap::RawMap,
    sampling::{Weights, distances},
    tasks::TaskTable,
    walks::Walks,
};
use crate::{catalog::Layout, hash::FastMap};

/// The compiled eBPF programs, aligned for the ELF parser.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tracer.o"));

/// Programs attached to allocator functions.
const PROBES: [&str; 14] = [
    "alloc_enter",
    "alloc_exit",
    "free_enter",
    "realloc_enter",
    "realloc_exit",
    "reset_enter",
    "delete_enter",
    "create_enter",
    "outside_alloc_enter",
    "outside_alloc_exit",
    "outside_free_enter",
    "outside_realloc_enter",
    "outside_realloc_exit",
    LOADER,
];
/// The same for session links.
const SESSIONS: [&str; 4] =
    ["alloc_session", "realloc_session", "outside_alloc_session", "outside_realloc_session"];
/// Attached where the dynamic loader tells of what it has loaded.
pub(super) const LOADER: &str = "loader_enter";
/// Takes every stack in several ways; captures do without it.
pub(super) const MEASURE: &str = "measure_enter";
/// Programs that do nothing, for what probes alone cost; captures do without them.
pub(super) const NOTHING: [&str; 2] = ["nothing_enter", "nothing_exit"];
const NOTHING_SESSION: &str = "nothing_session";
/// Programs attached to raw tracepoints of the same name.
const WATCHERS: [(&str, &str); 2] =
    [("process_exit", "sched_process_exit"), ("process_exec", "sched_process_exec")];

/// Why the programs cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A kernel without something that the programs need.
    #[error("this kernel ({release}) has no {feature}; pgleak needs Linux 6.1 or newer (RHEL 9.6 or newer)")]
    Kernel {
        /// `uname -r`.
        release: String,
        /// What is missing.
        feature: &'static str,
    },
    /// Not root, or a lockdown.
    #[error(
        "the kernel does not let this user load eBPF programs ({source}); run pgleak as root, or with CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN"
    )]
    Privilege {
        /// The errno.
        source: io::Error,
    },
    /// The namespace of pids cannot be told.
    #[error("cannot read /proc/self/ns/pid, which says what pids mean here: {0}; mount /proc")]
    Namespace(io::Error),
    /// The kernel refused a program that aya cannot load.
    #[error("the kernel refused the eBPF program {program} for {mechanism}: {source}; {log}")]
    Refused {
        /// Which.
        program: String,
        /// What for.
        mechanism: &'static str,
        /// Why.
        source: io::Error,
        /// What the verifier said last.
        log: String,
    },
    /// The kernel does not know this way to attach.
    #[error("this kernel ({release}) has no {mechanism}; leave out --attach, and pgleak takes what there is")]
    NotAttached {
        /// `uname -r`.
        release: String,
        /// Which.
        mechanism: &'static str,
    },
    /// The object cannot be taken apart: a build error.
    #[error("the eBPF object is damaged ({why}); build pgleak again with `cargo xtask build`")]
    Object {
        /// What is wrong.
        why: String,
    },
    /// The object is not as it should be.
    #[error("cannot create the kernel maps ({kind} of kernel memory asked for): {source}")]
    Maps {
        /// How much.
        kind: String,
        /// Why.
        source: Box<EbpfError>,
    },
    /// The verifier said no, or the kernel did.
    #[error(
        "the kernel refused the eBPF program {program}: {source}; please report this with `pgleak doctor`'s output"
    )]
    Program {
        /// Which.
        program: String,
        /// Why, with the verifier's log.
        source: Box<ProgramError>,
    },
    /// The object lacks a program or a map: a build error.
    #[error(
        "the eBPF object has no {name}; it does not belong to this pgleak: build both with `cargo xtask build`"
    )]
    Missing {
        /// Which.
        name: &'static str,
    },
    /// A map cannot be used.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The ring buffer cannot be mapped.
    #[error("cannot map the ring that carries stacks: {0}")]
    Ring(AyaMapError),
}

/// Whether this kernel can run the programs.
///
/// # Errors
/// What it lacks.
pub fn check_kernel() -> Result<(), LoadError> {
    use aya::sys::BpfHelper;
    let needed = [
        (BpfHelper::BPF_FUNC_get_attach_cookie, "attach cookies for uprobes (Linux 5.15)"),
        (BpfHelper::BPF_FUNC_loop, "bpf_loop (Linux 5.17)"),
        (BpfHelper::BPF_FUNC_ringbuf_output, "BPF ring buffer (Linux 5.8)"),
    ];
    for (helper, feature) in needed {
        match is_helper_supported(ProgramType::KProbe, helper) {
            Ok(true) => {}
            Ok(false) => return Err(LoadError::Kernel { release: kernel_release(), feature }),
            Err(ProgramError::SyscallError(error)) => {
                return Err(LoadError::Privilege { source: error.io_error });
            }
            Err(source) => {
                return Err(LoadError::Program {
                    program: "probe of a helper".to_owned(),
                    source: Box::new(source),
                });
            }
        }
    }
    Ok(())
}

/// The namespace that this process sees pids in, as the kernel numbers it: device and inode; inode 0 for the
/// first namespace, in which they are what the kernel itself has.
fn pid_namespace() -> io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    /// `PROC_PID_INIT_INO` (include/linux/proc_ns.h).
    const FIRST: u64 = 0xeffffffc;
    let namespace = std::fs::metadata("/proc/self/ns/pid")?;
    if namespace.ino() == FIRST {
        return Ok((0, 0));
    }
    let device = namespace.dev();
    let (major, minor) = (libc::major(device), libc::minor(device));
    // `MKDEV` (include/linux/kdev_t.h); user space has the bits in another order.
    Ok((u64::from(major) << 20 | u64::from(minor), namespace.ino()))
}

/// The program for both sides of a function.
pub(super) fn session_of(enter: &str) -> String {
    format!("{}{SESSION_SUFFIX}", enter.strip_suffix("_enter").unwrap_or(enter))
}

/// Whether a mechanism does what it should on this kernel. Up to Linux 6.10, `uprobe_multi` links of one process
/// saw the main thread only ("bpf: Fix pid filter" in `uprobe_prog_run`, 6.11): such kernels get perf links.
fn is_trusted(mechanism: Mechanism) -> bool {
    const SINCE: (u32, u32) = (6, 11);
    let release = kernel_release();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    let version = numbers.next().zip(numbers.next()).unwrap_or((0, 0));
    mechanism == Mechanism::PerfLinks || version >= SINCE
}

fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

/// The loaded programs and their maps. Dropping it removes everything from the kernel.
pub struct Tracer {
    pub(super) ebpf: Ebpf,
    pub(super) mechanism: Mechanism,
    /// Programs for whatever aya does not know; empty for perf links.
    pub(super) multi: MultiPrograms,
    pub(super) control: ControlPage,
    walks: Arc<Walks>,
    loads: Option<RingBuf<MapData>>,
    process_ids: RawMap<u32, u32>,
    site_hits: RawMap<u32, SiteHits>,
    counters: RawMap<u32, u64>,
    pub(super) nursery: Nursery,
    pub(super) live: RawMap<u64, Live>,
    pub(super) parts: RawMap<u64, Parts>,
    pub(super) contexts: RawMap<u64, Context>,
    tasks: TaskTable,
    pub(super) names: RawMap<u64, Name>,
    pub(super) stack_totals: RawMap<u32, StackTotals>,
    doomed: RawMap<u32, u64>,
    measured: RawMap<u32, Measured>,
    /// What records stand for, if they do for more than themselves.
    pub(super) weights: Option<Weights>,
    pub(super) ring: RingBuf<MapData>,
    limits: Limits,
    foresees: bool,
    /// Servers whose new processes are followed.
    families: usize,
    /// Entries of the map of live chunks when it was last looked through for dead ones.
    swept_at: u64,
}

/// Tells when a process has loaded something, and waits for that to be known.
pub struct Loads(RingBuf<MapData>);

impl Loads {
    /// Readable when there is something.
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring is open for as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }

    /// Takes all notices; which processes they are of, the table of processes says.
    pub fn clear(&mut self) {
        while self.0.next().is_some() {}
    }
}

/// Where contexts have what the programs read of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContextNames {
    /// Offset of `MemoryContextData.name`.
    pub offset: u64,
    /// 1 if a name is a copy of the context's own, whose address may have another name later.
    pub are_copies: u64,
    /// What chunks of AllocSets are foreseen by, where that is known.
    pub sets: Option<SetFields>,
}

impl ContextNames {
    /// Those of a server.
    pub fn of(layout: &Layout) -> Self {
        Self { offset: layout.context.name, are_copies: layout.name_is_copy.into(), sets: layout.set_fields }
    }
}

impl Tracer {
    /// Creates the maps and loads every program; nothing is attached to any process yet.
    ///
    /// # Errors
    /// If the kernel cannot or will not.
    pub fn load(limits: Limits, names: ContextNames) -> Result<Self, LoadError> {
        Self::load_for(limits, names, Mechanism::PerfLinks)
    }

    /// The same for probes that are attached in the best way that this kernel has.
    ///
    /// # Errors
    /// If there is none.
    pub fn load_for_the_best(limits: Limits, names: ContextNames) -> Result<Self, LoadError> {
        let mut last = None;
        for mechanism in Mechanism::by_cost(names.sets.is_some()).into_iter().filter(|each| is_trusted(*each))
        {
            match Self::load_for(limits, names, mechanism) {
                Ok(tracer) => return Ok(tracer),
                Err(error) => {
                    tracing::debug!("no {}: {error}", mechanism.name());
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or(LoadError::Missing { name: "a way to attach probes" }))
    }

    /// The same for probes that are attached in one way.
    ///
    /// # Errors
    /// If the kernel cannot or will not.
    pub fn load_for(limits: Limits, names: ContextNames, mechanism: Mechanism) -> Result<Self, LoadError> {
        check_kernel()?;
        let several = u64::from(limits.are_several());
        let task_mask = limits.tasks - 1;
        let selection = limits.selection;
        let (distance_slots, weight_slots) = limits.sampling_tables();
        // Only the programs of session links can tell the kernel that a return is not wanted.
        let sets = names.sets.filter(|_| mechanism == Mechanism::Session);
        let foresees = sets.is_some();
        let sets = sets.unwrap_or(SetFields { start: 0, limit_word: 0, limit_shift: 0 });
        let namespace = pid_namespace().map_err(LoadError::Namespace)?;
        let mut loader = EbpfLoader::new();
        loader
            .override_global("SEVERAL", &several, true)
            .override_global("TASK_MASK", &task_mask, true)
            .override_global("PID_NS_DEVICE", &namespace.0, true)
            .override_global("PID_NS_INODE", &namespace.1, true)
            .verifier_log_level(VerifierLogLevel::STATS)
            .override_global("NAME_OFFSET", &names.offset, true)
            .override_global("NAMES_ARE_COPIES", &names.are_copies, true)
            .override_global("MIN_SIZE", &selection.min_size, true)
            .override_global("SAMPLE", &selection.sample, true)
            .map_max_entries("DISTANCES", distance_slots)
            .map_max_entries("WEIGHTS", weight_slots)
            .override_global("SET_START", &sets.start, true)
            .override_global("SET_LIMIT_WORD", &sets.limit_word, true)
            .override_global("SET_LIMIT_SHIFT", &sets.limit_shift, true)
            .map_max_entries("ROWS", limits.rows)
            .map_max_entries("PAGES", limits.pages)
            .map_max_entries("LIVE", limits.live)
            .map_max_entries("PARTS", limits.parts)
            .map_max_entries("CONTEXTS", limits.contexts)
            .map_max_entries("NAMES", limits.names)
            .map_max_entries("STACKS", limits.stacks)
            .map_max_entries("STACK_TOTALS", limits.stacks)
            .map_max_entries("TASKS", limits.tasks)
            .map_max_entries("PROCESSES", limits.processes)
            .map_max_entries("PROCESS_IDS", limits.process_ids())
            .map_max_entries("NEW_STACKS", limits.ring_bytes)
            .map_max_entries("SAMPLES", limits.sample_bytes);
        let mut ebpf = loader.load(OBJECT).map_err(|source| LoadError::Maps {
            kind: format!("{} MiB", limits.bytes().div_ceil(1 << 20)),
            source: Box::new(source),
        })?;
        let weights = selection.is_sampled().then(|| Weights::new(selection));
        if let Some(weights) = &weights {
            RawMap::new(map_fd(&ebpf, "DISTANCES")?, "DISTANCES")?.fill(0, &distances(selection))?;
            RawMap::new(map_fd(&ebpf, "WEIGHTS")?, "WEIGHTS")?.fill(0, weights.table())?;
        }
        let mut multi = MultiPrograms::default();
        match mechanism {
            Mechanism::PerfLinks => {
                for name in PROBES {
                    load_program::<UProbe>(&mut ebpf, name, UProbe::load)?;
                }
            }
            Mechanism::Multi => multi = MultiPrograms::load(OBJECT, &ebpf, mechanism, &PROBES)?,
            Mechanism::Session => {
                let is_pair = |name: &str| {
                    name.ends_with("_enter") && SESSIONS.contains(&&*session_of(name))
                        || name.ends_with("_exit")
                };
                let single: Vec<&'static str> = PROBES.into_iter().filter(|name| !is_pair(name)).collect();
                let all: Vec<&'static str> = single.into_iter().chain(SESSIONS).collect();
                multi = MultiPrograms::load(OBJECT, &ebpf, mechanism, &all)?;
            }
        }
        for (name, _) in WATCHERS {
            load_program::<RawTracePoint>(&mut ebpf, name, RawTracePoint::load)?;
        }
        if mechanism != Mechanism::PerfLinks && !multi.can_be_attached() {
            return Err(LoadError::NotAttached { release: kernel_release(), mechanism: mechanism.name() });
        }
        let ring = ebpf.take_map("NEW_STACKS").ok_or(LoadError::Missing { name: "NEW_STACKS" })?;
        let ring = RingBuf::try_from(ring).map_err(LoadError::Ring)?;
        let loads = ebpf.take_map("LOADS").ok_or(LoadError::Missing { name: "LOADS" })?;
        let loads = RingBuf::try_from(loads).map_err(LoadError::Ring)?;
        let tracer = Self {
            control: ControlPage::map(map_fd(&ebpf, "CONTROL")?)?,
            walks: Arc::new(Walks {
                rows: RawMap::new(map_fd(&ebpf, "ROWS")?, "ROWS")?,
                pages: RawMap::new(map_fd(&ebpf, "PAGES")?, "PAGES")?,
                mapsets: RawMap::new(map_fd(&ebpf, "MAPSETS")?, "MAPSETS")?,
                processes: ProcessTable::map(map_fd(&ebpf, "PROCESSES")?, limits.processes)?,
            }),
            loads: Some(loads),
            process_ids: RawMap::new(map_fd(&ebpf, "PROCESS_IDS")?, "PROCESS_IDS")?,
            site_hits: RawMap::new(map_fd(&ebpf, "SITE_HITS")?, "SITE_HITS")?,
            counters: RawMap::new(map_fd(&ebpf, "COUNTERS")?, "COUNTERS")?,
            nursery: Nursery::map(map_fd(&ebpf, "NURSERY")?)?,
            live: RawMap::new(map_fd(&ebpf, "LIVE")?, "LIVE")?,
            parts: RawMap::new(map_fd(&ebpf, "PARTS")?, "PARTS")?,
            contexts: RawMap::new(map_fd(&ebpf, "CONTEXTS")?, "CONTEXTS")?,
            tasks: TaskTable::map(map_fd(&ebpf, "TASKS")?, limits.tasks)?,
            names: RawMap::new(map_fd(&ebpf, "NAMES")?, "NAMES")?,
            stack_totals: RawMap::new(map_fd(&ebpf, "STACK_TOTALS")?, "STACK_TOTALS")?,
            measured: RawMap::new(map_fd(&ebpf, "MEASURED")?, "MEASURED")?,
            weights,
            doomed: RawMap::new(map_fd(&ebpf, "DOOMED")?, "DOOMED")?,
            ring,
            ebpf,
            mechanism,
            multi,
            limits,
            foresees,
            families: 0,
            swept_at: 0,
        };
        tracer.control.start();
        tracer.control.keep_below(tracer.kept());
        if !limits.are_several() {
            tracer.walks.processes.follow(0, 0, 0);
        }
        Ok(tracer)
    }

    /// Instructions that the verifier had to look at, by program.
    pub fn verified_instructions(&self) -> Vec<(String, u32)> {
        let by_aya = self.ebpf.programs().filter_map(|(name, program)| {
            Some((name.to_owned(), program.info().ok()?.verified_instruction_count()?))
        });
        by_aya.chain(self.multi.verified_instructions()).collect()
    }

    /// Whether most returns need not be awaited.
    pub fn foresees(&self) -> bool {
        self.foresees
    }

    /// What probes are attached with.
    pub fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    /// The limits that the maps were made with.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Attaches the programs that notice the end of the process.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn watch_process(&mut self) -> Result<(), LoadError> {
        for (name, tracepoint) in WATCHERS {
            let program: &mut RawTracePoint = self
                .ebpf
                .program_mut(name)
                .and_then(|program| program.try_into().ok())
                .ok_or(LoadError::Missing { name })?;
            program.attach(tracepoint).map_err(|source| LoadError::Program {
                program: name.to_owned(),
                source: Box::new(source),
            })?;
        }
        Ok(())
    }

    /// Loads the program of [`super::Attached::add_measure`].
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn load_measure(&mut self) -> Result<(), LoadError> {
        load_program::<UProbe>(&mut self.ebpf, MEASURE, UProbe::load)
    }

    /// Loads the programs of [`super::Attached::add_nothing`].
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn load_nothing(&mut self) -> Result<(), LoadError> {
        let names: &[&'static str] = match self.mechanism {
            Mechanism::PerfLinks => {
                return NOTHING
                    .into_iter()
                    .try_for_each(|name| load_program::<UProbe>(&mut self.ebpf, name, UProbe::load));
            }
            Mechanism::Multi => &NOTHING,
            Mechanism::Session => &[NOTHING[0], NOTHING_SESSION],
        };
        self.multi.add(MultiPrograms::load(OBJECT, &self.ebpf, self.mechanism, names)?);
        Ok(())
    }

    /// What the probes of [`super::Attached::add_measure`] have summed up.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn measured(&self) -> Result<Measured, MapError> {
        Ok(self.measured.all()?.first().map_or_else(Measured::default, |(_, sums)| *sums))
    }

    /// What walks need to know, for whoever keeps it current.
    pub fn walks(&self) -> &Arc<Walks> {
        &self.walks
    }

    /// Follows a process, as one of several, with a set of mappings. Gives its number; `None` if there is
    /// no room, or if it is followed already.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn follow(&self, pid: u32, mapset: u32) -> Result<Option<u32>, MapError> {
        if self.walks.processes.all().any(|seen| seen.pid == pid) {
            return Ok(None);
        }
        let number = self.control.next_process() as u32;
        if number >= PROCESS_SLOTS {
            return Ok(None);
        }
        self.walks.processes.follow(number, pid, mapset);
        self.process_ids.set(&pid, &number)?;
        Ok(Some(number))
    }

    /// Follows new processes of a server: those that have the same at an address as their postmaster had when it
    /// forked them. `false` if there is no room for another server.
    pub fn follow_children(&mut self, family: Family) -> bool {
        if self.families >= MAX_FAMILIES {
            return false;
        }
        self.control.set_family(self.families, family);
        self.families += 1;
        true
    }

    /// The ring that tells who has loaded something; once.
    pub fn take_loads(&mut self) -> Option<Loads> {
        self.loads.take().map(Loads)
    }

    /// How many processes hit the probes that are none of those that are traced.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn foreign_processes(&self) -> Result<usize, MapError> {
        Ok(self.process_ids.all()?.into_iter().filter(|(_, index)| *index == u32::MAX).count())
    }

    /// The processes that the programs have seen.
    pub fn processes(&self) -> &ProcessTable {
        &self.walks.processes
    }

    /// Removes whatever is recorded of processes that have ended, or are not wanted, so that their
    /// slots can be used again.
    ///
    /// Only user space removes these: a number is never used twice, so the programs write nothing of
    /// them any more.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn purge(&self, numbers: &HashSet<u32>) -> Result<(), MapError> {
        let is_gone = |key: &u64| numbers.contains(&key_process(*key));
        let mut live: Vec<u64> = Vec::new();
        self.live.for_each(|key, _| live.extend(Some(key).filter(is_gone)))?;
        self.control.removed(self.live.remove(&live)?);
        self.parts.remove(&self.parts.keys()?.into_iter().filter(is_gone).collect::<Vec<_>>())?;
        self.contexts.remove(&self.contexts.keys()?.into_iter().filter(is_gone).collect::<Vec<_>>())?;
        for number in numbers {
            for state in [ProcessState::Ended, ProcessState::Replaced] {
                self.walks.processes.advance(*number, state, ProcessState::Free);
            }
        }
        Ok(())
    }

    /// Forgets all chunks and contexts, and calls that were left open. Nothing may be attached.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn clear_chunks(&self) -> Result<(), MapError> {
        self.nursery.clear();
        self.control.removed(self.live.remove(&self.live.keys()?)?);
        self.parts.remove(&self.parts.keys()?)?;
        self.contexts.remove(&self.contexts.keys()?)?;
        self.tasks.free_all();
        self.control.forget_contexts();
        Ok(())
    }

    /// How many chunks there are records of, some of which may be dead.
    pub fn records(&self) -> u64 {
        self.control.entries() + self.nursery.records().len() as u64
    }

    /// The words that both sides share.
    pub fn control(&self) -> &ControlPage {
        &self.control
    }

    /// The value of every counter.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn counters(&self) -> Result<Counters, MapError> {
        let mut values = vec![0; COUNTERS.len()];
        for (index, value) in self.counters.all()? {
            if let Some(slot) = values.get_mut(index as usize) {
                *slot = value;
            }
        }
        for (counter, value) in OWN.into_iter().zip(self.tasks.own_counts()) {
            values[counter as usize] += value;
        }
        Ok(Counters(values))
    }

    /// Hits of each site, by its index.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn site_hits(&self) -> Result<Vec<SiteHits>, MapError> {
        let mut hits = self.site_hits.all()?;
        hits.sort_unstable_by_key(|(index, _)| *index);
        Ok(hits.into_iter().map(|(_, hits)| hits).collect())
    }

    /// Bytes that each stack has allocated and that were not freed one by one, by its id.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn held_by_stack(&self) -> Result<std::collections::HashMap<u32, u64>, MapError> {
        let unit = if self.weights.is_some() { ONE } else { 1 };
        let held = |(stack, totals): (u32, StackTotals)| {
            (stack, totals.held.saturating_sub(totals.freed_held) / unit)
        };
        Ok(self.used_stack_totals()?.into_iter().map(held).filter(|(_, held)| *held > 0).collect())
    }

    /// What became of the chunks of each stack that was seen, by its id.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn used_stack_totals(&self) -> Result<Vec<(u32, StackTotals)>, MapError> {
        // Most of the array is never used, and reading it is most of what a tick would cost.
        let used = u32::try_from(self.control.next_stack()).unwrap_or(u32::MAX);
        self.stack_totals.first(used.clamp(1, self.limits.stacks))
    }

    /// Looks for dead chunks and asks the programs to sweep them, if the map of live chunks fills up. Every look reads the
    /// whole map, so there is one only after it has grown by an eighth since the last. `sign_of_life` is called all along.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn sweep_when_filling(&mut self, sign_of_life: &dyn Fn(&ControlPage)) -> Result<(), MapError> {
        let entries = self.control.entries();
        // The smallest since: a sweep that found something is worth another look sooner.
        self.swept_at = self.swept_at.min(entries);
        if entries > self.kept() && entries >= self.swept_at + u64::from(self.limits.live) / 8 {
            self.swept_at = entries;
            self.doom_dead_chunks(&|| sign_of_life(&self.control))?;
        }
        Ok(())
    }

    /// How many entries there may be until freed chunks leave none behind, and dead ones are looked for.
    fn kept(&self) -> u64 {
        u64::from(self.limits.live) / 4
    }

    /// Nothing is removed here: between this look and a removal by key, the process may have
    /// been given the same address again.
    fn doom_dead_chunks(&self, sign_of_life: &dyn Fn()) -> Result<(), MapError> {
        let contexts: FastMap<u64, u64> =
            self.contexts.all()?.into_iter().map(|(key, context)| (key, context.epoch)).collect();
        // Whatever was asked for before and is not done was found again.
        let processes: Vec<u32> = self.walks.processes.all().map(|process| process.number).collect();
        processes.iter().for_each(|number| self.walks.processes.set_doomed(*number, 0, 0));
        let mut dead: Vec<u64> = Vec::new();
        self.live.for_each_with(sign_of_life, |key, live| {
            let is_dead = !is_pool(live.context) && contexts.get(&live.context) != Some(&live.epoch);
            if is_dead && dead.len() < DOOMED_SLOTS as usize {
                dead.push(key);
            }
        })?;
        // Those of one process side by side: only the process itself removes them.
        dead.sort_unstable_by_key(|key| key_process(*key));
        self.doomed.fill(0, &dead)?;
        for number in processes {
            let start = dead.partition_point(|key| key_process(*key) < number);
            let end = dead.partition_point(|key| key_process(*key) <= number);
            self.walks.processes.set_doomed(number, start as u32, end as u32);
        }
        Ok(())
    }
}

/// The value of every counter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(Vec<u64>);

impl Counters {
    /// One of them.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0.get(counter as usize).copied().unwrap_or(0)
    }

    /// All of them with their descriptions.
    pub fn iter(&self) -> impl Iterator<Item = (&'static CounterInfo, u64)> {
        COUNTERS.iter().map(|info| (info, self.get(info.counter)))
    }
}

pub(super) fn load_program<P>(
    ebpf: &mut Ebpf,
    name: &'static str,
    load: impl FnOnce(&mut P) -> Result<(), ProgramError>,
) -> Result<(), LoadError>
where
    for<'a> &'a mut P: TryFrom<&'a mut aya::programs::Program>,
{
    let program: &mut P = ebpf
        .program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(LoadError::Missing { name })?;
    load(program).map_err(|source| LoadError::Program { program: name.to_owned(), source: Box::new(source) })
}

fn map_fd<'a>(ebpf: &'a Ebpf, name: &'static str) -> Result<BorrowedFd<'a>, LoadError> {
    match ebpf.map(name) {
        Some(Map::Array(data) | Map::HashMap(data)) => Ok(data.fd().as_fd()),
        _ => Err(LoadError::Missing { name }),
    }
}
