//! Events of tracefs at the functions of AllocSets, which are deleted again whatever happens.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};
use xtask::process::output;

use super::plan::{AllocSet, Place};

const TRACEFS: &str = "/sys/kernel/tracing";
/// Registers of the arguments by position, System V ABI for x86_64, as tracefs calls them.
const ARGUMENTS: [&str; 6] = ["%di", "%si", "%dx", "%cx", "%r8", "%r9"];

/// Deletes all events of the group `$2` from the list `$1` as soon as its input ends, and so however the process ends
/// that made them. One that is still open in perf cannot be deleted yet, which may take a moment.
const DELETER: &str = r#"
while read -r _; do :; done
tries=0
while events=$(grep -o "^[pr]:$2/[^ ]*" "$1"); do
    [ $tries -lt 500 ] || exit 1
    for event in $events; do echo "-:${event#?:}" >> "$1"; done 2>/dev/null
    tries=$((tries + 1))
    sleep 0.02
done
"#;

/// A group of events. Dropping it deletes them.
pub(super) struct Events {
    list: PathBuf,
    group: String,
    deleter: Child,
}

impl Events {
    /// Defines them; they do nothing until somebody opens them.
    pub(super) fn define(set: &AllocSet) -> Result<Self> {
        let list = Path::new(TRACEFS).join("uprobe_events");
        if !list.exists() {
            output(Command::new("mount").args(["-t", "tracefs", "nodev", TRACEFS]))?;
        }
        let group = format!("pgleak_bench_{}", std::process::id());
        let mut deleter = Command::new("sh");
        deleter.args(["-c", DELETER, "sh"]).arg(&list).arg(&group).stdin(Stdio::piped());
        // Ctrl-C is not for it.
        let deleter = deleter.process_group(0).spawn().context("cannot start sh")?;
        let events = Self { list, group, deleter };
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
        drop(self.deleter.stdin.take());
        if !self.deleter.wait().is_ok_and(|status| status.success()) {
            eprintln!("events of {} could not be deleted from {}", self.group, self.list.display());
        }
    }
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
}
