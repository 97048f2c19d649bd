//! The last walk of a task, so that the next one ends where it meets it.
//!
//! Two stacks of one task that follow each other differ in their innermost frames. A walk that
//! comes to a frame of the last one, with the same pc and stack pointer, goes on as that one did
//! if every stack slot that is read from there on still holds what it held: the slots are all
//! compared, so a stack by way of the trail is the stack that a full walk finds, or the trail is
//! not used. Frames are kept root first, and hashed from the root inwards, so that what two
//! stacks share is at the front of both.
//!
//! Which slots are read follows from the unwind rows: each frame's return address, and a saved
//! `rbp` where a frame further out computes its CFA from it. They are worked out once, when a frame is
//! put on the trail ([`Link`]). Frames whose row reads anything else (signal frames, re-aligned ones)
//! are never walked past by way of the trail.

use crate::{
    abi::{FRAME_SLOTS, StackKey},
    lookup::opaque,
    unwind::{RbpRule, Registers, RowInfo, RowKind, StackReader},
};

const FRAME_MASK: u64 = FRAME_SLOTS as u64 - 1;
/// Slots of the index by stack pointer: 4 KiB of stack without two frames on one slot.
const SP_SLOTS: usize = 256;

/// Flag of a [`Frame`]: its address is exact, not a return address.
pub const EXACT_PC: u32 = 1;
/// Flag of a [`Frame`]: the walk from here on depends on `rbp`.
pub const NEEDS_BP: u32 = 2;
/// Flag of a [`Frame`]: the link of it, or of one further out, has a saved `rbp`.
pub const LINKS_BP: u32 = 4;

/// A frame of the last walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Frame {
    /// Its pc.
    pub pc: u64,
    /// Its stack pointer: the CFA of the frame that it called.
    pub sp: u64,
    /// Its `rbp`.
    pub bp: u64,
    /// Hash of this frame and all further out.
    pub key: StackKey,
    /// Its row.
    pub info: u32,
    /// [`EXACT_PC`], [`NEEDS_BP`], [`LINKS_BP`].
    pub flags: u32,
}

/// What the stack has to hold for a frame to lead to the one that called it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Link {
    /// Where the return address is.
    pub at: u64,
    /// The return address.
    pub pc: u64,
    /// Where the caller's `rbp` is saved; as `at` if that does not matter.
    pub bp_at: u64,
    /// The caller's `rbp`; then as `pc`.
    pub bp: u64,
}

impl Link {
    /// One that never holds: no word is at this address.
    const NEVER: Self = Self { at: 1, pc: 0, bp_at: 1, bp: 0 };

    /// 0 if it holds. `BP`: whether it may have a saved `rbp`.
    #[inline(always)]
    fn differs<const BP: bool, R: StackReader>(&self, reader: &mut R) -> u64 {
        let differs = reader.differs(self.at, self.pc);
        if BP { differs | reader.differs(self.bp_at, self.bp) } else { differs }
    }
}

/// A frame that was just walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Fresh {
    /// Its pc.
    pub pc: u64,
    /// Its stack pointer.
    pub sp: u64,
    /// Its `rbp`.
    pub bp: u64,
    /// Its row.
    pub info: u32,
    /// [`EXACT_PC`] or 0.
    pub flags: u32,
}

/// The last walk of a task.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Trail {
    /// Root first.
    pub frames: [Frame; FRAME_SLOTS],
    /// How each of them leads to the one before, side by side: all of them are looked at for each stack.
    pub links: [Link; FRAME_SLOTS],
    /// Index of a frame by bits of its stack pointer. What it says is checked.
    pub by_sp: [u8; SP_SLOTS],
    /// How many frames are remembered.
    pub len: u32,
    /// Number of the set of mappings that they were found with.
    pub mapset: u32,
    /// Index of a frame of a function that never returns, or 0: those further out, which it was called by, stay as they
    /// are for good, and are not looked at.
    pub base: u32,
    /// Padding.
    pub pad: u32,
}

#[inline(always)]
fn sp_slot(sp: u64) -> usize {
    // Stack pointers at calls are multiples of 16.
    ((opaque(sp) >> 4) & (SP_SLOTS as u64 - 1)) as usize
}

impl Trail {
    /// The frame with this index, from the root.
    #[inline(always)]
    pub fn at(&self, index: u32) -> &Frame {
        &self.frames[(opaque(u64::from(index)) & FRAME_MASK) as usize]
    }

    /// Whether the outermost frame is the bottom by its row, which ends the walk without a look at the stack.
    #[inline(always)]
    pub fn is_rooted(&self) -> bool {
        self.frames[0].info == RowKind::Bottom as u32
    }

    /// How many of the first `known` frames are as they were, of which `MOST` from [`Self::base`] on are looked at; that
    /// one, or the root, is.
    #[inline(always)]
    pub fn standing<const MOST: u64, R: StackReader>(&self, known: u32, reader: &mut R) -> u32 {
        // Where no frame's way depends on `rbp`, there is half as much to look at.
        if self.at(known.wrapping_sub(1)).flags & LINKS_BP == 0 {
            self.standing_by::<MOST, false, _>(known, reader)
        } else {
            self.standing_by::<MOST, true, _>(known, reader)
        }
    }

    #[inline(always)]
    fn standing_by<const MOST: u64, const BP: bool, R: StackReader>(
        &self,
        known: u32,
        reader: &mut R,
    ) -> u32 {
        for number in 1..MOST {
            // Hidden from LLVM, which would count something else that the verifier sees no end of.
            let index = opaque(number).wrapping_add(u64::from(self.base));
            let after_last = (u64::from(known) - 1).wrapping_sub(index) >> 63;
            // One way out of each round: the verifier follows every one.
            if after_last | self.differs::<BP, _>(index, reader) != 0 {
                return index as u32;
            }
        }
        MOST as u32 + self.base
    }

    /// Whether the frame with this index is of a function that is at these addresses.
    #[inline(always)]
    pub fn is_of(&self, index: u32, (start, end): (u64, u64)) -> bool {
        let pc = self.at(index).pc.wrapping_sub(1);
        pc >= start && pc < end
    }

    /// 0 if a frame is as it was, and its caller was.
    #[inline(always)]
    pub fn differs<const BP: bool, R: StackReader>(&self, index: u64, reader: &mut R) -> u64 {
        self.links[(opaque(index) & FRAME_MASK) as usize].differs::<BP, _>(reader)
    }

    /// The index of the frame that the walk has come to, if it is one of the first `valid`.
    #[inline(always)]
    pub fn meets(&self, valid: u32, regs: &Registers) -> Option<u32> {
        let index = u32::from(self.by_sp[sp_slot(regs.sp)]);
        if index >= valid {
            return None;
        }
        let frame = self.at(index);
        let same = frame.sp == regs.sp
            && frame.pc == regs.pc
            && frame.flags & EXACT_PC == exact_pc(regs)
            && (frame.flags & NEEDS_BP == 0 || frame.bp == regs.bp);
        same.then_some(index)
    }

    /// Puts a frame behind the first `index`.
    #[inline(always)]
    pub fn append(&mut self, index: u32, fresh: &Fresh) {
        let info = RowInfo(fresh.info);
        let (key, outer, link) = if index == 0 {
            (StackKey { a: u64::from(self.mapset), b: 0 }, 0, Link::NEVER)
        } else {
            let caller = self.at(index - 1);
            (caller.key, caller.flags, caller.link_to(info))
        };
        let keeps = info.rbp_rule() == RbpRule::Same as u32 && outer & NEEDS_BP != 0;
        let mut flags = fresh.flags;
        if uses_bp(info) || keeps {
            flags |= NEEDS_BP;
        }
        if outer & LINKS_BP != 0 || link.bp_at != link.at {
            flags |= LINKS_BP;
        }
        self.frames[(opaque(u64::from(index)) & FRAME_MASK) as usize] = Frame {
            pc: fresh.pc,
            sp: fresh.sp,
            bp: fresh.bp,
            key: mixed(key, fresh.pc),
            info: fresh.info,
            flags,
        };
        self.links[(opaque(u64::from(index)) & FRAME_MASK) as usize] = link;
        self.by_sp[sp_slot(fresh.sp)] = index as u8;
    }
}

impl Frame {
    /// The link to this frame of one that it called, and whose row is that.
    #[inline(always)]
    fn link_to(&self, info: RowInfo) -> Link {
        if !info.is_simple() {
            return Link::NEVER;
        }
        let (at, pc) = (self.sp.wrapping_sub(8), self.pc);
        if self.flags & NEEDS_BP != 0 && info.rbp_rule() == RbpRule::AtCfa as u32 {
            Link { at, pc, bp_at: self.sp.wrapping_add(info.rbp_offset() as u64), bp: self.bp }
        } else {
            Link { at, pc, bp_at: at, bp: pc }
        }
    }
}

impl Fresh {
    /// The frame with these registers and this row.
    #[inline(always)]
    pub fn new(regs: &Registers, info: RowInfo) -> Self {
        Self { pc: regs.pc, sp: regs.sp, bp: regs.bp, info: info.0, flags: exact_pc(regs) }
    }
}

#[inline(always)]
fn exact_pc(regs: &Registers) -> u32 {
    if regs.is_return == 0 { EXACT_PC } else { 0 }
}

#[inline(always)]
fn uses_bp(info: RowInfo) -> bool {
    info.kind() == RowKind::RbpOffset as u32
}

/// Two odd constants far apart: the fractional parts of the golden ratio and of √3.
const MIX_A: u64 = 0x9e37_79b9_7f4a_7c15;
const MIX_B: u64 = 0xbb67_ae85_84ca_a73b;

/// The hash of a stack with one more frame.
#[inline(always)]
pub fn mixed(key: StackKey, pc: u64) -> StackKey {
    StackKey { a: mix(key.a, pc, MIX_A), b: mix(key.b, pc, MIX_B) }
}

#[inline(always)]
fn mix(hash: u64, value: u64, by: u64) -> u64 {
    let hash = (hash ^ value).wrapping_mul(by);
    hash ^ (hash >> 29)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{boxed::Box, vec, vec::Vec};

    use super::*;
    use crate::unwind::{WalkEnd, step};

    const TOP: u64 = 0x7ffd_0000_0000;
    const WORDS: usize = 2048;
    const BOTTOM: RowInfo = RowInfo::new(RowKind::Bottom, 0, RbpRule::Same, 0);

    /// A stack of 16 KiB below [`TOP`].
    struct Memory(Vec<u64>);

    impl Memory {
        fn slot(&mut self, address: u64) -> &mut u64 {
            &mut self.0[WORDS - ((TOP - address) / 8) as usize]
        }
    }

    impl StackReader for &Memory {
        fn read_word(&mut self, address: u64) -> Option<u64> {
            let below = TOP.checked_sub(address).filter(|below| below % 8 == 0)? / 8;
            WORDS.checked_sub(below as usize).and_then(|index| self.0.get(index).copied())
        }
    }

    /// The part of it above an address.
    struct Above<'a>(&'a Memory, u64);

    impl StackReader for Above<'_> {
        fn read_word(&mut self, address: u64) -> Option<u64> {
            (address >= self.1).then(|| (&mut &*self.0).read_word(address)).flatten()
        }
    }

    /// What holds at a pc: the low byte names a function, whose frames are all of one shape.
    fn row_of(pc: u64) -> RowInfo {
        match pc & 7 {
            0 => BOTTOM,
            1 => RowInfo::new(RowKind::RspOffset, 16, RbpRule::Same, 0),
            2 => RowInfo::new(RowKind::RspOffset, 64, RbpRule::Same, 0),
            3 => RowInfo::new(RowKind::RspOffset, 48, RbpRule::AtCfa, -16),
            4 => RowInfo::new(RowKind::RspOffset, 96, RbpRule::AtCfa, -56),
            5 | 6 => RowInfo::new(RowKind::RbpOffset, 16, RbpRule::AtCfa, -16),
            // gcc's re-aligned frames, which no trail may be taken across.
            _ => RowInfo::new(RowKind::RspOffset, 32, RbpRule::AtRbp, 0),
        }
    }

    const SLOTS: u64 = FRAME_SLOTS as u64;

    /// Walks as the kernel does, with what is known of the last walk or without; gives the pcs,
    /// root first, and how many were walked.
    fn walk(
        trail: &mut Trail,
        anew: bool,
        mut regs: Registers,
        memory: &Memory,
    ) -> (Vec<u64>, StackKey, usize) {
        let known = if anew { 0 } else { trail.len };
        // What is below the stack pointer is not looked at.
        let valid =
            if known == 0 { 0 } else { trail.standing::<SLOTS, _>(known, &mut Above(memory, regs.sp)) };
        let mut fresh = Vec::new();
        let mut met = 0;
        let end = loop {
            if let Some(index) = trail.meets(valid, &regs) {
                met = index + 1;
                break WalkEnd::Bottom;
            }
            let info = row_of(regs.pc);
            fresh.push(Fresh::new(&regs, info));
            if let Err(end) = step(info, &mut regs, &mut &*memory) {
                break end;
            }
        };
        assert_eq!(end, WalkEnd::Bottom);
        for (index, frame) in fresh.iter().rev().enumerate() {
            trail.append(met + index as u32, frame);
        }
        trail.len = met + fresh.len() as u32;
        let pcs = (0..trail.len).map(|index| trail.at(index).pc).collect();
        (pcs, trail.at(trail.len - 1).key, fresh.len())
    }

    fn empty() -> Box<Trail> {
        const NOTHING: Frame = Frame { pc: 0, sp: 0, bp: 0, key: StackKey { a: 0, b: 0 }, info: 0, flags: 0 };
        let links = [Link::NEVER; FRAME_SLOTS];
        Box::new(Trail {
            frames: [NOTHING; FRAME_SLOTS],
            links,
            by_sp: [0; SP_SLOTS],
            len: 0,
            mapset: 1,
            base: 0,
            pad: 0,
        })
    }

    /// A program that calls, returns, and writes to its locals and to `rbp`.
    struct Program {
        memory: Memory,
        regs: Registers,
        /// Registers of the callers: what a return restores.
        callers: Vec<Registers>,
        seed: u64,
    }

    impl Program {
        fn new(seed: u64) -> Self {
            let regs = Registers { pc: 0x5000, sp: TOP - 64, bp: 0, is_return: 1 };
            Self { memory: Memory(vec![0xdead; WORDS]), regs, callers: Vec::new(), seed }
        }

        /// xorshift64*.
        fn random(&mut self, below: u64) -> u64 {
            self.seed ^= self.seed >> 12;
            self.seed ^= self.seed << 25;
            self.seed ^= self.seed >> 27;
            (self.seed.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % below
        }

        fn call(&mut self) {
            if self.callers.len() > 40 {
                return;
            }
            let pc = 0x5000 + self.random(3) * 8 + 1 + self.random(7);
            let info = row_of(pc);
            let caller = self.regs;
            let size = if info.kind() == RowKind::RbpOffset as u32 {
                16 + 16 * self.random(6)
            } else {
                info.cfa_offset()
            };
            *self.memory.slot(caller.sp - 8) = caller.pc;
            let mut bp = caller.bp;
            match info.rbp_rule() {
                1 => {
                    *self.memory.slot(caller.sp.wrapping_add(info.rbp_offset() as u64)) = bp;
                    // A frame pointer, or a register like any other.
                    bp = if info.kind() == RowKind::RbpOffset as u32 {
                        caller.sp - 16
                    } else {
                        self.random(3)
                    };
                }
                2 => {
                    bp = caller.sp - 24;
                    *self.memory.slot(bp) = caller.bp;
                }
                _ => {}
            }
            self.callers.push(caller);
            self.regs = Registers { pc, sp: caller.sp - size, bp, is_return: 1 };
        }

        fn act(&mut self) {
            match self.random(5) {
                0 | 1 => self.call(),
                2 => {
                    if let Some(caller) = self.callers.pop() {
                        self.regs = caller;
                    }
                }
                // Calls from another place of the same function.
                3 if !self.callers.is_empty() => {
                    self.regs.pc = (self.regs.pc & 7) + 0x5000 + self.random(3) * 8;
                }
                _ => {
                    for _ in 0..self.random(4) {
                        if let Some(caller) = self.callers.pop() {
                            self.regs = caller;
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_walk_by_way_of_the_trail_finds_what_a_full_walk_finds() {
        let (mut walked, mut all) = (0, 0);
        for seed in 1..=60 {
            let mut program = Program::new(seed * 0x9e37_79b9);
            let mut trail = empty();
            for _ in 0..400 {
                for _ in 0..=program.random(4) {
                    program.act();
                }
                let mut once = empty();
                let (wanted, key, frames) = walk(&mut once, true, program.regs, &program.memory);
                let (found, found_key, fresh) = walk(&mut trail, false, program.regs, &program.memory);
                assert_eq!(found, wanted, "seed {seed}");
                assert_eq!(found_key, key);
                walked += fresh;
                all += frames;
            }
        }
        // One frame in eight is one that no trail crosses.
        assert!(walked * 3 < all * 2, "the trail is of use: {walked} of {all} frames walked");
    }

    /// The frames of `sp` downwards of a stack: start, then the given functions.
    fn stack_of(functions: &[u64]) -> (Memory, Registers) {
        let mut memory = Memory(vec![0; WORDS]);
        let mut regs = Registers { pc: 0x5000, sp: TOP - 64, bp: 0, is_return: 1 };
        for pc in functions {
            let info = row_of(*pc);
            *memory.slot(regs.sp - 8) = regs.pc;
            if info.rbp_rule() == RbpRule::AtCfa as u32 {
                *memory.slot(regs.sp.wrapping_add(info.rbp_offset() as u64)) = regs.bp;
            }
            let (bp, size) = if info.kind() == RowKind::RbpOffset as u32 {
                (regs.sp - 16, 48)
            } else {
                (regs.bp, info.cfa_offset())
            };
            regs = Registers { pc: *pc, sp: regs.sp - size, bp, is_return: 1 };
        }
        (memory, regs)
    }

    #[test]
    fn every_slot_that_is_read_counts() {
        // With frame pointers: each frame's return address and saved rbp.
        let functions = [0x5005, 0x500d, 0x5006, 0x5001, 0x5002];
        let (memory, regs) = stack_of(&functions);
        let mut trail = empty();
        let (_, _, fresh) = walk(&mut trail, false, regs, &memory);
        assert_eq!(fresh, 6);
        assert!(trail.is_rooted());
        assert_eq!(walk(&mut trail, false, regs, &memory).2, 0, "nothing has changed");
        for index in 1..=functions.len() as u32 {
            let caller = *trail.at(index - 1);
            let mut slots = vec![caller.sp - 8];
            if row_of(trail.at(index).pc).rbp_rule() == RbpRule::AtCfa as u32 && index > 1 {
                slots.push(caller.sp - 16);
            }
            for slot in slots {
                let mut changed = Memory(memory.0.clone());
                *changed.slot(slot) ^= 0x10;
                assert_eq!(trail.standing::<SLOTS, _>(trail.len, &mut &changed), index, "slot {slot:#x}");
            }
        }
    }

    #[test]
    fn what_a_function_that_never_returns_was_called_by_is_not_looked_at() {
        let (memory, regs) = stack_of(&[0x5001, 0x5002, 0x5005, 0x5001, 0x500d]);
        let mut trail = empty();
        walk(&mut trail, false, regs, &memory);
        let base = (0..trail.len).find(|index| trail.is_of(*index, (0x5004, 0x5005))).expect("it is there");
        assert_eq!(base, 3);
        trail.base = base;
        assert_eq!(trail.standing::<SLOTS, _>(trail.len, &mut &memory), trail.len);
        for index in 1..trail.len {
            let mut changed = Memory(memory.0.clone());
            *changed.slot(trail.at(index - 1).sp - 8) ^= 0x10;
            let standing = trail.standing::<SLOTS, _>(trail.len, &mut &changed);
            assert_eq!(standing, if index <= base { trail.len } else { index });
        }
        // As much is looked at as without it.
        assert_eq!(trail.standing::<2, _>(trail.len, &mut &memory), base + 2);
        // Its own frame stands, or is none that is met: its pc is in the frame that it has called.
        let mut changed = Memory(memory.0.clone());
        *changed.slot(trail.at(base).sp - 8) = 0x500d;
        let (pcs, _, fresh) = walk(&mut trail, false, regs, &changed);
        assert_eq!((pcs[base as usize], fresh), (0x500d, 3));
    }

    #[test]
    fn a_general_register_is_not_taken_for_a_frame_pointer() {
        // Nothing further out needs rbp, so neither it nor where it is saved matters.
        let (memory, regs) = stack_of(&[0x5001, 0x5003, 0x5004, 0x5002]);
        let mut trail = empty();
        walk(&mut trail, false, regs, &memory);
        let mut changed = Memory(memory.0.clone());
        *changed.slot(trail.at(1).sp - 16) = 0x1234;
        let other = Registers { bp: 0x7777, ..regs };
        assert_eq!(walk(&mut trail, false, other, &changed).2, 0);
    }
}
