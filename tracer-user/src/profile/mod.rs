//! What a capture found: stacks, contexts and what they hold, and the verdict on them.

mod model;

pub use model::SCHEMA;

pub use model::{
    Capture, CounterValue, EndReason, Frame, FrameId, FrameName, Group, Module, ModuleId, Profile,
    SiteReport, Slice, Stack, StackEnd, StackId, StackSummary, Tally, Target, Tool, Window,
};

mod class;
mod place;
mod tree;
mod verdict;
pub mod wrappers;

#[cfg(test)]
pub(crate) mod testing;

pub use class::{Class, Course, FLOOR, Floor};
pub use place::{Child, ContextShare, Place, Step};
pub use verdict::{Totals, Verdict, judge};
