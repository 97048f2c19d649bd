//! Test support: what gimli's own look-up says about an address, against what ours does.

use gimli::{BaseAddresses, EhFrameHdr, LittleEndian, ParsedEhFrameHdr, UnwindContext, UnwindSection as _};
use tracer_ebpf::{
    abi::MapSet,
    unwind::{RbpRule, RowInfo, RowKind},
};

use super::{Atlas, MappedObject, Surroundings, UnwindTable, build_mapset, rules::row_info};
use crate::{
    addr::{AbsAddr, Bias},
    elf::{Bytes, FrameSection, Image, described_range},
};

/// How far from its own addresses the object is in the mapping that is searched.
const BIAS: u64 = 0x7f12_3456_7000;

/// How often each kind of address was looked up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Looked {
    pub(super) functions: usize,
    pub(super) row_starts: usize,
    pub(super) before_rows: usize,
    pub(super) last_bytes: usize,
    pub(super) in_gaps: usize,
}

/// The search table of the linker, which is independent of ours: sorted by address by another
/// program and searched by gimli.
struct Linker<'a> {
    header: ParsedEhFrameHdr<Bytes<'a>>,
    bases: BaseAddresses,
    section: &'a FrameSection<'a>,
    context: UnwindContext<usize>,
}

impl<'a> Linker<'a> {
    fn of(image: &'a Image, section: &'a FrameSection<'a>) -> Self {
        let (address, bytes) = image.section(".eh_frame_hdr").expect("a search table");
        let bases = section.bases().clone().set_eh_frame_hdr(address.0);
        let header = EhFrameHdr::new(bytes, LittleEndian).parse(&bases, 8).expect("a sound one");
        Self { header, bases, section, context: UnwindContext::new() }
    }

    /// What holds at an address, or `None` if no FDE covers it.
    fn row_at(&mut self, address: u64) -> Option<RowInfo> {
        let table = self.header.table().expect("a search table");
        let section = self.section.section();
        let fde = match table.fde_for_address(section, &self.bases, address, |section, bases, offset| {
            section.cie_from_offset(bases, offset)
        }) {
            Ok(fde) => fde,
            Err(gimli::Error::NoUnwindInfoForAddress) => return None,
            Err(error) => panic!("{address:#x}: {error}"),
        };
        if fde.is_signal_trampoline() {
            return Some(RowInfo::new(RowKind::SignalFrame, 0, RbpRule::Same, 0));
        }
        // Ours says of a function with one damaged row that nothing of it can be used.
        let mut rows = fde.rows(section, &self.bases, &mut self.context).ok()?;
        let mut found = RowInfo::UNSUPPORTED;
        loop {
            match rows.next_row() {
                Ok(Some(row)) if row.contains(address) => found = row_info(row, section),
                Ok(Some(_)) => {}
                Ok(None) => return Some(found),
                Err(_) => return Some(RowInfo::UNSUPPORTED),
            }
        }
    }
}

/// An atlas in which the object's table is neither first nor alone, and its mapping.
fn mapped(table: &UnwindTable) -> (Atlas, Box<MapSet>) {
    let mut atlas = Atlas::new();
    let before = atlas.add(table).expect("room");
    let placement = atlas.add(table).expect("room");
    assert_ne!(before, placement);
    let object = |start: u64, placement| MappedObject {
        start: AbsAddr(start),
        end: AbsAddr(start + (1 << 32)),
        bias: Bias(start),
        placement: Some(placement),
    };
    let mapset =
        build_mapset(&[object(BIAS, placement), object(BIAS - (1 << 33), before)]).expect("two ranges");
    (atlas, mapset)
}

/// Looks up the first byte of every row, the byte before, the last byte of every function, and
/// first and last byte of every gap. Every `stride`th function only.
pub(super) fn look_everywhere(image: &Image, table: &UnwindTable, stride: usize) -> Looked {
    let (atlas, mapset) = mapped(table);
    let around = Surroundings { atlas: &atlas, mapset: &mapset, trampoline: (0, 0), open_calls: &[] };
    let section = FrameSection::of(image).expect("a section");
    let mut linker = Linker::of(image, &section);
    let mut looked = Looked::default();
    let mut ranges = Vec::new();
    let mut addresses = Vec::new();
    let mut trampolines = Vec::new();
    let mut context = UnwindContext::new();
    for fde in section.fdes() {
        let fde = fde.expect("a sound FDE");
        let Some(range) = described_range(&fde) else { continue };
        ranges.push((range.start.0, range.end.0));
        if fde.is_signal_trampoline() {
            trampolines.push(range.start.0 - 1);
        }
        if !ranges.len().is_multiple_of(stride) {
            continue;
        }
        looked.functions += 1;
        looked.last_bytes += 1;
        addresses.push(range.end.0 - 1);
        let Ok(mut rows) = fde.rows(section.section(), section.bases(), &mut context) else { continue };
        while let Ok(Some(row)) = rows.next_row() {
            looked.row_starts += 1;
            looked.before_rows += 1;
            addresses.extend([row.start_address(), row.start_address() - 1]);
        }
    }
    ranges.sort_unstable();
    let mut reached = ranges.first().map_or(0, |range| range.0);
    for (start, end) in &ranges {
        if *start > reached {
            looked.in_gaps += 2;
            addresses.extend([reached, start - 1]);
        }
        reached = reached.max(*end);
    }
    addresses.extend([0, reached, reached + 4096, (1 << 32) - 1]);
    for address in addresses {
        let ours = around.row_at(BIAS + address);
        let theirs = linker.row_at(address).unwrap_or_else(|| {
            // Outside of all functions, where ours says so, or in padding, which never runs.
            let after = ranges.partition_point(|range| range.0 <= address);
            let before = ranges[..after].iter().rev().take(64).map(|range| range.1).max();
            let next = ranges.get(after).map(|range| range.0);
            match (before, next) {
                _ if trampolines.contains(&address) => {
                    RowInfo::new(RowKind::SignalFrame, 0, RbpRule::Same, 0)
                }
                (Some(end), Some(next)) if next - end < 16 => around.row_at(BIAS + end - 1).expect("a row"),
                _ => RowInfo::NONE,
            }
        });
        assert_eq!(ours, Some(theirs), "{} at {address:#x}", image.path().display());
    }
    looked
}
