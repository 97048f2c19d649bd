//! Everything that is found out before the process is touched.

use std::sync::Arc;

use tracer_ebpf::{
    abi::SiteHits,
    site::{Pool, Role},
};

use crate::{
    addr::{AbsAddr, Bias, VirtAddr},
    bpf::AttachError,
    census::Observed,
    elf::{FunctionRange, Image},
    guard::EventRates,
    probe::{CostClass, LiveProcess, ProbePlan, ProbeSite, outside, plan, top_context_variable},
    target::{
        Binary, CpuTime, LoadedModules, ProcessId, ProcessMemory, Seccomp, Status, Title, command_line,
        cpu_time, parse_title, status,
    },
    unwind::cache::TableCache,
};

use super::{CaptureError, Mappings};

/// What is traced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Allocators {
    /// What is allocated in memory contexts.
    #[default]
    Contexts,
    /// What is allocated outside of them: malloc and mmap. Blocks of contexts are among it.
    Malloc,
    /// Both, blocks of contexts counted once: as what is allocated in them.
    All,
    /// Blocks that malloc gives for contexts, by the context that they are in.
    Blocks,
}

/// A process that can be captured, and how.
#[derive(Debug)]
pub struct Prepared {
    /// Which process.
    pub process: ProcessId,
    /// What `/proc` said of it then.
    pub status: Status,
    /// Its title.
    pub title_text: String,
    /// The same in parts.
    pub title: Title,
    /// The file that it runs.
    pub binary: Binary,
    /// The server binary.
    pub image: Arc<Image>,
    /// The binary's function ranges.
    pub functions: Vec<FunctionRange>,
    /// Where it has the binary mapped.
    pub bias: Bias,
    /// Where its probes go.
    pub plan: ProbePlan,
    /// Allocators' functions that are not probed, and have names all the same.
    pub not_probed: Vec<ProbeSite>,
    /// Its mappings with their unwind tables.
    pub mappings: Mappings,
    /// CPU time that it had used when it was first looked at.
    pub cpu: CpuTime,
}

/// Looks at the process and its files. Nothing is attached, and nothing is written but to the
/// cache of unwind tables.
///
/// # Errors
/// If it is no server that is known, or something that is needed is missing.
pub fn prepare(pid: u32, cache: Option<TableCache>) -> Result<Prepared, CaptureError> {
    let process = ProcessId::of(pid)?;
    let cpu = cpu_time(pid)?;
    let status = status(pid)?;
    let title_text = command_line(pid)?;
    let binary = Binary::of(pid)?;
    let modules = LoadedModules::read(pid)?;
    let main = modules.main().ok_or(CaptureError::NoCode { pid })?;
    let (image, bias, functions) = (Arc::clone(&main.image), main.bias, main.functions().to_vec());
    let memory = ProcessMemory::new(pid);
    let plan = plan(&image, &functions, Some(LiveProcess { memory: &memory, bias }))
        .map_err(|source| CaptureError::Probe { pid, source })?;
    let mappings = Mappings::new(modules, cache)?;
    let title = parse_title(&title_text);
    let not_probed = Vec::new();
    Ok(Prepared {
        process,
        status,
        title_text,
        title,
        binary,
        image,
        functions,
        bias,
        plan,
        not_probed,
        mappings,
        cpu,
    })
}

impl Prepared {
    /// Chooses what is traced. Until then it is [`Allocators::Contexts`].
    ///
    /// # Errors
    /// If the process's malloc is not found.
    pub fn choose(&mut self, allocators: Allocators) -> Result<(), CaptureError> {
        let Self { plan, not_probed, .. } = self;
        if allocators == Allocators::Contexts {
            return Ok(());
        }
        if matches!(allocators, Allocators::Malloc | Allocators::Blocks) {
            not_probed.append(&mut plan.sites);
            plan.not_followed.clear();
        }
        // A context lies in memory of malloc, which is then no longer anybody else's.
        for site in plan.sites.iter_mut().filter(|site| site.site.role == Role::Create) {
            site.site.pool = Some(Pool::Malloc);
        }
        let pid = self.process.pid;
        let first = plan.sites.len() as u8;
        let mut outside = outside(self.mappings.modules(), &ProcessMemory::new(pid), pid, first)
            .map_err(|source| CaptureError::Outside { pid, source })?;
        if allocators == Allocators::Blocks {
            // No context maps memory itself. Malloc's probes come first, so that the numbers stay those of the plan.
            outside.retain(|site| site.site.pool == Some(Pool::Malloc));
        }
        plan.sites.extend(outside);
        Ok(())
    }

    /// Code that gets memory for blocks of contexts, in the process.
    pub fn block_makers(&self) -> Vec<(AbsAddr, AbsAddr)> {
        let at = |address: VirtAddr| address.in_process(self.bias);
        self.plan.block_makers.iter().map(|range| (at(range.start), at(range.end))).collect()
    }

    /// Whether contexts are traced, which every server uses all the time.
    pub fn has_contexts(&self) -> bool {
        self.plan.sites.iter().any(|site| site.site.pool.is_none())
    }

    /// Its memory contexts, if it says where they are.
    pub fn observed(&self) -> Option<Observed> {
        self.observed_in(self.process, self.bias)
    }

    /// Those of another process of the same program, which has it mapped with that bias.
    pub fn observed_in(&self, process: ProcessId, bias: Bias) -> Option<Observed> {
        let variable = top_context_variable(&self.image).ok()?.in_process(bias);
        Some(Observed::new(process, self.plan.version.clone(), Arc::clone(&self.plan.layout), variable))
    }

    /// Whether return probes have to be tried out on a child first.
    pub fn is_filtered(&self) -> bool {
        !matches!(self.status.seccomp, None | Some(Seccomp::Disabled))
    }

    /// Whether the process is still there and still runs the same program.
    pub fn is_there(&self) -> bool {
        self.process.is_same() && self.binary.is_same(self.process.pid)
    }

    /// Why a probe could not be set: the kernel's word for a process that ended meanwhile is ENOENT, of all things.
    pub fn refused(&self, error: AttachError) -> CaptureError {
        if self.is_there() { error.into() } else { CaptureError::GoneTooEarly { pid: self.process.pid } }
    }

    /// What hits of the sites and CPU time mean for the guard.
    pub fn rates(&self, hits: &[SiteHits], cpu: CpuTime) -> EventRates {
        let mut rates = EventRates { cpu, ..EventRates::default() };
        for (hits, site) in hits.iter().zip(&self.plan.sites) {
            match site.cost {
                CostClass::Emulated => rates.emulated += hits.entries,
                CostClass::SingleStepped => rates.stepped += hits.entries,
            }
            rates.returns += hits.returns;
            if site.site.role.is_alloc() {
                rates.allocations += hits.entries;
            }
        }
        rates
    }
}
