//! What the developer commands and the integration tests share: paths of the workspace, child
//! processes, and throw-away PostgreSQL servers.
//!
//! It must not depend on the `pgleak` crate, whose build needs the eBPF object that `xtask` makes.

pub mod debian;
pub mod postgres;
pub mod process;
pub mod rivals;
pub mod workspace;
