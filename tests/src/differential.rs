//! The walk in the kernel against framehop: the same registers and the same bytes of the stack.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use framehop::{
    ExplicitModuleSectionInfo, FrameAddress, Module, Unwinder as _,
    x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64},
};
use pgleak::{
    bpf::{Attached, Limits, Probe, RawSample, Tracer},
    session::{Mappings, Prepared, prepare},
    target::{LoadedModules, exe_link},
};
use tracer_ebpf::{site::Role, unwind::WalkEnd};

/// How stacks are sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// At the allocator's return, as captures do, or at its entry.
    pub at_return: bool,
    /// Whether every walk starts anew.
    pub anew: bool,
}

/// All four.
pub const MODES: [Mode; 4] = [
    Mode { at_return: true, anew: false },
    Mode { at_return: true, anew: true },
    Mode { at_return: false, anew: false },
    Mode { at_return: false, anew: true },
];

/// What was compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Stacks that agree from the innermost frame to the bottom.
    pub whole: u64,
    /// Stacks that agree as far as their bytes were sampled.
    pub cut: u64,
    /// Frames that agree.
    pub frames: u64,
    /// Frames that were taken over from the walk before.
    pub taken_over: u64,
}

/// A ring of this size holds some thousand samples.
const RING_BYTES: u32 = 64 << 20;

/// Samples stacks of the process at `AllocSetAlloc` and compares so many of them. Fails at the
/// first difference.
pub fn compare(pid: u32, mode: Mode, wanted: u64, patience: Duration) -> Result<Compared> {
    let mut prepared = prepare(pid)?;
    let (rows, pages) = prepared.mappings.table_sizes();
    let mut limits = Limits::within(64 << 20, rows, pages).context("64 MiB are enough for any server")?;
    limits.sample_bytes = RING_BYTES;
    let mut tracer = Tracer::load(limits, prepared.plan.layout.context.name)?;
    let mut samples = tracer.load_sampler()?;
    prepared.mappings.upload(&tracer)?;
    tracer.control().walk_anew(mode.anew);
    let attached = attach(&mut tracer, pid, &prepared, mode.at_return)?;
    let mut framehop = Framehop::new(prepared.mappings.modules());
    let mut modules = prepared.mappings.modules().modules().len();
    let mut compared = Compared::default();
    let deadline = Instant::now() + patience;
    while compared.whole + compared.cut < wanted {
        if Instant::now() > deadline {
            bail!("only {compared:?} of {wanted} stacks in {patience:?}");
        }
        let Some(sample) = samples.take() else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        if sample.end == Some(WalkEnd::UnknownMapping) {
            // A library was opened: what was sampled until the kernel knows it is cut there.
            modules = look_again(&mut prepared.mappings, &tracer, &mut framehop, modules);
            continue;
        }
        framehop.check(&sample, &mut compared)?;
    }
    drop(attached);
    Ok(compared)
}

fn attach(tracer: &mut Tracer, pid: u32, prepared: &Prepared, at_return: bool) -> Result<Attached> {
    let site = prepared.plan.sites.iter().find(|site| site.site.role == Role::Alloc).context("a site")?;
    let (function, cookie) = (site.function.name, site.site.pack());
    let probe = Probe { function, role: Role::Alloc, offset: site.offset, cookie };
    let mut attached = Attached::default();
    attached.add_sampler(tracer, pid, &exe_link(pid), probe, at_return)?;
    Ok(attached)
}

fn look_again(mappings: &mut Mappings, tracer: &Tracer, framehop: &mut Framehop, known: usize) -> usize {
    mappings.look_again(tracer);
    let now = mappings.modules().modules().len();
    if now != known {
        *framehop = Framehop::new(mappings.modules());
    }
    now
}

/// The reference.
struct Framehop {
    unwinder: UnwinderX86_64<Vec<u8>>,
    cache: CacheX86_64<framehop::MayAllocateDuringUnwind>,
}

impl Framehop {
    fn new(modules: &LoadedModules) -> Self {
        let mut unwinder = UnwinderX86_64::new();
        for module in modules.modules() {
            let section = |name| module.image.section(name);
            let range = |name| section(name).map(|(start, bytes)| start.0..start.0 + bytes.len() as u64);
            let bytes = |name| section(name).map(|(_, bytes)| bytes.to_vec());
            let (Some(start), Some(end)) = (
                module.ranges.iter().map(|(start, _)| start.0).min(),
                module.ranges.iter().map(|(_, end)| end.0).max(),
            ) else {
                continue;
            };
            unwinder.add_module(Module::new(
                module.path.display().to_string(),
                start..end,
                // So that an address less this and plus `base_svma` is the object's own.
                module.bias.0,
                ExplicitModuleSectionInfo {
                    base_svma: 0,
                    text_svma: range(".text"),
                    eh_frame_svma: range(".eh_frame"),
                    eh_frame: bytes(".eh_frame"),
                    eh_frame_hdr_svma: range(".eh_frame_hdr"),
                    eh_frame_hdr: bytes(".eh_frame_hdr"),
                    got_svma: range(".got"),
                    ..ExplicitModuleSectionInfo::default()
                },
            ));
        }
        Self { unwinder, cache: CacheX86_64::new() }
    }

    /// Unwinds the sample; `true` if it got to the end of the stack.
    fn unwind(&mut self, sample: &RawSample) -> (Vec<u64>, bool) {
        let sp = sample.regs.sp;
        let mut read = |address: u64| {
            let at = usize::try_from(address.wrapping_sub(sp)).map_err(drop)?;
            let bytes = sample.stack.get(at..at.checked_add(8).ok_or(())?).ok_or(())?;
            Ok(u64::from_le_bytes(bytes.try_into().map_err(drop)?))
        };
        // At a return, framehop is told of the caller as of a frame like others: it looks a return
        // address up by the instruction before it.
        let mut regs = UnwindRegsX86_64::new(sample.regs.pc, sp, sample.regs.bp);
        let mut frames = vec![sample.regs.pc];
        let mut address = if sample.regs.is_return == 1 {
            FrameAddress::from_return_address(sample.regs.pc)
        } else {
            Some(FrameAddress::from_instruction_pointer(sample.regs.pc))
        };
        while let Some(frame) = address {
            match self.unwinder.unwind_frame(frame, &mut regs, &mut self.cache, &mut read) {
                Ok(Some(caller)) => {
                    frames.push(caller);
                    address = FrameAddress::from_return_address(caller);
                }
                Ok(None) => return (frames, true),
                Err(_) => return (frames, false),
            }
        }
        (frames, false)
    }

    fn check(&mut self, sample: &RawSample, compared: &mut Compared) -> Result<()> {
        // The first frame is the probed function itself, which is not unwound.
        let ours = sample.frames.get(1..).unwrap_or_default();
        let (theirs, whole) = self.unwind(sample);
        let differs = || {
            let show =
                |frames: &[u64]| frames.iter().map(|pc| format!("{pc:#x}")).collect::<Vec<_>>().join(" ");
            format!(
                "walk and framehop differ:\n  kernel   {:?} {}\n  framehop {} {}\n  {:x?}, {} bytes of stack, {} frames taken over",
                sample.end,
                show(ours),
                if whole { "whole" } else { "cut" },
                show(&theirs),
                sample.regs,
                sample.stack.len(),
                sample.taken_over,
            )
        };
        if whole {
            if sample.end != Some(WalkEnd::Bottom) || ours != theirs {
                bail!(differs());
            }
            compared.whole += 1;
        } else {
            if sample.stack.len() < tracer_ebpf::abi::SAMPLE_BYTES / 2 || !ours.starts_with(&theirs) {
                bail!(differs());
            }
            compared.cut += 1;
        }
        compared.frames += theirs.len() as u64;
        compared.taken_over += u64::from(sample.taken_over);
        Ok(())
    }
}
