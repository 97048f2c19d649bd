//! What was measured on.

use std::fs;

/// Processor, memory, kernel and the version of pgleak.
pub(crate) fn describe() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let after = |text: &str, label: &str| {
        let line = text.lines().find(|line| line.starts_with(label))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let cpus = read("/proc/cpuinfo");
    let model = after(&cpus, "model name").unwrap_or_else(|| "an unknown processor".to_owned());
    let count = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let memory = after(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
    let memory = memory.trim_end_matches(" kB").parse::<u64>().unwrap_or(0).div_ceil(1 << 20);
    let release = read("/proc/sys/kernel/osrelease");
    // What follows the numbers is the builder's.
    let release = release.trim().split('-').next().unwrap_or_default().to_owned();
    format!(
        "{count} processors ({model}, a virtual machine shared with other work), {memory} GiB, Linux {release}, \
         pgleak {}",
        env!("CARGO_PKG_VERSION")
    )
}
