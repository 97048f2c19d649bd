//! Reading the memory of the process that runs the program.

use aya_ebpf::{bindings::pt_regs, helpers::generated};
use tracer_ebpf::{
    abi::NAME_BYTES,
    counters::Counter,
    site::{ArgField, Site},
    unwind::StackReader,
};

use crate::bpf::maps::count;

/// Reads that fault a page in when it is not there: only for sleepable programs (Linux 6.0).
pub(crate) struct Faulting;

#[inline(always)]
fn read(into: *mut u64, bytes: u32, address: u64) -> bool {
    // SAFETY: `into` has room for `bytes`, which is a constant at every call; the helper checks
    // the address.
    if unsafe { generated::bpf_probe_read_user(into.cast(), bytes, address as *const _) } == 0 {
        return true;
    }
    // The page may be there for the process and not for a read that must not fault: reclaimed,
    // or a NUMA hint.
    count(Counter::ReadFaulted);
    // SAFETY: as above; the programs that get here are sleepable.
    unsafe { generated::bpf_copy_from_user(into.cast(), bytes, address as *const _) == 0 }
}

impl StackReader for Faulting {
    #[inline(always)]
    fn read_words(&mut self, address: u64, into: &mut [u64; 8]) -> bool {
        read(into.as_mut_ptr(), 64, address)
    }

    #[inline(always)]
    fn read_word(&mut self, address: u64) -> Option<u64> {
        word(address)
    }
}

/// The 8 bytes at `address`.
#[inline(always)]
pub(crate) fn word(address: u64) -> Option<u64> {
    let mut value = 0;
    read(&raw mut value, 8, address).then_some(value)
}

/// The 8 bytes at `address`, if their page is there: also for programs that must not sleep.
#[inline(always)]
pub(crate) fn word_at_hand(address: u64) -> Option<u64> {
    let mut value: u64 = 0;
    // SAFETY: room for a word; the helper checks the address.
    let failed = unsafe { generated::bpf_probe_read_user((&raw mut value).cast(), 8, address as *const _) };
    (failed == 0).then_some(value)
}

/// The 16 bytes at `address`.
#[inline(always)]
pub(crate) fn two_words(address: u64) -> Option<[u64; 2]> {
    let mut value = [0; 2];
    read(value.as_mut_ptr(), 16, address).then_some(value)
}

/// A string, cut at [`NAME_BYTES`].
#[inline(always)]
pub(crate) fn string(address: u64, into: &mut [u8; NAME_BYTES]) -> bool {
    if read_string(address, into) {
        return true;
    }
    // A constant of the server that this process has not looked at yet: its page is in the file
    // and not in the process. Looking at both ends of where the string may be brings it in.
    count(Counter::ReadFaulted);
    let mut word: u64 = 0;
    for end in [address, address.wrapping_add(NAME_BYTES as u64 - 1)] {
        // SAFETY: one byte into a word; the programs that get here are sleepable.
        unsafe { generated::bpf_copy_from_user((&raw mut word).cast(), 1, end as *const _) };
    }
    read_string(address, into)
}

#[inline(always)]
fn read_string(address: u64, into: &mut [u8; NAME_BYTES]) -> bool {
    // SAFETY: `into` has room for NAME_BYTES; the helper checks the address.
    unsafe {
        generated::bpf_probe_read_user_str(into.as_mut_ptr().cast(), NAME_BYTES as u32, address as *const _)
            > 0
    }
}

/// The argument whose position the cookie gives, or 0 (System V AMD64 ABI: rdi, rsi, rdx, rcx).
#[inline(always)]
pub(crate) fn argument(regs: &pt_regs, cookie: u64, field: ArgField) -> u64 {
    // Four loads at fixed offsets, then a choice: LLVM would choose the address and load once,
    // and the verifier allows no variable offset into the registers.
    // SAFETY: fields of the program's own context.
    let [first, second, third, fourth] = unsafe {
        [
            core::ptr::read_volatile(&raw const regs.rdi),
            core::ptr::read_volatile(&raw const regs.rsi),
            core::ptr::read_volatile(&raw const regs.rdx),
            core::ptr::read_volatile(&raw const regs.rcx),
        ]
    };
    match Site::arg_of(cookie, field) {
        0 => first,
        1 => second,
        2 => third,
        3 => fourth,
        // NO_ARG
        _ => 0,
    }
}
