//! What an allocation in an AllocSet will return.

use aya_ebpf::helpers::generated;
use tracer_ebpf::{
    abi::{ContextKey, Control, Task},
    counters::Counter,
    foresee::{BLOCK_FREE, Known, SET_WORDS, Source, empty_lists, free_word, limit, source, word},
    site::{Site, is_set},
};

use crate::bpf::{
    context,
    maps::{count, set_fields},
    read::anew,
};

/// Of two to the power of this many that a task has foreseen, one is looked at when it returns, however sure it is.
const CHECKED_BITS: u32 = 6;
/// [`Control::foresees`]: all are.
const ALL_CHECKED: u64 = 2;
/// All of the first ones are.
const FIRST_CHECKED: u32 = 256;

/// Whether the chunk that was just foreseen is looked at when it is returned.
#[inline(always)]
pub(crate) fn is_checked(control: *mut Control, task: *mut Task) -> bool {
    // SAFETY: map values; the task's own, and an aligned word.
    let (number, all) = unsafe {
        (*task).foresights = (*task).foresights.wrapping_add(1);
        (
            core::ptr::read_volatile(&raw const (*task).foresights),
            core::ptr::read_volatile(&raw const (*control).foresees) == ALL_CHECKED,
        )
    };
    // Multiples of the golden ratio have no period: what a loop allocates comes up whatever its length.
    all || number <= FIRST_CHECKED || number.wrapping_mul(0x9e37_79b9) >> (u32::BITS - CHECKED_BITS) == 0
}

/// Something happens to a set that what is known of it does not account for, unless [`settle`] says that it does. Every
/// allocation, resize and free that [`concerns`] sets begins with it as long as chunks are recorded; contexts that are
/// made, reset or deleted are forgotten.
#[inline(always)]
pub(crate) fn unsettle(task: *mut Task) {
    // SAFETY: a map value that only this task uses.
    unsafe { (*task).changes = (*task).changes.wrapping_add(1) };
}

/// Whether the function that has this probe may change a set of which something is known.
#[inline(always)]
pub(crate) fn concerns(cookie: u64) -> bool {
    set_fields().is_some() && is_set(Site::header_of(cookie))
}

/// What has just happened is accounted for.
#[inline(always)]
pub(crate) fn settle(task: *mut Task) {
    // SAFETY: as above.
    unsafe { (*task).changes = (*task).changes.wrapping_sub(1) };
}

/// Accounts for a chunk of a context that was freed.
#[inline(always)]
pub(crate) fn settle_freed(task: *mut Task, context: ContextKey, cookie: u64, (pointer, held): (u64, u64)) {
    let known = context::known(task, context);
    // SAFETY: as above.
    unsafe {
        if (*known).key == context {
            (*known).set.freed(Site::header_of(cookie), pointer, held);
        }
    }
    settle(task);
}

/// The chunk that a call in a context will return, and the bytes that it takes; `None` if that cannot be told. What is
/// read is what the call is about to read itself, so that it is there.
#[inline(always)]
pub(crate) fn chunk(
    control: *mut Control,
    task: *mut Task,
    cookie: u64,
    (context, key): (u64, ContextKey),
    size: u64,
) -> Option<(u64, u64)> {
    let fields = set_fields()?;
    let header = Site::header_of(cookie);
    // SAFETY: a map value; an aligned word that user space and other tasks write.
    if !concerns(cookie) || unsafe { core::ptr::read_volatile(&raw const (*control).foresees) } == 0 {
        return None;
    }
    // SAFETY: map values that only this task uses.
    let (set, words, changes) = unsafe {
        (&mut (*context::known(task, key)).set, &raw mut (*task).set, (*task).changes.wrapping_sub(1))
    };
    if set.changes != changes {
        *set = Known::NOTHING;
    } else if let Some(chunk) = set.next(header, size) {
        settle(task);
        return Some(chunk);
    }
    let address = context.wrapping_add(fields.start);
    if !read_at_hand(words.cast(), SET_WORDS as u32 * 8, address) {
        return None;
    }
    // SAFETY: as above.
    let words = unsafe { &*anew(words) };
    let (source, bytes) = source(words, fields, header, size);
    let mut free = set.free;
    if let Some(at) = free_word(address, words[0]) {
        free = [word(words, at), word(words, at + 1)];
    } else if let Source::Block(block) = source
        && !read_at_hand(free.as_mut_ptr(), 16, block.wrapping_add(BLOCK_FREE))
    {
        return None;
    }
    if set.changes != 0 && !set.agrees(words, free, header) {
        is_another(control);
        return None;
    }
    // Whatever becomes of this set, it is of no other.
    settle(task);
    *set = Known { changes, free, limit: limit(words, fields) as u32, empty: empty_lists(words), head: 0 };
    let chunk = match source {
        Source::FreeList(pointer) => Some((pointer, bytes)),
        Source::Block(_) => set.next(header, size),
        Source::NewBlock => None,
    };
    if chunk.is_none() {
        *set = Known::NOTHING;
    }
    chunk
}

/// Notes whether a chunk that was foreseen was the one that was returned.
#[inline(always)]
pub(crate) fn check(control: *mut Control, is_it: bool) {
    count(Counter::ForeseenChecked);
    if !is_it {
        is_another(control);
    }
}

/// This server is not as it should be.
#[inline(always)]
fn is_another(control: *mut Control) {
    count(Counter::ForeseenWrongly);
    // SAFETY: a map value; an aligned word.
    unsafe { core::ptr::write_volatile(&raw mut (*control).foresees, 0) };
}

#[inline(always)]
fn read_at_hand(into: *mut u64, bytes: u32, address: u64) -> bool {
    // SAFETY: room for as many bytes, by the callers; the helper checks the address.
    unsafe { generated::bpf_probe_read_user(into.cast(), bytes, address as *const _) == 0 }
}
