//! What a running pgleak takes: its own memory, its kernel maps, its processor time.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How often it is looked at.
const EACH: Duration = Duration::from_millis(10);

/// The most that was seen.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// Peak resident memory (`VmHWM`), mapped files included.
    pub(crate) peak_bytes: u64,
    /// The most memory of its own (`RssAnon`).
    pub(crate) anon_bytes: u64,
    /// `memlock` of all its maps.
    pub(crate) map_bytes: u64,
    /// Processor time, user and system.
    pub(crate) cpu_ns: u64,
}

/// Looks at a process until that is over.
pub(crate) struct Watch {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Usage>,
}

impl Watch {
    pub(crate) fn start(pid: u32) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&over);
        let thread = thread::spawn(move || {
            let mut usage = Usage::default();
            while !is_over.load(Ordering::Relaxed) {
                usage.look(pid);
                thread::sleep(EACH);
            }
            usage
        });
        Self { over, thread }
    }

    pub(crate) fn end(self) -> Usage {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}

impl Usage {
    fn look(&mut self, pid: u32) {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let kib = |label: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(label));
            line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) << 10
        };
        self.peak_bytes = self.peak_bytes.max(kib("VmHWM:"));
        self.anon_bytes = self.anon_bytes.max(kib("RssAnon:"));
        self.map_bytes = self.map_bytes.max(map_bytes(pid));
        self.cpu_ns = self.cpu_ns.max(cpu_ns(pid));
    }
}

/// `memlock` of each map of the process, by `/proc/PID/fdinfo`.
fn map_bytes(pid: u32) -> u64 {
    let mut maps: BTreeMap<u64, u64> = BTreeMap::new();
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else { return 0 };
    for entry in entries.flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        let of = |label: &str| {
            text.lines().find_map(|line| line.strip_prefix(label)).and_then(|rest| rest.trim().parse().ok())
        };
        if let (Some(id), Some(bytes)) = (of("map_id:"), of("memlock:")) {
            maps.insert(id, bytes);
        }
    }
    maps.values().sum()
}

/// Processor time of all its threads that are there.
pub(crate) fn cpu_ns(pid: u32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let each = threads.filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    each.sum()
}
