//! The walk of the kernel, in user space: the same search and the same step over memory that was
//! recorded or can be read.

use tracer_ebpf::{
    abi::{MAX_FRAMES, MapSet},
    lookup::{PAGE_BITS, find_range, find_row},
    unwind::{Registers, Row, RowInfo, StackReader, WalkEnd, step},
};

use super::Atlas;

/// A walked stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walked {
    /// Innermost first.
    pub frames: Vec<u64>,
    /// Why it ended.
    pub end: WalkEnd,
}

/// Walks the stack that `regs` are the innermost registers of.
pub fn walk(atlas: &Atlas, mapset: &MapSet, mut regs: Registers, reader: &mut impl StackReader) -> Walked {
    let mut frames = Vec::new();
    let mut buffer = [0; 8];
    while frames.len() < MAX_FRAMES {
        frames.push(regs.pc);
        let pc = regs.pc.wrapping_sub(regs.is_return);
        let Some(info) = row_at(atlas, mapset, pc) else {
            return Walked { frames, end: WalkEnd::UnknownMapping };
        };
        if let Err(end) = step(info, &mut regs, &mut buffer, reader) {
            return Walked { frames, end };
        }
    }
    Walked { frames, end: WalkEnd::Truncated }
}

/// What holds at a code address; `None` outside of every mapping.
pub(super) fn row_at(atlas: &Atlas, mapset: &MapSet, pc: u64) -> Option<RowInfo> {
    let range = mapset.ranges[find_range(mapset, pc)];
    if pc < range.start || pc >= range.end {
        return None;
    }
    let offset = pc.wrapping_sub(range.bias);
    let find = || -> Option<Row> {
        if offset >> PAGE_BITS >= u64::from(range.page_count) {
            return None;
        }
        let page = range.first_page as usize + (offset >> PAGE_BITS) as usize;
        let (lo, hi) = (*atlas.pages().get(page)?, *atlas.pages().get(page + 1)?);
        find_row(lo, hi, offset, |index| atlas.rows().get(index as usize).copied())
    };
    Some(find().map_or(RowInfo::NONE, Row::info))
}
