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
//! `rbp` where a frame further out computes its CFA from it. Frames whose row reads anything else
//! (signal frames, re-aligned ones) are never walked past by way of the trail.

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
/// Flag of a [`Frame`]: its row reads more than a return address and a saved `rbp`.
pub const NO_LINK: u32 = 4;

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
    /// [`EXACT_PC`], [`NEEDS_BP`], [`NO_LINK`].
    pub flags: u32,
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
    /// Index of a frame by bits of its stack pointer. What it says is checked.
    pub by_sp: [u8; SP_SLOTS],
    /// How many frames are remembered.
    pub len: u32,
    /// Number of the set of mappings that they were found with.
    pub mapset: u32,
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

    /// Whether the slots that lead from this frame to the one that called it hold what they held.
    /// The root's row ends the walk without a look at the stack.
    #[inline(always)]
    pub fn still_leads_on<R: StackReader>(&self, index: u32, reader: &mut R) -> bool {
        let frame = self.at(index);
        if frame.flags & NO_LINK != 0 {
            return false;
        }
        if index == 0 {
            return frame.info == RowKind::Bottom as u32;
        }
        let caller = self.at(index - 1);
        if reader.read_word(caller.sp.wrapping_sub(8)) != Some(caller.pc) {
            return false;
        }
        let info = RowInfo(frame.info);
        let saved = caller.flags & NEEDS_BP != 0 && info.rbp_rule() == RbpRule::AtCfa as u32;
        !saved || reader.read_word(caller.sp.wrapping_add(info.rbp_offset() as u64)) == Some(caller.bp)
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
        let (key, outer) = if index == 0 {
            (StackKey { a: u64::from(self.mapset), b: 0 }, 0)
        } else {
            let caller = self.at(index - 1);
            (caller.key, caller.flags)
        };
        let keeps = info.rbp_rule() == RbpRule::Same as u32 && outer & NEEDS_BP != 0;
        let mut flags = fresh.flags;
        if uses_bp(info) || keeps {
            flags |= NEEDS_BP;
        }
        if !is_simple(info) {
            flags |= NO_LINK;
        }
        self.frames[(opaque(u64::from(index)) & FRAME_MASK) as usize] = Frame {
            pc: fresh.pc,
            sp: fresh.sp,
            bp: fresh.bp,
            key: mixed(key, fresh.pc),
            info: fresh.info,
            flags,
        };
        self.by_sp[sp_slot(fresh.sp)] = index as u8;
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

/// Whether a row reads the return address below its CFA and at the most a saved `rbp` there.
#[inline(always)]
fn is_simple(info: RowInfo) -> bool {
    let kind = info.kind();
    let plain = kind == RowKind::RspOffset as u32
        || kind == RowKind::RbpOffset as u32
        || kind == RowKind::Plt as u32
        || kind == RowKind::Bottom as u32;
    plain && info.rbp_rule() != RbpRule::AtRbp as u32
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
