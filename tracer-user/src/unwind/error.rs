//! Why an image gives no unwind table.

use std::path::PathBuf;

use crate::{addr::VirtAddr, elf::FrameSectionError};

/// Why an image gives no unwind table. Every stack ends at the first frame in such an object.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The section cannot be found.
    #[error("{0}; stacks will end in this object")]
    Section(#[from] FrameSectionError),
    /// Code at or above 4 GiB, which a row's 32-bit address cannot name.
    #[error(
        "cannot index the unwind rows of {path}: its code ends at {end}, rows reach up to 4 GiB; \
         stacks will end in this object"
    )]
    HighAddress {
        /// The file.
        path: PathBuf,
        /// One past the last byte of the function that is too high.
        end: VirtAddr,
    },
    /// More rows in one page than the search reaches.
    #[error(
        "cannot index the unwind rows of {path}: {rows} rows in the page at {page}, the search \
         reaches {limit}; stacks will end in this object",
        limit = tracer_ebpf::lookup::MAX_ROWS_A_PAGE
    )]
    DensePage {
        /// The file.
        path: PathBuf,
        /// The page's first address.
        page: VirtAddr,
        /// How many rows begin in it.
        rows: u32,
    },
    /// More rows than any real object has.
    #[error(
        "cannot index the unwind rows of {path}: more than {limit} rows; \
         stacks will end in this object"
    )]
    TooManyRows {
        /// The file.
        path: PathBuf,
        /// The limit.
        limit: usize,
    },
}
