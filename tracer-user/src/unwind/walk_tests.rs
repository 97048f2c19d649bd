//! Walks of stacks made by hand, and of this process's own against those of libgcc.

use std::{
    arch::asm,
    cell::RefCell,
    ffi::{c_int, c_void},
    hint::black_box,
    mem, ptr,
};

use tracer_ebpf::{
    abi::MAX_FRAMES,
    unwind::{Registers, StackReader, WalkEnd},
};

use super::{
    OpenCall, Surroundings, Walked,
    fixture::{ENTRY, OwnMemory, OwnProcess, Section, mapped_at},
    walk,
};

const BIAS: u64 = 0x5555_0000_0000;
const SP: u64 = 0x7ffc_0000_0000;
const ALLOCATOR: u64 = BIAS + 0x9990;
/// A function whose frame is 16 bytes.
const PLAIN: u64 = BIAS + 0x410;
/// The first function of a stack.
const START: u64 = BIAS + 0x510;
/// Code between functions.
const GAP: u64 = BIAS + 0x610;
/// Code with a rule that is not followed.
const ODD: u64 = BIAS + 0x710;
/// Code that no mapping holds.
const ELSEWHERE: u64 = 0x1234_5678;
/// Inside of the area that return probes return to.
const TRAMPOLINE: u64 = 0x7fff_ffff_e010;

/// Words upwards of [`SP`].
struct Words(Vec<u64>);

impl StackReader for Words {
    fn read_words(&mut self, address: u64, into: &mut [u64; 8]) -> bool {
        into.iter_mut().enumerate().all(|(number, word)| {
            self.read_word(address.wrapping_add(8 * number as u64)).map(|read| *word = read).is_some()
        })
    }

    fn read_word(&mut self, address: u64) -> Option<u64> {
        let at = address.checked_sub(SP)? / 8;
        self.0.get(usize::try_from(at).ok()?).copied()
    }
}

/// Walks from a return into [`PLAIN`], whose callers' return addresses are `callers`.
fn walked(callers: &[u64], open_calls: &[OpenCall]) -> Walked {
    let mut section = Section::default();
    let cie = section.cie("", ENTRY);
    section.fde(cie, 0x400, 0x100, &[0x0e, 16]);
    section.fde(cie, 0x500, 0x100, &[0x07, 16]);
    section.fde(cie, 0x700, 0x100, &[0x0c, 10, 0]);
    let table = section.table().expect("sound").expect("functions");
    let (atlas, mapset) = mapped_at(BIAS, &table);
    let trampoline = (TRAMPOLINE & !0xfff, (TRAMPOLINE & !0xfff) + 0x1000);
    let around = Surroundings { atlas: &atlas, mapset: &mapset, trampoline, open_calls };
    let words = callers.iter().flat_map(|address| [0xdead, *address]).collect();
    let regs = Registers { pc: PLAIN, sp: SP, bp: 0, is_return: 1 };
    walk(around, ALLOCATOR, regs, &mut Words(words))
}

fn frames(callers: &[u64]) -> Vec<u64> {
    [ALLOCATOR, PLAIN].iter().chain(callers).copied().collect()
}

#[test]
fn every_end() {
    for (callers, kept, end) in [
        (&[PLAIN, START][..], 2, WalkEnd::Bottom),
        (&[PLAIN, 0], 1, WalkEnd::Bottom),
        (&[PLAIN, ELSEWHERE, PLAIN], 2, WalkEnd::UnknownMapping),
        (&[GAP, PLAIN], 1, WalkEnd::NoRow),
        (&[ODD, PLAIN], 1, WalkEnd::Unsupported),
        (&[PLAIN, PLAIN], 2, WalkEnd::Read),
        (&[PLAIN, TRAMPOLINE, PLAIN], 2, WalkEnd::LostReturn),
    ] {
        assert_eq!(walked(callers, &[]), Walked { frames: frames(&callers[..kept]), end }, "{callers:x?}");
    }
}

/// A call may be its function's last instruction, so a return address belongs to the byte before.
#[test]
fn a_return_address_after_the_end_of_a_function_is_that_functions() {
    assert_eq!(walked(&[BIAS + 0x500, START], &[]).end, WalkEnd::Bottom);
    assert_eq!(walked(&[BIAS + 0x500, START], &[]).frames, frames(&[BIAS + 0x500, START]));
    assert_eq!(walked(&[BIAS + 0x501, START], &[]).frames, frames(&[BIAS + 0x501]), "one further is not");
    assert_eq!(walked(&[BIAS + 0x600], &[]).end, WalkEnd::Bottom);
}

/// As the kernel: the frame after the last slot is looked for and not kept; one that would end
/// the stack in the last slot ends it.
#[test]
fn more_frames_than_are_kept() {
    let deep = |count: usize, last: u64| {
        let mut callers = vec![PLAIN; count - 3];
        callers.push(last);
        walked(&callers, &[])
    };
    assert_eq!(MAX_FRAMES, 127);
    for (count, end) in [(126, WalkEnd::Bottom), (127, WalkEnd::Bottom), (128, WalkEnd::Truncated)] {
        let walked = deep(count, START);
        assert_eq!((walked.frames.len(), walked.end), (count.min(127), end));
    }
    assert_eq!(deep(127, 0).frames.len(), 126, "a return address of zero is no frame");
    assert_eq!(deep(128, 0).end, WalkEnd::Bottom, "nor one too many");
    assert_eq!(deep(128, ELSEWHERE).end, WalkEnd::Truncated, "the limit comes before the look-up");
}

#[test]
fn what_a_return_probe_hides_is_uncovered() {
    let slot = SP + 24;
    let open = |sp, return_address| OpenCall { sp, return_address };
    let callers = [PLAIN, TRAMPOLINE, START];
    let uncovered = Walked { frames: frames(&[PLAIN, PLAIN + 1, START]), end: WalkEnd::Bottom };
    assert_eq!(walked(&callers, &[open(SP, 5), open(slot, PLAIN + 1)]), uncovered);
    assert_eq!(walked(&callers, &[open(slot, 5), open(slot, PLAIN + 1), open(slot, 0)]), uncovered);
    assert_eq!(walked(&callers, &[open(slot + 8, PLAIN)]).end, WalkEnd::LostReturn);
    let wrong = Walked { frames: frames(&[PLAIN, ELSEWHERE]), end: WalkEnd::UnknownMapping };
    assert_eq!(walked(&callers, &[open(slot, ELSEWHERE)]), wrong);
}

/// libgcc's unwinder (Itanium C++ ABI, "Exception Handling", 1.6), which std links.
#[repr(C)]
struct UnwindContext {
    _private: [u8; 0],
}

unsafe extern "C" {
    fn _Unwind_Backtrace(
        each: extern "C" fn(*mut UnwindContext, *mut c_void) -> c_int,
        data: *mut c_void,
    ) -> c_int;
    fn _Unwind_GetIP(context: *mut UnwindContext) -> usize;
}

extern "C" fn note_frame(context: *mut UnwindContext, data: *mut c_void) -> c_int {
    // SAFETY: `data` is the list that `look` passes, and `context` libgcc's for this call.
    unsafe { (*data.cast::<Vec<u64>>()).push(_Unwind_GetIP(context) as u64) };
    0
}

/// The callers of one place as both unwinders find them.
struct Views {
    ours: Walked,
    theirs: Vec<u64>,
}

thread_local! {
    static VIEWS: RefCell<Option<Views>> = const { RefCell::new(None) };
}

/// Walks the stack from here with both.
#[inline(never)]
fn look() {
    let own = OwnProcess::read();
    let mut theirs = Vec::<u64>::new();
    // SAFETY: `note_frame` takes the list, which outlives the call.
    unsafe { _Unwind_Backtrace(note_frame, (&raw mut theirs).cast()) };
    let (pc, sp, bp): (u64, u64, u64);
    // SAFETY: reads registers only. No push or pop lies between the three.
    unsafe {
        asm!("lea {pc}, [rip]", "mov {sp}, rsp", "mov {bp}, rbp",
            pc = out(reg) pc, sp = out(reg) sp, bp = out(reg) bp, options(nomem, nostack, preserves_flags));
    }
    let regs = Registers { pc, sp, bp, is_return: 0 };
    let ours = walk(own.surroundings(), 0, regs, &mut OwnMemory);
    VIEWS.set(Some(Views { ours, theirs }));
}

/// The frames above [`look`], which both must have found, down to the thread's first function.
fn same_callers() -> Vec<u64> {
    let Views { ours, mut theirs } = VIEWS.take().expect("a look was taken");
    // libgcc tells of the caller of the first function, which is 0.
    if theirs.last() == Some(&0) {
        theirs.pop();
    }
    assert_eq!(ours.end, WalkEnd::Bottom, "{:x?}", ours.frames);
    // Ours are a function that was not called and the place in `look`; theirs another place there.
    assert_eq!(ours.frames[2..], theirs[1..], "{:x?}\n{theirs:x?}", ours.frames);
    ours.frames[2..].to_vec()
}

#[inline(never)]
fn deeper(levels: usize, then: fn()) -> usize {
    if levels == 0 {
        then();
        return black_box(0);
    }
    // Frames of several sizes; what is done after the call keeps it from being a jump.
    let room = black_box([levels; 5]);
    deeper(levels - 1, then) + room[levels % 5]
}

extern "C" fn compare(_: *const c_void, _: *const c_void) -> c_int {
    if VIEWS.with_borrow(Option::is_none) {
        look();
    }
    0
}

fn in_libc(frames: &[u64]) -> usize {
    let own = OwnProcess::read();
    let libc = own.modules.modules().iter().find(|module| module.path.to_string_lossy().contains("libc.so"));
    let libc = libc.expect("this process has glibc");
    frames.iter().filter(|frame| libc.contains(crate::addr::AbsAddr(**frame))).count()
}

#[test]
fn own_stack_through_a_recursion() {
    deeper(0, look);
    let shallow = same_callers().len();
    deeper(40, look);
    assert_eq!(same_callers().len(), shallow + 40);
}

#[test]
fn own_stack_through_a_callback_of_libc() {
    deeper(0, look);
    let usual = in_libc(&same_callers());
    deeper(7, || {
        let mut values = [3u64, 1, 2];
        // SAFETY: three values of eight bytes, and a function that reads none of them.
        unsafe { libc::qsort(values.as_mut_ptr().cast(), 3, 8, Some(compare)) };
    });
    let found = in_libc(&same_callers());
    assert!(found > usual, "{found} frames in libc, {usual} without a callback");
}

#[test]
fn own_stack_deeper_than_is_kept() {
    deeper(200, look);
    let Views { ours, theirs } = VIEWS.take().expect("a look was taken");
    assert_eq!((ours.frames.len(), ours.end), (MAX_FRAMES, WalkEnd::Truncated));
    assert_eq!(ours.frames[2..], theirs[1..MAX_FRAMES - 1]);
}

extern "C" fn handle(_: c_int) {
    // The signal is one that this thread raises, so nothing is interrupted in the middle.
    look();
}

/// Raises a signal below seven frames, and looks at the stack in its handler.
fn look_from_a_handler(flags: c_int) -> Vec<u64> {
    let handler: extern "C" fn(c_int) = handle;
    // SAFETY: plain C structures, for which zero is a value; a handler that stays in the program.
    let before = unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = handler as usize;
        action.sa_flags = flags;
        let mut before = mem::zeroed();
        assert_eq!(libc::sigaction(libc::SIGUSR1, &action, &mut before), 0);
        before
    };
    deeper(7, || {
        // SAFETY: has no preconditions.
        assert_eq!(unsafe { libc::raise(libc::SIGUSR1) }, 0);
    });
    // SAFETY: puts back what was there.
    unsafe { libc::sigaction(libc::SIGUSR1, &before, ptr::null_mut()) };
    same_callers()
}

/// One test, because the handler belongs to the whole process.
#[test]
fn own_stack_through_the_kernels_signal_frame() {
    deeper(0, look);
    let usual = same_callers().len();
    let frames = look_from_a_handler(0);
    // The handler, the trampoline, at least one function of libc, the closure, the seven.
    assert!(frames.len() >= usual + 10, "{} frames, {usual} without a signal", frames.len());

    // And from another stack: below the signal frame the stack pointer goes elsewhere.
    let mut room = vec![0u8; 1 << 20];
    let other = libc::stack_t { ss_sp: room.as_mut_ptr().cast(), ss_flags: 0, ss_size: room.len() };
    // SAFETY: room that outlives the handler's use of it; what was there is put back.
    let before = unsafe {
        let mut before = mem::zeroed();
        assert_eq!(libc::sigaltstack(&other, &mut before), 0);
        before
    };
    let elsewhere = look_from_a_handler(libc::SA_ONSTACK);
    // SAFETY: as above.
    unsafe { libc::sigaltstack(&before, ptr::null_mut()) };
    assert_eq!(elsewhere.len(), frames.len());
}
