//! Where to put a probe: the first instruction that the kernel emulates, if it sees every call
//! as the entry does.
//!
//! A probed instruction is either emulated by the kernel or single-stepped out of line, which
//! costs ten times as much in a virtual machine. What is emulated on x86 stands in
//! `push_setup_xol_ops` and `branch_setup_xol_ops` of `arch/x86/kernel/uprobes.c`, unchanged
//! from Linux 6.1 to 6.18; newer kernels add multi-byte nops, which are not relied on.

use iced_x86::{Code, FastFormatter, FlowControl, Instruction, InstructionInfoFactory, OpAccess, Register};
use tracer_ebpf::site::{NO_ARG, Site};

use super::{
    LocatedFunction,
    code::{Code64, branch_target, is_indirect_jump},
};
use crate::{
    addr::{FileOffset, VirtAddr},
    catalog::{Function, Layout},
    elf::{FunctionRange, Image, range_at},
};

/// The integer arguments in order, System V ABI for x86_64.
const ARGUMENTS: [Register; 6] =
    [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];

/// A cookie has eight bits for the distance of a probe from its function's entry.
const MAX_SKEW: u64 = u8::MAX as u64;

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
}

/// Why a function is probed at its first instruction, although that is not a cheap one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum WhyEntry {
    #[error("its code is not in the file or cannot be decoded")]
    NoCode,
    #[error(
        "{register:?} is overwritten at +{at} ({instruction}), before any instruction that the kernel emulates"
    )]
    Overwritten { register: Register, at: u64, instruction: String },
    #[error("the return address is overwritten at +{at} ({instruction})")]
    ReturnAddress { at: u64, instruction: String },
    #[error("control leaves at +{at} ({instruction}), before any instruction that the kernel emulates")]
    Leaves { at: u64, instruction: String },
    #[error("a jump at {from} lands at +{to}, so the probe at +{at} would not be hit once a call")]
    JumpsIn { from: VirtAddr, to: u64, at: u64 },
    #[error("an indirect jump at {from} may land before the probe at +{at}")]
    MayJumpIn { from: VirtAddr, at: u64 },
    #[error("no instruction that the kernel emulates in its first {MAX_SKEW} bytes")]
    TooFar,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Choice {
    skew: u64,
    cost: CostClass,
    instruction: String,
    why_entry: Option<WhyEntry>,
}

/// Chooses the probe of a located function; `index` is its place in the plan. `None` if the
/// file does not hold the function's code.
pub fn choose_site(
    image: &Image,
    layout: &Layout,
    ranges: &[FunctionRange],
    function: LocatedFunction,
    index: u8,
) -> Option<ProbeSite> {
    let row = layout.function(function.role);
    let range = range_at(ranges, function.address)
        .filter(|range| range.start == function.address)
        .and_then(|range| Code64::of(image, range))?;
    let choice = choose(range, &read_registers(row), &elsewhere(image, ranges, range));
    let probe = function.address.offset(choice.skew);
    let site = Site {
        role: row.role,
        header: layout.header,
        context_arg: row.context_arg,
        pointer_arg: row.pointer_arg,
        size_arg: row.size_arg,
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
    })
}

/// The registers whose values the programs read at the probe.
fn read_registers(row: &Function) -> Vec<Register> {
    [row.context_arg, row.pointer_arg, row.size_arg]
        .into_iter()
        .filter(|position| *position != NO_ARG)
        .filter_map(|position| ARGUMENTS.get(usize::from(position)).copied())
        .collect()
}

/// Code outside of the function's main range that it jumps to: its cold part, which may jump
/// back, and functions that it ends in.
fn elsewhere<'a>(image: &'a Image, ranges: &[FunctionRange], code: Code64<'_>) -> Vec<Code64<'a>> {
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
    parts.into_iter().filter_map(|part| Code64::of(image, part)).collect()
}

fn is_call(instruction: &Instruction) -> bool {
    matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall)
}

fn choose(code: Code64<'_>, arguments: &[Register], elsewhere: &[Code64<'_>]) -> Choice {
    let Some(entry) = code.instructions().next() else {
        let why_entry = Some(WhyEntry::NoCode);
        return Choice { skew: 0, cost: CostClass::SingleStepped, instruction: String::new(), why_entry };
    };
    match first_emulated(code, arguments).and_then(|chosen| hit_once(code, elsewhere, chosen)) {
        Ok(chosen) => Choice {
            skew: chosen.ip().wrapping_sub(code.start.0),
            cost: CostClass::Emulated,
            instruction: text(&chosen),
            why_entry: None,
        },
        Err(why) => Choice {
            skew: 0,
            cost: CostClass::SingleStepped,
            instruction: text(&entry),
            why_entry: Some(why),
        },
    }
}

/// The first instruction that the kernel emulates, reached in a straight line with the
/// arguments, rsp and the return address as at the entry.
fn first_emulated(code: Code64<'_>, arguments: &[Register]) -> Result<Instruction, WhyEntry> {
    let mut factory = InstructionInfoFactory::new();
    for instruction in code.instructions() {
        let at = instruction.ip().wrapping_sub(code.start.0);
        if at > MAX_SKEW {
            return Err(WhyEntry::TooFar);
        }
        if is_emulated(code.bytes_of(&instruction)) {
            return Ok(instruction);
        }
        if instruction.flow_control() != FlowControl::Next {
            return Err(WhyEntry::Leaves { at, instruction: text(&instruction) });
        }
        let info = factory.info(&instruction);
        let overwritten = info
            .used_registers()
            .iter()
            .filter(|used| writes(used.access()))
            .map(|used| used.register().full_register())
            .find(|register| *register == Register::RSP || arguments.contains(register));
        if let Some(register) = overwritten {
            return Err(WhyEntry::Overwritten { register, at, instruction: text(&instruction) });
        }
        // Below rsp is the function's red zone; at rsp is the return address.
        let return_address = info.used_memory().iter().any(|used| {
            writes(used.access())
                && used.base().full_register() == Register::RSP
                && (used.index() != Register::None
                    || used.displacement().cast_signed().saturating_add(used.memory_size().size() as i64) > 0)
        });
        if return_address {
            return Err(WhyEntry::ReturnAddress { at, instruction: text(&instruction) });
        }
    }
    Err(WhyEntry::NoCode)
}

fn writes(access: OpAccess) -> bool {
    matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

/// Exactly the encodings that the kernel emulates in every version since 6.1. Written down as
/// bytes because the kernel looks at bytes too: with another prefix (`66`, `48`, `f2`) the same
/// instruction may be single-stepped or refused.
fn is_emulated(bytes: &[u8]) -> bool {
    matches!(
        bytes,
        // push of a register
        [0x50..=0x57] | [0x41, 0x50..=0x57]
        // nop
        | [0x90]
        // jmp, jcc
        | [0xeb | 0x70..=0x7f, _] | [0xe9, _, _, _, _] | [0x0f, 0x80..=0x8f, _, _, _, _]
        // call; nothing was pushed before it, or a push would have been chosen
        | [0xe8, _, _, _, _]
    )
}

/// Refuses an instruction that is not passed exactly once a call: some jump lands behind the
/// entry and not behind the instruction.
fn hit_once(
    code: Code64<'_>,
    elsewhere: &[Code64<'_>],
    chosen: Instruction,
) -> Result<Instruction, WhyEntry> {
    let at = chosen.ip().wrapping_sub(code.start.0);
    if at == 0 {
        return Ok(chosen);
    }
    let all = code.instructions().chain(elsewhere.iter().flat_map(|part| part.instructions()));
    for instruction in all {
        if let Some(to) = branch_target(&instruction).map(|target| target.0.wrapping_sub(code.start.0))
            && (1..=at).contains(&to)
        {
            return Err(WhyEntry::JumpsIn { from: VirtAddr(instruction.ip()), to, at });
        }
    }
    // The targets of a jump table are not read. A compiler does not jump at or before a push of
    // the prologue, where the stack would have to be what it is at the entry.
    let is_push = matches!(chosen.code(), Code::Push_r64);
    match code.instructions().find(is_indirect_jump) {
        Some(jump) if !is_push => Err(WhyEntry::MayJumpIn { from: VirtAddr(jump.ip()), at }),
        _ => Ok(chosen),
    }
}

/// An instruction as text, `push rbp`.
fn text(instruction: &Instruction) -> String {
    let mut formatter = FastFormatter::new();
    let options = formatter.options_mut();
    options.set_space_after_operand_separator(true);
    options.set_use_hex_prefix(true);
    options.set_uppercase_hex(false);
    let mut text = String::new();
    formatter.format(instruction, &mut text);
    text
}
