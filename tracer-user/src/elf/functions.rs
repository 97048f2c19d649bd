//! Exact function ranges from `.eh_frame`, which a stripped binary keeps.

use super::{FrameSection, Image, described_range};
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
    let Some(section) = FrameSection::of(image) else { return Vec::new() };
    let mut ranges: Vec<_> =
        section.fdes().filter_map(|fde| fde.ok().as_ref().and_then(described_range)).collect();
    ranges.sort_unstable();
    ranges
}

/// The range that `address` lies in.
pub fn range_at(ranges: &[FunctionRange], address: VirtAddr) -> Option<FunctionRange> {
    let after = ranges.partition_point(|range| range.start <= address);
    ranges[..after].last().copied().filter(|range| address < range.end)
}
