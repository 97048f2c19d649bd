//! Memory contexts: their epochs and names.
//!
//! A chunk is alive while its context is in the map with the epoch that the chunk was born in.
//! A reset therefore costs one write and a delete one removal, however many chunks go with it,
//! and because epochs are never used twice, neither an evicted context nor a recycled address
//! can bring an old chunk back.

use aya_ebpf::{EbpfContext as _, helpers::generated::bpf_get_attach_cookie, programs::ProbeContext};
use tracer_ebpf::{
    abi::{Context, ContextKey, Control, Live, NAME_BYTES, Name, Phase},
    counters::Counter,
    site::{ArgField, Site},
};

use crate::bpf::{
    maps::{CONTEXTS, NAMES, control, count, hit_entry, name_offset, next_epoch, phase},
    read,
};

/// A context loses all its chunks.
#[inline(always)]
pub(crate) fn reset_enter(ctx: &ProbeContext) {
    let Some(key) = entered(ctx) else { return };
    let (Some(control), Some(context)) = (control(), CONTEXTS.get_ptr_mut(&key)) else { return };
    let epoch = next_epoch(control);
    // SAFETY: a map value; one aligned word.
    unsafe { core::ptr::write_volatile(&raw mut (*context).epoch, epoch) };
    count(Counter::Resets);
}

/// A context ends. A delete may contain a reset of the same context; both can run twice.
#[inline(always)]
pub(crate) fn delete_enter(ctx: &ProbeContext) {
    let Some(key) = entered(ctx) else { return };
    if CONTEXTS.remove(&key).is_ok() {
        count(Counter::Deletes);
    }
}

#[inline(always)]
fn entered(ctx: &ProbeContext) -> Option<ContextKey> {
    let phase = phase()?;
    // SAFETY: the helper takes the program's own context (Linux 5.15).
    let cookie = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    hit_entry(phase, Site::index_of(cookie));
    if phase == Phase::Count as u32 {
        return None;
    }
    // SAFETY: the registers are the program's own context.
    Some(read::argument(unsafe { &*ctx.regs }, cookie, ArgField::Context))
}

/// The epoch of a context; one that was not seen before begins its first.
#[inline(always)]
pub(crate) fn epoch(control: *mut Control, key: ContextKey) -> Option<u64> {
    if let Some(context) = CONTEXTS.get_ptr(&key) {
        // SAFETY: a map value; one aligned word.
        return Some(unsafe { core::ptr::read_volatile(&raw const (*context).epoch) });
    }
    let name = read::word(key.wrapping_add(name_offset())).unwrap_or(0);
    if name == 0 {
        count(Counter::NameUnreadable);
    } else if NAMES.get_ptr(&name).is_none() {
        remember_name(name);
    }
    let context = Context { epoch: next_epoch(control), name };
    if CONTEXTS.insert(&key, &context, 0).is_err() {
        count(Counter::ContextsFull);
        return None;
    }
    Some(context.epoch)
}

#[inline(always)]
fn remember_name(address: u64) {
    let mut name = Name { bytes: [0; NAME_BYTES] };
    if !read::string(address, &mut name.bytes) || NAMES.insert(&address, &name, 0).is_err() {
        count(Counter::NameUnreadable);
    }
}

/// Whether a chunk's context still has the epoch that the chunk was born in.
#[inline(always)]
pub(crate) fn is_alive(live: &Live) -> bool {
    CONTEXTS
        .get_ptr(&live.context)
        // SAFETY: a map value; one aligned word.
        .is_some_and(|context| unsafe { core::ptr::read_volatile(&raw const (*context).epoch) } == live.epoch)
}
