//! Shared harness of the integration tests: servers, sessions on them, work for them to do, and the
//! `pgleak` program, in a terminal too.
//!
//! Everything cleans up in `Drop`, and a test process that is killed leaves no server behind.

pub mod browser;
pub mod client;
pub mod container;
pub mod damage;
pub mod debuginfod;
pub mod findings;
pub mod imitation;
pub mod measure;
pub mod overlay;
pub mod pgleak;
pub mod planted;
pub mod receiver;
pub mod replay;
pub mod sampling;
pub mod service;
pub mod shapes;
pub mod skip;
pub mod tables;
pub mod terminal;
pub mod unit;
pub mod workload;

pub use client::Session;
pub use xtask::postgres::{Build, BuildKind, LEAKING_ROUND, OsUser, Server, ServerOptions};
