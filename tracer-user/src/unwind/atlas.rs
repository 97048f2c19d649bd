//! The tables of all objects of a capture, as the kernel's maps hold them.

use tracer_ebpf::{
    lookup::{PAGE_BITS, find_row},
    unwind::Row,
};

use super::UnwindTable;
use crate::addr::VirtAddr;

/// The most entries of the page index.
///
/// The kernel remembers the row of an address under the key `virtual address + first page <<`
/// [`PAGE_BITS`], in 32 bits. As every object has pages of its own, no two addresses have the
/// same key as long as the pages of all objects together are less than 4 GiB.
const MAX_PAGES: u64 = 1 << (32 - PAGE_BITS);

/// Why a table cannot be added.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AtlasError {
    /// No page numbers are left.
    #[error(
        "cannot add {adding} pages of unwind rows to the {held} there are: keys of the row cache \
         have room for {limit}; the stacks of this capture will end in that object"
    )]
    Pages {
        /// How many the table has.
        adding: usize,
        /// How many there are.
        held: usize,
        /// How many there can be.
        limit: u64,
    },
    /// No row numbers are left.
    #[error(
        "cannot add {adding} unwind rows to the {held} there are: row numbers have 32 bits; the \
         stacks of this capture will end in that object"
    )]
    Rows {
        /// How many the table has.
        adding: usize,
        /// How many there are.
        held: usize,
    },
}

/// Where the pages of one object's table are in the atlas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Placement {
    /// The first one.
    pub first_page: u32,
    /// How many they are. One more entry follows them.
    pub page_count: u32,
}

/// How far an atlas was filled at some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// How many rows it had.
    pub rows: usize,
    /// How many entries its page index had.
    pub pages: usize,
}

/// What was added since a [`Mark`], which says where it belongs. Upload the rows first: an
/// index must never name rows that are not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended<'a> {
    /// New rows, from index `Mark::rows` on.
    pub rows: &'a [Row],
    /// New index entries, from index `Mark::pages` on.
    pub pages: &'a [u32],
}

/// All unwind tables of a capture, one after the other. It only ever grows: the kernel may have
/// remembered any row of it.
#[derive(Clone, Debug, Default)]
pub struct Atlas {
    rows: Vec<Row>,
    pages: Vec<u32>,
}

impl Atlas {
    /// An atlas without tables.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the table of an object that it does not have yet.
    ///
    /// # Errors
    /// If it is full; it is unchanged then.
    pub fn add(&mut self, table: &UnwindTable) -> Result<Placement, AtlasError> {
        if (self.pages.len() + table.pages.len()) as u64 > MAX_PAGES {
            let (adding, held) = (table.pages.len(), self.pages.len());
            return Err(AtlasError::Pages { adding, held, limit: MAX_PAGES });
        }
        let first_row = self.rows.len();
        if u32::try_from(first_row + table.rows.len()).is_err() {
            return Err(AtlasError::Rows { adding: table.rows.len(), held: first_row });
        }
        let first_page = self.pages.len() as u32;
        self.rows.extend_from_slice(&table.rows);
        self.pages.extend(table.pages.iter().map(|row| row + first_row as u32));
        Ok(Placement { first_page, page_count: (table.pages.len() as u32).saturating_sub(1) })
    }

    /// All rows: the content of `ROWS`.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The index of all pages: the content of `PAGES`.
    pub fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// How far it is filled now.
    pub fn mark(&self) -> Mark {
        Mark { rows: self.rows.len(), pages: self.pages.len() }
    }

    /// What was added since `mark`, which this atlas gave.
    pub fn since(&self, mark: Mark) -> Appended<'_> {
        Appended {
            rows: self.rows.get(mark.rows..).unwrap_or_default(),
            pages: self.pages.get(mark.pages..).unwrap_or_default(),
        }
    }

    /// The row that holds at an address of an object, found as the kernel finds it; `None` past
    /// the object's last page.
    pub fn find(&self, placement: Placement, address: VirtAddr) -> Option<Row> {
        let page = address.0 >> PAGE_BITS;
        if page >= u64::from(placement.page_count) {
            return None;
        }
        let at = placement.first_page as usize + page as usize;
        let (lo, hi) = (*self.pages.get(at)?, *self.pages.get(at + 1)?);
        find_row(lo, hi, address.0, |index| self.rows.get(index as usize).copied())
    }
}
