//! `cargo xtask bench micro`: what user space does when a capture has ended, each by itself and many times.
//!
//! Figures are of this machine and of the moment; those of two versions are compared by running both.

mod judging;
mod large;
mod symbols;
mod unwinding;

fn main() {
    divan::main();
}
