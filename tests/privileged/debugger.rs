//! A second opinion: gdb, with an unwinder of its own, at a hardware breakpoint (uprobes of others in the
//! same file swallow those of software) on the same statements in the same process.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use pgleak::{probe::ProbeSite, session::prepare, target::exe_link};
use pgleak_tests::{
    Build, Session,
    sampling::{Sampling, alloc_site},
};
use tempfile::TempDir;
use tracer_ebpf::unwind::WalkEnd;

use crate::{
    common::{assert_no_probe_is_left, server},
    differential::{WORK_ONCE, warm_session},
};

/// Stacks that one run of the statements has and another has not. Not every run allocates at the same
/// places: it was one of 850 to 900 when this was written, the next time another.
const MOST_ODD: usize = 5;

/// Code addresses, innermost first.
pub(crate) type Stacks = BTreeSet<Vec<u64>>;

/// Writes every stack at a breakpoint to a file, until another file is there.
const SCRIPT: &str = r#"
import gdb, os, sys
for setting in ["pagination off", "confirm off", "backtrace past-main on", "backtrace past-entry on",
                "backtrace limit unlimited", "debuginfod enabled off", "auto-load off"]:
    gdb.execute("set " + setting)
gdb.execute("handle all nostop noprint pass")
gdb.execute("attach " + os.environ["GDB_PID"])
stacks = open(os.environ["GDB_STACKS"], "w")
class Site(gdb.Breakpoint):
    def stop(self):
        if os.path.exists(os.environ["GDB_END"]):
            return True
        frame, pcs = gdb.newest_frame(), []
        while frame is not None:
            pcs.append("%x" % frame.pc())
            frame = frame.older()
        stacks.write(" ".join(pcs) + "\n")
        return False
Site("*" + os.environ["GDB_SITE"], type=gdb.BP_HARDWARE_BREAKPOINT)
print("at work", flush=True)
gdb.execute("continue")
stacks.close()
gdb.execute("detach")
print("detached", flush=True)
"#;

/// gdb at work. Dropping it kills it, and the kernel lets its process go.
struct Gdb {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    dir: TempDir,
}

impl Gdb {
    fn attach(pid: u32, instruction: u64) -> Self {
        let dir = TempDir::new().unwrap();
        let script = dir.path().join("script.py");
        fs::write(&script, SCRIPT).unwrap();
        // A breakpoint that is never hit would be waited for without end.
        let mut command = Command::new("timeout");
        command
            .args(["--signal=KILL", "120", "gdb", "-q", "-nx", "-batch", "-x"])
            .arg(&script)
            .env("GDB_PID", pid.to_string())
            .env("GDB_SITE", format!("{instruction:#x}"))
            .env("GDB_STACKS", dir.path().join("stacks"))
            .env("GDB_END", dir.path().join("end"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut gdb = Self { child, lines, dir };
        gdb.hear("at work");
        gdb
    }

    fn hear(&mut self, expected: &str) {
        assert!(self.lines.any(|line| line.unwrap() == expected), "gdb did not say {expected:?}");
    }

    /// Says that the next hit is the last.
    fn end(&self) {
        File::create(self.dir.path().join("end")).unwrap();
    }

    fn stacks(mut self) -> Stacks {
        self.hear("detached");
        parse(&self.dir.path().join("stacks"))
    }
}

impl Drop for Gdb {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn parse(file: &Path) -> Stacks {
    let text = fs::read_to_string(file).unwrap();
    let address = |word: &str| u64::from_str_radix(word, 16).unwrap();
    text.lines().map(|line| line.split(' ').map(address).collect()).collect()
}

/// The stacks of one run of the statements, from the kernel.
pub(crate) fn sampled(session: &mut Session, site: &ProbeSite) -> Stacks {
    let pid = session.backend_pid();
    let mut sampling = Sampling::of(pid).unwrap();
    sampling.attach(&exe_link(pid), site.offset, false, 0).unwrap();
    sampling.begin();
    let mut stacks = Stacks::new();
    let mut count = 0;
    thread::scope(|scope| {
        let work = scope.spawn(|| session.run(WORK_ONCE).unwrap());
        loop {
            // Looked at first: what the work has done by then is in the ring.
            let ended = work.is_finished();
            while let Some(sample) = sampling.sampler.next_sample() {
                assert_eq!(sample.end, Some(WalkEnd::Bottom));
                stacks.insert(sample.frames);
                count += 1;
            }
            if ended {
                break;
            }
        }
    });
    let hits = sampling.tracer.site_hits().unwrap()[0].entries;
    assert_eq!(count, hits, "the ring was full");
    stacks
}

#[test]
fn gdb_sees_the_same_stacks() {
    for build in [Build::packaged(15).unwrap(), Build::npm(18).unwrap()] {
        let server = server(&build);
        let mut session = warm_session(&server);
        let prepared = prepare(session.backend_pid(), None).unwrap();
        let site = alloc_site(&prepared.plan).unwrap();
        let ours = sampled(&mut session, site);
        assert_no_probe_is_left(session.backend_pid());
        let gdb = Gdb::attach(session.backend_pid(), site.probe.in_process(prepared.bias).0);
        session.run(WORK_ONCE).unwrap();
        gdb.end();
        session.run("select 1").unwrap();
        let theirs = gdb.stacks();
        let only = |one: &Stacks, other: &Stacks| one.difference(other).cloned().collect::<Vec<_>>();
        let (only_ours, only_theirs) = (only(&ours, &theirs), only(&theirs, &ours));
        println!("{}: {} different stacks of the kernel, {} of gdb", build.name, ours.len(), theirs.len());
        println!("only the kernel's: {only_ours:x?}\nonly gdb's: {only_theirs:x?}");
        assert!(theirs.len() > 500, "{}", theirs.len());
        assert!(only_ours.len() <= MOST_ODD && only_theirs.len() <= MOST_ODD, "{}", build.name);
    }
}
