//! ELF files as the stages need them: bytes, segments, sections, function ranges.

mod functions;
mod image;

pub use functions::{FunctionRange, eh_frame_bases, function_ranges, range_at};
pub use image::{ElfError, Image, Segment};
