//! The process: what it is, what it has mapped, what is in its memory.

mod cgroup;
mod list;
mod maps;
mod memory;
mod modules;
mod process;
mod procfs;
mod resident;
mod root;
mod smaps;
mod table;
mod title;

pub use cgroup::{CgroupMemory, cgroup_memory, mem_available_bytes};
pub use list::{Finder, Growth, ServerProcess, find_servers, measure_growth, server_process, sort_by_growth};
pub use maps::{DeviceInode, Mapping, MappingPath, Maps, parse_maps, read_maps};
pub use memory::{ProcessMemory, ReadMemory};
pub use modules::{Images, LoadedModule, LoadedModules, ModuleNote, VDSO};
pub use process::{
    Binary, CpuTime, Memory, ProcessError, ProcessId, command_line, cpu_time, exe_link, stat, status,
};
pub use procfs::{Seccomp, Stat, Status};
pub use root::read_in_root;
pub use smaps::{Rollup, rollup};
pub use table::{human_bytes, human_rate, render_table};
pub use title::{CLIENT_BACKEND, KINDS, POSTMASTER, Title, parse_title};

#[cfg(test)]
pub(crate) mod testing {
    pub(crate) use super::list::tests::server;
}
