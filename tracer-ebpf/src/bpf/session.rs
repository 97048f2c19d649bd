//! Session links run one program at the entry and at the return of a function.

use aya_ebpf::{EbpfContext as _, helpers::generated::bpf_get_func_ip, programs::ProbeContext};

use crate::bpf::call::Return;

/// Whether this is the entry. The kernel has a function for it, which takes a call by BTF id; it also says where
/// the probe is (`bpf_get_func_ip`, Linux 6.6 for these links), and there it is at the entry only.
#[inline(always)]
pub(crate) fn is_entry(ctx: &ProbeContext) -> bool {
    // SAFETY: the helper takes the program's own context; the registers are that, too.
    unsafe { bpf_get_func_ip(ctx.as_ptr()) == (*ctx.regs).rip }
}

/// What a session program says at an entry: 1 has the kernel leave the return alone (`handler_chain` in
/// `kernel/events/uprobes.c`).
#[inline(always)]
pub(crate) fn answer(wanted: Return) -> u32 {
    match wanted {
        Return::Awaited => 0,
        Return::NotNeeded => 1,
    }
}
