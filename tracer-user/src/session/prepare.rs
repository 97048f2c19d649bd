//! Everything that is found out before the process is touched.

use std::sync::Arc;

use tracer_ebpf::{abi::SiteHits, site::Role};

use crate::{
    addr::Bias,
    census::Observed,
    elf::{FunctionRange, Image},
    guard::EventRates,
    probe::{CostClass, LiveProcess, ProbePlan, plan, top_context_variable},
    target::{
        Binary, CpuTime, LoadedModules, ProcessId, ProcessMemory, Seccomp, Status, Title, command_line,
        cpu_time, parse_title, status,
    },
    unwind::cache::TableCache,
};

use super::{CaptureError, Mappings};

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
    Ok(Prepared { process, status, title_text, title, binary, image, functions, bias, plan, mappings, cpu })
}

impl Prepared {
    /// Its memory contexts, if it says where they are.
    pub fn observed(&self) -> Option<Observed> {
        let variable = top_context_variable(&self.image).ok()?.in_process(self.bias);
        Some(Observed::new(self.process, self.plan.version.clone(), self.plan.layout, variable))
    }

    /// Whether return probes have to be tried out on a child first.
    pub fn is_filtered(&self) -> bool {
        !matches!(self.status.seccomp, None | Some(Seccomp::Disabled))
    }

    /// Whether the process is still there and still runs the same program.
    pub fn is_there(&self) -> bool {
        self.process.is_same() && self.binary.is_same(self.process.pid)
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
            if site.site.role == Role::Alloc {
                rates.allocations += hits.entries;
            }
        }
        rates
    }
}
