//! Reading the memory of the process that runs the program.

use core::arch::asm;

use aya_ebpf::{bindings::pt_regs, helpers::generated};
use tracer_ebpf::{
    abi::{NAME_BYTES, WINDOW_WORDS, Window},
    counters::Counter,
    lookup::opaque,
    site::{ArgField, Site},
    unwind::StackReader,
};

use crate::bpf::maps::count;

/// Reads `bytes`, faulting pages in: only for sleepable programs.
#[inline(always)]
pub(crate) fn read(into: *mut u64, bytes: u32, address: u64) -> bool {
    // SAFETY: `into` has room for `bytes`, which the verifier sees the bounds of; the helper
    // checks the address.
    if unsafe { generated::bpf_probe_read_user(into.cast(), bytes, address as *const _) } == 0 {
        return true;
    }
    // The page may be there for the process and not for a read that must not fault: reclaimed,
    // or a NUMA hint.
    count(Counter::ReadFaulted);
    // SAFETY: as above; the programs that get here are sleepable.
    unsafe { generated::bpf_copy_from_user(into.cast(), bytes, address as *const _) == 0 }
}

/// The stack of the task, read in large pieces: one read of 4 KiB takes as long as three of a
/// word. Faults pages in: only for sleepable programs (Linux 6.0).
pub(crate) struct Stack(pub(crate) *mut Window);

const WINDOW_BYTES: u64 = WINDOW_WORDS as u64 * 8;
/// What is read when nothing is known about how much will be of use.
const FIRST_BYTES: u64 = 4096;
const PAGE_BYTES: u64 = 4096;

impl StackReader for Stack {
    #[inline(always)]
    fn read_word(&mut self, address: u64) -> Option<u64> {
        match AtHand(self.0).read_word(address) {
            Some(word) => Some(word),
            None if refill(self.0, address) != 0 => AtHand(self.0).read_word(address),
            None => None,
        }
    }
}

/// The part of the stack that was read already.
pub(crate) struct AtHand(pub(crate) *mut Window);

impl StackReader for AtHand {
    #[inline(always)]
    fn read_word(&mut self, address: u64) -> Option<u64> {
        // SAFETY: a map value that only this task uses.
        let window = unsafe { &*self.0 };
        let offset = address.wrapping_sub(window.base);
        if offset < window.bytes && offset & 7 == 0 {
            return Some(window.words[(opaque(offset >> 3) & (WINDOW_WORDS as u64 - 1)) as usize]);
        }
        None
    }

    /// Without a branch: the verifier would follow each.
    #[inline(always)]
    fn differs(&mut self, address: u64, word: u64) -> u64 {
        // SAFETY: as above.
        let window = unsafe { &*self.0 };
        let offset = address.wrapping_sub(window.base);
        // The highest bit says that it is below the window, or after it.
        let outside = (offset | window.bytes.wrapping_sub(1).wrapping_sub(offset)) >> 63;
        let there = window.words[(opaque(offset >> 3) & (WINDOW_WORDS as u64 - 1)) as usize];
        there ^ word | outside | offset & 7
    }
}

/// Reads what lies between two addresses, or the upper end of it if that is too much.
#[inline(always)]
pub(crate) fn open_window(window: *mut Window, from: u64, to: u64) {
    let bytes = to.wrapping_sub(from);
    let base = if bytes > WINDOW_BYTES { to.wrapping_sub(WINDOW_BYTES) } else { from };
    fill(window, base, to.wrapping_sub(base));
}

/// Reads a piece of the stack from `address` on. A function of its own: it is called wherever a
/// word of the stack is read, and nearly never. Returns 0 if it cannot be read.
#[inline(never)]
fn refill(window: *mut Window, address: u64) -> u64 {
    if fill(window, address, FIRST_BYTES) {
        return 1;
    }
    // That was past an end of the stack, or a page of it is not there: what is on this page.
    let left = (PAGE_BYTES - (address & (PAGE_BYTES - 1))).max(8);
    // SAFETY: a map value that only this task uses; there is room for a page.
    unsafe {
        let bytes = opaque(left) & (PAGE_BYTES * 2 - 1);
        (*window).base = address;
        (*window).bytes = 0;
        if !read((&raw mut (*window).words).cast(), bytes as u32, address) {
            return 0;
        }
        (*window).bytes = bytes;
    }
    1
}

/// Reads `bytes`, at most a window, without faulting.
#[inline(always)]
fn fill(window: *mut Window, base: u64, bytes: u64) -> bool {
    // SAFETY: a map value that only this task uses, with room for a window.
    unsafe {
        // 1 ..= WINDOW_BYTES, for the verifier to see.
        let bytes = (opaque(bytes.wrapping_sub(1)) & (WINDOW_BYTES - 1)) + 1;
        (*window).base = base;
        let failed =
            generated::bpf_probe_read_user((&raw mut (*window).words).cast(), bytes as u32, base as *const _);
        (*window).bytes = if failed == 0 { bytes } else { 0 };
        failed == 0
    }
}

/// The same place, of which LLVM takes nothing for known: what was written there is read again. The verifier knows
/// nothing of memory either, so whatever the ways are that lead here, it looks at what follows once.
#[inline(always)]
pub(crate) fn anew<T>(place: *mut T) -> *mut T {
    let mut place = place;
    // SAFETY: one move of a register to itself, that may have changed all memory for all LLVM knows.
    unsafe { asm!("{0} = {0}", inout(reg) place, options(nostack)) };
    place
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

/// The stack pointer at a probe. LLVM would compute where it is and load it later, and the verifier allows no
/// address into the registers.
#[inline(always)]
pub(crate) fn sp(regs: &pt_regs) -> u64 {
    // SAFETY: a field of the program's own context.
    unsafe { core::ptr::read_volatile(&raw const regs.rsp) }
}

/// The argument whose position the cookie gives, or 0 (System V AMD64 ABI: rdi, rsi, rdx, rcx).
#[inline(always)]
pub(crate) fn argument(regs: &pt_regs, cookie: u64, field: ArgField) -> u64 {
    // Five loads at fixed offsets, then a choice: LLVM would choose the address and load once,
    // and the verifier allows no variable offset into the registers.
    // SAFETY: fields of the program's own context.
    let [first, second, third, fourth, fifth] = unsafe {
        [
            core::ptr::read_volatile(&raw const regs.rdi),
            core::ptr::read_volatile(&raw const regs.rsi),
            core::ptr::read_volatile(&raw const regs.rdx),
            core::ptr::read_volatile(&raw const regs.rcx),
            core::ptr::read_volatile(&raw const regs.r8),
        ]
    };
    match Site::arg_of(cookie, field) {
        0 => first,
        1 => second,
        2 => third,
        3 => fourth,
        4 => fifth,
        // `NO_ARG`; nobody asks for a sixth.
        _ => 0,
    }
}
