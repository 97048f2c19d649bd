//! Everything that talks to the kernel's BPF side: the only module that names aya.

mod attach;
mod control;
mod limits;
mod load;
mod multi;
mod nursery;
mod processes;
mod rawmap;
mod sample;
mod sampling;
mod snapshot;
mod stacks;
mod tasks;
mod uprobe;
mod walks;

pub use attach::{AttachError, Attached, Probe};
pub use control::ControlPage;
pub use limits::Limits;
pub use load::{ContextNames, Counters, LoadError, Loads, Tracer, check_kernel};
pub use multi::Mechanism;
pub use processes::{ProcessTable, SeenProcess};
pub use rawmap::MapError;
pub use sample::{RawSample, Sampler, StackBytes};
pub use snapshot::{LiveChunk, ProcessSnapshot, RawContext, RawSnapshot, take as take_snapshot};
pub use stacks::RawStack;
pub use walks::Walks;
