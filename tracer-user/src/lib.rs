//! Attach to a live PostgreSQL process and name the stacks that leak memory.
//!
//! The modules stand in the order in which data flows through them; `session` is the only one
//! that sees them all.

pub mod addr;
pub mod elf;

mod hash;
mod https;
mod program;
mod quantity;

pub mod target;

pub mod catalog;
pub mod probe;

pub mod census;

pub mod unwind;

pub mod bpf;
pub mod guard;

pub mod profile;
pub mod symbolize;

pub mod render;

pub mod cli;
pub mod doctor;
pub mod manual;
pub mod session;

pub mod top;
pub mod watch;
