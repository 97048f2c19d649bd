//! Everything up to attaching: which server, which functions, which probes.

use std::{path::PathBuf, sync::Arc};

use tracer_ebpf::site::{NO_ARG, Role, Tags};

use super::{
    LiveProcess, LocateError, LocatedFunction, ProbeSite, choose_site, code::Code64, constructor, locate,
    locate_others, row_of, site::jumps_to, symbols::exported_function,
};
use crate::{
    addr::VirtAddr,
    catalog::{CatalogError, Function, Kind, Layout, ServerVersion, identify, layouts_of},
    elf::{FunctionRange, Image, range_at},
};

/// The probes of a capture.
#[derive(Debug)]
pub struct ProbePlan {
    /// What the server is.
    pub version: ServerVersion,
    /// What the catalog says of it.
    pub layout: Arc<Layout>,
    /// The probes: the methods of AllocSets, of other kinds of contexts, then that of the constructors;
    /// a site's index is its place here.
    pub sites: Vec<ProbeSite>,
    /// Kinds of contexts whose methods were not found, and why: nothing in them is traced.
    pub not_followed: Vec<(Kind, LocateError)>,
    /// Code of the server that gets memory for blocks of contexts.
    pub block_makers: Vec<FunctionRange>,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The binary is not a server that is known.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The functions are not known.
    #[error(transparent)]
    Locate(#[from] LocateError),
    /// A function was found, but the file holds no code in its place.
    #[error("{path} holds no code of {name} at {address}; is the file damaged?")]
    NoCode {
        /// Which file.
        path: PathBuf,
        /// Which function.
        name: &'static str,
        /// Where it should be.
        address: VirtAddr,
    },
}

/// Plans the probes of a server. `ranges` are the binary's function ranges; with `live`, the
/// process must confirm what the file says.
///
/// Without the methods of AllocSets there is no plan; those of other kinds of contexts may be missing.
///
/// # Errors
/// If the server is unknown or its functions are.
pub fn plan(
    image: &Image,
    ranges: &[FunctionRange],
    live: Option<LiveProcess<'_>>,
) -> Result<ProbePlan, ProbeError> {
    let version = identify(image)?;
    let rows = layouts_of(&version)?;
    let layout = Arc::new(row_of(image, &rows, live));
    let mut functions = locate(image, &layout, ranges, live)?;
    let mut tags: Vec<u32> = layout.alloc_set.node_tag.known().into_iter().collect();
    let mut not_followed = Vec::new();
    for allocator in layout.other_allocators.iter().flatten() {
        match locate_others(image, allocator, ranges) {
            Ok(found) => {
                functions.extend(found);
                tags.extend(allocator.node_tag.known());
            }
            Err(why) => not_followed.push((allocator.kind, why)),
        }
    }
    if let Some(create) = &layout.create {
        // Which kind it is matters only if not all are followed, and its argument may be gone where the
        // cheapest probe is.
        let tag_arg = if not_followed.is_empty() { NO_ARG } else { create.tag_arg };
        let create = Function { tag_arg, ..*create };
        functions.push(constructor(image, &create, ranges).map_err(LocateError::Constructor)?);
    }
    let block_makers = block_makers(image, &layout, ranges, &functions);
    // Every major's tags fit; a test of the catalog holds it.
    let tags = Tags::of(&tags).unwrap_or(Tags::NONE);
    let sites = functions
        .into_iter()
        .zip(0..)
        .map(|(function, index)| {
            choose_site(image, ranges, function, tags, index).ok_or_else(|| ProbeError::NoCode {
                path: image.path().to_owned(),
                name: function.name(),
                address: function.address,
            })
        })
        .collect::<Result<_, _>>()?;
    Ok(ProbePlan { version, layout, sites, not_followed, block_makers })
}

/// The methods that allocate, with what they end in, and the constructors.
fn block_makers(
    image: &Image,
    layout: &Layout,
    ranges: &[FunctionRange],
    functions: &[LocatedFunction],
) -> Vec<FunctionRange> {
    let methods = functions
        .iter()
        .filter(|function| function.role().is_alloc() || function.role() == Role::Realloc)
        .filter_map(|function| range_at(ranges, function.address));
    let mut makers: Vec<FunctionRange> = methods
        .flat_map(|range| {
            let ends_in = Code64::of(image, range).map(|code| jumps_to(ranges, code)).unwrap_or_default();
            std::iter::once(range).chain(ends_in)
        })
        .collect();
    let constructors = layout.allocators().map(|allocator| allocator.constructor);
    makers.extend(constructors.filter_map(|name| exported_function(image, ranges, name).ok()));
    makers
}
