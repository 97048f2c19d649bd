//! Unwind rows and the pure step from one frame to its caller.
//!
//! A row is the content of one `.eh_frame` row that matters on x86_64: how to compute the CFA
//! and where the caller's `rbp` is. The return address is always at CFA − 8; a row where it is
//! not is of the kind [`RowKind::Unsupported`] or, when it is undefined, [`RowKind::Bottom`].

/// How the CFA is computed. The number is what stands in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RowKind {
    /// No unwind information here.
    None = 0,
    /// CFA = rsp + offset.
    RspOffset = 1,
    /// CFA = rbp + offset.
    RbpOffset = 2,
    /// A PLT stub: CFA = rsp + 8, and 8 more once `pc & 15` has reached the offset (in words:
    /// the threshold itself).
    Plt = 3,
    /// CFA = *(rbp − offset).
    RbpDeref = 5,
    /// A signal frame: registers from the `rt_sigframe` at rsp.
    SignalFrame = 6,
    /// A rule that the walk does not follow.
    Unsupported = 7,
    /// The return address is undefined: the bottom of the stack.
    Bottom = 8,
}

/// Where the caller's `rbp` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RbpRule {
    /// Not changed by this function.
    Same = 0,
    /// Saved at CFA + offset (−64 ..= −16).
    AtCfa = 1,
    /// Saved at rbp + offset (re-aligned frames).
    AtRbp = 2,
}

/// The 32 bits of a row that do not depend on its address.
///
/// | bits | what |
/// |---|---|
/// | 0–3 | [`RowKind`] |
/// | 4–5 | [`RbpRule`] |
/// | 8–15 | offset of the rbp rule in words, signed |
/// | 16–31 | offset of the CFA rule in words, unsigned |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct RowInfo(pub u32);

impl RowInfo {
    /// No unwind information.
    pub const NONE: Self = Self(RowKind::None as u32);
    /// An unwind rule that the walk does not follow.
    pub const UNSUPPORTED: Self = Self(RowKind::Unsupported as u32);

    /// Packs a row; `cfa_offset` and `rbp_offset` are in bytes. Offsets that do not fit, are no
    /// multiple of 8, or a saved rbp outside of the 64 bytes below the CFA give
    /// [`Self::UNSUPPORTED`]. For [`RowKind::Plt`] `cfa_offset` is 8 × the threshold.
    pub const fn new(kind: RowKind, cfa_offset: i64, rbp: RbpRule, rbp_offset: i64) -> Self {
        let fits_cfa = cfa_offset % 8 == 0 && cfa_offset >= 0 && cfa_offset / 8 <= 0xffff;
        let fits_rbp = match rbp {
            RbpRule::Same => rbp_offset == 0,
            RbpRule::AtCfa => rbp_offset % 8 == 0 && rbp_offset >= -64 && rbp_offset <= -16,
            RbpRule::AtRbp => rbp_offset % 8 == 0 && rbp_offset >= -1024 && rbp_offset <= 1016,
        };
        if !fits_cfa || !fits_rbp {
            return Self::UNSUPPORTED;
        }
        let words = (rbp_offset / 8) as i8 as u8 as u32;
        Self(kind as u32 | (rbp as u32) << 4 | words << 8 | ((cfa_offset / 8) as u32) << 16)
    }

    /// The kind's code.
    #[inline(always)]
    pub const fn kind(self) -> u32 {
        self.0 & 0xf
    }

    /// The rbp rule's code.
    #[inline(always)]
    pub const fn rbp_rule(self) -> u32 {
        self.0 >> 4 & 3
    }

    /// The rbp rule's offset in bytes.
    #[inline(always)]
    pub const fn rbp_offset(self) -> i64 {
        ((self.0 << 16) as i32 >> 24) as i64 * 8
    }

    /// Whether it reads the return address below its CFA and at the most a saved `rbp` there.
    #[inline(always)]
    pub const fn is_simple(self) -> bool {
        let kind = self.kind();
        let plain = kind == RowKind::RspOffset as u32
            || kind == RowKind::RbpOffset as u32
            || kind == RowKind::Plt as u32
            || kind == RowKind::Bottom as u32;
        plain && self.rbp_rule() != RbpRule::AtRbp as u32
    }

    /// The CFA rule's offset in bytes.
    #[inline(always)]
    pub const fn cfa_offset(self) -> u64 {
        (self.0 >> 16) as u64 * 8
    }
}

/// A row: the virtual address of its first instruction in the low half, its [`RowInfo`] above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Row(pub u64);

impl Row {
    /// A row that holds from `address` (below 4 GiB, in the object's own address space).
    pub const fn new(address: u32, info: RowInfo) -> Self {
        Self(address as u64 | (info.0 as u64) << 32)
    }

    /// First address that the row holds for.
    #[inline(always)]
    pub const fn address(self) -> u64 {
        self.0 & 0xffff_ffff
    }

    /// What holds there.
    #[inline(always)]
    pub const fn info(self) -> RowInfo {
        RowInfo((self.0 >> 32) as u32)
    }
}

/// The registers of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Registers {
    /// Instruction pointer, or return address.
    pub pc: u64,
    /// Stack pointer.
    pub sp: u64,
    /// `rbp`.
    pub bp: u64,
    /// 1 if `pc` is a return address: the look-up then uses `pc - 1`, since a call that does not
    /// return may be its function's last instruction. 0 if it is exact.
    pub is_return: u64,
}

/// Why a walk ended. The number is what stands in a stack record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum WalkEnd {
    /// The bottom: an undefined return address, or a zero one.
    Bottom = 1,
    /// Code outside of every known mapping.
    UnknownMapping = 2,
    /// Code without unwind information.
    NoRow = 3,
    /// An unwind rule that is not supported.
    Unsupported = 4,
    /// Stack memory could not be read.
    Read = 5,
    /// More frames than are kept.
    Truncated = 6,
    /// The stack pointer did not move up.
    BadSp = 7,
    /// A pending return probe whose return address is not known.
    LostReturn = 8,
}

impl WalkEnd {
    /// Every end with its code.
    pub const ALL: [Self; 8] = [
        Self::Bottom,
        Self::UnknownMapping,
        Self::NoRow,
        Self::Unsupported,
        Self::Read,
        Self::Truncated,
        Self::BadSp,
        Self::LostReturn,
    ];

    /// The end with this code.
    pub fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|end| *end as u32 == code)
    }
}

/// The most a single frame may be: 64 MiB, beyond any stack limit in use.
const MAX_FRAME_BYTES: u64 = 64 << 20;

/// `rt_sigframe` on x86_64: `pretcode` is popped, so rsp points at `uc`; `uc_mcontext.gregs` begins 40 bytes in
/// (`arch/x86/include/asm/sigframe.h`, `arch/x86/include/uapi/asm/sigcontext.h`), rbp is its word 10, rsp 15, rip 16.
const SIGFRAME_RBP: u64 = 40 + 10 * 8;
const SIGFRAME_RSP: u64 = 40 + 15 * 8;
const SIGFRAME_RIP: u64 = 40 + 16 * 8;

/// Memory of the process whose stack is walked.
pub trait StackReader {
    /// The 8 bytes at `address`.
    fn read_word(&mut self, address: u64) -> Option<u64>;

    /// 0 if `word` is at `address`.
    #[inline(always)]
    fn differs(&mut self, address: u64, word: u64) -> u64 {
        u64::from(self.read_word(address) != Some(word))
    }
}

/// Goes from a frame to its caller.
///
/// # Errors
/// Why the walk ends here.
#[inline(always)]
pub fn step<R: StackReader>(info: RowInfo, regs: &mut Registers, reader: &mut R) -> Result<(), WalkEnd> {
    let offset = info.cfa_offset();
    let cfa = match info.kind() {
        1 => regs.sp.wrapping_add(offset),
        2 => regs.bp.wrapping_add(offset),
        3 => {
            let pushed = if regs.pc & 15 >= offset >> 3 { 8 } else { 0 };
            regs.sp.wrapping_add(8 + pushed)
        }
        5 => word(reader, regs.bp.wrapping_sub(offset))?,
        6 => {
            let bp = word(reader, regs.sp.wrapping_add(SIGFRAME_RBP))?;
            let sp = word(reader, regs.sp.wrapping_add(SIGFRAME_RSP))?;
            let pc = word(reader, regs.sp.wrapping_add(SIGFRAME_RIP))?;
            *regs = Registers { pc, sp, bp, is_return: 0 };
            return Ok(());
        }
        8 => return Err(WalkEnd::Bottom),
        0 => return Err(WalkEnd::NoRow),
        _ => return Err(WalkEnd::Unsupported),
    };
    if cfa <= regs.sp || cfa - regs.sp > MAX_FRAME_BYTES {
        return Err(WalkEnd::BadSp);
    }
    let return_address = word(reader, cfa.wrapping_sub(8))?;
    let rule = info.rbp_rule();
    if rule != RbpRule::Same as u32 {
        let from = if rule == RbpRule::AtCfa as u32 { cfa } else { regs.bp };
        regs.bp = word(reader, from.wrapping_add(info.rbp_offset() as u64))?;
    }
    if return_address == 0 {
        return Err(WalkEnd::Bottom);
    }
    regs.pc = return_address;
    regs.sp = cfa;
    regs.is_return = 1;
    Ok(())
}

#[inline(always)]
fn word<R: StackReader>(reader: &mut R, address: u64) -> Result<u64, WalkEnd> {
    match reader.read_word(address) {
        Some(word) => Ok(word),
        None => Err(WalkEnd::Read),
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{vec, vec::Vec};

    use super::*;

    /// Words at addresses.
    struct Stack {
        words: Vec<(u64, u64)>,
    }

    impl StackReader for Stack {
        fn read_word(&mut self, address: u64) -> Option<u64> {
            self.words.iter().find(|(at, _)| *at == address).map(|(_, word)| *word)
        }
    }

    const SP: u64 = 0x7ffc_0000_1000;
    const BP: u64 = 0x7ffc_0000_1100;
    const RETURN: u64 = 0x5555_0000_1234;

    /// One step from (pc = 0x40, SP, BP).
    fn stepped(info: RowInfo, words: &[(u64, u64)]) -> Result<Registers, WalkEnd> {
        stepped_at(0x40, info, words)
    }

    fn stepped_at(pc: u64, info: RowInfo, words: &[(u64, u64)]) -> Result<Registers, WalkEnd> {
        let mut regs = Registers { pc, sp: SP, bp: BP, is_return: 0 };
        step(info, &mut regs, &mut Stack { words: words.to_vec() }).map(|()| regs)
    }

    fn returned(sp: u64, bp: u64) -> Result<Registers, WalkEnd> {
        Ok(Registers { pc: RETURN, sp, bp, is_return: 1 })
    }

    #[test]
    fn rsp_offset() {
        let info = RowInfo::new(RowKind::RspOffset, 48, RbpRule::Same, 0);
        assert_eq!(stepped(info, &[(SP + 40, RETURN)]), returned(SP + 48, BP));
        // At a function's first instruction.
        let info = RowInfo::new(RowKind::RspOffset, 8, RbpRule::Same, 0);
        assert_eq!(stepped(info, &[(SP, RETURN)]), returned(SP + 8, BP));
    }

    #[test]
    fn rbp_offset() {
        let info = RowInfo::new(RowKind::RbpOffset, 16, RbpRule::AtCfa, -16);
        assert_eq!(stepped(info, &[(BP, 0x7777), (BP + 8, RETURN)]), returned(BP + 16, 0x7777));
    }

    #[test]
    fn rbp_is_found_in_every_slot_below_the_cfa() {
        for offset in [-64, -56, -48, -40, -32, -24, -16] {
            let info = RowInfo::new(RowKind::RspOffset, 80, RbpRule::AtCfa, offset);
            let slot = SP.wrapping_add(80).wrapping_add_signed(offset);
            assert_eq!(stepped(info, &[(slot, 0x7777), (SP + 72, RETURN)]), returned(SP + 80, 0x7777));
        }
        for offset in [-72, -8, 0, 8, -20] {
            let info = RowInfo::new(RowKind::RspOffset, 80, RbpRule::AtCfa, offset);
            assert_eq!(info, RowInfo::UNSUPPORTED, "{offset}");
        }
    }

    #[test]
    fn rbp_at_rbp() {
        for offset in [-1024i64, -8, 0, 16, 1016] {
            let info = RowInfo::new(RowKind::RspOffset, 32, RbpRule::AtRbp, offset);
            let words = [(BP.wrapping_add_signed(offset), 0x7777), (SP + 24, RETURN)];
            assert_eq!(stepped(info, &words), returned(SP + 32, 0x7777), "{offset}");
        }
        let info = RowInfo::new(RowKind::RspOffset, 32, RbpRule::AtRbp, 0);
        assert_eq!(stepped(info, &[(SP + 24, RETURN)]), Err(WalkEnd::Read));
    }

    #[test]
    fn plt_on_both_sides_of_the_threshold() {
        let info = RowInfo::new(RowKind::Plt, 11 * 8, RbpRule::Same, 0);
        let words = [(SP, RETURN), (SP + 8, RETURN + 8)];
        for (pc, pushed) in [(0x40, 0), (0x4a, 0), (0x4b, 8), (0x4f, 8), (0x50, 0)] {
            let expected = Registers { pc: RETURN + pushed, sp: SP + 8 + pushed, bp: BP, is_return: 1 };
            assert_eq!(stepped_at(pc, info, &words), Ok(expected), "{pc:#x}");
        }
    }

    #[test]
    fn rbp_dereferenced() {
        // gcc's re-aligned frame: the CFA is kept at rbp − 8, the caller's rbp at rbp.
        let info = RowInfo::new(RowKind::RbpDeref, 8, RbpRule::AtRbp, 0);
        let cfa = BP + 0x240;
        let words = [(BP - 8, cfa), (BP, 0x7777), (cfa - 8, RETURN)];
        assert_eq!(stepped(info, &words), returned(cfa, 0x7777));
        assert_eq!(stepped(info, &words[1..]), Err(WalkEnd::Read), "no CFA");
        assert_eq!(stepped(info, &[(BP - 8, SP), (BP, 0x7777), (SP - 8, RETURN)]), Err(WalkEnd::BadSp));
    }

    #[test]
    fn a_signal_frame_gives_registers_and_no_return_address() {
        let info = RowInfo::new(RowKind::SignalFrame, 0, RbpRule::Same, 0);
        // ucontext at rsp: flags, link, stack (3 words), then r8 … of which rbp, rsp, rip.
        let words = [(SP + 120, 0x7777), (SP + 160, 0x8888), (SP + 168, 0x9999)];
        let expected = Registers { pc: 0x9999, sp: 0x8888, bp: 0x7777, is_return: 0 };
        assert_eq!(stepped(info, &words), Ok(expected), "also to a lower sp: from another stack");
        for missing in 0..3 {
            let mut words = words.to_vec();
            words.remove(missing);
            assert_eq!(stepped(info, &words), Err(WalkEnd::Read));
        }
    }

    #[test]
    fn ends() {
        assert_eq!(stepped(RowInfo::NONE, &[]), Err(WalkEnd::NoRow));
        assert_eq!(stepped(RowInfo::UNSUPPORTED, &[]), Err(WalkEnd::Unsupported));
        // Codes that no table has.
        for code in [4, 9, 15] {
            assert_eq!(stepped(RowInfo(code), &[]), Err(WalkEnd::Unsupported));
        }
        let bottom = RowInfo::new(RowKind::Bottom, 0, RbpRule::Same, 0);
        assert_eq!(stepped(bottom, &[]), Err(WalkEnd::Bottom));
        let info = RowInfo::new(RowKind::RspOffset, 16, RbpRule::Same, 0);
        assert_eq!(stepped(info, &[(SP + 8, 0)]), Err(WalkEnd::Bottom), "a return address of zero");
    }

    #[test]
    fn a_stack_pointer_that_does_not_rise() {
        for (kind, offset, bp) in [
            (RowKind::RspOffset, 0, BP),
            (RowKind::RbpOffset, 16, SP - 16),
            (RowKind::RbpOffset, 16, 0),
            (RowKind::RbpOffset, 16, SP + MAX_FRAME_BYTES),
            (RowKind::RbpOffset, 16, u64::MAX - 8),
        ] {
            let info = RowInfo::new(kind, offset, RbpRule::Same, 0);
            let mut regs = Registers { pc: 0x40, sp: SP, bp, is_return: 0 };
            let mut stack = Stack { words: Vec::new() };
            assert_eq!(step(info, &mut regs, &mut stack), Err(WalkEnd::BadSp), "{bp:#x}");
        }
        let largest = RowInfo::new(RowKind::RbpOffset, 16, RbpRule::Same, 0);
        let bp = SP + MAX_FRAME_BYTES - 16;
        let mut regs = Registers { pc: 0x40, sp: SP, bp, is_return: 0 };
        let mut stack = Stack { words: vec![(bp + 8, RETURN)] };
        assert_eq!(step(largest, &mut regs, &mut stack), Ok(()));
    }

    #[test]
    fn memory_that_cannot_be_read() {
        let info = RowInfo::new(RowKind::RspOffset, 48, RbpRule::AtCfa, -16);
        for words in [&[(SP + 40, RETURN)][..], &[(SP + 32, 0x7777)][..], &[]] {
            let mut regs = Registers { pc: 0x40, sp: SP, bp: BP, is_return: 0 };
            let mut stack = Stack { words: words.to_vec() };
            assert_eq!(step(info, &mut regs, &mut stack), Err(WalkEnd::Read));
        }
        // Only the words that are needed: the saved rbp is not, so it may be missing.
        let info = RowInfo::new(RowKind::RspOffset, 48, RbpRule::Same, 0);
        assert_eq!(stepped(info, &[(SP + 40, RETURN)]), returned(SP + 48, BP));
    }

    #[test]
    fn rows_keep_what_they_are_made_of() {
        for (kind, cfa) in [(RowKind::RspOffset, 8), (RowKind::RbpOffset, 0xffff * 8), (RowKind::Plt, 16 * 8)]
        {
            for (rule, rbp) in [(RbpRule::Same, 0), (RbpRule::AtCfa, -64), (RbpRule::AtRbp, 1016)] {
                let row = Row::new(u32::MAX, RowInfo::new(kind, cfa, rule, rbp));
                assert_eq!(row.address(), u64::from(u32::MAX));
                let info = row.info();
                assert_eq!((info.kind(), info.rbp_rule()), (kind as u32, rule as u32));
                assert_eq!((info.cfa_offset(), info.rbp_offset()), (cfa as u64, rbp));
            }
        }
        for cfa in [-8, 12, 0x1_0000 * 8, i64::MIN, i64::MAX] {
            assert_eq!(
                RowInfo::new(RowKind::RspOffset, cfa, RbpRule::Same, 0),
                RowInfo::UNSUPPORTED,
                "{cfa}"
            );
        }
    }
}
