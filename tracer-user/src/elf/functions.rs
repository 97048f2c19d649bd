//! Exact function ranges from `.eh_frame`, which a stripped binary keeps.

use gimli::{BaseAddresses, CieOrFde, EhFrame, LittleEndian, UnwindSection as _};

use super::Image;
use crate::addr::VirtAddr;

/// The code of one FDE. A function has one, or two when the compiler moved its cold part away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FunctionRange {
    /// First instruction.
    pub start: VirtAddr,
    /// One past the last byte.
    pub end: VirtAddr,
}

/// The base addresses that pointers in `.eh_frame` may be relative to.
pub fn eh_frame_bases(image: &Image) -> BaseAddresses {
    let mut bases = BaseAddresses::default();
    if let Some((address, _)) = image.section(".eh_frame") {
        bases = bases.set_eh_frame(address.0);
    }
    if let Some((address, _)) = image.section(".text") {
        bases = bases.set_text(address.0);
    }
    if let Some((address, _)) = image.section(".got") {
        bases = bases.set_got(address.0);
    }
    bases
}

/// The ranges of all FDEs, sorted by start. A damaged section gives those before the damage; a
/// file without one gives none.
pub fn function_ranges(image: &Image) -> Vec<FunctionRange> {
    let Some((_, bytes)) = image.section(".eh_frame") else { return Vec::new() };
    let mut section = EhFrame::new(bytes, LittleEndian);
    section.set_address_size(8);
    let bases = eh_frame_bases(image);
    let mut entries = section.entries(&bases);
    let mut ranges = Vec::new();
    while let Ok(Some(entry)) = entries.next() {
        let CieOrFde::Fde(partial) = entry else { continue };
        let Ok(fde) = partial.parse(|section, bases, offset| section.cie_from_offset(bases, offset)) else {
            continue;
        };
        let start = fde.initial_address();
        if let Some(end) = start.checked_add(fde.len()).filter(|end| *end > start) {
            ranges.push(FunctionRange { start: VirtAddr(start), end: VirtAddr(end) });
        }
    }
    ranges.sort_unstable();
    ranges
}

/// The range that `address` lies in.
pub fn range_at(ranges: &[FunctionRange], address: VirtAddr) -> Option<FunctionRange> {
    let after = ranges.partition_point(|range| range.start <= address);
    ranges[..after].last().copied().filter(|range| address < range.end)
}
