//! The end of the process, or of the program that it ran.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use tracer_ebpf::abi::Phase;

use crate::bpf::maps::control;

/// The process ends: nothing that it holds now is a leak, and nothing more may be counted.
#[inline(always)]
pub(crate) fn exit() {
    let id = bpf_get_current_pid_tgid();
    // Only the thread group's leader: other threads come and go.
    if id as u32 == (id >> 32) as u32 {
        end((id >> 32) as u32, Phase::Exited);
    }
}

/// The process becomes another program, whose addresses mean something else.
#[inline(always)]
pub(crate) fn exec() {
    end((bpf_get_current_pid_tgid() >> 32) as u32, Phase::Replaced);
}

#[inline(always)]
fn end(tgid: u32, phase: Phase) {
    let Some(control) = control() else { return };
    // SAFETY: a map value; aligned words.
    unsafe {
        if core::ptr::read_volatile(&raw const (*control).tgid) == tgid {
            core::ptr::write_volatile(&raw mut (*control).phase, phase as u32);
        }
    }
}
