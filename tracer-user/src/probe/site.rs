//! The probe of one function: where, at what price, with what cookie.

use std::{path::PathBuf, sync::Arc};

use iced_x86::Register;
use tracer_ebpf::site::{NO_ARG, Pool, Role, Site, Tags};

use super::{
    LocatedFunction,
    choose::choose,
    code::{Code64, branch_target, is_call},
};
use crate::{
    addr::{Bias, FileOffset, VirtAddr},
    catalog::Function,
    elf::{FunctionRange, Image, range_at},
};

/// The integer arguments in order, System V ABI for x86_64.
const ARGUMENTS: [Register; 6] =
    [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];

/// What a hit of a probe costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CostClass {
    /// The kernel emulates the instruction: under a microsecond.
    Emulated,
    /// The kernel single-steps a copy of it: some microseconds more, ten in a virtual machine.
    SingleStepped,
}

/// A probe to set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeSite {
    /// The function it watches.
    pub function: LocatedFunction,
    /// The probed instruction.
    pub probe: VirtAddr,
    /// The same as an offset in the file, which is what the kernel wants.
    pub offset: FileOffset,
    /// What a hit costs.
    pub cost: CostClass,
    /// The probed instruction as text.
    pub instruction: String,
    /// Why the probe is not cheap, if it is not.
    pub note: Option<String>,
    /// What the probe's cookie says.
    pub site: Site,
    /// The library that the function is in; `None` for the server binary.
    pub library: Option<Arc<Library>>,
}

/// A library that is probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Library {
    /// Its path as the process sees it.
    pub path: PathBuf,
    /// A link to the very file that is mapped.
    pub link: PathBuf,
    /// Where the process has it.
    pub bias: Bias,
}

impl ProbeSite {
    /// Where the process has the object that the function is in; `main` is that of the server binary.
    pub fn bias(&self, main: Bias) -> Bias {
        self.library.as_ref().map_or(main, |library| library.bias)
    }
}

/// Chooses the probe of a located function; `tags` are those of the contexts that are followed, `index`
/// is its place in the plan. `None` if the
/// file does not hold the function's code, or something else in its place.
pub fn choose_site(
    image: &Image,
    ranges: &[FunctionRange],
    function: LocatedFunction,
    tags: Tags,
    index: u8,
) -> Option<ProbeSite> {
    let row = &function.function;
    let range = range_at(ranges, function.address)
        .filter(|range| range.start == function.address)
        .and_then(|range| Code64::of(image, range))?;
    let choice = choose(range, &read_registers(row), &elsewhere(image, ranges, range))?;
    let probe = function.address.offset(choice.skew);
    let site = Site {
        role: row.role,
        header: row.header,
        context_arg: row.context_arg,
        pointer_arg: row.pointer_arg,
        size_arg: row.size_arg,
        name_arg: row.name_arg,
        tag_arg: row.tag_arg,
        tags,
        factor_arg: row.factor_arg,
        pool: row.pool,
        index,
        skew: u8::try_from(choice.skew).ok()?,
    };
    Some(ProbeSite {
        function,
        probe,
        offset: image.file_offset(probe)?,
        cost: choice.cost,
        instruction: choice.instruction,
        note: choice.why_entry.map(|why| format!("probed at its entry at the higher price: {why}")),
        site,
        library: None,
    })
}

/// The registers whose values the programs read at the probe.
fn read_registers(row: &Function) -> Vec<Register> {
    // What is known of a chunk that is freed has its context.
    let context = if row.role == Role::Free { NO_ARG } else { row.context_arg };
    // The flags of mmap.
    let flags = if row.pool == Some(Pool::Mmap) && row.role == Role::Alloc { 3 } else { NO_ARG };
    [context, row.pointer_arg, row.size_arg, row.name_arg, row.tag_arg, row.factor_arg, flags]
        .into_iter()
        .filter(|position| *position != NO_ARG)
        .filter_map(|position| ARGUMENTS.get(usize::from(position)).copied())
        .collect()
}

/// Code outside of the function's main range that it jumps to: its cold part, which may jump
/// back, and functions that it ends in.
fn elsewhere<'a>(image: &'a Image, ranges: &[FunctionRange], code: Code64<'_>) -> Vec<Code64<'a>> {
    let parts = jumps_to(ranges, code);
    parts.into_iter().filter_map(|part| Code64::of(image, part)).collect()
}

/// The ranges of that code.
pub(super) fn jumps_to(ranges: &[FunctionRange], code: Code64<'_>) -> Vec<FunctionRange> {
    let end = code.start.offset(code.bytes.len() as u64);
    let mut parts: Vec<FunctionRange> = Vec::new();
    for instruction in code.instructions().filter(|instruction| !is_call(instruction)) {
        let part = branch_target(&instruction)
            .filter(|target| *target < code.start || *target >= end)
            .and_then(|target| range_at(ranges, target));
        if let Some(part) = part
            && !parts.contains(&part)
        {
            parts.push(part);
        }
    }
    parts
}
