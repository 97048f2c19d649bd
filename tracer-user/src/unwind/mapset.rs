//! The executable mappings of a process as the walk searches them.

use tracer_ebpf::abi::{MAX_RANGES, MapSet, Range};

use super::Placement;
use crate::addr::{AbsAddr, Bias};

/// An executable mapping of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedObject {
    /// First address.
    pub start: AbsAddr,
    /// One past the last.
    pub end: AbsAddr,
    /// How far the object is from its own addresses.
    pub bias: Bias,
    /// Where its table is; `None` if it has none, so that stacks end there.
    pub placement: Option<Placement>,
}

/// Mappings that cannot be described.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapSetError {
    /// Too many.
    #[error(
        "the process has {found} executable mappings, and pgleak follows stacks through {MAX_RANGES} at the most"
    )]
    TooMany {
        /// How many.
        found: usize,
    },
    /// Two in one place.
    #[error("the process's mappings changed while they were read: {first} and {second} overlap; try again")]
    Overlap {
        /// Start of one.
        first: AbsAddr,
        /// Start of the other.
        second: AbsAddr,
    },
}

/// The kernel's half of the address space, where the search has its unused slots. A process has
/// one mapping there, `[vsyscall]`, which is no object and calls nothing.
const KERNEL_HALF: AbsAddr = AbsAddr(1 << 63);

/// Sorts the mappings for the kernel's search.
///
/// # Errors
/// If there are more than it searches, or if they overlap.
pub fn build_mapset(objects: &[MappedObject]) -> Result<Box<MapSet>, MapSetError> {
    let mut sorted: Vec<&MappedObject> =
        objects.iter().filter(|object| object.start < object.end && object.end < KERNEL_HALF).collect();
    if sorted.len() > MAX_RANGES {
        return Err(MapSetError::TooMany { found: sorted.len() });
    }
    sorted.sort_by_key(|object| object.start);
    for pair in sorted.windows(2) {
        if pair[0].end > pair[1].start {
            return Err(MapSetError::Overlap { first: pair[0].start, second: pair[1].start });
        }
    }
    let mut set = Box::new(MapSet { ranges: [Range::UNUSED; MAX_RANGES] });
    for (range, object) in set.ranges.iter_mut().zip(sorted) {
        *range = Range {
            start: object.start.0,
            end: object.end.0,
            bias: object.bias.0,
            first_page: object.placement.map_or(0, |placement| placement.first_page),
            page_count: object.placement.map_or(0, |placement| placement.page_count),
        };
    }
    Ok(set)
}
