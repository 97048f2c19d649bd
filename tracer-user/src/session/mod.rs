//! One capture from beginning to end: the only place that sees every stage.

mod activity;
mod assemble;
mod capture;
mod cost;
mod detach;
mod error;
mod growth;
mod look;
mod mapper;
mod mappings;
mod prepare;
mod processes;
mod progress;
mod record;
mod recording;
mod scope;
mod signals;
mod urgency;

pub use activity::{Activity, History};
pub use assemble::{Drained, RawFrame, Watched, assemble, slices};
pub use capture::{CaptureOptions, Naming, Ready, capture, ready};
pub use detach::Detaching;
pub use error::CaptureError;
pub use growth::{memory_growth, sum_of_growths};
pub use look::{Look, Looks};
pub use mapper::Mapper;
pub use mappings::Mappings;
pub use prepare::{Allocators, Prepared, prepare};
pub use processes::{Described, Processes, Traced};
pub use progress::{Figures, Progress};
pub use record::Recorder;
pub use recording::{RecordOptions, Recording};
pub use scope::{Chosen, Filter, Kinds, Scope, ScopeError, session_number};
pub use signals::Interrupts;
