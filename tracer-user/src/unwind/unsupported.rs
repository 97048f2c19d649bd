//! Why the walk cannot follow a row, for whoever has to find out.

use std::fmt;

/// What a row, or all rows of an FDE, have that no [`RowInfo`](tracer_ebpf::unwind::RowInfo) says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unsupported {
    /// The return address has no rule, or is not right below the CFA.
    ReturnAddress,
    /// The CFA counts from a register other than rsp and rbp: this DWARF number.
    CfaRegister(u16),
    /// The CFA is an expression that is none of those known, or a damaged one.
    CfaExpression,
    /// The CFA's offset is negative, no multiple of 8, or 512 KiB and more.
    CfaOffset,
    /// The caller's rsp is not the CFA: code that switches stacks.
    OtherStack,
    /// rbp was saved in another way than in memory at a fixed place.
    RbpRule,
    /// rbp was saved too far from the CFA or from where rbp points.
    RbpOffset,
    /// A CFA like a signal frame's, with registers elsewhere than the kernel puts them.
    SignalFrame,
    /// Instructions of the FDE that cannot be run.
    Instructions,
    /// A CIE longer than any known one.
    LongCie,
    /// A CIE whose return address is in another column than 16.
    ReturnColumn,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReturnAddress => "return address not at CFA-8",
            Self::CfaRegister(number) => return write!(f, "CFA from DWARF register {number}"),
            Self::CfaExpression => "CFA by an unknown expression",
            Self::CfaOffset => "CFA offset that does not fit into a row",
            Self::OtherStack => "caller's rsp is not the CFA",
            Self::RbpRule => "rbp by an unknown rule",
            Self::RbpOffset => "rbp offset that does not fit into a row",
            Self::SignalFrame => "signal frame of another layout",
            Self::Instructions => "FDE with instructions that cannot be run",
            Self::LongCie => "CIE longer than any known",
            Self::ReturnColumn => "CIE with another return address column",
        })
    }
}
