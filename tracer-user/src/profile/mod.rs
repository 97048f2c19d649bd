//! What a capture found: stacks, contexts and what they hold, and the verdict on them.

mod model;

pub use model::SCHEMA;

pub use model::{
    BLOCKS_OF_CONTEXTS, Capture, ContextGrowth, ContextId, ContextPlace, CounterValue, EndReason,
    EndedProcesses, Frame, FrameId, FrameName, Group, MemoryGrowth, Module, ModuleId, OUTSIDE, Profile,
    Query, QueryShare, SEVERAL, Sampling, SiteReport, Slice, Stack, StackEnd, StackId, StackSummary, Tally,
    Target, Tool, TracedProcess, What, Window, Windows,
};

mod blocks;
mod class;
mod life;
mod objects;
mod place;
mod sampled;
mod tree;
mod verdict;
pub mod wrappers;

#[cfg(test)]
pub(crate) mod testing;

pub use class::{Class, Course, FLOOR, Floor, firm_class};
pub use life::{Life, life};
pub use place::{Child, ContextShare, Place, Step};
pub use tree::owners;
pub use verdict::{Outcome, Totals, Verdict, judge};
