//! One walk with everything that it was made from, so that somebody else can make it again.

use crate::{abi::FRAME_SLOTS, unwind::Registers};

/// Bytes of a page of stack.
pub const SAMPLE_PAGE_BYTES: usize = 4096;
/// Pages of stack that are copied at the most: ten times what a server's stack usually takes, so
/// that recursive queries are whole.
pub const SAMPLE_PAGES: usize = 16;

/// A record in the `SAMPLES` ring.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Sample {
    /// The registers that the walk began with.
    pub regs: Registers,
    /// [`crate::unwind::WalkEnd`].
    pub end: u32,
    /// Number of the set of mappings that the walk used.
    pub mapset: u32,
    /// How many frames there are.
    pub count: u32,
    /// How many of them were taken over from the last walk.
    pub met: u32,
    /// Process, as the kernel's first namespace numbers it.
    pub tgid: u32,
    /// How many whole pages of stack follow; the first one has the stack pointer in it.
    pub pages: u32,
    /// Innermost first: the probe's cookie, which stands where a capture has the function, then
    /// code addresses.
    pub frames: [u64; FRAME_SLOTS],
    /// The stack.
    pub stack: [[u64; SAMPLE_PAGE_BYTES / 8]; SAMPLE_PAGES],
}

const _: () = assert!(size_of::<Sample>() == 32 + 24 + FRAME_SLOTS * 8 + SAMPLE_PAGES * SAMPLE_PAGE_BYTES);
