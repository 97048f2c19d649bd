//! Exact function ranges from `.eh_frame`, which a stripped binary keeps.

use gimli::{CommonInformationEntry, EhFrame, EhFrameOffset, LittleEndian, UnwindSection as _};

use super::{FrameSection, Image};
use crate::addr::VirtAddr;

/// The code of one FDE. A function has one, or two when the compiler moved its cold part away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FunctionRange {
    /// First instruction.
    pub start: VirtAddr,
    /// One past the last byte.
    pub end: VirtAddr,
}

/// The ranges of all FDEs, sorted by start. FDEs that are damaged are left out; a file without
/// any gives none.
pub fn function_ranges(image: &Image) -> Vec<FunctionRange> {
    let Ok(Some(section)) = FrameSection::of(image) else { return Vec::new() };
    let mut frame = EhFrame::new(section.bytes, LittleEndian);
    frame.set_address_size(8);
    let mut last_cie = None;
    let range_of = |offset| {
        let partial = frame.partial_fde_from_offset(&section.bases, EhFrameOffset(offset)).ok()?;
        let fde = partial.parse(|frame, bases, at| match &last_cie {
            // Neighbours share theirs.
            Some((known, cie)) if *known == at => Ok(CommonInformationEntry::clone(cie)),
            _ => {
                let cie = frame.cie_from_offset(bases, at)?;
                last_cie = Some((at, cie.clone()));
                Ok(cie)
            }
        });
        let fde = fde.ok()?;
        let start = fde.initial_address();
        let end = start.checked_add(fde.len()).filter(|end| *end > start)?;
        Some(FunctionRange { start: VirtAddr(start), end: VirtAddr(end) })
    };
    let mut ranges: Vec<_> = section.records().filter_map(range_of).collect();
    ranges.sort_unstable();
    ranges
}

/// The range that `address` lies in.
pub fn range_at(ranges: &[FunctionRange], address: VirtAddr) -> Option<FunctionRange> {
    let after = ranges.partition_point(|range| range.start <= address);
    ranges[..after].last().copied().filter(|range| address < range.end)
}
