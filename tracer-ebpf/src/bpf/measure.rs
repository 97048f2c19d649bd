//! Times ways to take a stack beside each other, on one and the same stack. For measurements and
//! tests; captures do not load it.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_ktime_get_ns, generated},
    programs::ProbeContext,
};
use tracer_ebpf::{
    abi::{Control, Measured, Process, StackKey, Task},
    site::Site,
    unwind::Registers,
};

use crate::bpf::{
    maps::{MEASURED, add, control},
    process, stack, task,
};

/// `BPF_F_USER_STACK`.
const USER_STACK: u64 = 1 << 8;

/// A function is entered: its stack is taken by each way in turn.
#[inline(always)]
pub(crate) fn enter(ctx: &ProbeContext) {
    // SAFETY: the helper takes the program's own context (Linux 5.15).
    let cookie = unsafe { generated::bpf_get_attach_cookie(ctx.as_ptr()) };
    let Some(control) = control() else { return };
    let Some(process) = process::current::<true>() else { return };
    let Some(task) = task::current_or_new(process) else { return };
    let Some(into) = MEASURED.get_ptr_mut(0) else { return };
    let nothing = now().wrapping_neg().wrapping_add(now());
    let (trail_ns, by_trail) = walk(ctx, cookie, (control, process, task), false);
    let (anew_ns, anew) = walk(ctx, cookie, (control, process, task), true);
    let start = now();
    // SAFETY: a map value that only this task uses, with room for as many bytes.
    let helper_bytes = unsafe {
        let frames = &raw mut (*task).frames;
        generated::bpf_get_stack(
            ctx.as_ptr(),
            frames.cast::<c_void>(),
            size_of::<[u64; 127]>() as u32,
            USER_STACK,
        )
    };
    let helper_ns = now().wrapping_sub(start);
    // SAFETY: map values.
    unsafe {
        add(&raw mut (*into).hits, 1);
        add(&raw mut (*into).differences, (by_trail.a != anew.a || by_trail.b != anew.b).into());
        add(&raw mut (*into).nothing_ns, nothing);
        add(&raw mut (*into).trail_ns, trail_ns);
        add(&raw mut (*into).anew_ns, anew_ns);
        add(&raw mut (*into).helper_ns, helper_ns);
        add(&raw mut (*into).frames, u64::from((*task).walk.count));
        add(&raw mut (*into).helper_frames, helper_bytes.max(0) as u64 / 8);
    }
}

/// Walks; gives the time that took, and the stack's key.
#[inline(always)]
fn walk(
    ctx: &ProbeContext,
    cookie: u64,
    (control, process, task): (*mut Control, *mut Process, *mut Task),
    anew: bool,
) -> (u64, StackKey) {
    // SAFETY: the registers are the program's own context; map values that only this task uses.
    unsafe {
        let regs = &*ctx.regs;
        core::ptr::write_volatile(&raw mut (*control).walk_anew, anew.into());
        let start = now();
        let function = regs.rip.wrapping_sub(Site::skew_of(cookie));
        let regs = Registers { pc: regs.rip, sp: regs.rsp, bp: regs.rbp, is_return: 0 };
        stack::walk(control, process, task, function, regs);
        (now().wrapping_sub(start), (*task).walk.key)
    }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() }
}

const _: () = assert!(size_of::<Measured>() == 64);
