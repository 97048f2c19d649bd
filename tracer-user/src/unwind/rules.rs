//! One `.eh_frame` row as a row of ours.

use gimli::{
    CfaRule, EhFrame, Encoding, Format, Operation, Register, RegisterRule, UnwindExpression, UnwindTableRow,
};
use tracer_ebpf::unwind::{RbpRule, RowInfo, RowKind};

use crate::elf::Bytes;

/// DWARF numbers of the x86_64 registers (System V ABI, figure 3.36).
const RBP: Register = Register(6);
const RSP: Register = Register(7);
pub(super) const RETURN_ADDRESS: Register = Register(16);

const ENCODING: Encoding = Encoding { address_size: 8, format: Format::Dwarf32, version: 4 };

/// The longest expression that any rule here has, in operations; longer ones are not read on.
const LONGEST_EXPRESSION: usize = 9;

/// What a row says; a rule that the walk does not follow is [`RowInfo::UNSUPPORTED`].
pub(super) fn row_info(row: &UnwindTableRow<usize>, section: &EhFrame<Bytes<'_>>) -> RowInfo {
    let return_address = row.register(RETURN_ADDRESS);
    if matches!(return_address, Some(RegisterRule::Undefined)) {
        return RowInfo::new(RowKind::Bottom, 0, RbpRule::Same, 0);
    }
    if !matches!(return_address, Some(RegisterRule::Offset(-8))) {
        return RowInfo::UNSUPPORTED;
    }
    // Without a rule the caller's rsp is the CFA. Only code that switches stacks has one.
    if !matches!(row.register(RSP), None | Some(RegisterRule::ValOffset(0))) {
        return RowInfo::UNSUPPORTED;
    }
    let Some((kind, cfa_offset)) = cfa(row.cfa(), section) else { return RowInfo::UNSUPPORTED };
    let Some((rule, rbp_offset)) = rbp(row.register(RBP), section) else { return RowInfo::UNSUPPORTED };
    RowInfo::new(kind, cfa_offset, rule, rbp_offset)
}

fn cfa(rule: &CfaRule<usize>, section: &EhFrame<Bytes<'_>>) -> Option<(RowKind, i64)> {
    match rule {
        CfaRule::RegisterAndOffset { register: RSP, offset } => Some((RowKind::RspOffset, *offset)),
        CfaRule::RegisterAndOffset { register: RBP, offset } => Some((RowKind::RbpOffset, *offset)),
        CfaRule::RegisterAndOffset { .. } => None,
        CfaRule::Expression(expression) => match operations(expression, section)?.as_slice() {
            // What binutils writes for every PLT: rsp + 8 + ((rip & 15) >= threshold) * 8.
            [
                Operation::RegisterOffset { register: RSP, offset: 8, .. },
                Operation::RegisterOffset { register: RETURN_ADDRESS, offset: 0, .. },
                Operation::UnsignedConstant { value: 15 },
                Operation::And,
                Operation::UnsignedConstant { value: threshold },
                Operation::Ge,
                Operation::UnsignedConstant { value: 3 },
                Operation::Shl,
                Operation::Plus,
            ] if *threshold <= 16 => Some((RowKind::Plt, i64::try_from(*threshold).ok()? * 8)),
            // A frame that was re-aligned keeps the old stack pointer in a slot below rbp.
            [Operation::RegisterOffset { register: RBP, offset, .. }, Operation::Deref { size: 8, .. }] => {
                Some((RowKind::RbpDeref, offset.checked_neg()?))
            }
            _ => None,
        },
    }
}

fn rbp(rule: Option<RegisterRule<usize>>, section: &EhFrame<Bytes<'_>>) -> Option<(RbpRule, i64)> {
    match rule {
        // Undefined: the caller cannot need it, or it would have been saved.
        None | Some(RegisterRule::SameValue | RegisterRule::Undefined) => Some((RbpRule::Same, 0)),
        Some(RegisterRule::Offset(offset)) => Some((RbpRule::AtCfa, offset)),
        Some(RegisterRule::Expression(expression)) => match operations(&expression, section)?.as_slice() {
            [Operation::RegisterOffset { register: RBP, offset, .. }] => Some((RbpRule::AtRbp, *offset)),
            _ => None,
        },
        Some(_) => None,
    }
}

fn operations<'a>(
    expression: &UnwindExpression<usize>,
    section: &EhFrame<Bytes<'a>>,
) -> Option<Vec<Operation<Bytes<'a>>>> {
    let mut operations = expression.get(section).ok()?.operations(ENCODING);
    let mut found = Vec::new();
    while let Some(operation) = operations.next().ok()? {
        if found.len() == LONGEST_EXPRESSION {
            return None;
        }
        found.push(operation);
    }
    Some(found)
}
