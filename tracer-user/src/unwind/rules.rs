//! One DWARF unwind row as the 32 bits that the walk understands.

use gimli::{
    CfaRule, EhFrame, Encoding, EndianSlice, Format, LittleEndian, Operation, RegisterRule, UnwindExpression,
    UnwindTableRow, X86_64,
};
use tracer_ebpf::unwind::{RbpRule, RowInfo, RowKind};

/// The bytes of `.eh_frame`.
pub(super) type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// How expressions in `.eh_frame` are encoded. The version plays no part in the operations that
/// occur there.
pub(super) const ENCODING: Encoding = Encoding { address_size: 8, format: Format::Dwarf32, version: 4 };

/// The longest expression that is understood is the PLT's: nine operations.
const MAX_OPERATIONS: usize = 9;

/// Where the kernel puts rbp, rsp and rip of the interrupted code, counted from rsp in the signal
/// trampoline: `uc_mcontext.gregs` is 40 bytes into `ucontext` (Linux
/// `arch/x86/include/uapi/asm/{ucontext,sigcontext}.h`). glibc's rules for `__restore_rt` say the
/// same, in DWARF (`sysdeps/unix/sysv/linux/x86_64/libc_sigaction.c`).
const SIGNAL_RBP: i64 = 40 + 10 * 8;
const SIGNAL_RSP: i64 = 40 + 15 * 8;
const SIGNAL_RIP: i64 = 40 + 16 * 8;

/// What `row` says, or [`RowInfo::UNSUPPORTED`] if the walk cannot follow it.
///
/// Never an error: a row that cannot be read cannot be followed either.
pub fn row_info(row: &UnwindTableRow<usize>, section: &EhFrame<Slice<'_>>) -> RowInfo {
    let return_address = match row.register(X86_64::RA) {
        Some(RegisterRule::Undefined) => return RowInfo::new(RowKind::Bottom, 0, RbpRule::Same, 0),
        Some(rule) => rule,
        None => return RowInfo::UNSUPPORTED,
    };
    let cfa = match row.cfa() {
        CfaRule::RegisterAndOffset { register: X86_64::RSP, offset } => Cfa::Rsp(*offset),
        CfaRule::RegisterAndOffset { register: X86_64::RBP, offset } => Cfa::Rbp(*offset),
        CfaRule::RegisterAndOffset { .. } => return RowInfo::UNSUPPORTED,
        CfaRule::Expression(expression) => match cfa_expression(expression, section) {
            Some(cfa) => cfa,
            None => return RowInfo::UNSUPPORTED,
        },
    };
    let rbp = row.register(X86_64::RBP);
    if cfa == Cfa::DerefRsp(SIGNAL_RSP) {
        let saved_at = |rule: Option<RegisterRule<usize>>, offset| {
            matches!(rule, Some(RegisterRule::Expression(expression))
                if register_offset(&expression, section) == Some((X86_64::RSP, offset)))
        };
        return if saved_at(Some(return_address), SIGNAL_RIP) && saved_at(rbp, SIGNAL_RBP) {
            RowInfo::new(RowKind::SignalFrame, 0, RbpRule::Same, 0)
        } else {
            RowInfo::UNSUPPORTED
        };
    }
    if return_address != RegisterRule::Offset(-8) {
        return RowInfo::UNSUPPORTED;
    }
    let (rbp_rule, rbp_offset) = match rbp {
        None | Some(RegisterRule::SameValue) => (RbpRule::Same, 0),
        Some(RegisterRule::Offset(offset)) => (RbpRule::AtCfa, offset),
        Some(RegisterRule::Expression(expression)) => match register_offset(&expression, section) {
            Some((X86_64::RBP, offset)) => (RbpRule::AtRbp, offset),
            _ => return RowInfo::UNSUPPORTED,
        },
        Some(_) => return RowInfo::UNSUPPORTED,
    };
    match cfa {
        Cfa::Rsp(offset) => RowInfo::new(RowKind::RspOffset, offset, rbp_rule, rbp_offset),
        Cfa::Rbp(offset) => RowInfo::new(RowKind::RbpOffset, offset, rbp_rule, rbp_offset),
        Cfa::Plt { threshold } => RowInfo::new(RowKind::Plt, 8 * threshold, rbp_rule, rbp_offset),
        Cfa::DerefRbp(offset) => {
            // The row's offset is what is taken from rbp.
            let below = offset.checked_neg().unwrap_or(-1);
            RowInfo::new(RowKind::RbpDeref, below, rbp_rule, rbp_offset)
        }
        Cfa::DerefRsp(_) => RowInfo::UNSUPPORTED,
    }
}

/// A CFA rule that some row kind may express.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cfa {
    /// rsp + n.
    Rsp(i64),
    /// rbp + n.
    Rbp(i64),
    /// rsp + 8 + ((rip & 15) >= threshold) * 8.
    Plt { threshold: i64 },
    /// *(rbp + n).
    DerefRbp(i64),
    /// *(rsp + n).
    DerefRsp(i64),
}

type Op<'a> = Operation<Slice<'a>>;

/// The operations of an expression; `None` if it is damaged or longer than any that is known.
fn operations<'a>(
    expression: &UnwindExpression<usize>,
    section: &EhFrame<Slice<'a>>,
) -> Option<([Op<'a>; MAX_OPERATIONS], usize)> {
    let mut iter = expression.get(section).ok()?.operations(ENCODING);
    let mut found = [Operation::Nop; MAX_OPERATIONS];
    let mut count = 0;
    while let Some(operation) = iter.next().ok()? {
        *found.get_mut(count)? = operation;
        count += 1;
    }
    Some((found, count))
}

fn cfa_expression(expression: &UnwindExpression<usize>, section: &EhFrame<Slice<'_>>) -> Option<Cfa> {
    let (operations, count) = operations(expression, section)?;
    match operations[..count] {
        // The linkers' rule for a whole .plt: the stub pushes the relocation's index with an
        // instruction that ends at byte 11 (or 10 with endbr64).
        [
            Operation::RegisterOffset { register: X86_64::RSP, offset: 8, .. },
            Operation::RegisterOffset { register: X86_64::RA, offset: 0, .. },
            Operation::UnsignedConstant { value: 15 },
            Operation::And,
            Operation::UnsignedConstant { value: threshold @ 0..=16 },
            Operation::Ge,
            Operation::UnsignedConstant { value: 3 },
            Operation::Shl,
            Operation::Plus,
        ] => Some(Cfa::Plt { threshold: threshold as i64 }),
        [
            Operation::RegisterOffset { register: X86_64::RBP, offset, .. },
            Operation::Deref { size: 8, space: false, .. },
        ] => Some(Cfa::DerefRbp(offset)),
        [
            Operation::RegisterOffset { register: X86_64::RSP, offset, .. },
            Operation::Deref { size: 8, space: false, .. },
        ] => Some(Cfa::DerefRsp(offset)),
        _ => None,
    }
}

/// The register and offset of an expression that is no more than their sum.
fn register_offset(
    expression: &UnwindExpression<usize>,
    section: &EhFrame<Slice<'_>>,
) -> Option<(gimli::Register, i64)> {
    let (operations, count) = operations(expression, section)?;
    match operations[..count] {
        [Operation::RegisterOffset { register, offset, .. }] => Some((register, offset)),
        _ => None,
    }
}
