//! The unwind table of one object: rows sorted by address, and the index of its pages.

use std::{ops::Range, path::Path};

use tracer_ebpf::{
    lookup::{MAX_ROWS_A_PAGE, PAGE_BITS},
    unwind::{Row, RowInfo, RowKind},
};

use super::{
    TableError,
    entries::{Entries, Span, push_row},
};
use crate::{
    addr::VirtAddr,
    elf::{FrameSection, Image},
};

/// Code between two functions that is longer than this gets a row of its own, which says that
/// there is no unwind information; shorter ones are padding that is never executed, and half of
/// all functions are followed by some.
const PADDING_BYTES: u64 = 16;

/// What an object's unwind information looks like. Shown to the user, so that a stack that ends
/// early can be traced to its cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableStats {
    /// FDEs in the section.
    pub fdes: u32,
    /// Rows in the table.
    pub rows: u32,
    /// Rows that the walk cannot follow.
    pub unsupported_rows: u32,
    /// FDEs that could not be read, lie outside of the code or inside of another one.
    pub broken_fdes: u32,
    /// Code between FDEs that has no unwind information.
    pub gap_bytes: u64,
    /// Bytes at the end of `.eh_frame` that could not be read.
    pub unread_bytes: u64,
}

/// The unwind rows of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnwindTable {
    /// Sorted by address, no two at one address, the first at 0. The last one ends the code.
    pub rows: Vec<Row>,
    /// For each page of 2^[`PAGE_BITS`] bytes from address 0, the index of the last row that
    /// starts at or below the page's first byte; one more entry than pages.
    pub pages: Vec<u32>,
    /// What was met.
    pub stats: TableStats,
}

impl UnwindTable {
    /// The table of an image; `None` if it has no FDE, such as a library of data only.
    ///
    /// Its size is bounded by that of `.eh_frame`, and the index by 16 MiB, the pages of 4 GiB.
    ///
    /// # Errors
    /// If `.eh_frame` cannot be found though there should be one, or its rows cannot be indexed.
    /// Damage inside of it costs the rows of the damaged entries and is counted.
    pub fn build(image: &Image) -> Result<Option<Self>, TableError> {
        let Some(section) = FrameSection::of(image)? else { return Ok(None) };
        Self::of_section(&section, &code_ranges(image), image.path())
    }

    /// The table of a section that was found, in a file with this code.
    pub(super) fn of_section(
        section: &FrameSection<'_>,
        code: &[Range<u64>],
        path: &Path,
    ) -> Result<Option<Self>, TableError> {
        Self::assemble(Entries::read(section, code, path)?, path)
    }

    pub(super) fn assemble(mut entries: Entries, path: &Path) -> Result<Option<Self>, TableError> {
        let mut stats = TableStats {
            fdes: entries.fdes,
            broken_fdes: entries.broken_fdes,
            unread_bytes: entries.unread_bytes,
            ..TableStats::default()
        };
        if entries.spans.is_empty() && entries.broken_fdes == 0 && entries.unread_bytes == 0 {
            return Ok(None);
        }
        entries.spans.sort_by_key(|span| (span.start, span.end));
        let mut rows = Vec::with_capacity(entries.rows.len() + entries.spans.len() / 8 + 2);
        rows.push(Row::new(0, RowInfo::NONE));
        let mut covered = 0;
        for span in &entries.spans {
            covered = add_span(&mut rows, span, &entries.rows[span.rows.clone()], covered, &mut stats);
        }
        if covered > 0 {
            push_row(&mut rows, 0, Row::new(covered as u32, RowInfo::NONE));
        }
        let unsupported = |row: &&Row| row.info().kind() == RowKind::Unsupported as u32;
        stats.rows = rows.len() as u32;
        stats.unsupported_rows = rows.iter().filter(unsupported).count() as u32;
        Self::of_rows(rows, stats, path).map(Some)
    }

    /// Adds the index to rows that are as [`Self::rows`] says.
    pub(super) fn of_rows(rows: Vec<Row>, stats: TableStats, path: &Path) -> Result<Self, TableError> {
        let pages = index(&rows, path)?;
        Ok(Self { rows, pages, stats })
    }
}

/// Adds one FDE after those that cover everything below `covered`, and gives what is covered
/// then.
fn add_span(rows: &mut Vec<Row>, span: &Span, own: &[Row], covered: u64, stats: &mut TableStats) -> u64 {
    let mut start = span.start;
    if span.is_trampoline && start >= covered {
        // The kernel makes the handler return to the trampoline's first byte, and the walk looks
        // up one byte before a return address. glibc's FDE begins there itself.
        start = start.saturating_sub(1);
        while rows.last().is_some_and(|row| row.address() >= start && row.address() > 0) {
            rows.pop();
        }
    } else if start < covered {
        // Only a damaged section has FDEs that overlap: the first one holds.
        stats.broken_fdes += 1;
        start = covered;
    }
    if span.end <= start {
        return covered;
    }
    // At the very beginning, the first row says already that there is nothing.
    if covered > 0 && start >= covered + PADDING_BYTES {
        push_row(rows, 0, Row::new(covered as u32, RowInfo::NONE));
        stats.gap_bytes += start - covered;
    }
    let held = own.partition_point(|row| row.address() <= start).saturating_sub(1);
    // The addresses of an FDE fit into a row, or there would be no span.
    push_row(rows, 0, Row::new(start as u32, own[held].info()));
    for row in &own[held + 1..] {
        push_row(rows, 0, *row);
    }
    span.end.max(covered)
}

/// The index of `rows`, which are sorted and begin at address 0.
fn index(rows: &[Row], path: &Path) -> Result<Vec<u32>, TableError> {
    let last = rows.last().map_or(0, |row| row.address() >> PAGE_BITS);
    let mut pages = Vec::with_capacity(last as usize + 2);
    let mut at = 0;
    for page in 0..=last + 1 {
        let start = page << PAGE_BITS;
        at += rows[at..].partition_point(|row| row.address() <= start).saturating_sub(1);
        pages.push(at as u32);
    }
    let dense = pages.windows(2).position(|pair| pair[1] - pair[0] > MAX_ROWS_A_PAGE);
    match dense {
        None => Ok(pages),
        Some(page) => Err(TableError::DensePage {
            path: path.to_owned(),
            page: VirtAddr((page as u64) << PAGE_BITS),
            rows: pages[page + 1] - pages[page],
        }),
    }
}

/// The executable bytes that the file really has: an FDE for anything else is not to be trusted,
/// and would make the index as long as it likes.
pub(super) fn code_ranges(image: &Image) -> Vec<Range<u64>> {
    let file_bytes = image.bytes().len() as u64;
    image
        .segments()
        .iter()
        .filter(|segment| segment.executable)
        .filter_map(|segment| {
            let there = segment.file_bytes.min(file_bytes.checked_sub(segment.offset.0)?);
            let end = segment.address.0.checked_add(there)?;
            (there > 0).then_some(segment.address.0..end)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use tracer_ebpf::unwind::{Row, RowInfo, RowKind};

    use super::super::fixture::{AT_CALL, Frame, SIGNAL_FRAME, row, table_of};
    use super::{TableStats, UnwindTable};
    use crate::{addr::VirtAddr, unwind::TableError};

    fn table(functions: &[(u64, u64, u8)]) -> UnwindTable {
        let mut frame = Frame::default();
        let cie = frame.cie("", &AT_CALL);
        for (start, end, offset) in functions {
            frame.fde(cie, *start, end - start, &[0x0e, *offset]);
        }
        frame.table().unwrap().unwrap()
    }

    fn end(address: u32) -> Row {
        Row::new(address, RowInfo::NONE)
    }

    fn rsp(address: u32, offset: i64) -> Row {
        row(address, RowKind::RspOffset, offset)
    }

    #[test]
    fn gaps_of_16_bytes_end_a_function_and_padding_does_not() {
        let found = table(&[(0x1020, 0x1031, 32), (0x1000, 0x1011, 16), (0x1041, 0x1050, 8)]);
        let rows = [end(0), rsp(0x1000, 16), rsp(0x1020, 32), end(0x1031), rsp(0x1041, 8), end(0x1050)];
        assert_eq!(found.rows, rows);
        assert_eq!(found.stats, TableStats { fdes: 3, rows: 6, gap_bytes: 16, ..TableStats::default() });
    }

    #[test]
    fn functions_that_begin_with_the_rule_of_the_one_before_share_a_row() {
        let found = table(&[(0x1000, 0x1010, 8), (0x1010, 0x1020, 8), (0x1020, 0x1030, 16)]);
        assert_eq!(found.rows, [end(0), rsp(0x1000, 8), rsp(0x1020, 16), end(0x1030)]);
    }

    #[test]
    fn of_fdes_that_overlap_the_first_holds() {
        let found = table(&[(0x1000, 0x1100, 16), (0x1050, 0x1060, 32), (0x10f0, 0x1200, 48)]);
        assert_eq!(found.rows, [end(0), rsp(0x1000, 16), rsp(0x1100, 48), end(0x1200)]);
        assert_eq!(found.stats.broken_fdes, 2);
    }

    #[test]
    fn a_signal_trampoline_begins_one_byte_early() {
        let mut frame = Frame::default();
        let cie = frame.cie("", &AT_CALL);
        let signal = frame.cie("S", &AT_CALL);
        frame.fde(signal, 0x1010, 9, &SIGNAL_FRAME);
        // The function before it has a row of its own for its last byte.
        frame.fde(cie, 0x1000, 0x10, &[0x0e, 16, 0x4f, 0x0e, 8]);
        let found = frame.table().unwrap().unwrap();
        let trampoline = row(0x100f, RowKind::SignalFrame, 0);
        assert_eq!(found.rows, [end(0), rsp(0x1000, 16), trampoline, end(0x1019)]);
        assert_eq!(found.stats.broken_fdes, 0);
    }

    #[test]
    fn the_index_names_the_last_row_at_or_below_each_page() {
        let rows = [rsp(0x400, 8), rsp(0x7ff, 16), rsp(0x1000, 24), end(0x1001)];
        let found = table_of(&rows).unwrap();
        // Pages at 0, 0x400, 0x800, 0xc00, 0x1000, and the end of the last one.
        assert_eq!(found.pages, [0, 1, 2, 2, 3, 4]);
    }

    #[test]
    fn a_page_may_have_511_rows_and_no_more() {
        let rows =
            |count: u32| (0..count).map(|at| rsp(0x400 + at, 8 + at as i64 % 2 * 8)).collect::<Vec<_>>();
        // The first one is at the start of its page, and so belongs to what comes before.
        assert!(table_of(&rows(512)).is_ok());
        let refused = table_of(&rows(513));
        let Err(TableError::DensePage { page: VirtAddr(0x400), rows: 512, .. }) = refused else {
            panic!("{refused:?}");
        };
    }
}
