//! Names of a few static functions of a stripped server, by how exported ones end: `SearchCatCache1`
//! to `4` are nothing but a jump to the one function that does their work, and so leave no frame that
//! would tell whose it is.

use super::{
    code::{Code64, branch_target, is_call},
    symbols::exported_function,
};
use crate::{
    addr::VirtAddr,
    elf::{FunctionRange, Image, range_at},
};

/// A static function that several exported ones end in.
struct Static {
    name: &'static str,
    /// All of them must agree.
    ended_in_by: &'static [&'static str],
}

/// `src/backend/utils/cache/catcache.c`.
const STATICS: [Static; 1] = [Static {
    name: "SearchCatCacheInternal",
    ended_in_by: &["SearchCatCache1", "SearchCatCache2", "SearchCatCache3", "SearchCatCache4"],
}];

/// The static functions that can be named, with where they begin. What has a symbol keeps its own.
pub fn static_functions(image: &Image, ranges: &[FunctionRange]) -> Vec<(VirtAddr, &'static str)> {
    let found = |wanted: &Static| {
        let mut ends = wanted.ended_in_by.iter().map(|name| end_of(image, ranges, name));
        let first = ends.next()??;
        ends.all(|end| end == Some(first)).then_some((first, wanted.name))
    };
    STATICS.iter().filter_map(found).collect()
}

/// The function that an exported one ends in: the only place out of it that it jumps to.
fn end_of(image: &Image, ranges: &[FunctionRange], name: &'static str) -> Option<VirtAddr> {
    let range = exported_function(image, ranges, name).ok()?;
    let code = Code64::of(image, range)?;
    let leaves = |target: &VirtAddr| *target < range.start || *target >= range.end;
    let mut targets =
        code.instructions().filter(|instruction| !is_call(instruction)).filter_map(|one| branch_target(&one));
    let target = targets.find(leaves)?;
    let is_only = targets.filter(leaves).all(|other| other == target);
    range_at(ranges, target).filter(|range| is_only && range.start == target).map(|range| range.start)
}
