//! Probes on one process, and taking them away again quickly.

use std::{
    num::NonZeroU32,
    path::{Path, PathBuf},
    thread,
};

use aya::programs::{
    ProgramError, UProbe,
    uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope},
};
use tracer_ebpf::site::Role;

use super::Tracer;
use crate::addr::FileOffset;

/// A probe that cannot be set.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The kernel refused.
    #[error("cannot probe {function} of process {pid} at file offset {offset} through {path}: {source}")]
    Attach {
        /// Which function.
        function: String,
        /// Whose.
        pid: u32,
        /// Where.
        offset: FileOffset,
        /// Through which link.
        path: PathBuf,
        /// Why.
        source: Box<ProgramError>,
    },
    /// The object lacks a program.
    #[error("the eBPF object has no program {0}; build pgleak again with `cargo xtask build`")]
    Program(&'static str),
    /// Pid 0.
    #[error("0 is no pid")]
    NoPid,
}

/// Where a function is probed, and what its programs are told.
#[derive(Clone, Copy, Debug)]
pub struct Probe<'a> {
    /// Its name, for messages.
    pub function: &'a str,
    /// What it does, which chooses the programs.
    pub role: Role,
    /// The probed instruction in the file.
    pub offset: FileOffset,
    /// See [`tracer_ebpf::site::Site::pack`].
    pub cookie: u64,
}

/// The probes of one capture. They go when this is dropped, or with the process that holds them.
#[derive(Default)]
pub struct Attached {
    links: Vec<(Role, UProbeLink)>,
}

impl std::fmt::Debug for Attached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attached").field("links", &self.links.len()).finish()
    }
}

/// Programs at the entry and the return of a role's functions.
const fn programs(role: Role) -> (&'static str, Option<&'static str>) {
    match role {
        Role::Alloc => ("alloc_enter", Some("alloc_exit")),
        Role::Free => ("free_enter", None),
        Role::Realloc => ("realloc_enter", Some("realloc_exit")),
        Role::Reset => ("reset_enter", None),
        Role::Delete => ("delete_enter", None),
    }
}

impl Attached {
    /// Sets the probes of one function: at its entry, and at its return if the role needs that.
    /// `path` is a link to the file that the process really runs, such as `/proc/PID/exe`.
    ///
    /// # Errors
    /// If the kernel refuses; probes that were set before stay until `self` is dropped.
    pub fn add(
        &mut self,
        tracer: &mut Tracer,
        pid: u32,
        path: &Path,
        probe: Probe<'_>,
    ) -> Result<(), AttachError> {
        let Probe { function, role, offset, cookie } = probe;
        let scope = UProbeScope::OneProcess(NonZeroU32::new(pid).ok_or(AttachError::NoPid)?);
        let (entry, exit) = programs(role);
        // The return probe first: an entry without its return would stay open.
        for name in exit.into_iter().chain([entry]) {
            let program: &mut UProbe = tracer
                .ebpf
                .program_mut(name)
                .and_then(|program| program.try_into().ok())
                .ok_or(AttachError::Program(name))?;
            let point = UProbeAttachPoint {
                location: UProbeAttachLocation::AbsoluteOffset(offset.0),
                cookie: Some(cookie),
            };
            let link = program.attach(point, path, scope).and_then(|id| program.take_link(id)).map_err(
                |source| AttachError::Attach {
                    function: function.to_owned(),
                    pid,
                    offset,
                    path: path.to_owned(),
                    source: Box::new(source),
                },
            )?;
            self.links.push((role, link));
        }
        Ok(())
    }

    /// How many probes are set.
    pub fn len(&self) -> usize {
        self.links.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// The probes of one role, to be taken away on their own.
    pub fn take_role(&mut self, role: Role) -> Self {
        let (gone, kept) = std::mem::take(&mut self.links).into_iter().partition(|(of, _)| *of == role);
        self.links = kept;
        Self { links: gone }
    }

    /// Takes the probes away one after the other, each entry's before its return's, so that no
    /// call is begun whose return would not be seen. Blocks for about 0.1 s a probe.
    pub fn detach_in_order(mut self) {
        // `add` puts the return probe first.
        while let Some((_, link)) = self.links.pop() {
            drop(link);
        }
    }

    /// Takes all probes away. Each waits for a grace period of the kernel, about 0.1 s, so they
    /// go side by side.
    pub fn detach(self) {
        drop(self);
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        thread::scope(|scope| {
            for (_, link) in self.links.drain(..) {
                scope.spawn(move || drop(link));
            }
        });
    }
}
