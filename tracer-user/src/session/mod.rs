//! One capture from beginning to end: the only place that sees every stage.

mod activity;
mod assemble;
mod capture;
mod cost;
mod detach;
mod error;
mod growth;
mod look;
mod mappings;
mod prepare;
mod progress;
mod record;
mod recording;
mod signals;

pub use activity::{Activity, History};
pub use assemble::{Drained, RawFrame, assemble, slices};
pub use capture::{CaptureOptions, Naming, Ready, capture, ready};
pub use detach::Detaching;
pub use error::CaptureError;
pub use growth::memory_growth;
pub use look::{Look, Looks};
pub use mappings::Mappings;
pub use prepare::{Allocators, Prepared, prepare};
pub use progress::{Figures, Progress};
pub use record::Recorder;
pub use recording::{RecordOptions, Recording};
pub use signals::Interrupts;
