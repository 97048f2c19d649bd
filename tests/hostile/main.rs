//! Input that was made to do harm: every reader gives a value or an error, in bounded memory.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod memory;

mod elf;
mod entry;
mod json;

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;
