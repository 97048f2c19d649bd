//! Stacks with the memory that they were found in: what tests unwind in other ways.

use aya::{
    maps::{MapData, RingBuf},
    programs::UProbe,
};
use tracer_ebpf::{
    abi::{MAX_FRAMES, SAMPLE_BYTES, Sample},
    unwind::{Registers, WalkEnd},
};

use super::{LoadError, Tracer, load::load_program};

pub(super) const SAMPLE_ENTER: &str = "sample_enter";
pub(super) const SAMPLE_EXIT: &str = "sample_exit";

/// A stack that was walked in the kernel, and what can be walked again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawSample {
    /// Registers where the walk began.
    pub regs: Registers,
    /// Code addresses, innermost first: the probed function's own one, then that of the registers.
    pub frames: Vec<u64>,
    /// How the walk ended; `None` for a code that is none.
    pub end: Option<WalkEnd>,
    /// How many of the outermost frames were taken over from the last walk.
    pub taken_over: u32,
    /// Number of the set of mappings.
    pub mapset: u32,
    /// The stack, from the stack pointer on.
    pub stack: Vec<u8>,
}

/// Samples as they come.
pub struct Samples {
    ring: RingBuf<MapData>,
}

impl std::fmt::Debug for Samples {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Samples").finish_non_exhaustive()
    }
}

impl Samples {
    /// The next one, if any has arrived. What did not fit into the ring is lost.
    pub fn take(&mut self) -> Option<RawSample> {
        self.ring.next().and_then(|record| parse(&record))
    }
}

fn parse(record: &[u8]) -> Option<RawSample> {
    const HEADER: usize = size_of::<Sample>() - SAMPLE_BYTES;
    let (header, stack) = record.split_at_checked(HEADER)?;
    let word = |at: usize| header.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    let half = |at: usize| header.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    let regs = Registers { pc: word(0)?, sp: word(8)?, bp: word(16)?, is_return: word(24)? };
    let (count, end, taken_over, mapset) = (half(32)? as usize, half(36)?, half(40)?, half(44)?);
    let bytes = usize::try_from(word(48)?).ok()?;
    if count > MAX_FRAMES {
        return None;
    }
    let frames: Option<Vec<u64>> = (0..count).map(|index| word(56 + index * 8)).collect();
    Some(RawSample {
        regs,
        frames: frames?,
        end: WalkEnd::from_code(end),
        taken_over,
        mapset,
        stack: stack.get(..bytes)?.to_vec(),
    })
}

impl Tracer {
    /// Loads the programs of [`super::Attached::add_sampler`]. The ring is as large as the limits
    /// said; what does not fit is lost.
    ///
    /// # Errors
    /// If the kernel refuses, or at the second time.
    pub fn load_sampler(&mut self) -> Result<Samples, LoadError> {
        for name in [SAMPLE_ENTER, SAMPLE_EXIT] {
            load_program::<UProbe>(&mut self.ebpf, name, UProbe::load)?;
        }
        let ring = self.ebpf.take_map("SAMPLES").ok_or(LoadError::Missing { name: "SAMPLES" })?;
        Ok(Samples { ring: RingBuf::try_from(ring).map_err(LoadError::Ring)? })
    }
}
