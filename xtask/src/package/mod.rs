//! The Debian package, made of a program that was built.

mod commit;
mod control;
mod deb;
mod links;
mod third_party;
mod tree;

pub use deb::{check_tools, debian};
