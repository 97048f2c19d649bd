//! Events of tracefs at the functions of AllocSets, which are deleted again whatever happens.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use xtask::process::{is_running, output};

use super::plan::{AllocSet, Place};

const TRACEFS: &str = "/sys/kernel/tracing";
/// What the names of our groups begin with, before the pid of who made them.
const GROUP: &str = "pgleak_bench_";
/// An event that is open in perf cannot be deleted, and perf's end takes a moment.
const PATIENCE: Duration = Duration::from_secs(10);
/// Registers of the arguments by position, System V ABI for x86_64, as tracefs calls them.
const ARGUMENTS: [&str; 6] = ["%di", "%si", "%dx", "%cx", "%r8", "%r9"];

/// A group of events. Dropping it deletes them.
pub(super) struct Events {
    list: PathBuf,
    group: String,
}

impl Events {
    /// Defines them; they do nothing until somebody opens them.
    pub(super) fn define(set: &AllocSet) -> Result<Self> {
        let list = Path::new(TRACEFS).join("uprobe_events");
        if !list.exists() {
            output(Command::new("mount").args(["-t", "tracefs", "nodev", TRACEFS]))?;
        }
        delete(&list, |owner| !is_running(owner));
        let events = Self { list, group: format!("{GROUP}{}", std::process::id()) };
        for line in definitions(&events.group, set) {
            append(&events.list, &line).with_context(|| format!("the kernel refuses the event `{line}`"))?;
        }
        Ok(events)
    }

    pub(super) fn group(&self) -> &str {
        &self.group
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while !delete(&self.list, |owner| owner == std::process::id()) {
            if Instant::now() > deadline {
                eprintln!("events of {} could not be deleted from {}", self.group, self.list.display());
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Deletes the events of our groups whose maker is meant; whether all of them are gone.
fn delete(list: &Path, meant: impl Fn(u32) -> bool) -> bool {
    let text = fs::read_to_string(list).unwrap_or_default();
    let ours = text.lines().filter_map(event).filter(|(owner, _)| meant(*owner));
    // Each on its own: one may still be in use. `and` must not end at the first.
    ours.fold(true, |all, (_, event)| append(list, &format!("-:{event}")).is_ok() && all)
}

/// Whose event it is, and its name, from a line of the list: `p:GROUP/NAME FILE:OFFSET …`.
fn event(line: &str) -> Option<(u32, &str)> {
    let name = line.split_once(':')?.1.split(' ').next()?;
    let owner = name.strip_prefix(GROUP)?.split_once('/')?.0.parse().ok()?;
    Some((owner, name))
}

fn append(list: &Path, line: &str) -> Result<()> {
    // One write: the kernel reads each as whole commands.
    let mut file = OpenOptions::new().append(true).open(list)?;
    file.write_all(format!("{line}\n").as_bytes())?;
    Ok(())
}

/// The entries with what pgleak reads there, and the returns that it needs.
fn definitions(group: &str, set: &AllocSet) -> Vec<String> {
    let file = set.binary.display();
    let at = |place: &Place| format!("{file}:{:#x}", place.probed);
    let argument = |name: &str, index: u8| {
        ARGUMENTS
            .get(usize::from(index))
            .map_or_else(String::new, |register| format!(" {name}={register}:u64"))
    };
    let entry = |name: &str, place: &Place| {
        let arguments = argument("chunk", place.pointer_arg) + &argument("size", place.size_arg);
        format!("p:{group}/{name} {}{arguments}", at(place))
    };
    let exit = |name: &str, place: &Place| format!("r:{group}/{name}_return {} chunk=$retval:u64", at(place));
    vec![
        entry("alloc", &set.alloc),
        exit("alloc", &set.alloc),
        entry("free", &set.free),
        entry("realloc", &set.realloc),
        exit("realloc", &set.realloc),
        entry("reset", &set.reset),
        entry("delete", &set.delete),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_where_pgleak_probes() {
        let lines = definitions("pgleak_bench_7", &AllocSet::made_up());
        assert_eq!(lines.len(), 7);
        assert_eq!(lines[0], "p:pgleak_bench_7/alloc /srv/postgres:0x104 size=%si:u64");
        assert_eq!(lines[1], "r:pgleak_bench_7/alloc_return /srv/postgres:0x104 chunk=$retval:u64");
        assert_eq!(lines[3], "p:pgleak_bench_7/realloc /srv/postgres:0x304 chunk=%di:u64 size=%si:u64");
        assert_eq!(lines[6], "p:pgleak_bench_7/delete /srv/postgres:0x504");
    }

    #[test]
    fn only_our_events_are_ours() {
        assert_eq!(
            event("p:pgleak_bench_12/alloc /srv/postgres:0x104 size=%si:u64"),
            Some((12, "pgleak_bench_12/alloc"))
        );
        assert_eq!(event("p:probe_postgres/palloc /srv/postgres:0x104"), None);
        assert_eq!(event(""), None);
    }
}
