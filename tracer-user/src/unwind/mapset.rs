//! The executable mappings of a process, as the kernel searches them.

use tracer_ebpf::abi::{MAX_RANGES, MapSet, Range};

use super::Placement;
use crate::addr::{AbsAddr, Bias};

/// An executable mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedObject {
    /// First address.
    pub start: AbsAddr,
    /// One past the last.
    pub end: AbsAddr,
    /// How far its object is from its own addresses.
    pub bias: Bias,
    /// Where its unwind table is; `None` if it has none.
    pub placement: Option<Placement>,
}

/// Why mappings cannot be given to the kernel.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapSetError {
    /// More mappings than there is room for.
    #[error(
        "cannot describe the process to the kernel: it has {count} executable mappings, pgleak \
         follows {limit}; unload extensions that are not needed",
        limit = MAX_RANGES
    )]
    TooMany {
        /// How many there are.
        count: usize,
    },
    /// A mapping that is empty, ends before it starts, or is no part of user space.
    #[error("cannot describe the process to the kernel: {start}..{end} is no mapping in user space")]
    NoRange {
        /// Its first address.
        start: AbsAddr,
        /// One past its last address.
        end: AbsAddr,
    },
    /// Two mappings share an address.
    #[error(
        "cannot describe the process to the kernel: the mapping at {second} begins before the \
         one at {first} ends; its list of mappings changed while it was read, try again"
    )]
    Overlap {
        /// Start of the lower one.
        first: AbsAddr,
        /// Start of the upper one.
        second: AbsAddr,
    },
}

/// The kernel's list of these mappings, which may come in any order.
///
/// # Errors
/// If there are too many, or they cannot be the mappings of a process.
pub fn build_mapset(objects: &[MappedObject]) -> Result<Box<MapSet>, MapSetError> {
    if objects.len() > MAX_RANGES {
        return Err(MapSetError::TooMany { count: objects.len() });
    }
    let mut sorted = objects.to_vec();
    sorted.sort_unstable_by_key(|object| object.start);
    for object in &sorted {
        // Unused slots start at i64::MAX, and the search compares signed distances.
        if object.start >= object.end || object.end.0 > i64::MAX as u64 {
            return Err(MapSetError::NoRange { start: object.start, end: object.end });
        }
    }
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0].end > pair[1].start) {
        return Err(MapSetError::Overlap { first: pair[0].start, second: pair[1].start });
    }
    let mut set = Box::new(MapSet { ranges: [Range::UNUSED; MAX_RANGES], loop_start: 0, loop_end: 0 });
    for (range, object) in set.ranges.iter_mut().zip(&sorted) {
        let Placement { first_page, page_count } =
            object.placement.unwrap_or(Placement { first_page: 0, page_count: 0 });
        *range =
            Range { start: object.start.0, end: object.end.0, bias: object.bias.0, first_page, page_count };
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use tracer_ebpf::{
        abi::{MAX_RANGES, MapSet, Range},
        lookup::find_range,
    };

    use super::{MapSetError, MappedObject, build_mapset};
    use crate::{
        addr::{AbsAddr, Bias},
        unwind::Placement,
    };

    fn mapped(start: u64, end: u64) -> MappedObject {
        MappedObject { start: AbsAddr(start), end: AbsAddr(end), bias: Bias(start), placement: None }
    }

    /// The range that the kernel takes for an address.
    fn found(set: &MapSet, address: u64) -> Option<Range> {
        Some(set.ranges[find_range(set, address)])
            .filter(|range| range.start <= address && address < range.end)
    }

    #[test]
    fn every_count_of_ranges_is_searched_to_both_ends() {
        for count in [0, 1, 2, 3, 7, 127, 128, 129, 255, MAX_RANGES as u64] {
            let mut state = count + 1;
            let mut at = 0x1000;
            let mut objects: Vec<MappedObject> = (0..count)
                .map(|_| {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    // Neighbours touch, or have a gap.
                    let start = at + (state >> 62) * 0x1000;
                    at = start + 0x1000 + (state >> 60 & 3) * 0x2000;
                    mapped(start, at)
                })
                .collect();
            let ends = objects.iter().flat_map(|object| [object.start.0, object.end.0]);
            let addresses: Vec<u64> = ends
                .flat_map(|end| [end - 1, end, end + 1])
                .chain([0, 0xfff, 0x7fff_ffff_f000, i64::MAX as u64, 1 << 63, u64::MAX - 1, u64::MAX])
                .collect();
            // They may come in any order.
            objects.reverse();
            let set = build_mapset(&objects).unwrap();
            for address in addresses {
                let slow = objects.iter().find(|object| (object.start.0..object.end.0).contains(&address));
                let fast = found(&set, address).map(|range| range.start);
                assert_eq!(fast, slow.map(|object| object.start.0), "{count} ranges, {address:#x}");
            }
            assert!(set.ranges[count as usize..].iter().all(|range| *range == Range::UNUSED));
        }
    }

    #[test]
    fn a_range_has_what_the_kernel_needs() {
        let placement = Some(Placement { first_page: 7, page_count: 9 });
        let object = MappedObject { bias: Bias(0x3000), placement, ..mapped(0x5000, 0x6000) };
        let set = build_mapset(&[object, mapped(0x1000, 0x2000)]).unwrap();
        let expected = Range { start: 0x5000, end: 0x6000, bias: 0x3000, first_page: 7, page_count: 9 };
        assert_eq!(set.ranges[1], expected);
        assert_eq!(set.ranges[0].page_count, 0);
    }

    #[test]
    fn mappings_that_cannot_be_are_refused() {
        let crowd: Vec<MappedObject> =
            (1..=MAX_RANGES as u64 + 1).map(|at| mapped(at * 0x1000, at * 0x1000 + 1)).collect();
        let refused = |objects: &[MappedObject]| build_mapset(objects).err();
        assert_eq!(refused(&crowd), Some(MapSetError::TooMany { count: 257 }));
        let none = |start, end| Some(MapSetError::NoRange { start: AbsAddr(start), end: AbsAddr(end) });
        assert_eq!(refused(&[mapped(0x1000, 0x1000)]), none(0x1000, 0x1000));
        assert_eq!(refused(&[mapped(0x2000, 0x1000)]), none(0x2000, 0x1000));
        assert_eq!(refused(&[mapped(1 << 63, u64::MAX)]), none(1 << 63, u64::MAX));
        let overlap = Some(MapSetError::Overlap { first: AbsAddr(0x1000), second: AbsAddr(0x2000) });
        assert_eq!(refused(&[mapped(0x2000, 0x3000), mapped(0x1000, 0x2001)]), overlap);
    }
}
