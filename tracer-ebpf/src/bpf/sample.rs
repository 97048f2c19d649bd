//! The walk of captures with the stack that it was made from: for tests and measurements, never
//! loaded by a capture.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    bindings::pt_regs,
    helpers::{bpf_get_current_pid_tgid, generated},
    macros::map,
    maps::RingBuf,
    programs::{ProbeContext, RetProbeContext},
};
use tracer_ebpf::{
    abi::{FRAME_SLOTS, Phase},
    sample::{SAMPLE_PAGE_BYTES, SAMPLE_PAGES, Sample},
    site::Site,
    unwind::Registers,
};

use crate::bpf::{
    maps::{control, hit_entry, phase},
    process, read, stack, task,
};

/// Samples on their way to user space. A page, so that captures, which never use it, pay no more;
/// who does gives it its size.
#[map]
pub(crate) static SAMPLES: RingBuf = RingBuf::with_byte_size(4096, 0);

/// At an instruction.
#[inline(always)]
pub(crate) fn enter(ctx: &ProbeContext) {
    // SAFETY: the helper takes the program's own context; so are the registers.
    let (cookie, regs) = unsafe { (generated::bpf_get_attach_cookie(ctx.as_ptr()), &*ctx.regs) };
    sample(cookie, regs, 0);
}

/// After a return.
#[inline(always)]
pub(crate) fn exit(ctx: &RetProbeContext) {
    // SAFETY: as above.
    let (cookie, regs) = unsafe { (generated::bpf_get_attach_cookie(ctx.as_ptr()), &*ctx.regs) };
    sample(cookie, regs, 1);
}

#[inline(always)]
fn sample(cookie: u64, regs: &pt_regs, is_return: u64) {
    let Some(phase) = phase() else { return };
    if phase != Phase::Record as u32 {
        return;
    }
    hit_entry::<true>(phase, Site::index_of(cookie));
    let (Some(control), Some(process)) = (control(), process::current::<true>()) else { return };
    let Some(task) = task::current_or_new(process) else { return };
    let regs = Registers { pc: regs.rip, sp: regs.rsp, bp: regs.rbp, is_return };
    stack::walk(control, process, task, cookie, regs);
    let mut local = task;
    // SAFETY: a map value that only this task uses; `copy_frame` takes the address of a pointer
    // to it.
    unsafe {
        generated::bpf_loop((*task).walk.count, stack::copy_frame as *mut c_void, (&raw mut local).cast(), 0)
    };
    // A sample that finds no room is lost; the number of hits tells.
    let Some(mut entry) = SAMPLES.reserve::<Sample>(0) else { return };
    let into = entry.as_mut_ptr();
    // SAFETY: the record has room for all that is written; `Task` lives in a map.
    unsafe {
        (*into).regs = regs;
        (*into).end = (*task).walk.end;
        (*into).mapset = (*task).walk.mapset;
        (*into).count = (*task).walk.count;
        (*into).met = (*task).walk.met;
        (*into).tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
        (*into).pages = 0;
        generated::bpf_probe_read_kernel(
            (&raw mut (*into).frames).cast(),
            (FRAME_SLOTS * 8) as u32,
            (&raw const (*task).frames).cast(),
        );
        let mut from = regs.sp & !(SAMPLE_PAGE_BYTES as u64 - 1);
        for page in 0..SAMPLE_PAGES {
            // The stack ends here.
            if !read::read((&raw mut (*into).stack[page]).cast(), SAMPLE_PAGE_BYTES as u32, from) {
                break;
            }
            (*into).pages = page as u32 + 1;
            from = from.wrapping_add(SAMPLE_PAGE_BYTES as u64);
        }
    }
    entry.submit(0);
}
