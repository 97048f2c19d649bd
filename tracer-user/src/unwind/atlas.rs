//! The tables of all objects of a capture, side by side as the kernel's maps hold them.

use tracer_ebpf::{lookup::PAGE_BITS, unwind::Row};

use super::UnwindTable;

/// Where an object's pages are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Index of its first page.
    pub first_page: u32,
    /// How many pages it has; the entry after them ends the last.
    pub page_count: u32,
}

/// More than the maps can number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the unwind tables of this process have {rows} rows and {pages} pages, more than pgleak can number; please report it with `pgleak doctor`'s output"
)]
pub struct AtlasError {
    /// Rows so far.
    pub rows: usize,
    /// Pages so far.
    pub pages: usize,
}

/// Rows and pages of all objects. What was added stays where it is: the kernel's cache of rows
/// relies on it.
#[derive(Clone, Debug, Default)]
pub struct Atlas {
    rows: Vec<Row>,
    pages: Vec<u32>,
}

/// The kernel's cache of rows tells code apart by 32 bits: address in the object plus the first
/// page's address. All pages together must therefore stay below 4 GiB.
const MOST_PAGES: usize = 1 << (32 - PAGE_BITS);

impl Atlas {
    /// Without any table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the table of an object.
    ///
    /// # Errors
    /// If there are too many.
    pub fn add(&mut self, table: &UnwindTable) -> Result<Placement, AtlasError> {
        let rows = self.rows.len() + table.rows.len();
        let pages = self.pages.len() + table.pages.len();
        let error = AtlasError { rows, pages };
        let (Ok(first_row), Ok(first_page)) =
            (u32::try_from(self.rows.len()), u32::try_from(self.pages.len()))
        else {
            return Err(error);
        };
        let Some(page_count) = table.pages.len().checked_sub(1).and_then(|count| u32::try_from(count).ok())
        else {
            return Err(error);
        };
        if u32::try_from(rows).is_err() || pages > MOST_PAGES {
            return Err(error);
        }
        self.rows.extend_from_slice(&table.rows);
        self.pages.extend(table.pages.iter().map(|row| row + first_row));
        Ok(Placement { first_page, page_count })
    }

    /// All rows.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The index: positions in [`Self::rows`].
    pub fn pages(&self) -> &[u32] {
        &self.pages
    }
}
