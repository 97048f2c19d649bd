//! What an allocation in an AllocSet will return.

use aya_ebpf::helpers::generated;
use tracer_ebpf::{
    abi::{Control, Task},
    foresee::{BLOCK_FREE, SET_WORDS, Source, carved, source},
    site::{Site, is_set},
};

use crate::bpf::{maps::set_fields, read::anew};

/// Of so many allocations of a task one is looked at when it returns, however sure it is. A power of two.
const CHECKED: u32 = 64;
/// All of the first ones are.
const FIRST_CHECKED: u32 = 256;

/// Whether the allocation with that number of its task is looked at when it returns.
#[inline(always)]
pub(crate) fn is_checked(number: u32) -> bool {
    // Not those that are timed, which are the first of so many.
    number < FIRST_CHECKED || number & (CHECKED - 1) == CHECKED / 2
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
