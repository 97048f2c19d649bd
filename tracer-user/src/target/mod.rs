//! The process: what it is, what it has mapped, what is in its memory.

mod cgroup;
mod maps;
mod memory;
mod modules;
mod process;
mod procfs;
mod title;

pub use cgroup::{CgroupMemory, cgroup_memory, mem_available_bytes};
pub use maps::{DeviceInode, Mapping, MappingPath, Maps, parse_maps, read_maps};
pub use memory::{ProcessMemory, ReadMemory};
pub use modules::{LoadedModule, LoadedModules, ModuleNote, VDSO};
pub use process::{
    Binary, Memory, ProcessError, ProcessId, command_line, cpu_time_ns, exe_link, stat, status,
};
pub use procfs::{Seccomp, Stat, Status};
pub use title::{CLIENT_BACKEND, POSTMASTER, Title, parse_title};
