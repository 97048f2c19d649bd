//! Memory contexts: their epochs and names.
//!
//! A chunk is alive while its context is in the map with the epoch that the chunk was born in.
//! A reset therefore costs one write and a delete one removal, however many chunks go with it,
//! and because epochs are never used twice, neither an evicted context nor a recycled address
//! can bring an old chunk back.

use aya_ebpf::programs::ProbeContext;
use tracer_ebpf::{
    abi::{
        ChunkKey, Context, ContextKey, Control, KNOWN_CONTEXTS, KnownContext, Live, NAME_BYTES, NO_STACK,
        Name, Phase, Process, Task, key, name_key,
    },
    counters::Counter,
    foresee::Known,
    lookup::opaque,
    site::{ArgField, NO_ARG, Site, is_pool},
};

use crate::bpf::{
    call::{entered, now, within_deadline},
    maps::{CONTEXTS, NAMES, control, count, name_offset, names_are_copies, next_epoch},
    process, read,
    record::{add_allocated, add_freed, end, find},
    stack, task,
};

/// A context is made. Its address may be that of one that was deleted: the server keeps some.
#[inline(always)]
pub(crate) fn create_enter(ctx: &ProbeContext) {
    let Some((cookie, phase, process)) = entered::<true, false>(ctx) else { return };
    if phase != Phase::Record as u32 {
        return;
    }
    // SAFETY: the registers are the program's own context.
    let regs = unsafe { &*ctx.regs };
    let sp = read::sp(regs);
    // Its memory was allocated just now, and is its own from here on.
    if Site::pool_of(cookie) != 0 {
        take_over(key(process::number(process), read::argument(regs, cookie, ArgField::Context)));
    }
    // The end of a context whose methods are not probed would not be seen.
    if Site::arg_of(cookie, ArgField::Tag) != u64::from(NO_ARG)
        && !Site::follows(cookie, read::argument(regs, cookie, ArgField::Tag) as u32)
    {
        return;
    }
    let Some(control) = control() else { return };
    let Some(task) = task::current_or_new(process) else { return };
    if within_deadline(control, task).is_none() {
        return;
    }
    task::drop_left(task, sp);
    let key = key(process::number(process), read::argument(regs, cookie, ArgField::Context));
    let name = name_of(process, read::argument(regs, cookie, ArgField::Name));
    let mut context = Context {
        epoch: next_epoch(control),
        name,
        // Exact: it tells contexts apart that were at one address.
        born_ns: now(),
        stack: NO_STACK,
        left_out: is_left_out(control, name),
    };
    if context.left_out == 0 {
        (context.stack, _) =
            stack::id_at_entry::<{ stack::NOT_IN_LINE }>(control, process, task, cookie, (regs, sp));
    }
    note(Some(task), key, GONE);
    if add(key, &context) && context.left_out == 0 {
        count(Counter::Creates);
        add_allocated(context.stack, 0, 1, 0, 0);
    }
}

/// Forgets an allocation of malloc that a context has become.
#[inline(always)]
fn take_over(chunk: ChunkKey) {
    let Some(record) = find::<true>(chunk) else { return };
    // SAFETY: a map value; copied because its slot is used again as soon as it is removed.
    let live = unsafe { *record };
    if is_pool(live.context) {
        end::<true>(chunk, record);
        add_allocated(
            live.stack,
            live.sampled,
            1u64.wrapping_neg(),
            live.requested.wrapping_neg(),
            live.held.wrapping_neg(),
        );
    }
}

/// A context loses all its chunks.
#[inline(always)]
pub(crate) fn reset_enter(ctx: &ProbeContext) {
    let Some(key) = of(ctx) else { return };
    let task = task::current();
    let (Some(control), Some(context)) = (control(), CONTEXTS.get_ptr_mut(&key)) else {
        note(task, key, GONE);
        return;
    };
    let epoch = next_epoch(control);
    note(task, key, epoch);
    // SAFETY: a map value; one aligned word.
    unsafe { core::ptr::write_volatile(&raw mut (*context).epoch, epoch) };
    count(Counter::Resets);
}

/// A context ends. A delete may contain a reset of the same context; both can run twice.
#[inline(always)]
pub(crate) fn delete_enter(ctx: &ProbeContext) {
    let Some(key) = of(ctx) else { return };
    note(task::current(), key, GONE);
    let (Some(control), Some(context)) = (control(), CONTEXTS.get_ptr(&key)) else { return };
    // SAFETY: a map value; written once.
    let stack = unsafe { (*context).stack };
    if CONTEXTS.remove(&key).is_ok() {
        // The next birth looks at the clock ([`within_deadline`]).
        next_epoch(control);
        count(Counter::Deletes);
        if stack != NO_STACK {
            add_freed(stack, 0, 1, 0, 0);
        }
    }
}

#[inline(always)]
fn of(ctx: &ProbeContext) -> Option<ContextKey> {
    let (cookie, _, process) = entered::<false, false>(ctx)?;
    // SAFETY: the registers are the program's own context.
    let address = read::argument(unsafe { &*ctx.regs }, cookie, ArgField::Context);
    Some(key(process::number(process), address))
}

/// The key of a context and its epoch; one that was not seen before begins its first. `None` if nothing
/// is to be recorded in it.
#[inline(always)]
pub(crate) fn epoch(
    control: *mut Control,
    process: *mut Process,
    task: *mut Task,
    address: u64,
) -> Option<(ContextKey, u64)> {
    let key = key(process::number(process), address);
    // Read before the map: what is removed later raises it.
    // SAFETY: map values; an aligned word. The slot is the task's own.
    let (as_of, known) =
        unsafe { (core::ptr::read_volatile(&raw const (*control).forgets), &mut *self::known(task, key)) };
    if known.key == key && known.epoch != GONE && known.as_of == as_of {
        return Some((key, known.epoch));
    }
    let (epoch, left_out) = match CONTEXTS.get_ptr(&key) {
        // SAFETY: a map value; aligned words.
        Some(context) => unsafe {
            (core::ptr::read_volatile(&raw const (*context).epoch), (*context).left_out)
        },
        None => {
            let name = name_of(process, read::word(address.wrapping_add(name_offset())).unwrap_or(0));
            let epoch = next_epoch(control);
            let left_out = is_left_out(control, name);
            if !add(key, &Context { epoch, name, born_ns: 0, stack: NO_STACK, left_out }) {
                return None;
            }
            (epoch, left_out)
        }
    };
    if left_out != 0 {
        count(Counter::OtherContext);
        return None;
    }
    *known = KnownContext { key, epoch, as_of, set: Known::NOTHING };
    Some((key, epoch))
}

/// Where a task keeps what it knows of a context, or of another one.
#[inline(always)]
pub(crate) fn known(task: *mut Task, key: ContextKey) -> *mut KnownContext {
    let slot = (opaque(key >> 3) & (KNOWN_CONTEXTS as u64 - 1)) as usize;
    // SAFETY: a map value; the index is masked.
    unsafe { &raw mut (*task).known_contexts[slot] }
}

/// In what a task knows of a context, the epoch of one that is not in the map, or may be by now.
const GONE: u64 = 0;

/// Something happens to a context that a task knows: its chunks are no more, and of its set nothing is known.
#[inline(always)]
fn note(task: Option<*mut Task>, key: ContextKey, epoch: u64) {
    if let Some(task) = task {
        let known = known(task, key);
        // SAFETY: a map value that only this task uses.
        unsafe {
            if (*known).key == key {
                // What has gone and come again may be left out: that is looked up first.
                if epoch == GONE || (*known).epoch != GONE {
                    (*known).epoch = epoch;
                }
                (*known).set = Known::NOTHING;
            }
        }
    }
}

/// Notes a context, in the place of one that was at that address before.
#[inline(always)]
fn add(key: ContextKey, context: &Context) -> bool {
    let added = CONTEXTS.insert(&key, context, 0).is_ok();
    if !added {
        count(Counter::ContextsFull);
    }
    added
}

/// The key of the name at an address, 0 if there is none. Constants are the same wherever the same objects are
/// mapped; copies are each process's own.
#[inline(always)]
fn name_of(process: *mut Process, address: u64) -> u64 {
    if address == 0 {
        count(Counter::NameUnreadable);
        return 0;
    }
    let tag = if names_are_copies() {
        process::number(process)
    } else {
        // SAFETY: a map value; one aligned word.
        unsafe { core::ptr::read_volatile(&raw const (*process).mapset) }
    };
    let name = name_key(tag, address);
    if names_are_copies() || NAMES.get_ptr(&name).is_none() {
        remember_name(name, address);
    }
    name
}

/// 1 if contexts of this name were not asked for. A name that cannot be read is none that was.
#[inline(always)]
fn is_left_out(control: *mut Control, name: u64) -> u32 {
    // SAFETY: a map value, written before the programs are switched on.
    let only = unsafe { &(*control).only };
    if only[0] == 0 {
        return 0;
    }
    let Some(known) = NAMES.get_ptr(&name) else { return 1 };
    for (index, wanted) in only.iter().enumerate() {
        // SAFETY: a map value, which is aligned to eight bytes and has as many as `only`.
        if unsafe { known.cast::<u64>().add(index).read() } != *wanted {
            return 1;
        }
    }
    0
}

#[inline(always)]
fn remember_name(key: u64, address: u64) {
    let mut name = Name { bytes: [0; NAME_BYTES] };
    if !read::string(address, &mut name.bytes) || NAMES.insert(&key, &name, 0).is_err() {
        count(Counter::NameUnreadable);
    }
}

/// Whether a chunk's context still has the epoch that the chunk was born in.
#[inline(always)]
pub(crate) fn is_alive(live: &Live) -> bool {
    is_pool(live.context) || has_its_epoch(live)
}

/// The same; a task may know it.
#[inline(always)]
pub(crate) fn is_alive_to(task: Option<*mut Task>, live: &Live) -> bool {
    if let (Some(task), Some(control)) = (task, control()) {
        // SAFETY: map values; an aligned word, and the task's own.
        let (as_of, known) =
            unsafe { (core::ptr::read_volatile(&raw const (*control).forgets), &*known(task, live.context)) };
        if known.key == live.context && known.as_of == as_of {
            return known.epoch == live.epoch;
        }
    }
    is_alive(live)
}

/// The same for a chunk that is in a context.
#[inline(always)]
pub(crate) fn has_its_epoch(live: &Live) -> bool {
    CONTEXTS
        .get_ptr(&live.context)
        // SAFETY: a map value; one aligned word.
        .is_some_and(|context| unsafe { core::ptr::read_volatile(&raw const (*context).epoch) } == live.epoch)
}
