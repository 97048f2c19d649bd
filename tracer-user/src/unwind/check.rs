//! Compares a table with what gimli says of the same object, row by row.
//!
//! Two comparisons for the first, middle and last address of every row of every FDE: the row
//! that the kernel's search finds is the one of the FDE, and the kernel's step computes from it
//! what the DWARF rule evaluates to. The second one shares no code with [`row_info`](super::row_info).

use std::{collections::BTreeMap, ops::Range};

use gimli::{
    CfaRule, EhFrame, EhFrameOffset, EvaluationResult, FrameDescriptionEntry, LittleEndian, Register,
    RegisterRule, UnwindContext, UnwindExpression, UnwindSection as _, UnwindTableRow, Value, X86_64,
};
use tracer_ebpf::unwind::{Registers, RowInfo, RowKind, StackReader, WalkEnd, step};

use super::{
    Atlas, Placement, TableError, Unsupported,
    entries::refused,
    row_rule,
    rules::{ENCODING, Slice},
    table::code_ranges,
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
    /// Why it does, with the rows of each reason. An FDE that is refused counts as one row.
    pub reasons: BTreeMap<Unsupported, Refused>,
    /// FDEs that name no code of this file, or cannot be read at all: there is nothing to compare.
    pub skipped_fdes: u64,
    /// Addresses where the search finds another row than the FDE has.
    pub wrong_rows: Vec<VirtAddr>,
    /// Addresses where the step goes elsewhere than the rule.
    pub wrong_steps: Vec<VirtAddr>,
}

/// Rows that the walk cannot follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// How many.
    pub rows: u64,
    /// The first address of one of them.
    pub example: VirtAddr,
}

/// Compares the table at `placement` with all FDEs of the image that it was built from.
///
/// # Errors
/// If the image has no readable `.eh_frame`.
pub fn compare(image: &Image, atlas: &Atlas, placement: Placement) -> Result<Comparison, TableError> {
    compare_some(image, atlas, placement, |_| true)
}

/// The same with those FDEs that are wanted, by the address of their function.
///
/// # Errors
/// If the image has no readable `.eh_frame`.
pub fn compare_some(
    image: &Image,
    atlas: &Atlas,
    placement: Placement,
    is_wanted: impl Fn(VirtAddr) -> bool,
) -> Result<Comparison, TableError> {
    let Some(section) = FrameSection::of(image)? else { return Ok(Comparison::default()) };
    let mut frame = EhFrame::new(section.bytes, LittleEndian);
    frame.set_address_size(8);
    let code = code_ranges(image);
    let mut check = Check { atlas, placement, section: &section, frame, found: Comparison::default() };
    let mut context = UnwindContext::new();
    for offset in section.records() {
        let partial = match frame.partial_fde_from_offset(&section.bases, EhFrameOffset(offset)) {
            Ok(partial) => partial,
            Err(gimli::Error::NotCiePointer(_)) => continue,
            Err(_) => {
                check.found.skipped_fdes += 1;
                continue;
            }
        };
        let fde = partial.parse(EhFrame::cie_from_offset).ok();
        let span = fde.as_ref().and_then(|fde| {
            let end = fde.initial_address().checked_add(fde.len())?;
            let span = fde.initial_address()..end;
            code.iter().any(|r| r.start <= span.start && span.end <= r.end).then_some(span)
        });
        match (fde, span) {
            // A function that the linker dropped, and its FDE not.
            (Some(fde), _) if fde.len() == 0 => {}
            (Some(fde), _) if !is_wanted(VirtAddr(fde.initial_address())) => {}
            (Some(fde), Some(span)) => check.fde(&fde, span, &mut context),
            _ => check.found.skipped_fdes += 1,
        }
    }
    Ok(check.found)
}

/// A comparison on its way.
struct Check<'a> {
    atlas: &'a Atlas,
    placement: Placement,
    section: &'a FrameSection<'a>,
    frame: EhFrame<Slice<'a>>,
    found: Comparison,
}

impl<'a> Check<'a> {
    fn fde(
        &mut self,
        fde: &FrameDescriptionEntry<Slice<'a>>,
        span: Range<u64>,
        context: &mut UnwindContext<usize>,
    ) {
        if let Some(reason) = refused(fde).or_else(|| self.unreadable(fde, span.end, context)) {
            self.refuse(reason, span.start);
            for address in ends_and_middle(&span) {
                self.row_is(address, RowInfo::UNSUPPORTED);
            }
            return;
        }
        let (section, frame) = (self.section, self.frame);
        let Ok(mut rows) = fde.rows(&frame, &section.bases, context) else { return };
        while let Ok(Some(row)) = rows.next_row() {
            let held = row.start_address().max(span.start)..row.end_address().min(span.end);
            if held.is_empty() {
                continue;
            }
            let rule = row_rule(row, &frame);
            if let Err(reason) = rule {
                self.refuse(reason, held.start);
            }
            for address in ends_and_middle(&held) {
                let info = self.row_is(address, rule.unwrap_or(RowInfo::UNSUPPORTED));
                if info != RowInfo::UNSUPPORTED {
                    self.found.steps += 1;
                    if !steps_like(info, row, &frame, address) {
                        self.found.wrong_steps.push(VirtAddr(address));
                    }
                }
            }
        }
    }

    /// Whether a row of the FDE cannot be read, which makes all of it one that is not followed.
    /// Instructions for what lies past its end do not matter.
    fn unreadable(
        &self,
        fde: &FrameDescriptionEntry<Slice<'a>>,
        end: u64,
        context: &mut UnwindContext<usize>,
    ) -> Option<Unsupported> {
        let mut read = || {
            let mut rows = fde.rows(&self.frame, &self.section.bases, context)?;
            while rows.next_row()?.is_some_and(|row| row.start_address() < end) {}
            Ok::<_, gimli::Error>(())
        };
        read().is_err().then_some(Unsupported::Instructions)
    }

    fn refuse(&mut self, reason: Unsupported, at: u64) {
        let refused = Refused { rows: 0, example: VirtAddr(at) };
        self.found.reasons.entry(reason).or_insert(refused).rows += 1;
    }

    /// Looks an address up, and gives what was found there.
    fn row_is(&mut self, address: u64, expected: RowInfo) -> RowInfo {
        let row = self.atlas.find(self.placement, VirtAddr(address));
        let info = row.map_or(RowInfo::NONE, |row| row.info());
        self.found.addresses += 1;
        self.found.unsupported += u64::from(info == RowInfo::UNSUPPORTED);
        if info != expected {
            self.found.wrong_rows.push(VirtAddr(address));
        }
        info
    }
}

/// The first, middle and last address of a range that is not empty, each once.
fn ends_and_middle(range: &Range<u64>) -> impl Iterator<Item = u64> + use<> {
    let len = range.end - range.start;
    let places = [0, len / 2, len - 1];
    let count = len.min(3) as usize;
    let start = range.start;
    // Of two bytes the middle is the last.
    places.into_iter().take(count).map(move |at| start + at)
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
    match expected() {
        // A CFA that no frame has: the walk gives up, whatever the rule says is there.
        Some(Registers { sp, .. }) if end == Some(WalkEnd::BadSp) => sp <= before.sp,
        expected => end.is_none() && expected == Some(after),
    }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use std::path::Path;

    use tracer_ebpf::unwind::{RbpRule, Row, RowInfo, RowKind};

    use super::{Comparison, compare, ends_and_middle};
    use crate::{
        addr::VirtAddr,
        elf::Image,
        unwind::{Atlas, UnwindTable},
    };

    const LIBC: &str = "/lib/x86_64-linux-gnu/libc.so.6";

    /// What is found of libc with one of its rows replaced.
    fn with_row(change: impl Fn(Row) -> Option<RowInfo>) -> (VirtAddr, Comparison) {
        let image = Image::open(Path::new(LIBC), Path::new(LIBC)).unwrap();
        let mut table = UnwindTable::build(&image).unwrap().unwrap();
        let (row, info) = table.rows.iter_mut().find_map(|row| change(*row).map(|info| (row, info))).unwrap();
        *row = Row::new(row.address() as u32, info);
        let at = VirtAddr(row.address());
        let mut atlas = Atlas::new();
        let placement = atlas.add(&table).unwrap();
        (at, compare(&image, &atlas, placement).unwrap())
    }

    #[test]
    fn one_wrong_row_of_thousands_is_found() {
        let plain = |kind, offset| RowInfo::new(kind, offset, RbpRule::Same, 0);
        let replacements = [plain(RowKind::RspOffset, 24), plain(RowKind::RbpOffset, 16), RowInfo::NONE];
        for wrong in replacements {
            let (at, found) = with_row(|row| (row.info() == plain(RowKind::RspOffset, 16)).then_some(wrong));
            assert!(found.wrong_rows.contains(&at) && found.wrong_steps.contains(&at), "{wrong:?}");
            assert!(found.wrong_rows.len() < 10 && found.wrong_steps.len() < 10, "{found:?}");
        }
        // Given up where it could go on: the row is wrong, and there is no step to be.
        let (at, found) =
            with_row(|row| (row.info() == plain(RowKind::RspOffset, 16)).then_some(RowInfo::UNSUPPORTED));
        assert!(found.wrong_rows.contains(&at) && found.wrong_steps.is_empty());
        // And the other way round: followed though no rule says how.
        let (at, found) =
            with_row(|row| (row.info() == RowInfo::UNSUPPORTED).then_some(plain(RowKind::RspOffset, 8)));
        assert!(found.wrong_rows.contains(&at) && found.wrong_steps.contains(&at), "{found:?}");
    }

    #[test]
    fn a_row_is_looked_at_in_three_places_if_it_has_them() {
        for (range, expected) in [
            (0x10..0x11, &[0x10][..]),
            (0x10..0x12, &[0x10, 0x11]),
            (0x10..0x13, &[0x10, 0x11, 0x12]),
            (0x10..0x20, &[0x10, 0x18, 0x1f]),
        ] {
            assert_eq!(ends_and_middle(&range).collect::<Vec<_>>(), expected);
        }
    }
}
