//! The harness on real servers of every build: what the privileged tests stand on.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cleanup;
mod contexts;
mod planted;
mod workload;
