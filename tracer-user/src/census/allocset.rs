//! The blocks and free lists of an AllocSet (`src/backend/utils/mmgr/aset.c`).

use std::time::Instant;

use tracer_ebpf::site::{ChunkHeader, header_bytes};

use super::{BLOCK_HEADER_BYTES, Block, Usage, read::Reader};
use crate::addr::AbsAddr;

/// Free lists of a context (`ALLOCSET_NUM_FREELISTS`): chunks of 8 << index bytes.
pub(super) const FREE_LISTS: usize = 11;

/// The words behind the common header: the first block, then the free lists.
const WORDS: usize = 1 + FREE_LISTS;

/// The largest context header of any major, alignment included: the first block that was made with
/// a context stands right behind it.
const MOST_HEADER: u64 = 256;

/// A block or a chunk was changed while it was read, or cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Torn;

/// Reads the blocks and free lists of the AllocSet at `context`.
pub(super) fn read_usage(reader: &mut Reader<'_>, context: AbsAddr) -> Result<Usage, Torn> {
    let words = words::<WORDS>(reader, context.offset(reader.layout.context.size))?;
    let blocks = blocks(reader, context, words[0])?;
    let behind = |block: &&Block| block.address.0 > context.0 && block.address.0 <= context.0 + MOST_HEADER;
    // A keeper block is never given back, so there is always one.
    let keeper = blocks.iter().find(behind).ok_or(Torn)?;
    let header = keeper.address.0 - context.0;
    let unusable = blocks.len() as u64 * BLOCK_HEADER_BYTES;
    let mut usage = Usage { header, blocks, free_chunks: 0, free_chunk_bytes: 0, unusable };
    for_each_free_chunk(reader, &words[1..], |_, bytes| {
        usage.free_chunks += 1;
        usage.free_chunk_bytes += bytes;
    })?;
    Ok(usage)
}

fn blocks(reader: &mut Reader<'_>, context: AbsAddr, first: u64) -> Result<Vec<Block>, Torn> {
    let mut blocks = Vec::new();
    let (mut at, mut before) = (first, 0);
    while at != 0 {
        out_of_bounds(reader, blocks.len())?;
        let [owner, prev, next, free_at, end] = words::<5>(reader, AbsAddr(at))?;
        let is_sound = owner == context.0
            && prev == before
            && at.checked_add(BLOCK_HEADER_BYTES).is_some_and(|first| first <= free_at)
            && free_at <= end;
        if !is_sound {
            return Err(Torn);
        }
        blocks.push(Block { address: AbsAddr(at), bytes: end - at, unused: end - free_at });
        (before, at) = (at, next);
    }
    Ok(blocks)
}

/// Calls `each` with the address of the header and the bytes, header included, of every chunk in the
/// free lists.
pub(super) fn for_each_free_chunk(
    reader: &mut Reader<'_>,
    lists: &[u64],
    mut each: impl FnMut(AbsAddr, u64),
) -> Result<(), Torn> {
    let header = reader.layout.chunk_header();
    let mut count = 0;
    for (index, first) in lists.iter().enumerate() {
        let usable = 8u64 << index;
        let mut at = *first;
        while at != 0 {
            out_of_bounds(reader, count)?;
            // To 15 the link stands in the place of the owner, from 16 on in the chunk itself.
            let [size, next] = words::<2>(reader, AbsAddr(at))?;
            if header == ChunkHeader::SizeContext && size != usable {
                return Err(Torn);
            }
            each(AbsAddr(at), usable + header_bytes(header as u64));
            count += 1;
            at = next;
        }
    }
    Ok(())
}

/// The free lists of the AllocSet at `context`.
pub(super) fn free_lists(reader: &mut Reader<'_>, context: AbsAddr) -> Result<[u64; FREE_LISTS], Torn> {
    words(reader, context.offset(reader.layout.context.size + 8))
}

/// Whether enough was read. A list that leads into itself ends here, too.
pub(super) fn out_of_bounds(reader: &mut Reader<'_>, count: usize) -> Result<(), Torn> {
    if count >= reader.limits.blocks || (count % 1024 == 1023 && Instant::now() > reader.deadline) {
        reader.troubles.cut = 1;
        return Err(Torn);
    }
    Ok(())
}

pub(super) fn words<const N: usize>(reader: &Reader<'_>, address: AbsAddr) -> Result<[u64; N], Torn> {
    let mut bytes = [0; WORDS * 8];
    let bytes = &mut bytes[..N * 8];
    if !address.0.is_multiple_of(8) {
        return Err(Torn);
    }
    reader.read(address, bytes).map_err(|_| Torn)?;
    let mut words = [0; N];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = bytes.try_into().map_or(0, u64::from_le_bytes);
    }
    Ok(words)
}
