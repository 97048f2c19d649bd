//! The table of one object: rows by address, and an index of them by page.

use std::path::PathBuf;

use gimli::{BaseAddresses, CieOrFde, EhFrame, LittleEndian, UnwindContext, UnwindSection as _};
use tracer_ebpf::{
    lookup::{MAX_ROWS_A_PAGE, PAGE_BITS},
    unwind::{RbpRule, Row, RowInfo, RowKind},
};

use super::rules::{Bytes, row_info};
use crate::elf::{Image, eh_frame_bases};

/// A gap between functions that is shorter is padding, which never runs.
const SHORTEST_GAP: u64 = 16;

/// A byte of `.eh_frame` makes at most one row (an advance of one byte), so a section that
/// claims more is not one.
const ROWS_A_BYTE: usize = 1;

/// An object whose unwind information cannot be used at all. Damage of single functions is
/// none: it is counted in [`TableStats`].
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// Code beyond what a row can say.
    #[error("{path} has code at {address:#x}, beyond the 4 GiB that an unwind row can address")]
    TooFar {
        /// Which object.
        path: PathBuf,
        /// Where.
        address: u64,
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
    /// The section is damaged.
    #[error("the .eh_frame of {path} is damaged: {source}")]
    Damaged {
        /// Which object.
        path: PathBuf,
        /// How.
        source: gimli::Error,
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
    /// Functions whose description is damaged; each is one unsupported row.
    pub broken_fdes: usize,
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

struct Function {
    start: u64,
    end: u64,
    rows: Vec<(u64, RowInfo)>,
}

impl UnwindTable {
    /// Builds the table of an object; `None` if it describes no function.
    ///
    /// # Errors
    /// If the table as a whole cannot be used.
    pub fn build(image: &Image) -> Result<Option<Self>, TableError> {
        let Some((_, bytes)) = image.section(".eh_frame") else { return Ok(None) };
        Self::from_section(image.path(), bytes, &eh_frame_bases(image))
    }

    /// Builds it from the bytes of the section.
    pub(super) fn from_section(
        path: &std::path::Path,
        bytes: &[u8],
        bases: &BaseAddresses,
    ) -> Result<Option<Self>, TableError> {
        let mut section = EhFrame::new(bytes, LittleEndian);
        section.set_address_size(8);
        let mut stats = TableStats::default();
        let mut functions = read_functions(path, &section, bases, &mut stats)?;
        if functions.is_empty() {
            return Ok(None);
        }
        functions.sort_by_key(|function| function.start);
        let rows = flatten(path, &functions, &mut stats)?;
        let pages = index(path, &rows)?;
        stats.rows = rows.len();
        stats.unsupported_rows =
            rows.iter().filter(|row| row.info().kind() == RowKind::Unsupported as u32).count();
        Ok(Some(Self { rows, pages, stats }))
    }
}

fn read_functions(
    path: &std::path::Path,
    section: &EhFrame<Bytes<'_>>,
    bases: &BaseAddresses,
    stats: &mut TableStats,
) -> Result<Vec<Function>, TableError> {
    let mut context = UnwindContext::new();
    let mut entries = section.entries(bases);
    let mut functions = Vec::new();
    let mut budget = section_bytes(section) * ROWS_A_BYTE;
    loop {
        let entry = match entries.next() {
            Ok(Some(entry)) => entry,
            Ok(None) => break,
            // Without the length of an entry there is no way to the next.
            Err(source) => return Err(TableError::Damaged { path: path.to_owned(), source }),
        };
        let CieOrFde::Fde(partial) = entry else { continue };
        stats.fdes += 1;
        let Ok(fde) = partial.parse(|section, bases, offset| section.cie_from_offset(bases, offset)) else {
            stats.broken_fdes += 1;
            continue;
        };
        let start = fde.initial_address();
        let Some(end) = start.checked_add(fde.len()).filter(|end| *end > start) else { continue };
        if fde.is_signal_trampoline() {
            // The return address into it is its first byte, and walks look one byte before.
            let info = RowInfo::new(RowKind::SignalFrame, 0, RbpRule::Same, 0);
            let before = start.saturating_sub(1);
            functions.push(Function { start: before, end, rows: vec![(before, info)] });
            continue;
        }
        let mut rows = Vec::new();
        let whole = fde.rows(section, bases, &mut context).is_ok_and(|mut table| {
            loop {
                match table.next_row() {
                    Ok(Some(row)) if budget > 0 => {
                        budget -= 1;
                        rows.push((row.start_address(), row_info(row, section)));
                    }
                    Ok(None) => break true,
                    _ => break false,
                }
            }
        });
        if !whole {
            stats.broken_fdes += 1;
            rows = vec![(start, RowInfo::UNSUPPORTED)];
        }
        functions.push(Function { start, end, rows });
    }
    Ok(functions)
}

fn section_bytes(section: &EhFrame<Bytes<'_>>) -> usize {
    use gimli::Section as _;
    section.reader().len()
}

/// All rows in one list: overlaps cut, gaps ended, equal neighbours merged.
fn flatten(
    path: &std::path::Path,
    functions: &[Function],
    stats: &mut TableStats,
) -> Result<Vec<Row>, TableError> {
    let mut rows = vec![Row::new(0, RowInfo::NONE)];
    let mut last = RowInfo::NONE;
    let mut push = |address: u64, info: RowInfo| {
        let address32 =
            u32::try_from(address).map_err(|_| TableError::TooFar { path: path.to_owned(), address })?;
        if rows.last().is_some_and(|row| row.address() == address) {
            rows.pop();
            last = rows.last().map_or(RowInfo::NONE, |row| row.info());
            if rows.is_empty() || last != info {
                rows.push(Row::new(address32, info));
            }
            last = info;
        } else if info != last {
            rows.push(Row::new(address32, info));
            last = info;
        }
        Ok::<(), TableError>(())
    };
    let mut reached = 0;
    for (position, function) in functions.iter().enumerate() {
        for (address, info) in &function.rows {
            // Descriptions that overlap, and rows outside of their function, are damage.
            if *address >= reached && *address >= function.start && *address < function.end {
                push(*address, *info)?;
                reached = *address;
            }
        }
        let end = function.end;
        let next = functions.get(position + 1).map(|next| next.start);
        if next.is_none_or(|next| next >= end.saturating_add(SHORTEST_GAP)) {
            stats.gap_bytes += next.map_or(0, |next| next - end);
            push(end, RowInfo::NONE)?;
            reached = end;
        }
    }
    Ok(rows)
}

/// The index: sized by the object's highest row, which is below 4 GiB, so at most 16 MiB.
fn index(path: &std::path::Path, rows: &[Row]) -> Result<Vec<u32>, TableError> {
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
