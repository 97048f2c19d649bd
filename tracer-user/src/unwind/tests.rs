//! Tables of this very process, and stacks of its own threads.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    ffi::{c_int, c_void},
    ops::Range,
    path::Path,
    sync::Mutex,
};

use object::{Object as _, ObjectSymbol as _, SymbolKind};
use tracer_ebpf::{
    abi::{MAX_FRAMES, MapSet},
    unwind::{Registers, RowKind, WalkEnd},
};

use super::{Atlas, MappedObject, StackMemory, UnwindTable, Walked, build_mapset, check, walk};
use crate::{
    addr::{AbsAddr, FileOffset, VirtAddr},
    elf::{FrameSectionError, Image, function_ranges},
    target::{ProcessMemory, ReadMemory as _},
};

/// This process, as the kernel would know it.
struct Own {
    atlas: Atlas,
    set: Box<MapSet>,
    memory: ProcessMemory,
}

impl Own {
    fn new() -> Self {
        let memory = ProcessMemory::new(std::process::id());
        let (mut atlas, mut mapped) = (Atlas::new(), Vec::new());
        for line in std::fs::read_to_string("/proc/self/maps").unwrap().lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [range, access, offset, _, _, path] = fields[..] else { continue };
            if !access.contains('x') {
                continue;
            }
            let (start, end) = range.split_once('-').unwrap();
            let number = |digits| u64::from_str_radix(digits, 16).unwrap();
            let (start, end, offset) =
                (AbsAddr(number(start)), AbsAddr(number(end)), FileOffset(number(offset)));
            let image = if path.starts_with('/') {
                Image::open(Path::new(path), Path::new(path)).unwrap()
            } else if path == "[vdso]" {
                let mut bytes = vec![0; (end.0 - start.0) as usize];
                memory.read(start, &mut bytes).unwrap();
                Image::from_bytes(bytes, Path::new(path)).unwrap()
            } else {
                continue;
            };
            let bias = image.code_bias(start, offset).unwrap();
            let placement = UnwindTable::build(&image).unwrap().map(|table| atlas.add(&table).unwrap());
            mapped.push(MappedObject { start, end, bias, placement });
        }
        Self { set: build_mapset(&mapped).unwrap(), atlas, memory }
    }

    fn walk(&self, regs: Registers) -> Walked {
        walk(&self.atlas, &self.set, regs, &mut StackMemory(&self.memory))
    }
}

/// The registers where it stands.
macro_rules! registers {
    () => {{
        let (pc, sp, bp): (u64, u64, u64);
        // SAFETY: reads three registers, and writes those that the compiler gives.
        unsafe {
            std::arch::asm!(
                "lea {pc}, [rip]",
                "mov {sp}, rsp",
                "mov {bp}, rbp",
                pc = out(reg) pc,
                sp = out(reg) sp,
                bp = out(reg) bp,
                options(nomem, nostack, preserves_flags)
            );
        }
        Registers { pc, sp, bp, is_return: 0 }
    }};
}

unsafe extern "C" {
    // The unwinder that Rust's own panics use: libgcc's.
    fn _Unwind_Backtrace(
        callback: extern "C" fn(*mut c_void, *mut c_void) -> c_int,
        argument: *mut c_void,
    ) -> c_int;
    fn _Unwind_GetIP(context: *mut c_void) -> usize;
}

/// Code addresses above the caller, by libgcc.
#[inline(never)]
fn reference() -> Vec<u64> {
    extern "C" fn keep(context: *mut c_void, frames: *mut c_void) -> c_int {
        // SAFETY: libgcc passes its own context, and the pointer that is given below.
        unsafe { (*frames.cast::<Vec<u64>>()).push(_Unwind_GetIP(context) as u64) };
        0
    }
    let mut frames: Vec<u64> = Vec::new();
    // SAFETY: `keep` has the type that is wanted, and `frames` outlives the call.
    unsafe { _Unwind_Backtrace(keep, (&raw mut frames).cast()) };
    // This function and its caller come first; the bottom has the address 0.
    frames.drain(..2);
    frames.retain(|frame| *frame != 0);
    frames
}

/// Walks from here, and has libgcc do the same.
#[inline(never)]
fn both(own: &Own) -> (Walked, Vec<u64>) {
    let regs = registers!();
    let mut walked = own.walk(regs);
    // The first one is this line, and libgcc's is the line below.
    walked.frames.remove(0);
    (walked, reference())
}

fn assert_same((walked, expected): (Walked, Vec<u64>), at_least: usize) {
    assert_eq!(walked.frames, expected, "{walked:x?}\n{expected:x?}");
    assert_eq!(walked.end, WalkEnd::Bottom);
    assert!(walked.frames.len() >= at_least, "{walked:x?}");
}

#[test]
fn own_stack_down_to_the_start_of_the_thread() {
    let own = Own::new();
    assert_same(both(&own), 5);
    let inner = std::thread::scope(|scope| scope.spawn(|| both(&own)).join().unwrap());
    assert_same(inner, 5);
}

#[test]
fn own_stack_through_a_callback_of_libc() {
    struct Found(Own, Option<(Walked, Vec<u64>)>);
    static FOUND: Mutex<Option<Found>> = Mutex::new(None);
    extern "C" fn compare(_: *const c_void, _: *const c_void) -> c_int {
        let mut found = FOUND.lock().unwrap();
        let found = found.as_mut().unwrap();
        found.1 = Some(both(&found.0));
        0
    }
    *FOUND.lock().unwrap() = Some(Found(Own::new(), None));
    let mut numbers = [2_u64, 1];
    // SAFETY: two elements of 8 bytes, and a comparison that looks at neither.
    unsafe { libc::qsort(numbers.as_mut_ptr().cast(), 2, 8, Some(compare)) };
    let stacks = FOUND.lock().unwrap().take().unwrap().1.expect("qsort compares two elements");
    assert_same(stacks, 8);
}

#[test]
fn own_stack_through_a_signal_handler() {
    struct Found(Own, Option<(Walked, Vec<u64>)>);
    static FOUND: Mutex<Option<Found>> = Mutex::new(None);
    extern "C" fn handler(_: c_int) {
        // Raised by the thread itself where it holds no lock, so this may do what it likes.
        let mut found = FOUND.lock().unwrap();
        let found = found.as_mut().unwrap();
        found.1 = Some(both(&found.0));
    }
    *FOUND.lock().unwrap() = Some(Found(Own::new(), None));
    // SAFETY: the handler has the type that signal(2) wants; nobody else uses this signal.
    unsafe {
        libc::signal(libc::SIGUSR2, handler as *const () as libc::sighandler_t);
        libc::raise(libc::SIGUSR2);
    }
    let Found(own, stacks) = FOUND.lock().unwrap().take().unwrap();
    let (walked, expected) = stacks.expect("raise returns after the handler");
    let is_signal = |pc: u64| {
        let set = &own.set;
        let range = &set.ranges[tracer_ebpf::lookup::find_range(set, pc - 1)];
        let placement = super::Placement { first_page: range.first_page, page_count: range.page_count };
        own.atlas
            .find(placement, AbsAddr(pc - 1).in_object(crate::addr::Bias(range.bias)))
            .is_some_and(|row| row.info().kind() == RowKind::SignalFrame as u32)
    };
    assert_eq!(walked.frames.iter().filter(|pc| is_signal(**pc)).count(), 1);
    assert_same((walked, expected), 9);
}

/// Below the signal frame the stack pointer goes to another stack, which may lie anywhere.
#[test]
fn own_stack_through_a_handler_on_a_stack_of_its_own() {
    struct Found(Own, usize, Option<(Walked, Vec<u64>)>);
    static FOUND: Mutex<Option<Found>> = Mutex::new(None);
    extern "C" fn handler(_: c_int) {
        // As above: raised where no lock is held.
        let mut found = FOUND.lock().unwrap();
        let found = found.as_mut().unwrap();
        found.1 = registers!().sp as usize;
        found.2 = Some(both(&found.0));
    }
    *FOUND.lock().unwrap() = Some(Found(Own::new(), 0, None));
    let mut room = vec![0_u8; 1 << 20];
    let handler: extern "C" fn(c_int) = handler;
    // SAFETY: plain C structures for which zero is a value, and room that outlives its use as a
    // stack; what was there before is put back. Nobody else uses this signal.
    unsafe {
        let stack = libc::stack_t { ss_sp: room.as_mut_ptr().cast(), ss_flags: 0, ss_size: room.len() };
        let mut before = std::mem::zeroed();
        assert_eq!(libc::sigaltstack(&stack, &mut before), 0);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_ONSTACK;
        let signal = libc::SIGRTMAX();
        assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
        assert_eq!(libc::raise(signal), 0);
        assert_eq!(libc::sigaltstack(&before, std::ptr::null_mut()), 0);
    }
    let Found(_, sp, stacks) = FOUND.lock().unwrap().take().unwrap();
    assert!(room.as_ptr_range().contains(&(sp as *const u8)), "the handler ran elsewhere");
    assert_same(stacks.expect("raise returns after the handler"), 9);
}

#[test]
fn own_stack_that_is_too_deep() {
    #[inline(never)]
    fn deep(own: &Own, left: u32) -> (Walked, Vec<u64>) {
        if left == 0 { both(own) } else { std::hint::black_box(deep(own, left - 1)) }
    }
    let (walked, expected) = deep(&Own::new(), 200);
    assert_eq!((walked.frames.len(), walked.end), (MAX_FRAMES - 1, WalkEnd::Truncated));
    assert_eq!(walked.frames, expected[..MAX_FRAMES - 1]);
}

#[test]
fn every_row_of_this_binary_and_libc_is_what_gimli_says() {
    let mut atlas = Atlas::new();
    let mut compared = Vec::new();
    for path in ["/proc/self/exe", "/lib/x86_64-linux-gnu/libc.so.6"] {
        let image = Image::open(Path::new(path), Path::new(path)).unwrap();
        let table = UnwindTable::build(&image).unwrap().unwrap();
        assert_eq!((table.stats.broken_fdes, table.stats.unread_bytes), (0, 0), "{path}");
        let placement = atlas.add(&table).unwrap();
        compared.push((path, image, placement));
    }
    for (path, image, placement) in compared {
        let found = check::compare(&image, &atlas, placement).unwrap();
        assert!(found.wrong_rows.is_empty(), "{path}: {found:?}");
        assert!(found.wrong_steps.is_empty(), "{path}: {found:?}");
        let assembly = assembly_of_ring(&image);
        let compiled =
            check::compare_some(&image, &atlas, placement, |address| !assembly.contains(&address)).unwrap();
        assert!(
            compiled.addresses > 10_000 && compiled.unsupported * 1000 < compiled.addresses,
            "{path}: {compiled:?}"
        );
    }
}

/// Where ring's code is, if the linker has found a use for it: by hand, and with rules that no compiler writes.
fn assembly_of_ring(image: &Image) -> Range<VirtAddr> {
    let elf = image.elf().unwrap();
    let ring = elf.symbols().filter(|symbol| {
        symbol.kind() == SymbolKind::Text && symbol.name().is_ok_and(|name| name.starts_with("ring_core"))
    });
    let ends = ring.map(|symbol| symbol.address()..symbol.address() + symbol.size());
    let all = ends.reduce(|all, one| all.start.min(one.start)..all.end.max(one.end)).unwrap_or(0..0);
    // Nothing else lies between them.
    assert!(all.end - all.start < 1 << 20, "{all:x?}");
    VirtAddr(all.start)..VirtAddr(all.end)
}

/// This binary with its ELF header changed.
fn changed(change: impl FnOnce(&mut [u8])) -> Image {
    let mut bytes = std::fs::read("/proc/self/exe").unwrap();
    change(&mut bytes);
    Image::from_bytes(bytes, Path::new("changed")).unwrap()
}

/// Takes the section headers away: e_shoff, then e_shentsize, e_shnum and e_shstrndx.
fn without_sections(bytes: &mut [u8]) {
    bytes[40..48].fill(0);
    bytes[58..64].fill(0);
}

#[test]
fn without_section_headers_the_table_is_the_same() {
    let own = Image::open(Path::new("/proc/self/exe"), Path::new("own")).unwrap();
    let stripped = changed(without_sections);
    assert!(stripped.section(".eh_frame").is_none());
    let (with, without) = (UnwindTable::build(&own).unwrap(), UnwindTable::build(&stripped).unwrap());
    assert!(with.is_some() && with == without);
    assert_eq!(function_ranges(&own), function_ranges(&stripped));
}

#[test]
fn a_damaged_way_to_the_section_is_an_error() {
    let header = |bytes: &[u8]| {
        let count = usize::from(u16::from_le_bytes([bytes[56], bytes[57]]));
        (0..count)
            .map(|at| 64 + at * 56)
            .find(|at| bytes[*at..at + 4] == 0x6474_e550_u32.to_le_bytes())
            .unwrap()
    };
    let outside = changed(|bytes| {
        without_sections(bytes);
        let at = header(bytes);
        bytes[at + 16..at + 24].copy_from_slice(&u64::MAX.to_le_bytes());
    });
    let found = UnwindTable::build(&outside);
    assert!(
        matches!(found, Err(super::TableError::Section(FrameSectionError::OutsideFile { .. }))),
        "{found:?}"
    );
    let version = changed(|bytes| {
        without_sections(bytes);
        let at = header(bytes);
        let offset = u64::from_le_bytes(bytes[at + 8..at + 16].try_into().unwrap());
        bytes[offset as usize] = 9;
    });
    let found = UnwindTable::build(&version);
    assert!(matches!(found, Err(super::TableError::Section(FrameSectionError::Header { .. }))), "{found:?}");
    // Neither sections nor the header: like a library without functions.
    let neither = changed(|bytes| {
        without_sections(bytes);
        let at = header(bytes);
        bytes[at..at + 4].fill(0);
    });
    assert!(UnwindTable::build(&neither).unwrap().is_none());
}
