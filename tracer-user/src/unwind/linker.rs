//! Tests: real objects against the search table that their linker made, which is searched by
//! gimli and shares nothing with ours; and damage to a real section.

use std::path::Path;

use gimli::{
    EhFrame, EhFrameHdr, EhFrameOffset, LittleEndian, ParsedEhFrameHdr, UnwindContext, UnwindSection as _,
};
use tracer_ebpf::{
    lookup::MAX_ROWS_A_PAGE,
    unwind::{RbpRule, RowInfo, RowKind},
};

use super::{Atlas, Placement, UnwindTable, entries::Entries, row_info, rules::Slice};
use crate::{
    addr::VirtAddr,
    elf::{FrameSection, Image},
    target::LoadedModules,
};

/// The object of this process whose path has `name` in it.
fn own_object<T>(name: &str, use_it: impl FnOnce(&Image) -> T) -> T {
    let modules = LoadedModules::read(std::process::id()).expect("own mappings");
    let found = modules.modules().iter().find(|module| module.path.to_string_lossy().contains(name));
    use_it(&found.unwrap_or_else(|| panic!("this process has no {name}")).image)
}

/// What a linker says of its object.
struct Linker<'a> {
    section: FrameSection<'a>,
    frame: EhFrame<Slice<'a>>,
    header: ParsedEhFrameHdr<Slice<'a>>,
    context: UnwindContext<usize>,
}

impl<'a> Linker<'a> {
    fn of(image: &'a Image) -> Self {
        let mut section = FrameSection::of(image).expect("readable").expect("an .eh_frame");
        let (address, bytes) = image.section(".eh_frame_hdr").expect("a search table");
        section.bases = section.bases.set_eh_frame_hdr(address.0);
        let header = EhFrameHdr::new(bytes, LittleEndian).parse(&section.bases, 8).expect("a sound one");
        let mut frame = EhFrame::new(section.bytes, LittleEndian);
        frame.set_address_size(8);
        Self { section, frame, header, context: UnwindContext::new() }
    }

    /// The rule at an address, or `None` if no FDE covers it.
    fn rule(&mut self, address: u64) -> Option<RowInfo> {
        let table = self.header.table().expect("a search table");
        let bases = &self.section.bases;
        let get_cie = EhFrame::cie_from_offset;
        match table.unwind_info_for_address(&self.frame, bases, &mut self.context, address, get_cie) {
            Ok(row) => Some(row_info(row, &self.frame)),
            Err(gimli::Error::NoUnwindInfoForAddress) => None,
            Err(error) => panic!("{address:#x}: {error}"),
        }
    }

    /// Start, end and flag of every FDE by address, and the addresses where a row begins.
    fn functions(&mut self) -> (Vec<(u64, u64)>, Vec<u64>) {
        let (mut ranges, mut starts) = (Vec::new(), Vec::new());
        for offset in self.section.records() {
            let bases = &self.section.bases;
            let fde = self.frame.fde_from_offset(bases, EhFrameOffset(offset), EhFrame::cie_from_offset);
            let fde = match fde {
                Ok(fde) => fde,
                Err(gimli::Error::NotCiePointer(_)) => continue,
                Err(error) => panic!("{offset:#x}: {error}"),
            };
            ranges.push((fde.initial_address(), fde.end_address()));
            let mut rows = fde.rows(&self.frame, bases, &mut self.context).expect("rows");
            while let Some(row) = rows.next_row().expect("a row") {
                starts.push(row.start_address());
            }
        }
        ranges.sort_unstable();
        (ranges, starts)
    }
}

/// Looks up the first byte of every row and the byte before, the last byte of every function,
/// and both ends of every gap; gives how many that were.
fn look_everywhere(image: &Image) -> usize {
    let table = UnwindTable::build(image).expect("a sound table").expect("functions");
    let mut atlas = Atlas::new();
    // Neither first, nor followed by rows that a search might stray into.
    assert_eq!(atlas.add(&table).expect("room").first_page, 0);
    let place = atlas.add(&table).expect("room");
    let ours = |address| atlas.find(place, VirtAddr(address)).map_or(RowInfo::NONE, |row| row.info());

    let mut linker = Linker::of(image);
    let (ranges, starts) = linker.functions();
    let mut addresses: Vec<u64> = starts.iter().flat_map(|start| [*start, start - 1]).collect();
    addresses.extend(ranges.iter().map(|(_, end)| end - 1));
    let gaps = ranges.windows(2).map(|pair| (pair[0].1, pair[1].0)).filter(|(end, next)| end < next);
    addresses.extend(gaps.flat_map(|(end, next)| [end, next - 1]));
    let last = ranges.last().expect("functions").1;
    addresses.extend([0, last, last + 4096, (1 << 32) - 1]);

    for address in &addresses {
        let theirs = linker.rule(*address).unwrap_or_else(|| {
            let after = ranges.partition_point(|range| range.0 <= *address);
            let end = after.checked_sub(1).map_or(0, |before| ranges[before].1);
            match ranges.get(after) {
                // The byte before a signal trampoline is part of it.
                Some((next, _)) if next - 1 == *address && ours(*next) == signal() => signal(),
                // Padding, which never runs, has the rule of what is before it.
                Some((next, _)) if after > 0 && next - end < 16 => ours(end - 1),
                _ => RowInfo::NONE,
            }
        });
        assert_eq!(ours(*address), theirs, "{} at {address:#x}", image.path().display());
    }
    addresses.len()
}

fn signal() -> RowInfo {
    RowInfo::new(RowKind::SignalFrame, 0, RbpRule::Same, 0)
}

#[test]
fn every_row_and_gap_is_where_the_linker_says() {
    for (name, at_least) in [("libc.so", 10_000), ("ld-linux", 1_000), ("vdso", 20)] {
        let looked = own_object(name, look_everywhere);
        assert!(looked >= at_least, "{name}: {looked} addresses");
    }
}

/// glibc's trampoline, `mov $15, %rax; syscall`, whose FDE begins at the byte before it.
#[test]
fn the_return_address_into_glibcs_trampoline_is_a_signal_frame() {
    own_object("libc.so", |libc| {
        let code = [0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05];
        let mut linker = Linker::of(libc);
        let (ranges, _) = linker.functions();
        let mut found = ranges
            .iter()
            .flat_map(|(start, _)| [*start, start + 1])
            .filter(|entry| libc.bytes_at(VirtAddr(*entry), code.len()) == Some(&code));
        let entry = found.next().expect("glibc has a trampoline");
        assert_eq!(found.next(), None);
        let table = UnwindTable::build(libc).expect("sound").expect("functions");
        let mut atlas = Atlas::new();
        let place = atlas.add(&table).expect("room");
        // As a return address, at its first instruction, at the system call.
        for pc in [entry - 1, entry, entry + 7] {
            assert_eq!(atlas.find(place, VirtAddr(pc)).map(|row| row.info()), Some(signal()), "{pc:#x}");
        }
    });
}

/// SplitMix64 (Steele, Lea, Flood 2014): the same damage on every run.
fn random(state: &mut u64, below: usize) -> usize {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut value = *state;
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((value ^ (value >> 31)) % below as u64) as usize
}

/// A table of bytes that may be anything, if there is one, is fit to be searched and bounded.
fn is_sound(bytes: &[u8], section: &FrameSection<'_>, code_end: u64) -> bool {
    let section = FrameSection { bytes, ..section.clone() };
    let path = Path::new("damaged");
    let Ok(entries) = Entries::read(&section, std::slice::from_ref(&(0..code_end)), path) else {
        return false;
    };
    let Ok(Some(table)) = UnwindTable::assemble(entries, path) else { return false };
    assert_eq!(table.rows.first().map(|row| row.address()), Some(0));
    assert!(table.rows.is_sorted_by(|one, next| one.address() < next.address()));
    assert!(table.rows.len() <= 2 * bytes.len() + 2 && table.pages.len() as u64 <= (code_end >> 10) + 2);
    assert!(table.pages.windows(2).all(|pair| (pair[0]..=pair[0] + MAX_ROWS_A_PAGE).contains(&pair[1])));
    let mut atlas = Atlas::new();
    let place: Placement = atlas.add(&table).expect("room");
    for row in &table.rows {
        assert_eq!(atlas.find(place, VirtAddr(row.address())), Some(*row));
    }
    true
}

/// 2^17 copies of the vDSO's section with 1 to 15 wrong bytes each, 2^20 in all, and copies cut
/// at every byte.
#[test]
fn damage_to_a_real_section() {
    own_object("vdso", |vdso| {
        let section = FrameSection::of(vdso).expect("readable").expect("the vDSO describes its functions");
        let whole = &section.bytes[..section.bytes.len().min(384)];
        let code_end = vdso.bytes().len() as u64;
        assert!(is_sound(whole, &section, code_end));
        for length in 0..whole.len() {
            is_sound(&whole[..length], &section, code_end);
        }
        let (mut state, mut sound) = (0x7067_6c65_616b, 0);
        let mut damaged = whole.to_vec();
        for round in 0..1 << 17 {
            damaged.copy_from_slice(whole);
            for _ in 0..=round % 15 {
                let at = random(&mut state, whole.len());
                damaged[at] = match random(&mut state, 4) {
                    0 => 0,
                    1 => 0xff,
                    2 => damaged[at] ^ 1 << random(&mut state, 8),
                    _ => random(&mut state, 256) as u8,
                };
            }
            sound += usize::from(is_sound(&damaged, &section, code_end));
        }
        assert!(sound > 1 << 15 && sound <= 1 << 17, "{sound} tables");
    });
}
