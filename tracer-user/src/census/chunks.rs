//! Every chunk of an AllocSet that is used, by walking its blocks from the first byte to the last.

use std::collections::HashSet;

use tracer_ebpf::site::{ChunkHeader, ChunkSize, chunk_size, header_bytes, size_before};

use super::{
    BLOCK_HEADER_BYTES, Block, Kind, Limits, MemoryContext,
    allocset::{Torn, for_each_free_chunk, free_lists, out_of_bounds},
    read::Reader,
};
use crate::{addr::AbsAddr, catalog::Layout, target::ReadMemory};

/// A chunk that is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsedChunk {
    /// What the server's code points to.
    pub pointer: AbsAddr,
    /// Bytes that it takes, its header included.
    pub held: u64,
    /// Index of its block in [`super::Usage::blocks`].
    pub block: usize,
}

/// The used chunks of an AllocSet, in the order of its blocks. `None` if it changes meanwhile, or was
/// not read whole.
pub fn used_chunks(
    memory: &dyn ReadMemory,
    layout: &Layout,
    context: &MemoryContext,
    limits: Limits,
) -> Option<Vec<UsedChunk>> {
    let usage = context.usage.as_ref().filter(|_| context.kind == Kind::AllocSet)?;
    let mut reader = Reader::new(memory, layout, limits);
    let mut free = HashSet::new();
    let lists = free_lists(&mut reader, context.address).ok()?;
    for_each_free_chunk(&mut reader, &lists, |address, _| {
        free.insert(address.0);
    })
    .ok()?;
    let mut chunks = Vec::new();
    for (index, block) in usage.blocks.iter().enumerate() {
        walk(&mut reader, context.address, (index, block), &free, &mut chunks).ok()?;
    }
    Some(chunks)
}

fn walk(
    reader: &mut Reader<'_>,
    context: AbsAddr,
    (index, block): (usize, &Block),
    free: &HashSet<u64>,
    chunks: &mut Vec<UsedChunk>,
) -> Result<(), Torn> {
    let header = reader.layout.chunk_header();
    let (header_len, size_before) = (header_bytes(header as u64), size_before(header as u64));
    let used_end = block.address.0 + block.bytes - block.unused;
    // A chunk of its own may be large, and only its header is looked at.
    const PIECE: u64 = 1 << 16;
    let mut piece = Piece { start: 0, bytes: Vec::new() };
    let mut at = block.address.0 + BLOCK_HEADER_BYTES;
    while at < used_end {
        out_of_bounds(reader, chunks.len())?;
        let pointer = at + header_len;
        if piece.word(pointer - 8).is_none() || piece.word(pointer - size_before).is_none() {
            let mut bytes = vec![0; PIECE.min(used_end - at) as usize];
            reader.memory.read(AbsAddr(at), &mut bytes).map_err(|_| Torn)?;
            piece = Piece { start: at, bytes };
        }
        let size = piece.word(pointer - size_before).ok_or(Torn)?;
        let usable = match chunk_size(header as u64, pointer, size) {
            ChunkSize::Usable(bytes) => bytes,
            ChunkSize::Block { .. } => used_end.checked_sub(pointer).ok_or(Torn)?,
        };
        let held = usable.checked_add(header_len).filter(|held| *held <= used_end - at).ok_or(Torn)?;
        let is_used = match header {
            // The owner of a chunk in a free list is the next one there.
            ChunkHeader::SizeContext => piece.word(pointer - 8).ok_or(Torn)? == context.0,
            _ => !free.contains(&at),
        };
        if is_used {
            chunks.push(UsedChunk { pointer: AbsAddr(pointer), held, block: index });
        }
        at += held;
    }
    Ok(())
}

struct Piece {
    start: u64,
    bytes: Vec<u8>,
}

impl Piece {
    /// The word at an address.
    fn word(&self, at: u64) -> Option<u64> {
        let from = usize::try_from(at.checked_sub(self.start)?).ok()?;
        let bytes = self.bytes.get(from..from + 8)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }
}
