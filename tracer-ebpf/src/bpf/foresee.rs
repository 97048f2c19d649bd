//! What an allocation in an AllocSet will return.

use aya_ebpf::helpers::generated;
use tracer_ebpf::{
    abi::{Control, Task},
    foresee::{BLOCK_FREE, SET_WORDS, Source, carved, source},
    site::{Site, is_set},
};

use crate::bpf::{maps::set_fields, read::anew};

/// Of two to the power of this many that a task has foreseen, one is looked at when it returns, however sure it is.
const CHECKED_BITS: u32 = 6;
/// All of the first ones are.
const FIRST_CHECKED: u32 = 256;

/// Whether the chunk that was just foreseen is looked at when it is returned.
#[inline(always)]
pub(crate) fn is_checked(task: *mut Task) -> bool {
    // SAFETY: a map value that only this task uses.
    let number = unsafe {
        (*task).foresights = (*task).foresights.wrapping_add(1);
        core::ptr::read_volatile(&raw const (*task).foresights)
    };
    // Multiples of the golden ratio have no period: what a loop allocates comes up whatever its length.
    number <= FIRST_CHECKED || number.wrapping_mul(0x9e37_79b9) >> (u32::BITS - CHECKED_BITS) == 0
}

/// The chunk that a call in the context at `context` will return, and the bytes that it takes; `None` if that cannot be
/// told. Reads what the call is about to read itself, so that it is there.
#[inline(always)]
pub(crate) fn chunk(
    control: *mut Control,
    task: *mut Task,
    cookie: u64,
    context: u64,
    size: u64,
) -> Option<(u64, u64)> {
    let fields = set_fields()?;
    let header = Site::header_of(cookie);
    // SAFETY: a map value; an aligned word that user space and other tasks write.
    if !is_set(header) || unsafe { core::ptr::read_volatile(&raw const (*control).foresees) } == 0 {
        return None;
    }
    // SAFETY: a map value that only this task uses.
    let words = unsafe { &raw mut (*task).set };
    if !read_at_hand(words.cast(), SET_WORDS as u32 * 8, context.wrapping_add(fields.start)) {
        return None;
    }
    // SAFETY: as above.
    let (source, bytes) = source(unsafe { &*anew(words) }, fields, header, size);
    let pointer = match source {
        Source::FreeList(pointer) => pointer,
        Source::Block { at, bytes } => {
            let mut free = [0_u64; 2];
            if !read_at_hand(free.as_mut_ptr(), 16, at.wrapping_add(BLOCK_FREE)) {
                return None;
            }
            carved(free, header, bytes)?
        }
        Source::NewBlock => return None,
    };
    Some((pointer, bytes))
}

#[inline(always)]
fn read_at_hand(into: *mut u64, bytes: u32, address: u64) -> bool {
    // SAFETY: room for as many bytes, by the callers; the helper checks the address.
    unsafe { generated::bpf_probe_read_user(into.cast(), bytes, address as *const _) == 0 }
}
