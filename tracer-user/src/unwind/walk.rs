//! The walk of the kernel in user space, over memory that was recorded or can be read.
//!
//! It has the kernel's search, step and order of checks; what it does not have is the kernel's
//! row cache and its knowledge of pending return probes. So it is the regression suite that needs
//! no kernel, and the reference that the kernel's stacks are compared with.

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

/// The stack of a task with these registers, [`MAX_FRAMES`] frames at the most.
pub fn walk(atlas: &Atlas, set: &MapSet, regs: Registers, reader: &mut impl StackReader) -> Walked {
    walk_above(Vec::new(), atlas, set, regs, reader)
}

/// Like [`walk`], above frames that are known already: the kernel walks from the return of an
/// allocator call, and puts the allocator's own address below.
pub fn walk_above(
    mut frames: Vec<u64>,
    atlas: &Atlas,
    set: &MapSet,
    mut regs: Registers,
    reader: &mut impl StackReader,
) -> Walked {
    let mut buffer = [0; 8];
    let end = loop {
        if frames.len() >= MAX_FRAMES {
            break WalkEnd::Truncated;
        }
        frames.push(regs.pc);
        let pc = regs.pc.wrapping_sub(regs.is_return);
        let range = &set.ranges[find_range(set, pc)];
        if pc < range.start || pc >= range.end {
            break WalkEnd::UnknownMapping;
        }
        let placement = Placement { first_page: range.first_page, page_count: range.page_count };
        let address = VirtAddr(pc.wrapping_sub(range.bias));
        let info = atlas.find(placement, address).map_or(RowInfo::NONE, |row| row.info());
        if let Err(end) = step(info, &mut regs, &mut buffer, reader) {
            break end;
        }
    };
    Walked { frames, end }
}

/// Stack memory by way of [`ReadMemory`].
#[derive(Clone, Copy, Debug)]
pub struct StackMemory<'a, M>(pub &'a M);

impl<M: ReadMemory> StackReader for StackMemory<'_, M> {
    fn read_words(&mut self, address: u64, into: &mut [u64; 8]) -> bool {
        let mut bytes = [0; 64];
        if self.0.read(AbsAddr(address), &mut bytes).is_err() {
            return false;
        }
        for (word, bytes) in into.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        }
        true
    }

    fn read_word(&mut self, address: u64) -> Option<u64> {
        self.0.word(AbsAddr(address)).ok()
    }
}
