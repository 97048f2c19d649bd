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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use tracer_ebpf::unwind::{Row, RowKind};

    use super::{Atlas, AtlasError, MAX_PAGES, Mark, PAGE_BITS, Placement};
    use crate::{
        addr::VirtAddr,
        unwind::{UnwindTable, fixture::row, fixture::table_of},
    };

    fn rsp(address: u32) -> Row {
        row(address, RowKind::RspOffset, 8 + i64::from(address % 1000) * 8)
    }

    /// The row that holds at an address, by looking at all of them.
    fn slow(table: &UnwindTable, address: u64) -> Option<Row> {
        let past = (table.pages.len() as u64 - 1) << PAGE_BITS;
        let row = table.rows.iter().rev().find(|row| row.address() <= address);
        row.filter(|_| address < past).copied()
    }

    #[test]
    fn every_address_of_every_table_is_found_even_in_the_last_rows() {
        let crowded: Vec<Row> = (0x400..0x600).map(rsp).collect();
        let sparse = [rsp(0x10), rsp(0x5000), rsp(0x5001), rsp(0x53ff), rsp(0x5400)];
        let tables = [table_of(&crowded).unwrap(), table_of(&sparse).unwrap(), table_of(&[]).unwrap()];
        // Each of them at the end once, where nothing follows to be probed.
        for last in 0..tables.len() {
            let mut atlas = Atlas::new();
            let mut order: Vec<&UnwindTable> = tables.iter().collect();
            order.rotate_left(last);
            let places: Vec<Placement> = order.iter().map(|table| atlas.add(table).unwrap()).collect();
            for (table, place) in order.iter().zip(&places) {
                for address in (0..0x6000).chain([1 << 32, u64::MAX]) {
                    let found = atlas.find(*place, VirtAddr(address));
                    assert_eq!(found, slow(table, address), "{address:#x}");
                }
            }
        }
    }

    #[test]
    fn a_page_of_511_rows_is_searched_to_its_last() {
        let rows: Vec<Row> = (0x400..0x600).map(rsp).collect();
        let table = table_of(&rows).unwrap();
        assert_eq!(table.pages[2] - table.pages[1], 511);
        let mut atlas = Atlas::new();
        let place = atlas.add(&table).unwrap();
        for row in rows {
            assert_eq!(atlas.find(place, VirtAddr(row.address())), Some(row));
        }
    }

    #[test]
    fn what_was_added_since_is_what_the_maps_lack() {
        let (first, second) = (table_of(&[rsp(0x100)]).unwrap(), table_of(&[rsp(0x2000)]).unwrap());
        let mut atlas = Atlas::new();
        assert_eq!(atlas.mark(), Mark::default());
        atlas.add(&first).unwrap();
        let mark = atlas.mark();
        let (mut rows, mut pages) = (atlas.rows().to_vec(), atlas.pages().to_vec());
        let place = atlas.add(&second).unwrap();
        assert_eq!(place, Placement { first_page: mark.pages as u32, page_count: 9 });
        let new = atlas.since(mark);
        assert_eq!(new.rows, second.rows);
        assert_eq!(new.pages[0], mark.rows as u32);
        rows.extend(new.rows);
        pages.extend(new.pages);
        assert_eq!((&rows[..], &pages[..]), (atlas.rows(), atlas.pages()));
        assert!(atlas.since(atlas.mark()).rows.is_empty());
    }

    #[test]
    fn no_two_addresses_share_a_key_of_the_row_cache() {
        let mut atlas = Atlas::new();
        let mut next_key = 0;
        for last in [0, 0x3ff, 0x400, 0x12345] {
            let place = atlas.add(&table_of(&[rsp(last)]).unwrap()).unwrap();
            let key = |address: u64| address + (u64::from(place.first_page) << PAGE_BITS);
            assert!(key(0) >= next_key, "{last:#x}");
            next_key = key(u64::from(place.page_count) << PAGE_BITS);
        }
    }

    #[test]
    fn a_full_atlas_refuses_and_stays_as_it_was() {
        let mut atlas = Atlas::new();
        // The page of the last row, those below, and the entry past the end: all but three.
        let large = table_of(&[rsp((MAX_PAGES as u32 - 5) << PAGE_BITS)]).unwrap();
        let place = atlas.add(&large).unwrap();
        assert_eq!(u64::from(place.page_count), MAX_PAGES - 4);
        let two = table_of(&[rsp(PAGE_BITS)]).unwrap();
        let four = table_of(&[rsp(2 << PAGE_BITS)]).unwrap();
        let mark = atlas.mark();
        assert_eq!(
            atlas.add(&four),
            Err(AtlasError::Pages { adding: 4, held: MAX_PAGES as usize - 3, limit: MAX_PAGES })
        );
        assert_eq!(atlas.mark(), mark);
        let last = atlas.add(&two).unwrap();
        let past = u64::from(last.first_page + last.page_count) << PAGE_BITS;
        assert!(past <= 1 << 32);
    }
}
