//! ELF files as the stages need them: bytes, segments, sections, function ranges.

mod eh_frame;
mod functions;
mod image;

pub use eh_frame::{FrameSection, FrameSectionError, Records};
pub use functions::{FunctionRange, function_ranges, range_at};
pub use image::{ElfError, Image, Segment};
