//! ELF files as the stages need them: bytes, segments, sections, symbols.

mod image;

pub use image::{ElfError, Image, Segment};
