//! New stacks as they come out of the ring.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
};

use tracer_ebpf::{
    abi::{MAX_FRAMES, StackHeader},
    unwind::WalkEnd,
};

use super::Tracer;
use crate::addr::AbsAddr;

/// A stack that the programs saw for the first time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawStack {
    /// Its id in every other map.
    pub id: u32,
    /// How the walk ended; `None` for a code that is none.
    pub end: Option<WalkEnd>,
    /// Number of the set of mappings that the walk used.
    pub mapset: u32,
    /// Innermost first: the allocator's first instruction, then return addresses.
    pub frames: Vec<AbsAddr>,
}

impl RawStack {
    fn parse(record: &[u8]) -> Option<Self> {
        let (header, frames) = record.split_at_checked(size_of::<StackHeader>())?;
        let word = |at: usize| header.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
        let (id, count, end, mapset) = (word(0)?, word(4)? as usize, word(8)?, word(12)?);
        if count > MAX_FRAMES {
            return None;
        }
        let frames = frames.get(..count * 8)?;
        let frames = frames.chunks_exact(8).filter_map(|word| word.try_into().ok()).map(u64::from_le_bytes);
        Some(Self { id, end: WalkEnd::from_code(end), mapset, frames: frames.map(AbsAddr).collect() })
    }
}

impl Tracer {
    /// Every stack that has arrived since the last call. A record that is not one, which would be
    /// a bug, is skipped with a warning.
    pub fn new_stacks(&mut self) -> Vec<RawStack> {
        let mut stacks = Vec::new();
        while let Some(record) = self.ring.next() {
            match RawStack::parse(&record) {
                Some(stack) => stacks.push(stack),
                None => tracing::warn!(bytes = record.len(), "a record in the ring of stacks is no stack"),
            }
        }
        stacks
    }

    /// Readable when stacks have arrived.
    ///
    /// # Errors
    /// If the descriptor cannot be duplicated.
    pub fn ring_fd(&self) -> io::Result<OwnedFd> {
        // SAFETY: the ring is open for as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }.try_clone_to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(header: [u32; 4], frames: &[u64]) -> Vec<u8> {
        header
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .chain(frames.iter().flat_map(|word| word.to_le_bytes()))
            .collect()
    }

    #[test]
    fn a_record_is_read_and_its_padding_ignored() {
        let stack = RawStack::parse(&record([7, 2, 1, 3], &[0x10, 0x20, 0])).expect("a stack");
        assert_eq!(stack.id, 7);
        assert_eq!(stack.end, Some(WalkEnd::Bottom));
        assert_eq!(stack.mapset, 3);
        assert_eq!(stack.frames, [AbsAddr(0x10), AbsAddr(0x20)]);
    }

    #[test]
    fn what_is_too_short_is_no_stack() {
        assert_eq!(RawStack::parse(&record([7, 2, 1, 0], &[0x10])), None);
        assert_eq!(RawStack::parse(&record([7, 4000, 1, 0], &[0x10])), None);
        assert_eq!(RawStack::parse(&[0; 15]), None);
    }
}
