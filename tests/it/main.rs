//! Real binaries of every build: functions, probe sites and unwind tables.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod replay;
mod sites;
mod tables;
