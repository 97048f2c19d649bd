//! The table of one object: rows by address, and an index of them by page.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use gimli::UnwindContext;
use tracer_ebpf::{
    lookup::{MAX_ROWS_A_PAGE, PAGE_BITS},
    unwind::{RbpRule, Row, RowInfo, RowKind},
};

use super::rules::{RETURN_ADDRESS, row_info};
use crate::elf::{Fde, FdeError, FrameSection, Image, described_range};

/// A gap between functions that is shorter is padding, which never runs.
const SHORTEST_GAP: u64 = 16;

/// Rows reach addresses below 4 GiB, in the object's own address space.
const END_OF_ROWS: u64 = 1 << 32;

/// An object whose unwind information cannot be used at all. Damage of single functions is
/// none: it is counted in [`TableStats`].
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// Nothing that it describes is code that a row can be for.
    #[error(
        "the .eh_frame of {path} describes no code of its own below 4 GiB, which is what an unwind row can address; it is damaged, or was linked to an unusual address"
    )]
    NoCode {
        /// Which object.
        path: PathBuf,
    },
    /// More rows in a page of code than the search reaches.
    #[error(
        "{path} has {rows} unwind rows in the kilobyte of code at {address:#x}, and the walk can search {MAX_ROWS_A_PAGE}"
    )]
    TooDense {
        /// Which object.
        path: PathBuf,
        /// Where.
        address: u64,
        /// How many.
        rows: u32,
    },
    /// The section is damaged from its start.
    #[error("cannot unwind the stacks of {path}: {source}")]
    Damaged {
        /// Which object.
        path: PathBuf,
        /// How.
        source: FdeError,
    },
}

/// What a table was made from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableStats {
    /// Function descriptions read.
    pub fdes: usize,
    /// Rows kept.
    pub rows: usize,
    /// Rows with a rule that the walk does not follow.
    pub unsupported_rows: usize,
    /// Functions whose description is damaged. Where they are is one unsupported row, or none if
    /// even that cannot be read.
    pub broken_fdes: usize,
    /// Functions outside of the object's executable segments, or beyond 4 GiB; they have no rows.
    pub stray_fdes: usize,
    /// Functions that begin inside another, which then ends there.
    pub overlapping_fdes: usize,
    /// Bytes of code between functions without any description.
    pub gap_bytes: u64,
}

/// The unwind rows of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnwindTable {
    /// By address; the first is at 0.
    pub rows: Vec<Row>,
    /// For each page of 2^[`PAGE_BITS`] bytes the index of the last row that starts at or before
    /// its first byte, and one entry for the end.
    pub pages: Vec<u32>,
    /// What it was made from.
    pub stats: TableStats,
}

/// A function and where its rows are in the list of all.
struct Function {
    start: u64,
    end: u64,
    is_signal_trampoline: bool,
    rows: Range<usize>,
}

/// What the section says, in its order.
#[derive(Default)]
struct Described {
    functions: Vec<Function>,
    rows: Vec<(u64, RowInfo)>,
}

impl UnwindTable {
    /// Builds the table of an object; `None` if it describes no function.
    ///
    /// # Errors
    /// If the table as a whole cannot be used.
    pub fn build(image: &Image) -> Result<Option<Self>, TableError> {
        match FrameSection::of(image) {
            Some(section) => Self::from_section(image.path(), &section, &code_of(image)),
            None => Ok(None),
        }
    }

    /// Builds it from the section; `path` is for messages, and `code` is where code can be.
    pub(super) fn from_section(
        path: &Path,
        section: &FrameSection<'_>,
        code: &[Range<u64>],
    ) -> Result<Option<Self>, TableError> {
        let mut stats = TableStats::default();
        let mut described = read_functions(path, section, code, &mut stats)?;
        if described.functions.is_empty() {
            let stray = stats.stray_fdes > 0;
            return if stray { Err(TableError::NoCode { path: path.to_owned() }) } else { Ok(None) };
        }
        // Stable: of two in one place the first stays, as in the linker's search table.
        described.functions.sort_by_key(|function| function.start);
        described.functions.dedup_by(|later, first| {
            let same = later.start == first.start;
            stats.overlapping_fdes += usize::from(same);
            same
        });
        let rows = flatten(&described, &mut stats);
        let pages = index(path, &rows)?;
        stats.rows = rows.len();
        stats.unsupported_rows =
            rows.iter().filter(|row| row.info().kind() == RowKind::Unsupported as u32).count();
        Ok(Some(Self { rows, pages, stats }))
    }
}

/// Where an object has code that a row can address.
fn code_of(image: &Image) -> Vec<Range<u64>> {
    let executable = image.segments().iter().filter(|segment| segment.executable);
    executable
        .map(|segment| {
            let end = segment.address.0.saturating_add(segment.memory_bytes);
            segment.address.0..end.min(END_OF_ROWS - 1)
        })
        .collect()
}

fn read_functions(
    path: &Path,
    section: &FrameSection<'_>,
    code: &[Range<u64>],
    stats: &mut TableStats,
) -> Result<Described, TableError> {
    let mut context = UnwindContext::new();
    let mut described = Described::default();
    for fde in section.fdes() {
        stats.fdes += 1;
        let fde = match fde {
            Ok(fde) => fde,
            Err(source @ FdeError::Cut { .. }) if described.functions.is_empty() => {
                return Err(TableError::Damaged { path: path.to_owned(), source });
            }
            Err(_) => {
                stats.broken_fdes += 1;
                continue;
            }
        };
        let Some(range) = described_range(&fde) else { continue };
        let (start, end) = (range.start.0, range.end.0);
        if !code.iter().any(|code| code.start <= start && end <= code.end) {
            stats.stray_fdes += 1;
            continue;
        }
        let first = described.rows.len();
        let is_signal_trampoline = fde.is_signal_trampoline();
        if is_signal_trampoline {
            described.rows.push((start, RowInfo::new(RowKind::SignalFrame, 0, RbpRule::Same, 0)));
        } else if !read_rows(&fde, section, &mut context, &mut described.rows) {
            stats.broken_fdes += 1;
            described.rows.truncate(first);
            described.rows.push((start, RowInfo::UNSUPPORTED));
        }
        let rows = first..described.rows.len();
        described.functions.push(Function { start, end, is_signal_trampoline, rows });
    }
    Ok(described)
}

/// Adds the rows of a function; false if they cannot all be read.
fn read_rows(
    fde: &Fde<'_>,
    section: &FrameSection<'_>,
    context: &mut UnwindContext<usize>,
    into: &mut Vec<(u64, RowInfo)>,
) -> bool {
    let usual = fde.cie().return_address_register() == RETURN_ADDRESS;
    let Ok(mut table) = fde.rows(section.section(), section.bases(), context) else { return false };
    // A row takes an instruction, which takes a byte: the rows of all FDEs together are fewer
    // than the bytes of the section.
    loop {
        match table.next_row() {
            Ok(Some(row)) if usual => {
                into.push((row.start_address(), row_info(row, section.section())));
            }
            Ok(Some(row)) => into.push((row.start_address(), RowInfo::UNSUPPORTED)),
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}

/// All rows in one list: overlaps cut, gaps ended, equal neighbours merged.
fn flatten(described: &Described, stats: &mut TableStats) -> Vec<Row> {
    let mut rows = Vec::with_capacity(described.rows.len() + 1);
    rows.push(Row::new(0, RowInfo::NONE));
    // How far the function before reaches.
    let mut reached = 0;
    for (position, function) in described.functions.iter().enumerate() {
        let next = described.functions.get(position + 1).map(|next| next.start);
        let end = next.map_or(function.end, |next| next.min(function.end));
        stats.overlapping_fdes += usize::from(end < function.end);
        let mut known = described.rows[function.rows.clone()].iter().peekable();
        if function.is_signal_trampoline && function.start > reached {
            // The return address into a trampoline is its first byte, and walks look one byte
            // before. (glibc's description of __restore_rt begins a byte early by itself.)
            push(&mut rows, function.start - 1, RowInfo::new(RowKind::SignalFrame, 0, RbpRule::Same, 0));
        }
        // Rows outside of their function are damage.
        while let Some((address, info)) =
            known.next_if(|(address, _)| *address >= function.start && *address < end)
        {
            push(&mut rows, *address, *info);
        }
        if next.is_none_or(|next| next >= end + SHORTEST_GAP) {
            stats.gap_bytes += next.map_or(0, |next| next - end);
            push(&mut rows, end, RowInfo::NONE);
        }
        reached = end;
    }
    rows
}

/// Adds a row unless it says what holds anyway. Addresses only rise, and are below
/// [`END_OF_ROWS`].
fn push(rows: &mut Vec<Row>, address: u64, info: RowInfo) {
    // The later of two rows in one place holds.
    rows.pop_if(|last| last.address() == address);
    if rows.is_empty() || rows.last().is_some_and(|last| last.info() != info) {
        rows.push(Row::new(address as u32, info));
    }
}

/// The index: sized by the object's highest row, which is below 4 GiB, so at most 16 MiB.
fn index(path: &Path, rows: &[Row]) -> Result<Vec<u32>, TableError> {
    let highest = rows.last().map_or(0, |row| row.address());
    let count = (highest >> PAGE_BITS) + 1;
    let mut pages = Vec::with_capacity(usize::try_from(count + 1).unwrap_or(0));
    let mut row = 0u32;
    for page in 0..=count {
        let start = page << PAGE_BITS;
        while rows.get(row as usize + 1).is_some_and(|next| next.address() <= start) {
            row += 1;
        }
        pages.push(row);
    }
    // The last entry ends the table: every row must be reachable from the page before it.
    if let Some(last) = pages.last_mut() {
        *last = rows.len() as u32 - 1;
    }
    for (page, pair) in pages.windows(2).enumerate() {
        let rows = pair[1] - pair[0];
        if rows > MAX_ROWS_A_PAGE {
            return Err(TableError::TooDense {
                path: path.to_owned(),
                address: (page as u64) << PAGE_BITS,
                rows,
            });
        }
    }
    Ok(pages)
}
