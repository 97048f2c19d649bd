//! Developer commands of pgleak.
fn main() {}
