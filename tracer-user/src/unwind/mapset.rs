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
pub fn map_set(objects: &[MappedObject]) -> Result<Box<MapSet>, MapSetError> {
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
    let mut set = Box::new(MapSet { ranges: [Range::UNUSED; MAX_RANGES] });
    for (range, object) in set.ranges.iter_mut().zip(&sorted) {
        let Placement { first_page, page_count } =
            object.placement.unwrap_or(Placement { first_page: 0, page_count: 0 });
        *range =
            Range { start: object.start.0, end: object.end.0, bias: object.bias.0, first_page, page_count };
    }
    Ok(set)
}
