//! The unwind table of one object: rows sorted by address, and the index of its pages.

use std::{ops::Range, path::Path};

use tracer_ebpf::{
    lookup::{MAX_ROWS_A_PAGE, PAGE_BITS},
    unwind::{Row, RowInfo, RowKind},
};

use super::{
    TableError,
    entries::{Entries, Span, push_row},
    section::FrameSection,
};
use crate::{addr::VirtAddr, elf::Image};

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
        let entries = Entries::read(&section, &code_ranges(image), image.path())?;
        Self::assemble(entries, image.path())
    }

    fn assemble(mut entries: Entries, path: &Path) -> Result<Option<Self>, TableError> {
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
        let count = |kind: RowKind| rows.iter().filter(|row| row.info().kind() == kind as u32).count();
        stats.rows = rows.len() as u32;
        stats.unsupported_rows = count(RowKind::Unsupported) as u32;
        let pages = index(&rows, path)?;
        Ok(Some(Self { rows, pages, stats }))
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
fn code_ranges(image: &Image) -> Vec<Range<u64>> {
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
