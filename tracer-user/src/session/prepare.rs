//! Everything that is found out before the process is touched.

use std::sync::Arc;

use crate::{
    addr::Bias,
    elf::{FunctionRange, Image},
    probe::{CostClass, LiveProcess, ProbePlan, plan},
    target::{
        Binary, LoadedModules, ProcessId, ProcessMemory, Seccomp, Status, Title, command_line, parse_title,
        status,
    },
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
}

/// Looks at the process and its files. Nothing is attached and nothing is written.
///
/// # Errors
/// If it is no server that is known, or something that is needed is missing.
pub fn prepare(pid: u32) -> Result<Prepared, CaptureError> {
    let process = ProcessId::of(pid)?;
    let status = status(pid)?;
    let title_text = command_line(pid)?;
    let binary = Binary::of(pid)?;
    let modules = LoadedModules::read(pid)?;
    let main = modules.main().ok_or(CaptureError::NoCode { pid })?;
    let (image, bias, functions) = (Arc::clone(&main.image), main.bias, main.functions().to_vec());
    let memory = ProcessMemory::new(pid);
    let plan = plan(&image, &functions, Some(LiveProcess { memory: &memory, bias }))
        .map_err(|source| CaptureError::Probe { pid, source })?;
    let mappings = Mappings::new(modules)?;
    let title = parse_title(&title_text);
    Ok(Prepared { process, status, title_text, title, binary, image, functions, bias, plan, mappings })
}

impl Prepared {
    /// Whether return probes have to be tried out on a child first.
    pub fn is_filtered(&self) -> bool {
        !matches!(self.status.seccomp, None | Some(Seccomp::Disabled))
    }

    /// Whether the probe of a site is cheap, by the site's index.
    pub fn is_emulated(&self, index: usize) -> bool {
        self.plan.sites.get(index).is_some_and(|site| site.cost == CostClass::Emulated)
    }
}
