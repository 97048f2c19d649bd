//! The `pgleak` program: arguments, logging, exit codes.
fn main() {}
