//! One DWARF unwind row as the 32 bits that the walk understands.

use gimli::{
    CfaRule, EhFrame, Encoding, EndianSlice, Format, LittleEndian, Operation, RegisterRule, UnwindExpression,
    UnwindTableRow, X86_64,
};
use tracer_ebpf::unwind::{RbpRule, RowInfo, RowKind};

use super::Unsupported;

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
    row_rule(row, section).unwrap_or(RowInfo::UNSUPPORTED)
}

/// What `row` says.
///
/// # Errors
/// Why the walk cannot follow it.
pub fn row_rule(row: &UnwindTableRow<usize>, section: &EhFrame<Slice<'_>>) -> Result<RowInfo, Unsupported> {
    let return_address = match row.register(X86_64::RA) {
        Some(RegisterRule::Undefined) => return Ok(RowInfo::new(RowKind::Bottom, 0, RbpRule::Same, 0)),
        Some(rule) => rule,
        None => return Err(Unsupported::ReturnAddress),
    };
    let cfa = cfa(row.cfa(), section)?;
    let rbp = row.register(X86_64::RBP);
    if cfa == Cfa::DerefRsp(SIGNAL_RSP) {
        let saved_at = |rule: Option<RegisterRule<usize>>, offset| {
            matches!(rule, Some(RegisterRule::Expression(expression))
                if register_offset(&expression, section) == Some((X86_64::RSP, offset)))
        };
        return if saved_at(Some(return_address), SIGNAL_RIP) && saved_at(rbp, SIGNAL_RBP) {
            Ok(RowInfo::new(RowKind::SignalFrame, 0, RbpRule::Same, 0))
        } else {
            Err(Unsupported::SignalFrame)
        };
    }
    if return_address != RegisterRule::Offset(-8) {
        return Err(Unsupported::ReturnAddress);
    }
    // Without a rule the caller's rsp is the CFA. Only code that switches stacks has another.
    if !matches!(row.register(X86_64::RSP), None | Some(RegisterRule::ValOffset(0))) {
        return Err(Unsupported::OtherStack);
    }
    encode(cfa, saved_rbp(rbp, section)?)
}

fn cfa(rule: &CfaRule<usize>, section: &EhFrame<Slice<'_>>) -> Result<Cfa, Unsupported> {
    match rule {
        CfaRule::RegisterAndOffset { register: X86_64::RSP, offset } => Ok(Cfa::Rsp(*offset)),
        CfaRule::RegisterAndOffset { register: X86_64::RBP, offset } => Ok(Cfa::Rbp(*offset)),
        CfaRule::RegisterAndOffset { register, .. } => Err(Unsupported::CfaRegister(register.0)),
        CfaRule::Expression(expression) => {
            cfa_expression(expression, section).ok_or(Unsupported::CfaExpression)
        }
    }
}

fn saved_rbp(
    rule: Option<RegisterRule<usize>>,
    section: &EhFrame<Slice<'_>>,
) -> Result<(RbpRule, i64), Unsupported> {
    match rule {
        None | Some(RegisterRule::SameValue) => Ok((RbpRule::Same, 0)),
        Some(RegisterRule::Offset(offset)) => Ok((RbpRule::AtCfa, offset)),
        Some(RegisterRule::Expression(expression)) => match register_offset(&expression, section) {
            Some((X86_64::RBP, offset)) => Ok((RbpRule::AtRbp, offset)),
            _ => Err(Unsupported::RbpRule),
        },
        Some(_) => Err(Unsupported::RbpRule),
    }
}

/// The row of a rule, if its numbers fit.
fn encode(cfa: Cfa, (rbp_rule, rbp_offset): (RbpRule, i64)) -> Result<RowInfo, Unsupported> {
    let (kind, offset) = match cfa {
        Cfa::Rsp(offset) => (RowKind::RspOffset, offset),
        Cfa::Rbp(offset) => (RowKind::RbpOffset, offset),
        Cfa::Plt { threshold } => (RowKind::Plt, 8 * threshold),
        // The row's offset is what is taken from rbp.
        Cfa::DerefRbp(offset) => (RowKind::RbpDeref, offset.checked_neg().unwrap_or(-1)),
        Cfa::DerefRsp(_) => return Err(Unsupported::CfaExpression),
    };
    let info = RowInfo::new(kind, offset, rbp_rule, rbp_offset);
    if info != RowInfo::UNSUPPORTED {
        Ok(info)
    } else if RowInfo::new(kind, offset, RbpRule::Same, 0) == RowInfo::UNSUPPORTED {
        Err(Unsupported::CfaOffset)
    } else {
        Err(Unsupported::RbpOffset)
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

#[cfg(test)]
mod tests {
    use tracer_ebpf::unwind::{RbpRule, RowInfo, RowKind};

    use crate::unwind::fixture::{AT_CALL, Frame, SIGNAL_FRAME};

    /// What a function with these instructions after the usual CIE has at its first byte.
    fn rule(instructions: &[u8]) -> RowInfo {
        let mut frame = Frame::default();
        let cie = frame.cie("", &AT_CALL);
        frame.fde(cie, 0x1000, 0x10, instructions);
        let table = frame.table().expect("it can be indexed").expect("there is an FDE");
        let row = table.rows.iter().find(|row| row.address() == 0x1000);
        assert_eq!(table.stats.broken_fdes, 0, "{instructions:x?}");
        // A rule that is like the code before it, which has none, would have been merged.
        row.map_or(RowInfo::NONE, |row| row.info())
    }

    const fn plain(kind: RowKind, cfa_offset: i64) -> RowInfo {
        RowInfo::new(kind, cfa_offset, RbpRule::Same, 0)
    }

    const PLT: [u8; 13] = [0x0f, 11, 0x77, 8, 0x80, 0, 0x3f, 0x1a, 0x3b, 0x2a, 0x33, 0x24, 0x22];

    #[test]
    fn understands_the_rules_that_compilers_and_linkers_emit() {
        assert_eq!(rule(&[]), plain(RowKind::RspOffset, 8));
        assert_eq!(rule(&[0x0e, 32]), plain(RowKind::RspOffset, 32));
        let saved = |kind, cfa, rule, offset| RowInfo::new(kind, cfa, rule, offset);
        // push rbp; mov rbp, rsp
        assert_eq!(rule(&[0x0c, 6, 16, 0x86, 2]), saved(RowKind::RbpOffset, 16, RbpRule::AtCfa, -16));
        assert_eq!(rule(&[0x0e, 56, 0x86, 7]), saved(RowKind::RspOffset, 56, RbpRule::AtCfa, -56));
        // A frame that was aligned: CFA = *(rbp - 8), rbp where rbp points.
        let aligned = [0x0f, 3, 0x76, 0x78, 0x06, 0x10, 6, 2, 0x76, 0];
        assert_eq!(rule(&aligned), saved(RowKind::RbpDeref, 8, RbpRule::AtRbp, 0));
        assert_eq!(rule(&PLT), plain(RowKind::Plt, 11 * 8));
        assert_eq!(rule(&SIGNAL_FRAME), plain(RowKind::SignalFrame, 0));
        // The caller's rsp is the CFA, said aloud.
        assert_eq!(rule(&[0x14, 7, 0]), plain(RowKind::RspOffset, 8));
        // DW_CFA_same_value is no more than no rule.
        assert_eq!(rule(&[0x08, 6]), plain(RowKind::RspOffset, 8));
    }

    #[test]
    fn an_undefined_return_address_is_the_bottom_whatever_else_the_row_says() {
        assert_eq!(rule(&[0x07, 16]), plain(RowKind::Bottom, 0));
        assert_eq!(rule(&[0x0c, 3, 8, 0x07, 16]), plain(RowKind::Bottom, 0));
    }

    #[test]
    fn what_the_walk_cannot_follow_is_unsupported() {
        let with = |at: usize, byte: u8, rule: &[u8]| {
            let mut changed = rule.to_vec();
            changed[at] = byte;
            changed
        };
        let cases: &[(&str, Vec<u8>)] = &[
            ("CFA from r10", vec![0x0c, 10, 0]),
            ("CFA below rsp", vec![0x12, 7, 1]),
            ("CFA offset that is no multiple of 8", vec![0x0e, 12]),
            ("CFA offset beyond 512 KiB", vec![0x0e, 0x80, 0x80, 0x20]),
            ("rbp in another register", vec![0x09, 6, 3]),
            ("rbp is a value, not a place", vec![0x14, 6, 2]),
            ("rbp undefined", vec![0x07, 6]),
            ("rbp where the return address is", vec![0x86, 1]),
            ("rbp too far below the CFA", vec![0x86, 9]),
            ("rbp at rsp", vec![0x10, 6, 2, 0x77, 0]),
            ("rsp in another register", vec![0x09, 7, 12]),
            ("rsp is not the CFA", vec![0x14, 7, 1]),
            ("return address elsewhere", vec![0x90, 2]),
            ("return address in a register", vec![0x09, 16, 2]),
            ("return address without a rule", vec![0x08, 16]),
            ("dereference above rbp", vec![0x0f, 3, 0x76, 8, 0x06]),
            ("dereference of 4 bytes", vec![0x0f, 4, 0x76, 0x78, 0x94, 4]),
            ("dereference of rsp", vec![0x0f, 3, 0x77, 8, 0x06]),
            ("empty expression", vec![0x0f, 0]),
            ("PLT with another mask", with(6, 0x3e, &PLT)),
            ("PLT with another size", with(10, 0x32, &PLT)),
            ("PLT with a sum more", [&with(1, 12, &PLT)[..], &[0x22]].concat()),
            ("signal frame with rip elsewhere", with(10, 0xb0, &SIGNAL_FRAME)),
            ("signal frame with rbp elsewhere", with(16, 0xf0, &SIGNAL_FRAME)),
            ("unknown operation", vec![0x0f, 1, 0xff]),
        ];
        for (what, instructions) in cases {
            assert_eq!(rule(instructions), RowInfo::UNSUPPORTED, "{what}");
        }
    }
}
