//! The functions of AllocSets, for tools whose probes are written down as text.

use std::path::PathBuf;

use ::pgleak::session::Prepared;
use anyhow::{Context as _, Result};
use tracer_ebpf::site::Role;

/// What these tools trace: they have no way to a chunk's kind of context, so one kind alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AllocSet {
    pub(super) binary: PathBuf,
    pub(super) alloc: Place,
    pub(super) free: Place,
    pub(super) realloc: Place,
    pub(super) reset: Place,
    pub(super) delete: Place,
}

/// One function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The address of its first instruction, as the file says.
    pub(super) entry: u64,
    /// Where in the file the instruction is that pgleak probes.
    pub(super) probed: u64,
    /// Which of its arguments is the chunk, and which its size.
    pub(super) pointer_arg: u8,
    pub(super) size_arg: u8,
}

impl AllocSet {
    /// The methods of AllocSets come first in a plan.
    pub(super) fn of(prepared: &Prepared) -> Result<Self> {
        let at = |role: Role| -> Result<Place> {
            let mut sites = prepared.plan.sites.iter();
            let site = sites
                .find(|site| site.site.role == role)
                .with_context(|| format!("the plan has no site of {role:?}"))?;
            Ok(Place {
                entry: site.function.address.0,
                probed: site.offset.0,
                pointer_arg: site.site.pointer_arg,
                size_arg: site.site.size_arg,
            })
        };
        Ok(Self {
            binary: prepared.binary.path.clone(),
            alloc: at(Role::Alloc)?,
            free: at(Role::Free)?,
            realloc: at(Role::Realloc)?,
            reset: at(Role::Reset)?,
            delete: at(Role::Delete)?,
        })
    }

    /// One whose functions are at round addresses.
    #[cfg(test)]
    pub(super) fn made_up() -> Self {
        let place = |entry, pointer_arg, size_arg| Place { entry, probed: entry + 4, pointer_arg, size_arg };
        Self {
            binary: "/srv/postgres".into(),
            alloc: place(0x100, 0xff, 1),
            free: place(0x200, 0, 0xff),
            realloc: place(0x300, 0, 1),
            reset: place(0x400, 0xff, 0xff),
            delete: place(0x500, 0xff, 0xff),
        }
    }
}
