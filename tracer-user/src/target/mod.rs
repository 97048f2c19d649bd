//! The process: what it is, what it has mapped, what is in its memory.

mod maps;
mod memory;
mod process;
mod procfs;

pub use maps::{DeviceInode, Mapping, MappingPath, Maps, parse_maps, read_maps};
pub use memory::{ProcessMemory, ReadMemory};
pub use process::{
    Binary, Memory, ProcessError, ProcessId, command_line, cpu_time_ns, exe_link, stat, status,
};
pub use procfs::{Seccomp, Stat, Status};
