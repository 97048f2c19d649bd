//! The walk of the kernel, in user space: the same search and the same step over memory that was
//! recorded or can be read. It records the same frames and ends for the same reason.

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

/// A call whose return address a return probe has replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenCall {
    /// Stack pointer at the function's entry: where the return address is.
    pub sp: u64,
    /// The true return address.
    pub return_address: u64,
}

/// What a walk needs besides registers and memory.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// The tables.
    pub atlas: &'a Atlas,
    /// The mappings.
    pub mapset: &'a MapSet,
    /// Start and end of the area where return probes return to; zero when there is none.
    pub trampoline: (u64, u64),
    /// Calls that a return probe waits for, outermost first.
    pub open_calls: &'a [OpenCall],
}

/// Walks the stack that `regs` are the innermost registers of. As in the kernel, the first frame
/// is `function`, the allocator that was called, and `regs` are those of its return; the two
/// count as [`MAX_FRAMES`] together with what follows.
pub fn walk(
    around: Surroundings<'_>,
    function: u64,
    mut regs: Registers,
    reader: &mut impl StackReader,
) -> Walked {
    let mut frames = vec![function];
    let mut buffer = [0; 8];
    while frames.len() < MAX_FRAMES {
        let mut info = around.row_at(regs.pc.wrapping_sub(regs.is_return));
        if info.is_none() {
            around.uncover(&mut regs);
            info = around.row_at(regs.pc.wrapping_sub(regs.is_return));
        }
        frames.push(regs.pc);
        let Some(info) = info else {
            let hidden = regs.pc >= around.trampoline.0 && regs.pc < around.trampoline.1;
            let end = if hidden { WalkEnd::LostReturn } else { WalkEnd::UnknownMapping };
            return Walked { frames, end };
        };
        if let Err(end) = step(info, &mut regs, &mut buffer, reader) {
            return Walked { frames, end };
        }
    }
    Walked { frames, end: WalkEnd::Truncated }
}

impl Surroundings<'_> {
    /// Puts the true return address where a return probe's trampoline is.
    fn uncover(&self, regs: &mut Registers) {
        let slot = regs.sp.wrapping_sub(8);
        let call = self.open_calls.iter().rfind(|call| call.sp == slot && call.return_address != 0);
        if let Some(call) = call {
            regs.pc = call.return_address;
        }
    }

    /// What holds at a code address; `None` outside of every mapping.
    pub(super) fn row_at(&self, pc: u64) -> Option<RowInfo> {
        let range = self.mapset.ranges[find_range(self.mapset, pc)];
        if pc < range.start || pc >= range.end {
            return None;
        }
        let offset = pc.wrapping_sub(range.bias);
        let find = || -> Option<Row> {
            if offset >> PAGE_BITS >= u64::from(range.page_count) {
                return None;
            }
            let page = range.first_page as usize + (offset >> PAGE_BITS) as usize;
            let (lo, hi) = (*self.atlas.pages().get(page)?, *self.atlas.pages().get(page + 1)?);
            find_row(lo, hi, offset, |index| self.atlas.rows().get(index as usize).copied())
        };
        Some(find().map_or(RowInfo::NONE, Row::info))
    }
}
