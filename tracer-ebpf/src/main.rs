//! The eBPF programs: one for each role of an allocator function, two that watch the process.
//!
//! `bpf/` holds the maps, the calls that are open, chunks, contexts and stacks; what is pure is
//! in the library half of this crate, where it is tested.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod bpf;

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    macros::{raw_tracepoint, uprobe, uretprobe},
    programs::{ProbeContext, RawTracePointContext, RetProbeContext},
};

use crate::bpf::{chunk, context, loader, measure, process, realloc, sample, session};

/// Entry of a function that returns a new chunk.
#[uprobe(sleepable)]
fn alloc_enter(ctx: ProbeContext) -> u32 {
    chunk::alloc_enter::<false, false>(&ctx);
    0
}

/// Return of a function that returns a new chunk.
#[uretprobe(sleepable)]
fn alloc_exit(ctx: RetProbeContext) -> u32 {
    chunk::alloc_exit::<false>(&ctx);
    0
}

/// Entry of a function that gives one chunk back.
#[uprobe]
fn free_enter(ctx: ProbeContext) -> u32 {
    chunk::free_enter::<false>(&ctx);
    0
}

/// Entry of a function that changes a chunk's size.
#[uprobe(sleepable)]
fn realloc_enter(ctx: ProbeContext) -> u32 {
    realloc::realloc_enter::<false>(&ctx);
    0
}

/// Return of a function that changes a chunk's size.
#[uretprobe(sleepable)]
fn realloc_exit(ctx: RetProbeContext) -> u32 {
    realloc::realloc_exit::<false>(&ctx);
    0
}

/// Entry of malloc, or of another function that returns memory outside of contexts.
#[uprobe(sleepable)]
fn outside_alloc_enter(ctx: ProbeContext) -> u32 {
    chunk::alloc_enter::<true, false>(&ctx);
    0
}

/// Its return.
#[uretprobe(sleepable)]
fn outside_alloc_exit(ctx: RetProbeContext) -> u32 {
    chunk::alloc_exit::<true>(&ctx);
    0
}

/// Entry of free and its like.
#[uprobe]
fn outside_free_enter(ctx: ProbeContext) -> u32 {
    chunk::free_enter::<true>(&ctx);
    0
}

/// Entry of realloc and its like.
#[uprobe(sleepable)]
fn outside_realloc_enter(ctx: ProbeContext) -> u32 {
    realloc::realloc_enter::<true>(&ctx);
    0
}

/// Its return.
#[uretprobe(sleepable)]
fn outside_realloc_exit(ctx: RetProbeContext) -> u32 {
    realloc::realloc_exit::<true>(&ctx);
    0
}

/// Entry and return of a function that returns a new chunk, for session links.
///
/// By hand, since what it returns says whether the return is wanted.
#[unsafe(no_mangle)]
#[unsafe(link_section = "uprobe.s")]
extern "C" fn alloc_session(ctx: *mut c_void) -> u32 {
    let ctx = ProbeContext::new(ctx);
    if session::is_entry(&ctx) {
        return session::answer(chunk::alloc_enter::<false, true>(&ctx));
    }
    chunk::alloc_exit::<false>(&RetProbeContext::new(ctx.as_ptr()));
    0
}

/// Entry and return of a function that changes a chunk's size, likewise.
#[uprobe(sleepable)]
fn realloc_session(ctx: ProbeContext) -> u32 {
    if session::is_entry(&ctx) {
        realloc::realloc_enter::<false>(&ctx);
    } else {
        realloc::realloc_exit::<false>(&RetProbeContext::new(ctx.as_ptr()));
    }
    0
}

/// The same for malloc and its like.
#[uprobe(sleepable)]
fn outside_alloc_session(ctx: ProbeContext) -> u32 {
    if session::is_entry(&ctx) {
        chunk::alloc_enter::<true, false>(&ctx);
    } else {
        chunk::alloc_exit::<true>(&RetProbeContext::new(ctx.as_ptr()));
    }
    0
}

/// The same for realloc and its like.
#[uprobe(sleepable)]
fn outside_realloc_session(ctx: ProbeContext) -> u32 {
    if session::is_entry(&ctx) {
        realloc::realloc_enter::<true>(&ctx);
    } else {
        realloc::realloc_exit::<true>(&RetProbeContext::new(ctx.as_ptr()));
    }
    0
}

/// Entry of a function that empties a context.
#[uprobe]
fn reset_enter(ctx: ProbeContext) -> u32 {
    context::reset_enter(&ctx);
    0
}

/// Entry of a function that ends a context.
#[uprobe]
fn delete_enter(ctx: ProbeContext) -> u32 {
    context::delete_enter(&ctx);
    0
}

/// Entry of the function that makes a context.
#[uprobe(sleepable)]
fn create_enter(ctx: ProbeContext) -> u32 {
    context::create_enter(&ctx);
    0
}

/// The dynamic loader tells debuggers that it has loaded something.
#[uprobe(sleepable)]
fn loader_enter(ctx: ProbeContext) -> u32 {
    loader::enter(&ctx);
    0
}

/// Any instruction: its stack is sent whole, for tests.
#[uprobe(sleepable)]
fn sample_enter(ctx: ProbeContext) -> u32 {
    sample::enter(&ctx);
    0
}

/// Any return, likewise.
#[uretprobe(sleepable)]
fn sample_exit(ctx: RetProbeContext) -> u32 {
    sample::exit(&ctx);
    0
}

/// A process ends. Raw tracepoints need neither tracefs nor the layout of a trace record, which
/// differs between kernels.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
fn process_exit(_ctx: RawTracePointContext) -> i32 {
    process::exit();
    0
}

/// A process becomes another program.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
fn process_exec(_ctx: RawTracePointContext) -> i32 {
    process::exec();
    0
}

/// Entry of any function whose stacks are taken in several ways.
#[uprobe(sleepable)]
fn measure_enter(ctx: ProbeContext) -> u32 {
    measure::enter(&ctx);
    0
}

/// Entry of any function, for what probes cost without programs that do something.
#[uprobe(sleepable)]
fn nothing_enter(_ctx: ProbeContext) -> u32 {
    0
}

/// Any return, likewise.
#[uretprobe(sleepable)]
fn nothing_exit(_ctx: RetProbeContext) -> u32 {
    0
}

/// Both, for session links.
#[uprobe(sleepable)]
fn nothing_session(_ctx: ProbeContext) -> u32 {
    0
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program that could get here: nothing in it panics.
    loop {}
}

/// Helpers that read user memory and stacks are for GPL-compatible programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
