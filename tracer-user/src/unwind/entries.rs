//! The FDEs of an `.eh_frame`, each on its own: what one of them hides or breaks is its own rows.

use std::{ops::Range, path::Path};

use gimli::{
    CommonInformationEntry, EhFrame, EhFrameOffset, FrameDescriptionEntry, LittleEndian, UnwindContext,
    UnwindSection as _, X86_64,
};
use tracer_ebpf::unwind::{Row, RowInfo, RowKind};

use super::{
    TableError,
    rules::{Slice, row_info},
    section::FrameSection,
};
use crate::addr::VirtAddr;

/// The longest CIE that is run. Its instructions run anew for each FDE that names it, so a long
/// one would make the time quadratic; the longest known one has 96 bytes.
const MAX_CIE_BYTES: usize = 256;

/// The most rows of one object: libLLVM, the largest that PostgreSQL loads, has 818 thousand.
const MAX_ROWS: usize = 1 << 24;

/// The rows of one FDE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// First address.
    pub(super) start: u64,
    /// One past the last.
    pub(super) end: u64,
    /// Its rows in [`Entries::rows`]: at least one, the first at `start`.
    pub(super) rows: Range<usize>,
    /// Whether this is the code that a signal handler returns to.
    pub(super) is_trampoline: bool,
}

/// What an `.eh_frame` holds.
#[derive(Debug, Default)]
pub(super) struct Entries {
    /// One for each FDE with code, in the order of the section.
    pub(super) spans: Vec<Span>,
    /// The rows of all spans.
    pub(super) rows: Vec<Row>,
    /// How many FDEs were met.
    pub(super) fdes: u32,
    /// How many of them could not be read, or do not lie in the code.
    pub(super) broken_fdes: u32,
    /// Bytes at the end of the section that are no entries.
    pub(super) unread_bytes: u64,
}

impl Entries {
    /// Reads every FDE of `section` whose code lies in one of the ranges of `code`; `path` is for
    /// messages.
    pub(super) fn read(
        section: &FrameSection<'_>,
        code: &[Range<u64>],
        path: &Path,
    ) -> Result<Self, TableError> {
        let mut frame = EhFrame::new(section.bytes, LittleEndian);
        frame.set_address_size(8);
        let mut entries = Self::default();
        let mut context = UnwindContext::new();
        let mut last_cie = None;
        let mut records =
            Records { bytes: section.bytes, at: 0, ends_at_zero: section.ends_at_zero, ended: false };
        while let Some(offset) = records.next_offset() {
            let partial = match frame.partial_fde_from_offset(&section.bases, EhFrameOffset(offset)) {
                Ok(partial) => partial,
                Err(gimli::Error::NotCiePointer(_)) => continue,
                Err(_) => {
                    entries.fdes += 1;
                    entries.broken_fdes += 1;
                    continue;
                }
            };
            entries.fdes += 1;
            let fde = partial.parse(|frame, bases, at| match &last_cie {
                Some((known, cie)) if *known == at => Ok(CommonInformationEntry::clone(cie)),
                _ => {
                    let cie = frame.cie_from_offset(bases, at)?;
                    last_cie = Some((at, cie.clone()));
                    Ok(cie)
                }
            });
            match fde {
                // A function that the linker dropped, and its FDE not.
                Ok(fde) if fde.len() == 0 => {}
                Ok(fde) => match entries.add(&fde, section, &frame, &mut context, code) {
                    Ok(()) => {}
                    Err(end) => {
                        return Err(TableError::HighAddress { path: path.to_owned(), end: VirtAddr(end) });
                    }
                },
                Err(_) => entries.broken_fdes += 1,
            }
            if entries.rows.len() > MAX_ROWS {
                return Err(TableError::TooManyRows { path: path.to_owned(), limit: MAX_ROWS });
            }
        }
        if !records.ended {
            entries.unread_bytes = (section.bytes.len() - records.at) as u64;
        }
        Ok(entries)
    }

    /// Adds one FDE; the error is the end of code that lies too high.
    fn add(
        &mut self,
        fde: &FrameDescriptionEntry<Slice<'_>>,
        section: &FrameSection<'_>,
        frame: &EhFrame<Slice<'_>>,
        context: &mut UnwindContext<usize>,
        code: &[Range<u64>],
    ) -> Result<(), u64> {
        let start = fde.initial_address();
        let span = start.checked_add(fde.len()).map(|end| start..end);
        let in_code = |span: &Range<u64>| code.iter().any(|r| r.start <= span.start && span.end <= r.end);
        let Some(span) = span.filter(in_code) else {
            self.broken_fdes += 1;
            return Ok(());
        };
        // The row that ends the code has to fit, too.
        if u32::try_from(span.end).is_err() {
            return Err(span.end);
        }
        let first = self.rows.len();
        if self.add_rows(fde, section, frame, context, &span).is_none() {
            self.broken_fdes += 1;
            self.rows.truncate(first);
            self.rows.push(Row::new(start as u32, RowInfo::UNSUPPORTED));
        }
        let rows = first..self.rows.len();
        let is_trampoline =
            fde.is_signal_trampoline() && self.rows[first].info().kind() == RowKind::SignalFrame as u32;
        self.spans.push(Span { start: span.start, end: span.end, rows, is_trampoline });
        Ok(())
    }

    /// Adds the rows of one FDE, without those that repeat the one before; `None` if they cannot
    /// all be read.
    fn add_rows(
        &mut self,
        fde: &FrameDescriptionEntry<Slice<'_>>,
        section: &FrameSection<'_>,
        frame: &EhFrame<Slice<'_>>,
        context: &mut UnwindContext<usize>,
        span: &Range<u64>,
    ) -> Option<()> {
        let cie = fde.cie();
        if cie.entry_len() > MAX_CIE_BYTES || cie.return_address_register() != X86_64::RA {
            return None;
        }
        let first = self.rows.len();
        let mut rows = fde.rows(frame, &section.bases, context).ok()?;
        while let Some(row) = rows.next_row().ok()? {
            let at = row.start_address();
            if at >= span.end {
                break;
            }
            push_row(&mut self.rows, first, Row::new(at as u32, row_info(row, frame)));
        }
        (self.rows.len() > first).then_some(())
    }
}

/// Adds a row to `rows[first..]`: it replaces one that holds for no byte, and is left out if it
/// says what the one before says.
pub(super) fn push_row(rows: &mut Vec<Row>, first: usize, row: Row) {
    if rows.len() > first && rows.last().is_some_and(|last| last.address() == row.address()) {
        rows.pop();
    }
    if rows.len() == first || rows.last().is_none_or(|last| last.info() != row.info()) {
        rows.push(row);
    }
}

/// The records of the section by their lengths alone, so that one that cannot be read does not
/// hide the others.
struct Records<'a> {
    bytes: &'a [u8],
    at: usize,
    ends_at_zero: bool,
    /// Whether the entry that ends the section was met.
    ended: bool,
}

impl Records<'_> {
    /// Where the next record begins; `None` at the end or at a length that leads out of the
    /// section, where `at` stays.
    fn next_offset(&mut self) -> Option<usize> {
        loop {
            let offset = self.at;
            let rest = &self.bytes[offset..];
            let (short, rest) = rest.split_first_chunk::<4>()?;
            let (len, rest) = match u32::from_le_bytes(*short) {
                0 if self.ends_at_zero => {
                    self.ended = true;
                    return None;
                }
                0 => {
                    self.at += 4;
                    continue;
                }
                u32::MAX => {
                    let (long, rest) = rest.split_first_chunk::<8>()?;
                    (usize::try_from(u64::from_le_bytes(*long)).ok()?, rest)
                }
                len => (len as usize, rest),
            };
            let after = rest.get(len..)?;
            self.at = self.bytes.len() - after.len();
            return Some(offset);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use tracer_ebpf::unwind::{Row, RowInfo, RowKind};

    use super::super::fixture::{AT_CALL, CODE, Frame, SIGNAL_FRAME, row};
    use crate::unwind::{TableError, TableStats, UnwindTable};

    fn good(frame: &mut Frame, start: u64) {
        let cie = frame.cie("", &AT_CALL);
        frame.fde(cie, start, 0x100, &[0x44, 0x0e, 16]);
    }

    /// The rows of `good` at 0x2000.
    fn has_good(table: &UnwindTable) -> bool {
        let good = [row(0x2000, RowKind::RspOffset, 8), row(0x2004, RowKind::RspOffset, 16)];
        table.rows.windows(2).any(|pair| pair == good)
    }

    /// Rows of a section with `damage` before a function that is whole.
    fn around(damage: impl FnOnce(&mut Frame)) -> UnwindTable {
        let mut frame = Frame::default();
        damage(&mut frame);
        good(&mut frame, 0x2000);
        let table = frame.table().unwrap().unwrap();
        assert!(has_good(&table), "{table:?}");
        table
    }

    fn unsupported_at(table: &UnwindTable, address: u32) -> bool {
        table.rows.contains(&Row::new(address, RowInfo::UNSUPPORTED))
    }

    #[test]
    fn rows_that_hold_for_no_byte_are_left_out_and_equal_ones_merged() {
        let mut frame = Frame::default();
        let cie = frame.cie("", &AT_CALL);
        // To 16, by nothing, to 24; on by 4: the same again; on by 4: back to 8; beyond the end.
        frame.fde(
            cie,
            0x1000,
            0x20,
            &[0x0e, 16, 0x40, 0x0e, 24, 0x44, 0x0e, 24, 0x44, 0x0e, 8, 0x58, 0x0e, 32],
        );
        let table = frame.table().unwrap().unwrap();
        let expected = [
            row(0, RowKind::None, 0),
            row(0x1000, RowKind::RspOffset, 24),
            row(0x1008, RowKind::RspOffset, 8),
            row(0x1020, RowKind::None, 0),
        ];
        assert_eq!(table.rows, expected);
        assert_eq!(table.stats, TableStats { fdes: 1, rows: 4, ..TableStats::default() });
    }

    #[test]
    fn an_fde_with_broken_instructions_is_one_unsupported_row() {
        let cases: &[(&str, &[u8])] = &[
            ("cut", &[0x44, 0x0e, 16, 0x44, 0x0c, 7]),
            ("unknown instruction", &[0x44, 0x3f]),
            ("restore without remember", &[0x44, 0x0b]),
            ("set_loc backwards", &[0x44, 0x01, 0, 0x10, 0, 0, 0, 0, 0, 0]),
            ("offset of a CFA that is an expression", &[0x0f, 2, 0x77, 0, 0x0e, 8]),
            ("expression longer than the FDE", &[0x44, 0x0f, 0x7f, 0x77]),
            ("remembers without end", &[0x0a; 4000]),
        ];
        for (what, instructions) in cases {
            let table = around(|frame| {
                let cie = frame.cie("", &AT_CALL);
                frame.fde(cie, 0x1000, 0x100, instructions);
            });
            assert!(unsupported_at(&table, 0x1000), "{what}");
            let stats = TableStats {
                fdes: 2,
                rows: 6,
                unsupported_rows: 1,
                broken_fdes: 1,
                gap_bytes: 0xf00,
                ..TableStats::default()
            };
            assert_eq!(table.stats, stats, "{what}");
        }
    }

    #[test]
    fn a_cie_that_cannot_be_used_breaks_its_own_fdes_only() {
        let cases: &[(&str, fn(&mut Frame) -> usize)] = &[
            ("unknown augmentation", |frame| frame.cie("zQ", &AT_CALL)),
            ("unknown version", |frame| frame.record(&[0, 0, 0, 0, 9, 0, 1, 0x78, 16])),
            ("empty", |frame| frame.record(&[0, 0, 0, 0])),
            ("name without an end", |frame| frame.record(&[0, 0, 0, 0, 1, b'z', b'R'])),
            ("no record at all", |_| 1),
            ("the FDE itself", |frame| frame.bytes.len()),
            ("an FDE that names the FDE before", |frame| {
                let at = frame.bytes.len();
                frame.fde(at, 0x1000, 1, &[]);
                let next = frame.bytes.len();
                frame.fde(at, 0x1000, 1, &[]);
                next
            }),
            ("after the section", |frame| frame.bytes.len() + 0x10_0000),
            ("before the section", |frame| frame.bytes.len().wrapping_sub(0x10_0000)),
        ];
        for (what, cie) in cases {
            let table = around(|frame| {
                let cie = cie(frame);
                frame.fde(cie, 0x1000, 0x100, &[]);
            });
            assert_eq!(table.stats.broken_fdes, table.stats.fdes - 1, "{what}");
        }
    }

    #[test]
    fn a_cie_that_is_too_long_or_has_another_return_column_makes_rows_unsupported() {
        let table = around(|frame| {
            let cie = frame.cie("", &[0; 300]);
            frame.fde(cie, 0x1000, 0x100, &[]);
        });
        assert!(unsupported_at(&table, 0x1000));
        let table = around(|frame| {
            let cie = frame.record(&[0, 0, 0, 0, 1, 0, 1, 0x78, 15, 0x0c, 7, 8, 0x90, 1]);
            frame.fde(cie, 0x1000, 0x100, &[]);
        });
        assert!(unsupported_at(&table, 0x1000));
    }

    #[test]
    fn code_that_the_file_does_not_have_is_not_believed() {
        for (start, len) in [
            (0, 0x100),
            (CODE.end, 0x100),
            (CODE.end - 1, 2),
            (0x1000, u64::MAX),
            (u64::MAX, 1),
            (0xffff_0000, 0x100),
            (0x7fff_0000_0000, 0x100),
        ] {
            let table = around(|frame| {
                let cie = frame.cie("", &AT_CALL);
                frame.fde(cie, start, len, &[]);
            });
            assert_eq!((table.stats.broken_fdes, table.rows.len()), (1, 4), "{start:#x} {len:#x}");
            assert!(table.pages.len() < 16);
        }
    }

    #[test]
    fn a_length_that_leads_out_of_the_section_ends_it_and_is_counted() {
        for (damage, unread) in [
            (&[0xf0, 0, 0, 0, 1, 2][..], 6),
            (&[0xf0, 0xff, 0xff, 0xff, 1, 2], 6),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], 12),
            (&[0xff, 0xff, 0xff, 0xff, 1, 0], 6),
            (&[7, 0], 2),
        ] {
            let mut frame = Frame::default();
            good(&mut frame, 0x2000);
            frame.bytes.extend(damage);
            let table = frame.table().unwrap().unwrap();
            assert!(has_good(&table));
            assert_eq!(table.stats.unread_bytes, unread, "{damage:x?}");
        }
    }

    #[test]
    fn records_too_short_for_their_kind_and_terminators_in_between_are_passed_over() {
        let table = around(|frame| {
            frame.record(&[1]);
            frame.record(&[]);
            frame.record(&[1, 2, 3]);
            frame.record(&[]);
        });
        assert_eq!((table.stats.fdes, table.stats.broken_fdes), (3, 2));
    }

    #[test]
    fn a_section_without_fdes_has_no_table() {
        assert!(Frame::default().table().unwrap().is_none());
        let mut frame = Frame::default();
        let cie = frame.cie("", &AT_CALL);
        assert!(frame.table().unwrap().is_none());
        // A function of no length is none.
        frame.fde(cie, 0x1000, 0, &[]);
        assert!(frame.table().unwrap().is_none());
    }

    #[test]
    fn code_at_4_gib_is_refused() {
        let mut frame = Frame::default();
        good(&mut frame, 0xffff_ff00);
        let everywhere = 0x1000..0x2_0000_0000;
        let refused = frame.table_over(everywhere.clone());
        assert!(
            matches!(refused, Err(TableError::HighAddress { end, .. }) if end.0 == 0x1_0000_0000),
            "{refused:?}"
        );
        let mut frame = Frame::default();
        good(&mut frame, 0xffff_feff);
        let table = frame.table_over(everywhere).unwrap().unwrap();
        assert_eq!(table.rows.last(), Some(&row(u32::MAX, RowKind::None, 0)));
        assert_eq!(table.pages.len(), (1 << 22) + 1);
    }

    #[test]
    fn the_s_augmentation_alone_makes_no_signal_frame() {
        let mut frame = Frame::default();
        let cie = frame.cie("S", &AT_CALL);
        frame.fde(cie, 0x1000, 0x10, &[]);
        frame.fde(cie, 0x2000, 0x10, &SIGNAL_FRAME);
        let table = frame.table().unwrap().unwrap();
        assert!(table.rows.contains(&row(0x1000, RowKind::RspOffset, 8)));
        assert!(table.rows.contains(&row(0x1fff, RowKind::SignalFrame, 0)));
    }

    /// Xorshift: the same damage on every run.
    fn random(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    #[test]
    fn any_damage_gives_an_error_or_a_bounded_table() {
        let mut whole = Frame::default();
        for (at, augmentation) in ["", "S", "zR", "zPLR"].into_iter().enumerate() {
            let mut instructions = vec![4, 0x1b, 0, 0, 0, 0, 0];
            instructions.truncate(7 * usize::from(augmentation.starts_with('z')));
            instructions.extend(AT_CALL);
            let cie = whole.cie(augmentation, &instructions);
            for function in 0..20 {
                let start = 0x1000 + (at as u64 * 20 + function) * 0x100;
                whole.fde(cie, start, 0xf0, &[0x44, 0x0a, 0x0e, 16, 0x86, 2, 0x44, 0x0c, 6, 16, 0x44, 0x0b]);
                whole.fde(cie, start + 0xf0, 0x10, &SIGNAL_FRAME);
            }
        }
        let (mut state, mut tables, mut broken) = (0x9e37_79b9_7f4a_7c15, 0, 0);
        for _ in 0..3000 {
            let mut bytes = whole.bytes.clone();
            for _ in 0..1 + random(&mut state) % 8 {
                let at = random(&mut state) as usize % bytes.len();
                bytes[at] = random(&mut state) as u8;
            }
            bytes.truncate(bytes.len() - random(&mut state) as usize % 64);
            let len = bytes.len();
            let Ok(Some(table)) = (Frame { bytes }).table() else { continue };
            tables += 1;
            broken += table.stats.broken_fdes;
            assert!(table.rows.len() < len && table.pages.len() as u64 <= (CODE.end >> 10) + 2);
            assert!(table.rows.windows(2).all(|pair| pair[0].address() < pair[1].address()));
            assert!(table.rows.windows(2).all(|pair| pair[0].info() != pair[1].info()));
        }
        assert!(tables > 2900 && broken > 3000, "{tables} tables, {broken} broken FDEs");
    }
}
