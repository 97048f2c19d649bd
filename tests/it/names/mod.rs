//! Names of real programs, by every kind of debug file, and on another machine.

mod debuginfod;
mod files;
mod large;
mod program;
mod render;
