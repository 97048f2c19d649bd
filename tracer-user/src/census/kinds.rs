//! The blocks of Generation, Slab and Bump contexts (`generation.c`, `slab.c`, `bump.c` in
//! `src/backend/utils/mmgr`), counted as the server counts them.

use super::{
    Block, Usage,
    allocset::{Torn, out_of_bounds, words},
    read::Reader,
};
use crate::{
    addr::AbsAddr,
    catalog::{Field, ListedBlocks, SLAB_PARTITIONS, SlabFields, SlabLists},
};

/// No slab has larger ones (`MaxAllocSize`).
const MOST_BLOCK_BYTES: u64 = 1 << 30;

/// More chunks than fit into a block of any size that a server makes.
const MOST_CHUNKS: u64 = 1 << 20;

/// Reads a context that has its blocks in one list. Chunks that were freed in a block which is in use
/// count as used, since nothing in the block says their size.
pub(super) fn read_listed(
    reader: &mut Reader<'_>,
    context: AbsAddr,
    fields: &ListedBlocks,
) -> Result<Usage, Torn> {
    let mut usage = Usage { header: fields.header, ..Usage::default() };
    for block in list(reader, context.offset(fields.list))? {
        let [free_at, end] = words::<2>(reader, block.offset(fields.free_at))?;
        let is_sound = block.0.checked_add(fields.block_header).is_some_and(|first| first <= free_at);
        if !is_sound || free_at > end {
            return Err(Torn);
        }
        if let Some(freed) = fields.freed {
            usage.free_chunks += u64::from(int(reader, block.offset(freed))?);
        }
        usage.unusable += fields.block_header;
        usage.blocks.push(Block { address: block, bytes: end - block.0, unused: end - free_at });
    }
    Ok(usage)
}

/// Reads a context of chunks of one size.
pub(super) fn read_slab(
    reader: &mut Reader<'_>,
    context: AbsAddr,
    fields: &SlabFields,
) -> Result<Usage, Torn> {
    let chunk = number(reader, context, fields.chunk)?;
    let bytes = number(reader, context, fields.block)?;
    let per_block = number(reader, context, fields.per_block)?;
    let chunks =
        Some(per_block).filter(|count| *count <= MOST_CHUNKS).and_then(|count| count.checked_mul(chunk));
    let unusable = chunks.and_then(|chunks| bytes.checked_sub(chunks)).ok_or(Torn)?;
    if unusable < fields.block_header || bytes > MOST_BLOCK_BYTES {
        return Err(Torn);
    }
    let (mut usage, lists, count) = match fields.lists {
        SlabLists::ByFreeChunks { lists, header } => {
            let header = number(reader, context, header)?;
            (Usage { header, ..Usage::default() }, lists, per_block + 1)
        }
        SlabLists::Partitioned { empty, lists, header } => {
            let mut usage = Usage { header, ..Usage::default() };
            for link in list(reader, context.offset(empty))? {
                // Kept for later. (`SlabStats` counts their bytes, but neither as blocks nor as free.)
                let address = AbsAddr(link.0.wrapping_sub(fields.link));
                usage.blocks.push(Block { address, bytes, unused: bytes });
            }
            (usage, lists, SLAB_PARTITIONS)
        }
    };
    for index in 0..count {
        for link in list(reader, context.offset(lists + index * 16))? {
            let address = AbsAddr(link.0.wrapping_sub(fields.link));
            let free = u64::from(int(reader, address.offset(fields.free))?);
            if free > per_block {
                return Err(Torn);
            }
            usage.free_chunks += free;
            usage.free_chunk_bytes += free * chunk;
            usage.unusable += unusable;
            usage.blocks.push(Block { address, bytes, unused: 0 });
        }
    }
    Ok(usage)
}

/// The links of a doubly linked list (`src/include/lib/ilist.h`), each of which must point back to the
/// one before it.
fn list(reader: &mut Reader<'_>, head: AbsAddr) -> Result<Vec<AbsAddr>, Torn> {
    let mut links = Vec::new();
    let [_, mut at] = words::<2>(reader, head)?;
    let mut before = head.0;
    // One that was never used may be all zeros.
    while at != head.0 && at != 0 {
        out_of_bounds(reader, links.len())?;
        let [prev, next] = words::<2>(reader, AbsAddr(at))?;
        if prev != before {
            return Err(Torn);
        }
        links.push(AbsAddr(at));
        (before, at) = (at, next);
    }
    if at == 0 && !links.is_empty() { Err(Torn) } else { Ok(links) }
}

fn number(reader: &Reader<'_>, context: AbsAddr, field: Field) -> Result<u64, Torn> {
    match field {
        Field::Size(at) => words::<1>(reader, context.offset(at)).map(|[size]| size),
        Field::Int(at) => int(reader, context.offset(at)).map(u64::from),
    }
}

/// A count. Those of the server are signed and never negative.
fn int(reader: &Reader<'_>, address: AbsAddr) -> Result<u32, Torn> {
    let mut bytes = [0; 4];
    reader.read(address, &mut bytes).map_err(|_| Torn)?;
    u32::try_from(i32::from_le_bytes(bytes)).map_err(|_| Torn)
}
