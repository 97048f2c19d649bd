//! What a probe costs on this machine, measured on pgleak itself.

use std::{hint::black_box, path::Path, time::Instant};

use tracer_ebpf::site::Role;

use crate::{
    addr::{AbsAddr, FileOffset},
    bpf::{AttachError, Attached, Probe, Tracer},
    elf::{ElfError, Image},
    target::{ProcessError, read_maps},
};

/// Nanoseconds that one hit costs the process.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProbeCosts {
    /// An entry probe on an instruction that the kernel emulates.
    pub emulated_ns: f64,
    /// An entry probe on one that it must single-step.
    pub stepped_ns: f64,
    /// A return probe, beside the entry's.
    pub return_ns: f64,
    /// Walking a stack and storing a chunk, beside the traps.
    pub record_ns: f64,
}

/// The part of what recording takes that is left of it where most allocations are left out for their size: 0.2 to 0.3 of
/// 1.0 µs with `--sample 4K` and more.
const OF_A_PART: f64 = 0.3;

impl ProbeCosts {
    /// The same if most allocations are left out for their size.
    pub fn of_a_part(self, is_part: bool) -> Self {
        Self { record_ns: self.record_ns * if is_part { OF_A_PART } else { 1.0 }, ..self }
    }
}

/// Why the costs cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum CalibrateError {
    /// pgleak's own file.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// pgleak's own mappings.
    #[error(transparent)]
    Maps(#[from] ProcessError),
    /// pgleak's own code is nowhere.
    #[error("cannot find pgleak's own code in its mappings")]
    NotMapped,
    /// A probe on pgleak.
    #[error(transparent)]
    Attach(#[from] AttachError),
}

/// Recording an allocation takes at most about this many times what an emulated trap takes: 19 frames, three of them
/// walked, 0.8 to 1.0 µs beside 0.7 on 6.18 in a virtual machine; both scale with the processor.
const RECORD_PER_TRAP: f64 = 1.5;

/// Calls of one batch: a fraction of a millisecond, so that some batch is not interrupted.
const CALLS: u32 = 200;
/// Batches; the fastest counts, since everything else on the machine only adds.
const BATCHES: u32 = 20;

std::arch::global_asm!(
    ".text",
    ".balign 16",
    ".globl pgleak_calibrate_emulated",
    ".type pgleak_calibrate_emulated,@function",
    "pgleak_calibrate_emulated:",
    ".cfi_startproc",
    "push rbp",
    ".cfi_adjust_cfa_offset 8",
    "pop rbp",
    ".cfi_adjust_cfa_offset -8",
    "ret",
    ".cfi_endproc",
    ".size pgleak_calibrate_emulated, .-pgleak_calibrate_emulated",
    ".balign 16",
    ".globl pgleak_calibrate_stepped",
    ".type pgleak_calibrate_stepped,@function",
    "pgleak_calibrate_stepped:",
    ".cfi_startproc",
    "mov rax, rdi",
    "ret",
    ".cfi_endproc",
    ".size pgleak_calibrate_stepped, .-pgleak_calibrate_stepped",
);

unsafe extern "C" {
    /// Begins with an instruction that the kernel emulates.
    pub(super) fn pgleak_calibrate_emulated(argument: u64) -> u64;
    /// Begins with one that it single-steps.
    fn pgleak_calibrate_stepped(argument: u64) -> u64;
}

/// File offset of one of pgleak's own functions.
pub(super) fn own_offset(function: unsafe extern "C" fn(u64) -> u64) -> Result<FileOffset, CalibrateError> {
    let address = AbsAddr(function as usize as u64);
    let maps = read_maps(std::process::id())?;
    let mapping = maps.at(address).ok_or(CalibrateError::NotMapped)?;
    let image = Image::open(Path::new("/proc/self/exe"), Path::new("pgleak"))?;
    let bias = image.code_bias(mapping.start, mapping.offset).ok_or(CalibrateError::NotMapped)?;
    image.file_offset(address.in_object(bias)).ok_or(CalibrateError::NotMapped)
}

fn time(function: unsafe extern "C" fn(u64) -> u64) -> f64 {
    let batch = || {
        let start = Instant::now();
        for _ in 0..CALLS {
            // SAFETY: functions of this file that touch no memory but their stack.
            black_box(unsafe { function(1) });
        }
        start.elapsed().as_nanos() as f64 / f64::from(CALLS)
    };
    (0..BATCHES).map(|_| batch()).fold(f64::INFINITY, f64::min)
}

/// Measures with the very programs of the capture, switched off. The probes are taken away on a
/// thread of their own, which takes a tenth of a second.
///
/// # Errors
/// If pgleak cannot be probed.
pub fn measure(tracer: &mut Tracer) -> Result<ProbeCosts, CalibrateError> {
    let pid = std::process::id();
    let path = Path::new("/proc/self/exe");
    let emulated = own_offset(pgleak_calibrate_emulated)?;
    let stepped = own_offset(pgleak_calibrate_stepped)?;

    let entry = |function, offset| Probe { function, role: Role::Free, is_outside: false, offset, cookie: 0 };
    let mut entries = Attached::default();
    entries.add(tracer, Some(pid), path, entry("calibrate_emulated", emulated))?;
    entries.add(tracer, Some(pid), path, entry("calibrate_stepped", stepped))?;
    let emulated_ns = time(pgleak_calibrate_emulated);
    let stepped_ns = time(pgleak_calibrate_stepped);
    let mut returns = Attached::default();
    // The same entry program twice and the return program once: what is added is one return and
    // one more program on the same trap, which costs next to nothing.
    returns.add(
        tracer,
        Some(pid),
        path,
        Probe { role: Role::Alloc, ..entry("calibrate_emulated", emulated) },
    )?;
    let both_ns = time(pgleak_calibrate_emulated);
    std::thread::spawn(move || drop((entries, returns)));
    Ok(ProbeCosts {
        emulated_ns,
        stepped_ns,
        return_ns: (both_ns - emulated_ns).max(0.0),
        record_ns: emulated_ns * RECORD_PER_TRAP,
    })
}
