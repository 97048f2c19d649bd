//! What the developer commands and the integration tests share: paths of the workspace, child
//! processes, throw-away PostgreSQL servers, and the Debian package.
//!
//! It must not depend on the `pgleak` crate, whose build needs the eBPF object that `xtask` makes.

pub mod debian;
pub mod package;
pub mod postgres;
pub mod process;
pub mod rivals;
pub mod workspace;
