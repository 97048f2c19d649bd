//! A server process whose contexts can be read.

use std::{io, sync::Arc};

use super::{Census, Limits, take};
use crate::{
    addr::AbsAddr,
    catalog::{CatalogError, Layout, ServerVersion, identify, layouts_of},
    elf::ElfError,
    probe::{LiveProcess, MethodFailure, row_of, top_context_variable},
    target::{LoadedModules, ProcessError, ProcessId, ProcessMemory, ReadMemory as _},
};

/// Why a process has no census.
#[derive(Debug, thiserror::Error)]
pub enum CensusError {
    /// No such process.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// It has no program: a kernel thread, or one that has ended.
    #[error("process {pid} has no program that could be read; give the pid of a server process")]
    NoProgram {
        /// Which one.
        pid: u32,
    },
    /// The program cannot be read.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// It is no server that is known.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The server does not say where its contexts are.
    #[error("cannot find the memory contexts of process {pid}: {source}")]
    NoTop {
        /// Which process.
        pid: u32,
        /// Why.
        source: MethodFailure,
    },
    /// Its memory cannot be read.
    #[error("cannot read the memory of process {pid} ({source}); run pgleak as root, or with CAP_SYS_PTRACE")]
    Memory {
        /// Which process.
        pid: u32,
        /// Why.
        source: io::Error,
    },
    /// It has no contexts yet, or no more.
    #[error("process {pid} has no memory contexts: it has just started, or ends")]
    NotStarted {
        /// Which process.
        pid: u32,
    },
}

impl CensusError {
    /// Whether something was asked for that makes no sense, rather than not working.
    pub fn is_misuse(&self) -> bool {
        matches!(self, Self::NoProgram { .. } | Self::Catalog(_) | Self::Process(_))
    }
}

/// A process whose contexts are read, perhaps again and again.
#[derive(Debug)]
pub struct Observed {
    /// Which process.
    pub process: ProcessId,
    /// What it is.
    pub version: ServerVersion,
    /// What is known of its allocators.
    pub layout: Arc<Layout>,
    /// Its memory.
    pub memory: ProcessMemory,
    /// Address of the variable `TopMemoryContext`.
    variable: AbsAddr,
}

impl Observed {
    /// Looks at the process and its program.
    ///
    /// # Errors
    /// If it is no server that is known.
    pub fn of(pid: u32) -> Result<Self, CensusError> {
        let process = ProcessId::of(pid)?;
        let modules = LoadedModules::read(pid)?;
        let main = modules.main().ok_or(CensusError::NoProgram { pid })?;
        let version = identify(&main.image)?;
        let live = LiveProcess { memory: &ProcessMemory::new(pid), bias: main.bias };
        let layout = Arc::new(row_of(&main.image, &layouts_of(&version)?, Some(live)));
        let variable = top_context_variable(&main.image)
            .map_err(|source| CensusError::NoTop { pid, source })?
            .in_process(main.bias);
        Ok(Self::new(process, version, layout, variable))
    }

    /// A process that is known already; `variable` is where it has its `TopMemoryContext`.
    pub fn new(process: ProcessId, version: ServerVersion, layout: Arc<Layout>, variable: AbsAddr) -> Self {
        let memory = ProcessMemory::new(process.pid);
        Self { process, version, layout, memory, variable }
    }

    /// Another process of the same server: one forked from the same postmaster has everything at the same addresses.
    pub fn sibling(&self, process: ProcessId) -> Self {
        Self::new(process, self.version.clone(), Arc::clone(&self.layout), self.variable)
    }

    /// Reads its contexts as they are now.
    ///
    /// # Errors
    /// If not even the top context can be read.
    pub fn census(&self, limits: Limits) -> Result<Census, CensusError> {
        let pid = self.process.pid;
        let top = self.memory.word(self.variable).map_err(|source| CensusError::Memory { pid, source })?;
        if top == 0 {
            return Err(CensusError::NotStarted { pid });
        }
        let census = take(&self.memory, &self.layout, AbsAddr(top), limits);
        if census.contexts.is_empty() { Err(CensusError::NotStarted { pid }) } else { Ok(census) }
    }
}
