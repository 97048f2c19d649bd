//! From a capture to what people read.

mod page;
pub mod report;
mod suspect;
pub mod units;

pub use report::report;
