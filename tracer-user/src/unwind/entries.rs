//! The FDEs of an `.eh_frame`, each on its own: what one of them hides or breaks is its own rows.

use std::{ops::Range, path::Path};

use gimli::{
    CommonInformationEntry, EhFrame, EhFrameOffset, FrameDescriptionEntry, LittleEndian, UnwindContext,
    UnwindSection as _, X86_64,
};
use tracer_ebpf::unwind::{Row, RowInfo, RowKind};

use super::{
    TableError, Unsupported,
    rules::{Slice, row_info},
};
use crate::{addr::VirtAddr, elf::FrameSection};

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
        let mut records = section.records();
        for offset in records.by_ref() {
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
        entries.unread_bytes = records.unread_bytes() as u64;
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
        if refused(fde).is_some() {
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

/// Why no row of an FDE is believed, whatever its own instructions say.
pub(super) fn refused(fde: &FrameDescriptionEntry<Slice<'_>>) -> Option<Unsupported> {
    let cie = fde.cie();
    if cie.entry_len() > MAX_CIE_BYTES {
        Some(Unsupported::LongCie)
    } else if cie.return_address_register() != X86_64::RA {
        Some(Unsupported::ReturnColumn)
    } else {
        None
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
