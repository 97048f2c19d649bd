//! Compares a table with what gimli says of the same object, row by row.
//!
//! Two comparisons for every address at which an FDE's rule changes, and its neighbours: the
//! row that the kernel's search finds is the one of the FDE, and the kernel's step computes from
//! it what the DWARF rule evaluates to. The second one shares no code with [`row_info`].

use gimli::{
    CfaRule, CieOrFde, EhFrame, EvaluationResult, FrameDescriptionEntry, LittleEndian, Register,
    RegisterRule, UnwindContext, UnwindExpression, UnwindSection as _, UnwindTableRow, Value, X86_64,
};
use tracer_ebpf::unwind::{Registers, RowInfo, RowKind, StackReader, WalkEnd, step};

use super::{
    Atlas, Placement, TableError, row_info,
    rules::{ENCODING, Slice},
};
use crate::{
    addr::VirtAddr,
    elf::{FrameSection, Image},
};

/// What a comparison found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Addresses looked at.
    pub addresses: u64,
    /// Rules that were evaluated and stepped over.
    pub steps: u64,
    /// Addresses where the walk gives up, though there is an FDE.
    pub unsupported: u64,
    /// Addresses where the search finds another row than the FDE has.
    pub wrong_rows: Vec<VirtAddr>,
    /// Addresses where the step goes elsewhere than the rule.
    pub wrong_steps: Vec<VirtAddr>,
}

/// Compares the table at `placement` with all FDEs of the image that it was built from.
///
/// # Errors
/// If the image has no readable `.eh_frame`.
pub fn compare(image: &Image, atlas: &Atlas, placement: Placement) -> Result<Comparison, TableError> {
    let mut found = Comparison::default();
    let Some(section) = FrameSection::of(image)? else { return Ok(found) };
    let mut frame = EhFrame::new(section.bytes, LittleEndian);
    frame.set_address_size(8);
    let mut context = UnwindContext::new();
    let mut entries = frame.entries(&section.bases);
    while let Ok(Some(entry)) = entries.next() {
        let CieOrFde::Fde(partial) = entry else { continue };
        let Ok(fde) = partial.parse(|frame, bases, at| frame.cie_from_offset(bases, at)) else { continue };
        let (addresses, is_whole) = addresses(&fde, &frame, &section, &mut context);
        for address in addresses {
            let row = fde.unwind_info_for_address(&frame, &section.bases, &mut context, address);
            let table = atlas.find(placement, VirtAddr(address)).map_or(RowInfo::NONE, |row| row.info());
            found.addresses += 1;
            // A row that cannot be read makes its whole FDE one that is not followed.
            let expected = match &row {
                Ok(row) if is_whole => row_info(row, &frame),
                _ => RowInfo::UNSUPPORTED,
            };
            if table != expected {
                found.wrong_rows.push(VirtAddr(address));
            }
            if table == RowInfo::UNSUPPORTED {
                found.unsupported += 1;
            } else {
                found.steps += 1;
                if !row.is_ok_and(|row| steps_like(table, row, &frame, address)) {
                    found.wrong_steps.push(VirtAddr(address));
                }
            }
        }
    }
    Ok(found)
}

/// The first, second and last address of each row of an FDE, and whether all rows can be read.
fn addresses(
    fde: &FrameDescriptionEntry<Slice<'_>>,
    frame: &EhFrame<Slice<'_>>,
    section: &FrameSection<'_>,
    context: &mut UnwindContext<usize>,
) -> (Vec<u64>, bool) {
    let (start, end) = (fde.initial_address(), fde.initial_address().saturating_add(fde.len()));
    let mut addresses = vec![start, end.wrapping_sub(1)];
    let mut read = || {
        let mut rows = fde.rows(frame, &section.bases, context)?;
        while let Some(row) = rows.next_row()? {
            let at = row.start_address();
            addresses.extend([at.saturating_sub(1), at, at.saturating_add(1)]);
        }
        Ok::<_, gimli::Error>(())
    };
    let is_whole = read().is_ok();
    addresses.retain(|address| (start..end).contains(address));
    addresses.sort_unstable();
    addresses.dedup();
    (addresses, is_whole)
}

/// Memory in which every word is an address a little above the stack pointer.
struct Pattern;

const SP: u64 = 0x7ffc_0000_0000;

impl Pattern {
    fn word(address: u64) -> u64 {
        SP + 8 + (address >> 3 & 0xffff) * 8
    }
}

impl StackReader for Pattern {
    fn read_word(&mut self, address: u64) -> Option<u64> {
        Some(Self::word(address))
    }
}

/// Whether the step over `info` goes where `row` says.
fn steps_like(info: RowInfo, row: &UnwindTableRow<usize>, frame: &EhFrame<Slice<'_>>, address: u64) -> bool {
    let before = Registers { pc: address, sp: SP, bp: SP + 0x800, is_return: 0 };
    let mut after = before;
    let end = step(info, &mut after, &mut Pattern).err();
    if row.register(X86_64::RA) == Some(RegisterRule::Undefined) {
        return end == Some(WalkEnd::Bottom);
    }
    let expected = || {
        let cfa = match row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => {
                register_of(&before, *register)?.wrapping_add_signed(*offset)
            }
            CfaRule::Expression(expression) => evaluate(expression, frame, &before, None)?,
        };
        let saved = |register, now| match row.register(register) {
            None | Some(RegisterRule::SameValue) => now,
            Some(RegisterRule::Offset(offset)) => Some(Pattern::word(cfa.wrapping_add_signed(offset))),
            Some(RegisterRule::Expression(expression)) => {
                evaluate(&expression, frame, &before, Some(cfa)).map(Pattern::word)
            }
            Some(_) => None,
        };
        Some(Registers {
            pc: saved(X86_64::RA, None)?,
            sp: cfa,
            bp: saved(X86_64::RBP, Some(before.bp))?,
            is_return: u64::from(info.kind() != RowKind::SignalFrame as u32),
        })
    };
    end.is_none() && expected() == Some(after)
}

fn register_of(regs: &Registers, register: Register) -> Option<u64> {
    match register {
        X86_64::RSP => Some(regs.sp),
        X86_64::RBP => Some(regs.bp),
        X86_64::RA => Some(regs.pc),
        _ => None,
    }
}

/// The value of a DWARF expression over [`Pattern`].
fn evaluate(
    expression: &UnwindExpression<usize>,
    frame: &EhFrame<Slice<'_>>,
    regs: &Registers,
    cfa: Option<u64>,
) -> Option<u64> {
    let mut evaluation = expression.get(frame).ok()?.evaluation(ENCODING);
    if let Some(cfa) = cfa {
        evaluation.set_initial_value(cfa);
    }
    evaluation.set_max_iterations(1000);
    let mut state = evaluation.evaluate().ok()?;
    loop {
        state = match state {
            EvaluationResult::Complete => break,
            EvaluationResult::RequiresRegister { register, .. } => {
                evaluation.resume_with_register(Value::Generic(register_of(regs, register)?)).ok()?
            }
            EvaluationResult::RequiresMemory { address, size: 8, .. } => {
                evaluation.resume_with_memory(Value::Generic(Pattern::word(address))).ok()?
            }
            _ => return None,
        };
    }
    match evaluation.value_result()? {
        Value::Generic(value) => Some(value),
        _ => None,
    }
}
