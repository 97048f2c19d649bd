//! Attach to a live PostgreSQL process and name the stacks that leak memory.
//!
//! The modules stand in the order in which data flows through them; `session` is the only one
//! that sees them all.

pub mod addr;
pub mod elf;
pub mod profile;
pub mod target;
pub mod unwind;
