//! One capture from beginning to end: the only place that sees every stage.

mod assemble;
mod error;
mod mappings;
mod prepare;

pub use assemble::{Drained, RawFrame, assemble, slices};
pub use error::CaptureError;
pub use mappings::Mappings;
pub use prepare::{Prepared, prepare};
