//! Samples: walks of the kernel with the stack that they were made from. For tests and
//! measurements; no capture loads these programs.

use std::{
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd},
    path::Path,
};

use aya::{
    maps::{MapData, RingBuf},
    programs::UProbe,
};
use tracer_ebpf::{
    abi::MAX_FRAMES,
    sample::{SAMPLE_PAGE_BYTES, SAMPLE_PAGES, Sample},
    unwind::{Registers, StackReader, WalkEnd},
};

use super::{
    AttachError, LoadError, Tracer,
    load::load_program,
    uprobe::{self, Place},
};
use crate::addr::FileOffset;

/// Programs at an instruction, and at a function's return.
const PROGRAMS: [&str; 2] = ["sample_enter", "sample_exit"];

/// A walk of the kernel with what it was made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawSample {
    /// The registers that the walk began with.
    pub regs: Registers,
    /// How it ended; `None` for a code that is none.
    pub end: Option<WalkEnd>,
    /// Number of the set of mappings that it used.
    pub mapset: u32,
    /// How many of the frames were taken over from the walk before.
    pub met: u32,
    /// Process, as the kernel's first namespace numbers it.
    pub tgid: u32,
    /// The cookie of the probe. It counts among [`MAX_FRAMES`], as a capture's function does.
    pub cookie: u64,
    /// Innermost first.
    pub frames: Vec<u64>,
    /// The stack.
    pub stack: StackBytes,
}

/// A piece of a stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackBytes {
    /// Its first address.
    pub base: u64,
    /// Its words, as far as they were copied.
    pub words: Vec<u64>,
}

impl StackReader for StackBytes {
    fn read_word(&mut self, address: u64) -> Option<u64> {
        let offset = address.wrapping_sub(self.base);
        let index = usize::try_from(offset / 8).ok()?;
        if offset.is_multiple_of(8) { self.words.get(index).copied() } else { None }
    }
}

/// The programs that take samples, with their probes. Dropping it takes the probes away.
pub struct Sampler {
    ring: RingBuf<MapData>,
    probes: Vec<OwnedFd>,
}

impl Tracer {
    /// Loads the programs that take samples while the phase is `Record`. Give
    /// [`super::Limits::sample_bytes`] some megabytes for it: a sample takes 65 KiB.
    ///
    /// # Errors
    /// If the kernel refuses a program, or this is not the first call.
    pub fn load_sampler(&mut self) -> Result<Sampler, LoadError> {
        for name in PROGRAMS {
            load_program::<UProbe>(&mut self.ebpf, name, UProbe::load)?;
        }
        let ring = self.ebpf.take_map("SAMPLES").ok_or(LoadError::Missing { name: "SAMPLES" })?;
        Ok(Sampler { ring: RingBuf::try_from(ring).map_err(LoadError::Ring)?, probes: Vec::new() })
    }
}

impl Sampler {
    /// Takes a sample at an instruction of a file, each time that `pid` comes there; or, if
    /// `is_return`, when the function that begins there returns.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn attach(
        &mut self,
        tracer: &mut Tracer,
        pid: u32,
        path: &Path,
        offset: FileOffset,
        is_return: bool,
        cookie: u64,
    ) -> Result<(), AttachError> {
        let name = PROGRAMS[usize::from(is_return)];
        let program: &mut UProbe = tracer
            .ebpf
            .program_mut(name)
            .and_then(|program| program.try_into().ok())
            .ok_or(AttachError::Program(name.to_owned()))?;
        let program = program.fd().map_err(|_| AttachError::Program(name.to_owned()))?.as_fd();
        let fd = uprobe::attach(program, Place { pid: Some(pid), path, offset, is_return, cookie }).map_err(
            |source| AttachError::Attach {
                function: name.to_owned(),
                whose: format!("process {pid}"),
                offset,
                path: path.to_owned(),
                source,
            },
        )?;
        self.probes.push(fd);
        Ok(())
    }

    /// The next sample, if one has arrived.
    pub fn next_sample(&mut self) -> Option<RawSample> {
        loop {
            match RawSample::parse(&self.ring.next()?) {
                Some(sample) => return Some(sample),
                None => tracing::warn!("a record in the ring of samples is no sample"),
            }
        }
    }

    /// Readable when samples have arrived.
    pub fn ring_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl RawSample {
    fn parse(record: &[u8]) -> Option<Self> {
        if record.len() != size_of::<Sample>() {
            return None;
        }
        // SAFETY: as many bytes as the layout has, every pattern of which is a value.
        let sample = unsafe { record.as_ptr().cast::<Sample>().read_unaligned() };
        let (count, pages) = (sample.count as usize, sample.pages as usize);
        if count == 0 || count > MAX_FRAMES || pages > SAMPLE_PAGES {
            return None;
        }
        let base = sample.regs.sp & !(SAMPLE_PAGE_BYTES as u64 - 1);
        Some(Self {
            regs: sample.regs,
            end: WalkEnd::from_code(sample.end),
            mapset: sample.mapset,
            met: sample.met,
            tgid: sample.tgid,
            cookie: sample.frames[0],
            frames: sample.frames[1..count].to_vec(),
            stack: StackBytes { base, words: sample.stack[..pages].concat() },
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use super::*;

    fn record(count: u32, pages: u32) -> Vec<u8> {
        let mut words = vec![0_u64; size_of::<Sample>() / 8];
        // pc, sp, bp, is_return; end and mapset; count and met; tgid and pages; frames; stack.
        words[..4].copy_from_slice(&[0x10, 0x7ff8_1010, 3, 0]);
        words[4] = 1 | 5 << 32;
        words[5] = u64::from(count) | 2 << 32;
        words[6] = 99 | u64::from(pages) << 32;
        words[7..10].copy_from_slice(&[7, 0x10, 0x20]);
        words[7 + 128..][..4].copy_from_slice(&[0xa, 0xb, 0xc, 0xd]);
        words.into_iter().flat_map(u64::to_le_bytes).collect()
    }

    #[test]
    fn a_sample_is_read_and_its_stack_begins_at_a_page() {
        let mut sample = RawSample::parse(&record(3, 2)).unwrap();
        assert_eq!(sample.regs, Registers { pc: 0x10, sp: 0x7ff8_1010, bp: 3, is_return: 0 });
        assert_eq!((sample.end, sample.mapset, sample.met), (Some(WalkEnd::Bottom), 5, 2));
        assert_eq!((sample.tgid, sample.cookie, &sample.frames[..]), (99, 7, &[0x10, 0x20][..]));
        assert_eq!(sample.stack.read_word(0x7ff8_1008), Some(0xb));
        assert_eq!(sample.stack.read_word(0x7ff8_2ff8), Some(0));
        assert_eq!([0x7ff8_0ff8, 0x7ff8_3000, 0x7ff8_1001].map(|at| sample.stack.read_word(at)), [None; 3]);
    }

    #[test]
    fn what_cannot_be_is_no_sample() {
        assert_eq!(RawSample::parse(&record(0, 1)), None);
        assert_eq!(RawSample::parse(&record(128, 1)), None);
        assert_eq!(RawSample::parse(&record(3, 17)), None);
        assert_eq!(RawSample::parse(&record(3, 1)[1..]), None);
    }
}
