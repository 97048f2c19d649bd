//! Somebody else's unwinder over the same bytes: framehop, which shares no code with ours.

use std::collections::HashMap;
use std::sync::Arc;

use framehop::{
    ExplicitModuleSectionInfo, FrameAddress, Module, Unwinder as _,
    x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64},
};
use pgleak::{bpf::RawSample, elf::Image, target::LoadedModules};
use tracer_ebpf::{abi::MAX_FRAMES, unwind::StackReader as _};

/// framehop with the objects of one process.
pub(crate) struct Reference {
    unwinder: UnwinderX86_64<Arc<[u8]>>,
    cache: CacheX86_64,
}

/// Why framehop's stack ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The bottom of the stack.
    Bottom,
    /// As many frames as we keep.
    Truncated,
    /// The bytes that were copied end here.
    OutOfBytes,
    /// It cannot go on.
    Failed(framehop::Error),
}

impl Reference {
    pub(crate) fn new(modules: &LoadedModules) -> Self {
        let mut unwinder = UnwinderX86_64::new();
        for module in modules.modules() {
            let sections = sections(&module.image);
            for (start, end) in &module.ranges {
                let name = module.path.display().to_string();
                unwinder.add_module(Module::new(name, start.0..end.0, module.bias.0, sections.clone()));
            }
        }
        Self { unwinder, cache: CacheX86_64::new() }
    }

    /// The stack of a sample, innermost first.
    pub(crate) fn stack(&mut self, sample: &RawSample) -> (Vec<u64>, End) {
        let mut ran_out = false;
        let mut bytes = sample.stack.clone();
        let mut read = |address| {
            let word = bytes.read_word(address).ok_or(());
            ran_out |= word.is_err();
            word
        };
        let regs = sample.regs;
        let mut unwound = UnwindRegsX86_64::new(regs.pc, regs.sp, regs.bp);
        let mut at = match regs.is_return {
            0 => FrameAddress::from_instruction_pointer(regs.pc),
            _ => FrameAddress::from_return_address(regs.pc).unwrap(),
        };
        let mut frames = vec![regs.pc];
        let end = loop {
            // The probe's cookie stands for one frame.
            if frames.len() + 1 == MAX_FRAMES {
                break End::Truncated;
            }
            match self.unwinder.unwind_frame(at, &mut unwound, &mut self.cache, &mut read) {
                Ok(Some(caller)) => match FrameAddress::from_return_address(caller) {
                    Some(caller) => at = caller,
                    None => break End::Bottom,
                },
                Ok(None) => break End::Bottom,
                Err(_) if ran_out => break End::OutOfBytes,
                Err(error) => break End::Failed(error),
            }
            frames.push(at.address());
        };
        (frames, end)
    }
}

fn sections(image: &Image) -> ExplicitModuleSectionInfo<Arc<[u8]>> {
    let mut found: HashMap<&str, _> = HashMap::new();
    for name in [".text", ".got", ".eh_frame", ".eh_frame_hdr"] {
        if let Some((address, bytes)) = image.section(name) {
            found.insert(name, (address.0..address.0 + bytes.len() as u64, bytes));
        }
    }
    let range = |name| found.get(name).map(|(range, _)| range.clone());
    let data = |name| found.get(name).map(|(_, bytes)| Arc::from(*bytes));
    ExplicitModuleSectionInfo {
        base_svma: 0,
        text_svma: range(".text"),
        got_svma: range(".got"),
        eh_frame_svma: range(".eh_frame"),
        eh_frame: data(".eh_frame"),
        eh_frame_hdr_svma: range(".eh_frame_hdr"),
        eh_frame_hdr: data(".eh_frame_hdr"),
        ..ExplicitModuleSectionInfo::default()
    }
}
