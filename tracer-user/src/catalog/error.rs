//! Why a binary has no place in the catalog.

use std::path::PathBuf;

use super::Product;
use crate::elf::ElfError;

/// Why a binary is not one that pgleak knows.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The file cannot be read as ELF.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// Nothing in the file says that it is a server.
    #[error(
        "{path} is not a PostgreSQL server: it does not define {symbol}, which every server exports to its \
         extensions; give the pid of a server process"
    )]
    NotAServer {
        /// Which file.
        path: PathBuf,
        /// The symbol that was looked for.
        symbol: &'static str,
    },
    /// It looks like a server, but says no version.
    #[error(
        "{path} defines {symbol}, but holds no string 'PostgreSQL VERSION …, compiled by …', so its version \
         is unknown"
    )]
    NoVersion {
        /// Which file.
        path: PathBuf,
        /// The symbol that was found.
        symbol: &'static str,
    },
    /// It holds several version strings that differ.
    #[error("{path} holds version strings that contradict each other: {}", found.join("; "))]
    SeveralVersions {
        /// Which file.
        path: PathBuf,
        /// The strings.
        found: Vec<String>,
    },
    /// A version without a row.
    #[error("version {number} of {product} is unknown ('{full}'); this pgleak knows {supported}")]
    UnknownVersion {
        /// The product.
        product: Product,
        /// The version number.
        number: String,
        /// Its version string.
        full: String,
        /// What the catalog has.
        supported: String,
    },
    /// A development version of a major that is known as a release.
    #[error(
        "{number} is a pre-release of {product} ('{full}'): layouts change until the release, so pgleak does \
         not guess; this pgleak knows the releases of {supported}"
    )]
    PreRelease {
        /// The product.
        product: Product,
        /// The version number.
        number: String,
        /// Its version string.
        full: String,
        /// What the catalog has.
        supported: String,
    },
}
