//! What walks need to know: unwind tables, mappings, and which process has which.

use tracer_ebpf::{
    abi::{MAPSET_SLOTS, MapSet},
    unwind::Row,
};

use super::{MapError, processes::ProcessTable, rawmap::RawMap};

/// The kernel's copy of it, for whoever keeps it current.
#[derive(Debug)]
pub struct Walks {
    pub(super) rows: RawMap<u32, Row>,
    pub(super) pages: RawMap<u32, u32>,
    pub(super) mapsets: RawMap<u32, MapSet>,
    pub(super) processes: ProcessTable,
}

impl Walks {
    /// Writes unwind rows and index entries from the given positions on.
    ///
    /// # Errors
    /// If they do not fit or the kernel refuses.
    pub fn put_tables(
        &self,
        first_row: u32,
        rows: &[Row],
        first_page: u32,
        pages: &[u32],
    ) -> Result<(), MapError> {
        self.rows.fill(first_row, rows)?;
        self.pages.fill(first_page, pages)
    }

    /// Writes a set of mappings. `number` grows with each; a walk uses one for microseconds.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn put_mapset(&self, number: u32, mapset: &MapSet) -> Result<(), MapError> {
        self.mapsets.set(&(number % MAPSET_SLOTS), mapset)
    }

    /// The processes that the programs have seen.
    pub fn processes(&self) -> &ProcessTable {
        &self.processes
    }
}
