//! The functions from the memory of a running server: `TopMemoryContext` leads to its methods.

use object::{Object as _, ObjectSection as _, SectionFlags, elf};

use super::{FoundBy, LocatedFunction, MethodFailure, locate::located, symbols::exported};
use crate::{
    addr::{AbsAddr, Bias, VirtAddr},
    catalog::{Layout, Method, MethodsAt},
    elf::{ElfError, FunctionRange, Image},
    target::ReadMemory,
};

const WORD: u64 = 8;
const TOP_CONTEXT: &str = "TopMemoryContext";

/// A running server whose binary is looked at.
#[derive(Clone, Copy)]
pub struct LiveProcess<'a> {
    /// Its memory.
    pub memory: &'a dyn ReadMemory,
    /// Where it has the server binary mapped.
    pub bias: Bias,
}

impl std::fmt::Debug for LiveProcess<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveProcess").field("bias", &self.bias).finish_non_exhaustive()
    }
}

impl LiveProcess<'_> {
    fn word(&self, what: &'static str, address: AbsAddr) -> Result<u64, MethodFailure> {
        self.memory.word(address).map_err(|source| MethodFailure::Read { what, address, source })
    }
}

/// Where a server binary has its variable `TopMemoryContext`.
///
/// # Errors
/// If it does not export it.
pub fn top_context_variable(image: &Image) -> Result<VirtAddr, MethodFailure> {
    exported(image, TOP_CONTEXT)
}

/// The process's `TopMemoryContext`, which is an AllocSet by construction (`MemoryContextInit`).
struct Top {
    /// Its node tag.
    tag: u32,
    /// Its methods.
    table: AbsAddr,
}

/// Reads it, and checks that it is what the layout says.
fn top_context(image: &Image, layout: &Layout, live: LiveProcess<'_>) -> Result<Top, MethodFailure> {
    let variable = top_context_variable(image)?.in_process(live.bias);
    let context = AbsAddr(live.word("TopMemoryContext", variable)?);
    if context.0 == 0 {
        return Err(MethodFailure::NotStarted);
    }
    // The tag is the first four bytes of the first word.
    let tag = live.word("the node tag", context)? as u32;
    if let Some(expected) = layout.alloc_set.node_tag.known()
        && tag != expected
    {
        return Err(MethodFailure::WrongTag { expected, seen: tag });
    }
    let parent = live.word("the parent of TopMemoryContext", context.offset(layout.context.parent))?;
    if parent != 0 {
        return Err(MethodFailure::HasParent { seen: AbsAddr(parent) });
    }
    let name_at = live.word("the name of TopMemoryContext", context.offset(layout.context.name))?;
    let name = live.memory.string(AbsAddr(name_at), TOP_CONTEXT.len() + 1).map_err(|source| {
        MethodFailure::Read { what: "the name of TopMemoryContext", address: AbsAddr(name_at), source }
    })?;
    if name != TOP_CONTEXT {
        return Err(MethodFailure::WrongName { seen: name });
    }
    let table = match layout.context.methods {
        MethodsAt::Embedded(offset) => context.offset(offset),
        MethodsAt::Pointer(offset) => {
            let table = AbsAddr(live.word("the methods of TopMemoryContext", context.offset(offset))?);
            if !is_data(image, table.in_object(live.bias))? {
                return Err(MethodFailure::TableOutside { address: table });
            }
            table
        }
    };
    Ok(Top { tag, table })
}

/// The row that the process confirms, with what only it tells; the first if it confirms none, which
/// [`locate`](super::locate) then refuses. There is one at least ([`layouts_of`](crate::catalog::layouts_of)).
pub fn row_of(image: &Image, rows: &[Layout], live: Option<LiveProcess<'_>>) -> Layout {
    let confirmed = live.and_then(|live| {
        rows.iter().find_map(|row| Some(row.with_top_tag(top_context(image, row, live).ok()?.tag)))
    });
    confirmed.unwrap_or_else(|| rows[0])
}

/// By the method table of the process's `TopMemoryContext`: every version.
///
/// # Errors
/// If the memory cannot be read, or what is there is not the top context of this version.
pub fn by_live_process(
    image: &Image,
    layout: &Layout,
    ranges: &[FunctionRange],
    live: LiveProcess<'_>,
) -> Result<Vec<LocatedFunction>, MethodFailure> {
    let Top { table, .. } = top_context(image, layout, live)?;
    layout
        .alloc_set
        .methods
        .iter()
        .map(|Method { function, table_index }| {
            let at = table.offset(*table_index as u64 * WORD);
            let address = AbsAddr(live.word(function.symbol, at)?).in_object(live.bias);
            let found = located(image, ranges, function, address, FoundBy::LiveProcess)?;
            same_code(image, &found, live)?;
            Ok(found)
        })
        .collect()
}

/// What a uprobe puts in the place of an instruction's first byte.
const INT3: u8 = 0xcc;

/// Whether the process runs the code that the file holds: a probe is set by file offset, and in
/// another build that may be the middle of an instruction. Probes of other tools are no
/// difference.
fn same_code(image: &Image, function: &LocatedFunction, live: LiveProcess<'_>) -> Result<(), MethodFailure> {
    let what = function.name();
    let address = function.address.in_process(live.bias);
    let expected = usize::try_from(function.size.unwrap_or(WORD))
        .ok()
        .and_then(|size| image.bytes_at(function.address, size))
        .unwrap_or_default();
    let mut code = vec![0; expected.len()];
    live.memory.read(address, &mut code).map_err(|source| MethodFailure::Read { what, address, source })?;
    match code.iter().zip(expected).position(|(live, file)| live != file && *live != INT3) {
        Some(at) => Err(MethodFailure::CodeDiffers { what, address: address.offset(at as u64) }),
        None => Ok(()),
    }
}

/// Whether an address lies in what the binary loads besides code. Sections, since old linkers
/// put constants into the executable segment.
fn is_data(image: &Image, address: VirtAddr) -> Result<bool, ElfError> {
    let parsed = image.elf()?;
    Ok(parsed.sections().any(|section| {
        let SectionFlags::Elf { sh_flags } = section.flags() else { return false };
        let kept = sh_flags & u64::from(elf::SHF_ALLOC) != 0;
        let code = sh_flags & u64::from(elf::SHF_EXECINSTR) != 0;
        let inside = address.0.checked_sub(section.address()).is_some_and(|at| at < section.size());
        kept && !code && inside
    }))
}
