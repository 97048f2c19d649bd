//! Memory: what pgleak takes must fit, and pgleak goes first when the host runs short.

use std::{fs, io};

/// The share of what is available that pgleak may take: one part in this many.
const SHARE: u64 = 4;

/// Not enough memory to trace without risk.
#[derive(Debug, thiserror::Error)]
#[error(
    "the kernel maps and pgleak itself would take {needed_mib} MiB, and {source_name} leaves {available_mib} MiB, of which pgleak takes a quarter at the most; give less with --map-memory"
)]
pub struct MemoryError {
    /// What they take.
    pub needed_mib: u64,
    /// What there is.
    pub available_mib: u64,
    /// Who says so.
    pub source_name: &'static str,
}

/// Whether `bytes` of kernel maps and own memory can be taken without harm: against the host's `MemAvailable`, and
/// against what pgleak's own cgroup, which is charged for them, has left (`None`: no limit).
///
/// # Errors
/// If they would take more than a quarter of either.
pub fn check(bytes: u64, mem_available: Option<u64>, cgroup_left: Option<u64>) -> Result<(), MemoryError> {
    let limits =
        [(mem_available, "MemAvailable of this host"), (cgroup_left, "the memory limit of pgleak's cgroup")];
    for (available, source_name) in limits {
        if let Some(available) = available
            && bytes > available / SHARE
        {
            return Err(MemoryError {
                needed_mib: bytes.div_ceil(1 << 20),
                available_mib: available >> 20,
                source_name,
            });
        }
    }
    Ok(())
}

/// Makes pgleak the first process that the kernel ends when memory runs out.
///
/// # Errors
/// If the kernel refuses, which leaves things as they were.
pub fn go_first_when_memory_is_short() -> io::Result<()> {
    fs::write("/proc/self/oom_score_adj", "1000")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_of_either_is_the_most() {
        assert!(check(64 << 20, Some(256 << 20), None).is_ok());
        let error = check(64 << 20, Some(255 << 20), None).expect_err("too much");
        assert!(error.to_string().contains("255 MiB") && error.to_string().contains("--map-memory"));
        assert!(check(64 << 20, Some(1 << 40), Some(128 << 20)).is_err());
        assert!(check(64 << 20, None, None).is_ok());
    }
}
