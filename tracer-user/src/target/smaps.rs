//! `/proc/PID/smaps_rollup`: what a process really has, page by page. The kernel walks the whole page table for it, which takes
//! tens of milliseconds with large shared buffers and keeps the process from mapping anything meanwhile: only on request.

use serde::Serialize;

use super::process::{ProcessError, read_proc};

/// What a process has, in bytes (proc_pid_smaps(5)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rollup {
    /// Resident.
    pub rss: u64,
    /// Resident, what is shared by several divided among them.
    pub pss: u64,
    /// The part of that in memory without a file.
    pub pss_anon: u64,
    /// The part of that in shared memory.
    pub pss_shmem: u64,
    /// Resident, its own and written to: what goes when it ends.
    pub private_dirty: u64,
    /// Resident without a file.
    pub anonymous: u64,
    /// The part of that in huge pages.
    pub anon_huge_pages: u64,
    /// In swap.
    pub swap: u64,
}

/// Asks the kernel.
///
/// # Errors
/// If there is no such process, or it may not be asked for.
pub fn rollup(pid: u32) -> Result<Rollup, ProcessError> {
    let text = read_proc(pid, "smaps_rollup")?;
    parse(&String::from_utf8_lossy(&text))
        .ok_or_else(|| ProcessError::Malformed { path: format!("/proc/{pid}/smaps_rollup").into() })
}

fn parse(text: &str) -> Option<Rollup> {
    let bytes = |key: &str| -> Option<u64> {
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    let or_none = |key| bytes(key).unwrap_or(0);
    Some(Rollup {
        rss: bytes("Rss")?,
        pss: bytes("Pss")?,
        pss_anon: or_none("Pss_Anon"),
        pss_shmem: or_none("Pss_Shmem"),
        private_dirty: or_none("Private_Dirty"),
        anonymous: or_none("Anonymous"),
        anon_huge_pages: or_none("AnonHugePages"),
        swap: or_none("Swap"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_told_apart() {
        let text = "55d0-7ffc ---p 00000000 00:00 0                          [rollup]\n\
                    Rss:               12776 kB\nPss:                3157 kB\nPss_Dirty:          1688 kB\n\
                    Pss_Anon:           1040 kB\nPss_File:           1469 kB\nPss_Shmem:           648 kB\n\
                    Private_Clean:         0 kB\nPrivate_Dirty:      1432 kB\nAnonymous:          2180 kB\n\
                    AnonHugePages:      2048 kB\nSwap:                 4 kB\nSwapPss:              0 kB\n";
        let kib = |kib: u64| kib * 1024;
        let rollup = Rollup {
            rss: kib(12776),
            pss: kib(3157),
            pss_anon: kib(1040),
            pss_shmem: kib(648),
            private_dirty: kib(1432),
            anonymous: kib(2180),
            anon_huge_pages: kib(2048),
            swap: kib(4),
        };
        assert_eq!(parse(text), Some(rollup));
        assert_eq!(parse(""), None);
    }

    #[test]
    fn the_kernel_answers() -> Result<(), ProcessError> {
        let own = rollup(std::process::id())?;
        assert!(own.rss >= own.pss && own.pss >= own.pss_anon && own.private_dirty > 0, "{own:?}");
        Ok(())
    }
}
