//! Real binaries of every build: functions, probe sites and unwind tables; names of all sources.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod commands;
mod names;
mod replay;
mod sites;
mod tables;
