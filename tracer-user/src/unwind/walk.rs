//! The walk of the kernel in user space, over memory that was recorded or can be read.
//!
//! It has the kernel's search, step and order of checks; what it does not have is the kernel's
//! row cache. So it is the regression suite that needs no kernel, and the reference that the
//! kernel's stacks are compared with.

use tracer_ebpf::{
    abi::{MAX_FRAMES, MapSet},
    lookup::find_range,
    unwind::{Registers, RowInfo, StackReader, WalkEnd, step},
};

use super::{Atlas, Placement};
use crate::{
    addr::{AbsAddr, VirtAddr},
    target::ReadMemory,
};

/// A stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walked {
    /// Code addresses, innermost first: the first one is exact, the others are return addresses
    /// or were interrupted by a signal.
    pub frames: Vec<u64>,
    /// Why there are no more.
    pub end: WalkEnd,
}

/// A call whose return address a return probe may have replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenCall {
    /// Stack pointer at the function's entry: where the return address is.
    pub sp: u64,
    /// The true return address.
    pub return_address: u64,
}

/// What return probes hide on the stack of a task.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReturnProbes<'a> {
    /// First address of the area that they make functions return to, and one past its last.
    pub trampoline: (u64, u64),
    /// The calls that they wait for, outermost first.
    pub open_calls: &'a [OpenCall],
}

impl ReturnProbes<'_> {
    /// The true return address of the frame whose caller has this stack pointer.
    fn uncovered(&self, sp: u64) -> Option<u64> {
        let slot = sp.wrapping_sub(8);
        let call = self.open_calls.iter().rfind(|call| call.sp == slot && call.return_address != 0);
        call.map(|call| call.return_address)
    }
}

/// The stack of a task with these registers, [`MAX_FRAMES`] frames at the most, with no return
/// probe on it.
pub fn walk(atlas: &Atlas, set: &MapSet, regs: Registers, reader: &mut impl StackReader) -> Walked {
    walk_above(Vec::new(), atlas, set, ReturnProbes::default(), regs, reader)
}

/// Like [`walk`], above frames that are known already: the kernel walks from the return of an
/// allocator call, and puts the allocator's own address below.
pub fn walk_above(
    mut frames: Vec<u64>,
    atlas: &Atlas,
    set: &MapSet,
    probes: ReturnProbes<'_>,
    mut regs: Registers,
    reader: &mut impl StackReader,
) -> Walked {
    let end = loop {
        if frames.len() >= MAX_FRAMES {
            break WalkEnd::Truncated;
        }
        let mut info = row_at(atlas, set, regs.pc.wrapping_sub(regs.is_return));
        if info.is_none() {
            regs.pc = probes.uncovered(regs.sp).unwrap_or(regs.pc);
            info = row_at(atlas, set, regs.pc.wrapping_sub(regs.is_return));
        }
        frames.push(regs.pc);
        let Some(info) = info else {
            let hidden = regs.pc >= probes.trampoline.0 && regs.pc < probes.trampoline.1;
            break if hidden { WalkEnd::LostReturn } else { WalkEnd::UnknownMapping };
        };
        if let Err(end) = step(info, &mut regs, reader) {
            break end;
        }
    };
    Walked { frames, end }
}

/// What holds at a code address; `None` outside of every mapping.
fn row_at(atlas: &Atlas, set: &MapSet, pc: u64) -> Option<RowInfo> {
    let range = &set.ranges[find_range(set, pc)];
    if pc < range.start || pc >= range.end {
        return None;
    }
    let placement = Placement { first_page: range.first_page, page_count: range.page_count };
    let address = VirtAddr(pc.wrapping_sub(range.bias));
    Some(atlas.find(placement, address).map_or(RowInfo::NONE, |row| row.info()))
}

/// Stack memory by way of [`ReadMemory`].
#[derive(Clone, Copy, Debug)]
pub struct StackMemory<'a, M>(pub &'a M);

impl<M: ReadMemory> StackReader for StackMemory<'_, M> {
    fn read_word(&mut self, address: u64) -> Option<u64> {
        self.0.word(AbsAddr(address)).ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use std::io;

    use tracer_ebpf::{
        abi::{MAX_FRAMES, MapSet},
        unwind::{RbpRule, Registers, Row, RowInfo, RowKind, WalkEnd},
    };

    use super::{OpenCall, ReturnProbes, StackMemory, Walked, walk, walk_above};
    use crate::{
        addr::{AbsAddr, Bias},
        target::ReadMemory,
        unwind::{Atlas, MappedObject, build_mapset, fixture::row, fixture::table_of},
    };

    /// Words at ascending addresses; what is not there cannot be read.
    struct Words(Vec<(u64, u64)>);

    impl ReadMemory for Words {
        fn read(&self, address: AbsAddr, into: &mut [u8]) -> io::Result<()> {
            for (at, bytes) in (address.0..).step_by(8).zip(into.chunks_exact_mut(8)) {
                let word = self.0.iter().find(|word| word.0 == at);
                bytes.copy_from_slice(&word.ok_or(io::ErrorKind::NotFound)?.1.to_le_bytes());
            }
            Ok(())
        }
    }

    const CODE: u64 = 0x5555_0000_0000;
    const SP: u64 = 0x7ffd_0000_0000;

    /// Functions of the object at [`CODE`], 0x100 bytes each; what lies between them has no rule.
    const MAIN: u64 = 0x1000;
    const LEAF: u64 = 0x1100;
    const WITH_RBP: u64 = 0x1200;
    const PLT: u64 = 0x1300;
    const ALIGNED: u64 = 0x1400;
    const SIGNAL: u64 = 0x1500;
    const ODD: u64 = 0x1600;
    const START: u64 = 0x1700;
    const NOWHERE: u64 = 0x1900;

    fn process() -> (Atlas, Box<MapSet>) {
        let with_rbp = |kind, offset, rule, at| RowInfo::new(kind, offset, rule, at);
        let table = table_of(&[
            row(MAIN as u32, RowKind::RspOffset, 32),
            row(LEAF as u32, RowKind::RspOffset, 8),
            Row::new(WITH_RBP as u32, with_rbp(RowKind::RbpOffset, 16, RbpRule::AtCfa, -16)),
            row(PLT as u32, RowKind::Plt, 11 * 8),
            Row::new(ALIGNED as u32, with_rbp(RowKind::RbpDeref, 8, RbpRule::AtRbp, 0)),
            row(SIGNAL as u32 - 1, RowKind::SignalFrame, 0),
            Row::new(ODD as u32, RowInfo::UNSUPPORTED),
            row(START as u32, RowKind::Bottom, 0),
            row(START as u32 + 0x100, RowKind::None, 0),
        ])
        .unwrap();
        let mut atlas = Atlas::new();
        // Not the first one, so that its pages and rows do not begin at 0.
        atlas.add(&table_of(&[row(0x5000, RowKind::Bottom, 0)]).unwrap()).unwrap();
        let placement = Some(atlas.add(&table).unwrap());
        let mapped = MappedObject {
            start: AbsAddr(CODE + 0x1000),
            end: AbsAddr(CODE + 0x9000),
            bias: Bias(CODE),
            placement,
        };
        let bare =
            MappedObject { start: AbsAddr(0x1000), end: AbsAddr(0x2000), bias: Bias(0), placement: None };
        (atlas, build_mapset(&[mapped, bare]).unwrap())
    }

    /// A walk from `offset` in the code, over a stack whose words are at [`SP`] and up. Unless
    /// the memory is `short`, there are eight more words below, as on any real stack.
    fn walked_over(offset: u64, bp: u64, stack: &[u64], short: bool) -> Walked {
        let (atlas, set) = process();
        let mut words: Vec<(u64, u64)> = (SP..).step_by(8).zip(stack.iter().copied()).collect();
        if !short {
            words.extend((1..=8).map(|below| (SP - below * 8, 0xdead)));
        }
        let regs = Registers { pc: CODE + offset, sp: SP, bp, is_return: 0 };
        walk(&atlas, &set, regs, &mut StackMemory(&Words(words)))
    }

    fn walked(offset: u64, bp: u64, stack: &[u64]) -> Walked {
        walked_over(offset, bp, stack, false)
    }

    fn frames(offsets: &[u64], end: WalkEnd) -> Walked {
        Walked { frames: offsets.iter().map(|offset| CODE + offset).collect(), end }
    }

    /// A return address right behind a function's call to one that never returns, which is that
    /// function's last instruction.
    const fn behind(function: u64) -> u64 {
        CODE + function + 0x100
    }

    #[test]
    fn rsp_rows_and_the_byte_before_the_return_address() {
        let stack = [CODE + MAIN + 5, 1, 2, 3, behind(START)];
        assert_eq!(walked(LEAF, 0, &stack), frames(&[LEAF, MAIN + 5, START + 0x100], WalkEnd::Bottom));
        // The first one is exact: the byte after the leaf's last is the next function's.
        assert_eq!(walked(START, 0, &[]), frames(&[START], WalkEnd::Bottom));
    }

    #[test]
    fn a_saved_rbp_serves_the_caller() {
        // The leaf's caller has its frame at SP + 24, and that one's at SP + 48.
        let stack = [CODE + WITH_RBP + 1, 0, 0, SP + 48, CODE + WITH_RBP + 2, 0, 77, behind(START)];
        let expected = frames(&[LEAF, WITH_RBP + 1, WITH_RBP + 2, START + 0x100], WalkEnd::Bottom);
        assert_eq!(walked(LEAF, SP + 24, &stack), expected);
    }

    #[test]
    fn a_plt_stub_has_pushed_a_word_from_its_second_half_on() {
        for (at, stack) in [(0, &[behind(START)][..]), (10, &[behind(START)]), (11, &[3, behind(START)])] {
            for stub in [0x10, 0x20] {
                let expected = frames(&[PLT + stub + at, START + 0x100], WalkEnd::Bottom);
                assert_eq!(walked(PLT + stub + at, 0, stack), expected, "{at}");
            }
        }
    }

    #[test]
    fn an_aligned_frame_finds_its_cfa_and_rbp_through_rbp() {
        // CFA = *(rbp - 8), the caller's rbp = *rbp, with rbp at SP + 16.
        let stack = [0, SP + 48, SP + 64, 0, 0, CODE + WITH_RBP + 1, 0, 0, 5, behind(START)];
        let expected = frames(&[ALIGNED, WITH_RBP + 1, START + 0x100], WalkEnd::Bottom);
        assert_eq!(walked(ALIGNED, SP + 16, &stack), expected);
    }

    #[test]
    fn a_signal_frame_restores_the_interrupted_registers_and_their_exact_pc() {
        let mut stack = vec![0; 1 + 24];
        // The handler returns to the trampoline; rsp is at the ucontext then.
        stack[0] = CODE + SIGNAL;
        let context = 1;
        let top = stack.len() as u64;
        stack[context + 5 + 10] = SP + top * 8;
        stack[context + 5 + 15] = SP + top * 8 - 8;
        // Interrupted at a function's very first instruction.
        stack[context + 5 + 16] = CODE + WITH_RBP;
        stack.extend([0, behind(START)]);
        let expected = frames(&[LEAF, SIGNAL, WITH_RBP, START + 0x100], WalkEnd::Bottom);
        assert_eq!(walked(LEAF, 0, &stack), expected);
        stack.truncate(context + 5 + 16);
        assert_eq!(walked(LEAF, 0, &stack), frames(&[LEAF, SIGNAL], WalkEnd::Read));
    }

    #[test]
    fn a_stack_that_begins_in_the_first_words_of_its_memory_is_read_word_by_word() {
        let stack = [CODE + WITH_RBP + 1, SP + 24, 0, 0, behind(START)];
        let expected = frames(&[LEAF, WITH_RBP + 1, START + 0x100], WalkEnd::Bottom);
        assert_eq!(walked_over(LEAF, SP + 24, &stack, true), expected);
    }

    #[test]
    fn memory_that_cannot_be_read_ends_the_walk() {
        assert_eq!(walked(LEAF, 0, &[]), frames(&[LEAF], WalkEnd::Read));
        assert_eq!(walked(WITH_RBP, SP + 800, &[]), frames(&[WITH_RBP], WalkEnd::Read));
        // The return address is there, and the saved rbp is not.
        assert_eq!(walked_over(WITH_RBP, SP - 8, &[behind(START)], true), frames(&[WITH_RBP], WalkEnd::Read));
        assert_eq!(walked(ALIGNED, SP + 800, &[]), frames(&[ALIGNED], WalkEnd::Read));
        // The CFA is there, and the word that rbp points at is not.
        let stack = [SP + 16, behind(START)];
        assert_eq!(walked(ALIGNED, SP + 8 + 0x100, &stack), frames(&[ALIGNED], WalkEnd::Read));
    }

    #[test]
    fn every_other_end() {
        assert_eq!(walked(LEAF, 0, &[0]), frames(&[LEAF], WalkEnd::Bottom));
        assert_eq!(walked(ODD, 0, &[]), frames(&[ODD], WalkEnd::Unsupported));
        assert_eq!(walked(NOWHERE, 0, &[]), frames(&[NOWHERE], WalkEnd::NoRow));
        // Mapped, but past the last page of the object's index.
        assert_eq!(walked(0x8fff, 0, &[]), frames(&[0x8fff], WalkEnd::NoRow));
        assert_eq!(walked(0x9000, 0, &[]), frames(&[0x9000], WalkEnd::UnknownMapping));
        let bare = Walked { frames: vec![CODE + LEAF, 0x1234], end: WalkEnd::NoRow };
        assert_eq!(walked(LEAF, 0, &[0x1234]), bare);
        let wild = Walked { frames: vec![CODE + LEAF, u64::MAX], end: WalkEnd::UnknownMapping };
        assert_eq!(walked(LEAF, 0, &[u64::MAX]), wild);
        // rbp at or below the stack pointer, or absurdly far above it.
        assert_eq!(walked(WITH_RBP, SP - 16, &[]), frames(&[WITH_RBP], WalkEnd::BadSp));
        assert_eq!(walked(WITH_RBP, SP + (65 << 20), &[]), frames(&[WITH_RBP], WalkEnd::BadSp));
        assert_eq!(walked(WITH_RBP, u64::MAX, &[]), frames(&[WITH_RBP], WalkEnd::BadSp));
    }

    #[test]
    fn a_deep_stack_is_cut_at_the_frames_that_are_kept() {
        let stack = vec![CODE + LEAF + 1; 200];
        let found = walked(LEAF, 0, &stack);
        assert_eq!((found.frames.len(), found.end), (MAX_FRAMES, WalkEnd::Truncated));
        let mut exact = vec![CODE + LEAF + 1; MAX_FRAMES - 2];
        exact.push(behind(START));
        let found = walked(LEAF, 0, &exact);
        assert_eq!((found.frames.len(), found.end), (MAX_FRAMES, WalkEnd::Bottom));
    }

    #[test]
    fn frames_that_are_known_already_count_and_stay_first() {
        let (atlas, set) = process();
        let mut words: Vec<(u64, u64)> = (SP - 64..SP).step_by(8).map(|at| (at, 0)).collect();
        words.extend((SP..).step_by(8).zip(vec![CODE + LEAF + 1; 200]));
        let regs = Registers { pc: CODE + LEAF + 1, sp: SP, bp: 0, is_return: 1 };
        let found = walk_above(
            vec![0x4242],
            &atlas,
            &set,
            ReturnProbes::default(),
            regs,
            &mut StackMemory(&Words(words)),
        );
        assert_eq!(found.frames[..2], [0x4242, CODE + LEAF + 1]);
        assert_eq!((found.frames.len(), found.end), (MAX_FRAMES, WalkEnd::Truncated));
    }

    #[test]
    fn what_a_return_probe_hides_is_uncovered_or_named() {
        const TRAMPOLINE: u64 = 0x7fff_ffff_e000;
        let (atlas, set) = process();
        // The leaf's return address is at SP, its caller's at SP + 32: the hidden one.
        let stack = [CODE + MAIN + 5, 1, 2, 3, TRAMPOLINE, behind(START)];
        let words: Vec<(u64, u64)> = (SP - 64..).step_by(8).zip([0; 8].into_iter().chain(stack)).collect();
        let walked = |trampoline, open_calls: &[OpenCall]| {
            let regs = Registers { pc: CODE + LEAF, sp: SP, bp: 0, is_return: 0 };
            let probes = ReturnProbes { trampoline, open_calls };
            walk_above(Vec::new(), &atlas, &set, probes, regs, &mut StackMemory(&Words(words.clone())))
        };
        let open = |sp, return_address| OpenCall { sp, return_address };
        let area = (TRAMPOLINE, TRAMPOLINE + 0x1000);
        let cut = |last, end| Walked { frames: vec![CODE + LEAF, CODE + MAIN + 5, last], end };

        let calls = [open(SP, 7), open(SP + 32, 9), open(SP + 32, CODE + LEAF + 7), open(SP + 32, 0)];
        let whole = frames(&[LEAF, MAIN + 5, LEAF + 7, START + 0x100], WalkEnd::Bottom);
        assert_eq!(walked(area, &calls), whole, "the innermost call there whose address is known");
        assert_eq!(walked((0, 0), &calls), whole, "also before the area is known");
        assert_eq!(walked(area, &calls[..1]), cut(TRAMPOLINE, WalkEnd::LostReturn));
        assert_eq!(walked((0, 0), &calls[..1]), cut(TRAMPOLINE, WalkEnd::UnknownMapping));
        assert_eq!(walked(area, &calls[..2]), cut(9, WalkEnd::UnknownMapping), "not what it hid either");
    }
}
