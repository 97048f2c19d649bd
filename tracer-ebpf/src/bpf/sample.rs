//! Sends stacks with the memory that they were found in, so that something else can unwind the
//! same. For tests; captures do not load it.

use aya_ebpf::{
    EbpfContext as _,
    bindings::pt_regs,
    helpers::generated,
    programs::{ProbeContext, RetProbeContext},
};
use tracer_ebpf::{
    abi::{FRAME_SLOTS, SAMPLE_BYTES, Sample},
    lookup::opaque,
    site::Site,
};

use crate::bpf::{
    maps::{SAMPLE, SAMPLES, control},
    stack, task,
};

const PAGE_BYTES: u64 = 4096;

/// A function is entered.
#[inline(always)]
pub(crate) fn enter(ctx: &ProbeContext) {
    // SAFETY: the registers are the program's own context; the helper takes it (Linux 5.15).
    unsafe { send(&*ctx.regs, generated::bpf_get_attach_cookie(ctx.as_ptr()), 0) };
}

/// A function returns.
#[inline(always)]
pub(crate) fn exit(ctx: &RetProbeContext) {
    // SAFETY: as above.
    unsafe { send(&*ctx.regs, generated::bpf_get_attach_cookie(ctx.as_ptr()), 1) };
}

#[inline(always)]
fn send(regs: &pt_regs, cookie: u64, is_return: u64) {
    let (Some(control), Some(task), Some(sample)) =
        (control(), task::current_or_new(), SAMPLE.get_ptr_mut(0))
    else {
        return;
    };
    stack::walk(control, task, regs.rip.wrapping_sub(Site::skew_of(cookie)), regs, is_return);
    // SAFETY: map values that only one task uses: one process is sampled.
    unsafe {
        let walk = &(*task).walk;
        stack::copy_frames(task);
        (*sample).frames = (*task).frames;
        (*sample).pc = regs.rip;
        (*sample).sp = regs.rsp;
        (*sample).bp = regs.rbp;
        (*sample).is_return = is_return;
        (*sample).count = walk.count;
        (*sample).end = walk.end;
        (*sample).met = walk.met;
        (*sample).mapset = walk.mapset;
        // As much of the stack as there is: up to the next end of a page first.
        let mut read = 0u64;
        for _ in 0..SAMPLE_BYTES as u64 / PAGE_BYTES {
            let address = regs.rsp.wrapping_add(read);
            let bytes = PAGE_BYTES - (address & (PAGE_BYTES - 1));
            let at = opaque(read) & (SAMPLE_BYTES as u64 - 1);
            if at + bytes > SAMPLE_BYTES as u64 {
                break;
            }
            let into = (&raw mut (*sample).stack).cast::<u8>().add(at as usize);
            if generated::bpf_copy_from_user(into.cast(), opaque(bytes) as u32 & 0x1fff, address as *const _)
                != 0
            {
                break;
            }
            read += bytes;
        }
        (*sample).bytes = read;
        let bytes =
            (size_of::<Sample>() - SAMPLE_BYTES) as u64 + (opaque(read) & (2 * SAMPLE_BYTES as u64 - 1));
        generated::bpf_ringbuf_output(
            (&raw const SAMPLES).cast_mut().cast(),
            sample.cast(),
            bytes.min(size_of::<Sample>() as u64),
            0,
        );
    }
}

const _: () = assert!(size_of::<[u64; FRAME_SLOTS]>() == 1024);
