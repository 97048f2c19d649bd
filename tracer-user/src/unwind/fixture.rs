//! Hand-written `.eh_frame` sections and row tables for the tests of this module.

use std::path::Path;

use gimli::BaseAddresses;
use tracer_ebpf::unwind::{RbpRule, Row, RowInfo, RowKind};

use crate::elf::FrameSection;

use super::{TableError, UnwindTable, entries::Entries};

/// Where the code of a hand-written section may be.
pub(super) const CODE: std::ops::Range<u64> = 0x1000..0x10_0000;

/// What every x86_64 CIE begins with: CFA = rsp + 8, return address at CFA - 8.
pub(super) const AT_CALL: [u8; 5] = [0x0c, 7, 8, 0x90, 1];

/// CFA = `*(rsp + 160)`, rip at rsp + 168, rbp at rsp + 120: glibc's rule for a signal frame.
pub(super) const SIGNAL_FRAME: [u8; 18] = [
    0x0f, 4, 0x77, 0xa0, 0x01, 0x06, // CFA
    0x10, 16, 3, 0x77, 0xa8, 0x01, // return address
    0x10, 6, 3, 0x77, 0xf8, 0x00, // rbp
];

/// An `.eh_frame` in the making, at address 0.
#[derive(Default)]
pub(super) struct Frame {
    pub(super) bytes: Vec<u8>,
}

impl Frame {
    /// Adds a record of any content, and gives its offset.
    pub(super) fn record(&mut self, content: &[u8]) -> usize {
        let at = self.bytes.len();
        self.bytes.extend((content.len() as u32).to_le_bytes());
        self.bytes.extend(content);
        at
    }

    /// Adds a CIE of version 1 with absolute addresses.
    pub(super) fn cie(&mut self, augmentation: &str, instructions: &[u8]) -> usize {
        let mut content = vec![0, 0, 0, 0, 1];
        content.extend(augmentation.as_bytes());
        // Code alignment 1, data alignment -8, return address in column 16.
        content.extend([0, 1, 0x78, 16]);
        content.extend(instructions);
        self.record(&content)
    }

    /// Adds an FDE of the CIE at `cie`.
    pub(super) fn fde(&mut self, cie: usize, start: u64, len: u64, instructions: &[u8]) -> usize {
        let back = (self.bytes.len() + 4).wrapping_sub(cie) as u32;
        let mut content = back.to_le_bytes().to_vec();
        content.extend(start.to_le_bytes());
        content.extend(len.to_le_bytes());
        content.extend(instructions);
        self.record(&content)
    }

    /// The table of it.
    pub(super) fn table(&self) -> Result<Option<UnwindTable>, TableError> {
        self.table_over(CODE)
    }

    /// The table of it, if its code is `code`.
    pub(super) fn table_over(&self, code: std::ops::Range<u64>) -> Result<Option<UnwindTable>, TableError> {
        let bases = BaseAddresses::default().set_eh_frame(0);
        let section = FrameSection { bytes: &self.bytes, bases, ends_at_zero: false };
        let path = Path::new("literal");
        UnwindTable::assemble(Entries::read(&section, std::slice::from_ref(&code), path)?, path)
    }
}

/// The table of a section with every rule that the walk can follow, some that it cannot, gaps,
/// and a broken FDE.
pub(super) fn every_rule() -> UnwindTable {
    let rules: [&[u8]; 9] = [
        &[0x44, 0x0e, 16, 0x44, 0x0e, 24, 0x86, 3],
        &[0x0c, 6, 16, 0x86, 2],
        &[0x0f, 3, 0x76, 0x78, 0x06, 0x10, 6, 2, 0x76, 0],
        &[0x0f, 11, 0x77, 8, 0x80, 0, 0x3f, 0x1a, 0x3b, 0x2a, 0x33, 0x24, 0x22],
        &SIGNAL_FRAME,
        &[0x07, 16],
        &[0x0c, 10, 0],
        &[0x0e, 12],
        &[0x44, 0x3f],
    ];
    let mut frame = Frame::default();
    let (cie, signal) = (frame.cie("", &AT_CALL), frame.cie("S", &AT_CALL));
    for (at, rule) in rules.into_iter().enumerate() {
        let start = 0x1000 + at as u64 * 0x400;
        frame.fde(cie, start, 0x80, rule);
        // One without a gap behind it, and one in the padding's reach.
        frame.fde(if rule == SIGNAL_FRAME { signal } else { cie }, start + 0x80, 0x70, rule);
        frame.fde(cie, start + 0xf8, 0x80, &[]);
    }
    frame.bytes.extend([0xf0, 0, 0, 0, 1, 2]);
    frame.table().expect("it can be indexed").expect("there are FDEs")
}

/// A row without a saved rbp.
pub(super) fn row(address: u32, kind: RowKind, cfa_offset: i64) -> Row {
    Row::new(address, RowInfo::new(kind, cfa_offset, RbpRule::Same, 0))
}

/// A table of these rows, after the one at 0.
pub(super) fn table_of(rows: &[Row]) -> Result<UnwindTable, TableError> {
    let mut all = vec![Row::new(0, RowInfo::NONE)];
    all.extend_from_slice(rows);
    UnwindTable::of_rows(all, Default::default(), Path::new("literal"))
}
