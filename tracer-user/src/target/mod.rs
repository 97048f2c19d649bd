//! The process: what it is, what it has mapped, what is in its memory.

mod memory;

pub use memory::{ProcessMemory, ReadMemory};
