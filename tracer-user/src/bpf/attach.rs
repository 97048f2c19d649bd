//! Probes on one process, and taking them away again quickly.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    thread,
};

use aya::programs::UProbe;
use tracer_ebpf::site::Role;

use super::{
    Mechanism, Tracer,
    load::{LOADER, MEASURE, NOTHING, session_of},
    multi::{self, Places},
    uprobe::{self, Place},
};
use crate::{addr::FileOffset, probe::ProbeSite};

/// A probe that cannot be set.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The kernel refused.
    #[error("cannot probe {function} of {whose} at file offset {offset} through {path}: {source}")]
    Attach {
        /// Which function.
        function: String,
        /// Whose.
        whose: String,
        /// Where.
        offset: FileOffset,
        /// Through which link.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The object lacks a program, or it was not loaded for this.
    #[error("the eBPF object has no program {0}; build pgleak again with `cargo xtask build`")]
    Program(String),
    /// More than have a number.
    #[error("more than 256 probes in one capture")]
    TooMany,
}

/// Where a function is probed, and what its programs are told.
#[derive(Clone, Copy, Debug)]
pub struct Probe<'a> {
    /// Its name, for messages.
    pub function: &'a str,
    /// What it does, which chooses the programs.
    pub role: Role,
    /// Whether its memory is outside of contexts.
    pub is_outside: bool,
    /// The probed instruction in the file.
    pub offset: FileOffset,
    /// See [`tracer_ebpf::site::Site::pack`].
    pub cookie: u64,
}

impl<'a> Probe<'a> {
    /// Its programs, at the entry and at the return. Probes of one file that have the same can be set together.
    pub fn programs(&self) -> (&'static str, Option<&'static str>) {
        programs(self.role, self.is_outside)
    }

    /// The probe of a plan.
    pub fn of(site: &'a ProbeSite) -> Self {
        Self {
            function: site.function.name(),
            role: site.site.role,
            is_outside: site.site.role != Role::Create && site.site.pool.is_some(),
            offset: site.offset,
            cookie: site.site.pack(),
        }
    }
}

/// The probes of one capture. They go when this is dropped, or with the process that holds them,
/// unless somebody else was given a duplicate of their descriptors.
#[derive(Debug, Default)]
pub struct Attached {
    probes: Vec<Set>,
}

/// A probe that is set.
#[derive(Debug)]
struct Set {
    /// `None` for a probe on anything but an allocator.
    role: Option<Role>,
    number: u8,
    fd: OwnedFd,
}

fn failed(probes: &[Probe<'_>], pid: Option<u32>, path: &Path, source: io::Error) -> AttachError {
    AttachError::Attach {
        function: probes.iter().map(|probe| probe.function).collect::<Vec<_>>().join(", "),
        whose: pid.map_or_else(|| "all processes".to_owned(), |pid| format!("process {pid}")),
        offset: probes.first().map_or(FileOffset(0), |probe| probe.offset),
        path: path.to_owned(),
        source,
    }
}

/// Programs at the entry and the return of a function.
const fn programs(role: Role, is_outside: bool) -> (&'static str, Option<&'static str>) {
    match (role, is_outside) {
        (Role::Alloc | Role::AllocInto, false) => ("alloc_enter", Some("alloc_exit")),
        (Role::Alloc | Role::AllocInto, true) => ("outside_alloc_enter", Some("outside_alloc_exit")),
        (Role::Free, false) => ("free_enter", None),
        (Role::Free, true) => ("outside_free_enter", None),
        (Role::Realloc, false) => ("realloc_enter", Some("realloc_exit")),
        (Role::Realloc, true) => ("outside_realloc_enter", Some("outside_realloc_exit")),
        (Role::Reset, _) => ("reset_enter", None),
        (Role::Delete, _) => ("delete_enter", None),
        (Role::Create, _) => ("create_enter", None),
    }
}

impl Attached {
    /// Sets the probes of one function: at its entry, and at its return if the role needs that; for one
    /// process, or for all that have the file mapped, now or later. `path` is a link to the file that the
    /// process really runs, such as `/proc/PID/exe`.
    ///
    /// # Errors
    /// If the kernel refuses; probes that were set before stay until `self` is dropped.
    pub fn add(
        &mut self,
        tracer: &mut Tracer,
        pid: Option<u32>,
        path: &Path,
        probe: Probe<'_>,
    ) -> Result<(), AttachError> {
        self.add_alike(tracer, pid, path, &[probe])
    }

    /// The same for several functions of one file that have the same programs.
    ///
    /// # Errors
    /// If the kernel refuses; probes that were set before stay until `self` is dropped.
    pub fn add_alike(
        &mut self,
        tracer: &mut Tracer,
        pid: Option<u32>,
        path: &Path,
        probes: &[Probe<'_>],
    ) -> Result<(), AttachError> {
        let Some(first) = probes.first() else { return Ok(()) };
        self.set_both(tracer, first.programs(), pid, path, probes)
    }

    /// Sets probes where those of a capture would be, whose programs do nothing; see [`Tracer::load_nothing`].
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn add_nothing(
        &mut self,
        tracer: &mut Tracer,
        pid: Option<u32>,
        path: &Path,
        probe: Probe<'_>,
    ) -> Result<(), AttachError> {
        let [enter, exit] = NOTHING;
        let programs = (enter, probe.role.needs_return().then_some(exit));
        self.set_both(tracer, programs, pid, path, &[probe])
    }

    fn set_both(
        &mut self,
        tracer: &mut Tracer,
        (entry, exit): (&'static str, Option<&'static str>),
        pid: Option<u32>,
        path: &Path,
        probes: &[Probe<'_>],
    ) -> Result<(), AttachError> {
        match (exit, tracer.mechanism()) {
            (Some(_), Mechanism::Session) => self.set(tracer, &session_of(entry), false, pid, path, probes),
            // The return probe first: an entry without its return would stay open.
            (Some(exit), _) => {
                self.set(tracer, exit, true, pid, path, probes)?;
                self.set(tracer, entry, false, pid, path, probes)
            }
            (None, _) => self.set(tracer, entry, false, pid, path, probes),
        }
    }

    /// Sets the probe where the dynamic loader tells that it has loaded something.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn add_loader(
        &mut self,
        tracer: &mut Tracer,
        pid: Option<u32>,
        path: &Path,
        offset: FileOffset,
    ) -> Result<(), AttachError> {
        let probe =
            Probe { function: "_dl_debug_state", role: Role::Free, is_outside: false, offset, cookie: 0 };
        self.set(tracer, LOADER, false, pid, path, &[probe])?;
        if let Some(set) = self.probes.last_mut() {
            set.role = None;
        }
        Ok(())
    }

    /// Sets a probe that takes every stack in several ways; see [`Tracer::measured`].
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn add_measure(
        &mut self,
        tracer: &mut Tracer,
        pid: Option<u32>,
        path: &Path,
        probe: Probe<'_>,
    ) -> Result<(), AttachError> {
        self.set_perf(tracer, MEASURE, false, pid, path, probe)
    }

    fn set(
        &mut self,
        tracer: &mut Tracer,
        program: &str,
        is_return: bool,
        pid: Option<u32>,
        path: &Path,
        probes: &[Probe<'_>],
    ) -> Result<(), AttachError> {
        if tracer.mechanism() == Mechanism::PerfLinks {
            return probes
                .iter()
                .try_for_each(|probe| self.set_perf(tracer, program, is_return, pid, path, *probe));
        }
        let Some(first) = probes.first() else { return Ok(()) };
        let loaded = tracer.multi.get(program).ok_or_else(|| AttachError::Program(program.to_owned()))?;
        let offsets: Vec<(FileOffset, u64)> =
            probes.iter().map(|probe| (probe.offset, probe.cookie)).collect();
        let fd = multi::attach((program, loaded), Places { pid, path, is_return, offsets: &offsets })
            .map_err(|source| failed(probes, pid, path, source))?;
        self.keep(first.role, fd)
    }

    fn set_perf(
        &mut self,
        tracer: &mut Tracer,
        program: &str,
        is_return: bool,
        pid: Option<u32>,
        path: &Path,
        probe: Probe<'_>,
    ) -> Result<(), AttachError> {
        let Probe { role, offset, cookie, .. } = probe;
        let missing = || AttachError::Program(program.to_owned());
        let uprobe: &mut UProbe = tracer
            .ebpf
            .program_mut(program)
            .and_then(|program| program.try_into().ok())
            .ok_or_else(missing)?;
        let uprobe = uprobe.fd().map_err(|_| missing())?.as_fd();
        let fd = uprobe::attach(uprobe, Place { pid, path, offset, is_return, cookie })
            .map_err(|source| failed(&[probe], pid, path, source))?;
        self.keep(role, fd)
    }

    fn keep(&mut self, role: Role, fd: OwnedFd) -> Result<(), AttachError> {
        let number = u8::try_from(self.probes.len()).map_err(|_| AttachError::TooMany)?;
        self.probes.push(Set { role: Some(role), number, fd });
        Ok(())
    }

    /// The descriptors with their numbers, in the order in which they were set, from zero on.
    pub fn descriptors(&self) -> impl Iterator<Item = (u8, BorrowedFd<'_>)> {
        self.probes.iter().map(|set| (set.number, set.fd.as_fd()))
    }

    /// How many probes are set.
    pub fn len(&self) -> usize {
        self.probes.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.probes.is_empty()
    }

    /// The probes of what allocates, to be taken away on their own.
    pub fn take_allocations(&mut self) -> Self {
        let (gone, kept) = std::mem::take(&mut self.probes)
            .into_iter()
            .partition(|set| set.role.is_some_and(Role::is_alloc));
        self.probes = kept;
        Self { probes: gone }
    }

    /// Closes the descriptors, each entry's before its return's, so that no call is begun whose
    /// return would not be seen. Returns the numbers in that order. Instant if somebody else has
    /// duplicates, otherwise the probes go now, in about 0.1 s each.
    pub fn let_go(mut self) -> Vec<u8> {
        // `add` puts the return probe first.
        std::iter::from_fn(|| self.probes.pop()).map(|set| set.number).collect()
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // Each may wait for a grace period of the kernel, about 0.1 s.
        thread::scope(|scope| {
            for set in self.probes.drain(..) {
                scope.spawn(move || drop(set));
            }
        });
    }
}
