//! This process itself: how it keeps its memory small, and what it takes.

use std::{fs, sync::LazyLock};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::observe::process_time;
use crate::target::status;

/// What is free is given back from so many bytes on; larger pieces are mappings of their own. glibc raises both by itself, up
/// to 64 MiB, with the largest piece that was ever freed.
const MOST_SLACK: libc::c_int = 512 << 10;
const LARGE_PIECE: libc::c_int = 128 << 10;

/// What this process takes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Own {
    /// Processor seconds since it started.
    pub cpu_seconds: f64,
    /// Bytes that it has read from files, those of `/proc` among them (proc_pid_io(5)).
    pub read_bytes: u64,
    /// Anonymous memory.
    pub anon_bytes: u64,
}

impl Own {
    /// Now; what the kernel does not say is zero.
    pub(super) fn now() -> Self {
        let memory = status(std::process::id()).ok().and_then(|status| status.memory);
        Self {
            cpu_seconds: process_time().as_secs_f64(),
            read_bytes: read_bytes(),
            anon_bytes: memory.map_or(0, |memory| memory.rss_anon),
        }
    }
}

/// Threads that come and go would each leave a heap of their own behind, which is never given back.
pub(super) fn keep_memory_together() {
    // SAFETY: settings of the allocator, before there are other threads.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, MOST_SLACK);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_PIECE);
    }
}

/// Each server process takes a descriptor; most systems give 1024 to begin with, and far more to who asks. Without more, those
/// beyond are opened anew each time.
pub(super) fn have_many_files_open() {
    let limit = *FILES_AT_FIRST;
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::info!("the limit of open files stays as it is: {error}");
    }
}

/// The limit of open files that this was started with, for programs that may not bear more.
pub(super) static FILES_AT_FIRST: LazyLock<Rlimit> = LazyLock::new(|| getrlimit(Resource::Nofile));

/// Gives what the allocator holds for nobody back to the kernel.
pub(super) fn give_memory_back() {
    // SAFETY: it touches nothing that is in use.
    unsafe { libc::malloc_trim(0) };
}

fn read_bytes() -> u64 {
    let text = fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("rchar: "));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_takes_is_known() {
        let before = Own::now();
        assert!(before.cpu_seconds > 0.0 && before.anon_bytes > 0, "{before:?}");
        fs::read("/proc/self/exe").expect("its own file");
        assert!(Own::now().read_bytes > before.read_bytes + (1 << 20));
    }
}
