//! What is attached, one after another.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use pgleak::{
    bpf::{Attached, ContextNames, Limits, Mechanism, Probe, Tracer},
    probe::ProbeSite,
    session::{Prepared, prepare},
    target::exe_link,
};
use pgleak_tests::{findings::losses, pgleak::Running};
use tempfile::NamedTempFile;
use tracer_ebpf::site::Role;

/// A rival works for so long before it is looked at.
const WARM_UP: Duration = Duration::from_millis(300);
/// The longest that a rival may take to begin, or to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// A way to trace, or not to.
pub(crate) struct Rival {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    kind: Kind,
}

enum Kind {
    Nothing,
    /// Programs that do nothing, where pgleak has its probes.
    Empty {
        mechanism: Mechanism,
        only_frees: bool,
    },
    /// The program, with these arguments.
    Pgleak(&'static [&'static str]),
    /// The same in windows, which take their time.
    Low,
    /// The same job as far as bpftrace's language allows, at the first instructions of the functions.
    Bpftrace,
}

/// Nothing attached: what all others are measured against.
pub(crate) const NOTHING: &str = "nothing";
/// See [`RIVALS`].
pub(crate) const FLOOR: &str = "floor";
/// How long windows are looked at, and run: its windows come every few seconds.
const LOW_SECONDS: u64 = 30;

pub(crate) const RIVALS: [Rival; 10] = [
    Rival { name: NOTHING, what: "nothing attached", kind: Kind::Nothing },
    Rival {
        name: FLOOR,
        what: "the floor: empty programs where pgleak has its probes, perf links",
        kind: Kind::Empty { mechanism: Mechanism::PerfLinks, only_frees: false },
    },
    Rival {
        name: "floor-multi",
        what: "the same by uprobe_multi links",
        kind: Kind::Empty { mechanism: Mechanism::Multi, only_frees: false },
    },
    Rival {
        name: "floor-session",
        what: "the same by session links",
        kind: Kind::Empty { mechanism: Mechanism::Session, only_frees: false },
    },
    Rival {
        name: "floor-frees",
        what: "the floor without allocations and reallocations",
        kind: Kind::Empty { mechanism: Mechanism::PerfLinks, only_frees: true },
    },
    Rival { name: "pgleak", what: "pgleak capture, every allocation", kind: Kind::Pgleak(&[]) },
    Rival {
        name: "pgleak-multi",
        what: "the same by uprobe_multi links",
        kind: Kind::Pgleak(&["--attach", "multi"]),
    },
    Rival { name: "pgleak-perf", what: "the same by perf links", kind: Kind::Pgleak(&["--attach", "perf"]) },
    Rival { name: "pgleak-low", what: "pgleak capture --overhead low, for half a minute", kind: Kind::Low },
    Rival {
        name: "bpftrace",
        what: "bpftrace: sizes, user stacks, live pointers, no context resets; at the functions' first instruction",
        kind: Kind::Bpftrace,
    },
];

pub(crate) fn named(name: &str) -> Result<&'static Rival> {
    RIVALS.iter().find(|rival| rival.name == name).with_context(|| format!("no rival is called {name}"))
}

/// Something at work on a process, until it is ended.
pub(crate) enum Working {
    Nothing,
    Empty { _attached: Attached, _tracer: Box<Tracer> },
    Pgleak(Running),
    Bpftrace { child: Child, _script: NamedTempFile },
}

impl Rival {
    /// How long it works before it is looked at, and how long it is looked at where others are for so long.
    pub(crate) fn times(&self, others: Duration) -> (Duration, Duration) {
        match self.kind {
            // What comes before the first window is a part of it.
            Kind::Low => (Duration::ZERO, Duration::from_secs(LOW_SECONDS)),
            _ => (WARM_UP, others),
        }
    }

    /// Attaches it to a process; it works when this returns.
    pub(crate) fn begin(&self, pid: u32) -> Result<Working> {
        match self.kind {
            Kind::Nothing => Ok(Working::Nothing),
            Kind::Empty { mechanism, only_frees } => {
                let prepared = prepare(pid, None)?;
                empty(&prepared, mechanism, only_frees)
            }
            Kind::Pgleak(arguments) => {
                let mut all = vec!["--duration", "1h", "--settle", "0", "--force"];
                all.extend(arguments);
                pgleak(pid, &all, "recording for")
            }
            Kind::Low => {
                let seconds = format!("{}s", LOW_SECONDS + 1);
                pgleak(pid, &["--overhead", "low", "--duration", &seconds], "recording in windows")
            }
            Kind::Bpftrace => bpftrace(&prepare(pid, None)?),
        }
    }
}

fn pgleak(pid: u32, arguments: &[&str], begun: &str) -> Result<Working> {
    let running = Running::capture(pid, arguments)?;
    running.wait_for(begun, PATIENCE)?;
    Ok(Working::Pgleak(running))
}

impl Working {
    /// Takes it away, and says what it has lost.
    pub(crate) fn end(self) -> Result<Option<u64>> {
        match self {
            Self::Nothing | Self::Empty { .. } => Ok(None),
            Self::Pgleak(running) => {
                running.signal(libc::SIGINT)?;
                let finished = running.finish()?.success()?;
                let capture = finished.capture()?;
                Ok(Some(losses(&capture).iter().map(|(_, count)| count).sum()))
            }
            Self::Bpftrace { mut child, .. } => {
                xtask::process::signal(child.id(), libc::SIGKILL)?;
                child.wait()?;
                // The kernel takes the probes away after its end.
                thread::sleep(Duration::from_secs(1));
                Ok(None)
            }
        }
    }
}

fn empty(prepared: &Prepared, mechanism: Mechanism, only_frees: bool) -> Result<Working> {
    let pid = prepared.process.pid;
    let (rows, pages) = prepared.mappings.table_sizes();
    let limits = Limits::within(64 << 20, rows, pages).context("64 MiB are enough for any server")?;
    let names = ContextNames::of(&prepared.plan.layout);
    let mut tracer = Box::new(Tracer::load_for(limits, names, mechanism)?);
    tracer.load_nothing()?;
    let mut attached = Attached::default();
    for site in &prepared.plan.sites {
        let probe = Probe::of(site);
        if !(only_frees && probe.role.needs_return()) {
            attached.add_nothing(&mut tracer, Some(pid), &exe_link(pid), probe)?;
        }
    }
    Ok(Working::Empty { _attached: attached, _tracer: tracer })
}

fn bpftrace(prepared: &Prepared) -> Result<Working> {
    let script = NamedTempFile::with_suffix(".bt")?;
    std::fs::write(script.path(), bpftrace_script(prepared)?)?;
    let mut child = Command::new("bpftrace")
        .args(["--unsafe", "-B", "none", "-p", &prepared.process.pid.to_string()])
        .arg(script.path())
        .env("BPFTRACE_MAP_KEYS_MAX", "1000000")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // Warnings that the server is stripped.
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start bpftrace")?;
    let stdout = child.stdout.take().context("started with a pipe")?;
    // Whichever it attaches first: the script has one in front of all others and one behind them.
    let mut unseen = vec!["in front", "behind"];
    let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
    for line in lines.by_ref() {
        unseen.retain(|mark| *mark != line);
        if unseen.is_empty() {
            break;
        }
    }
    if !unseen.is_empty() {
        let _ = child.kill();
        child.wait()?;
        bail!("bpftrace ended before its probes were set");
    }
    // It ends when nobody reads what it goes on saying.
    thread::spawn(move || lines.for_each(drop));
    Ok(Working::Bpftrace { child, _script: script })
}

/// AllocSets only: its language has no way to a chunk's context when the chunk is freed.
fn bpftrace_script(prepared: &Prepared) -> Result<String> {
    let binary = prepared.binary.path.display();
    let at = |role: Role| -> Result<&ProbeSite> {
        let mut sites = prepared.plan.sites.iter();
        sites.find(|site| site.site.role == role).with_context(|| format!("no site of {role:?}"))
    };
    let place = |role: Role| Ok::<_, anyhow::Error>(format!("{binary}:{:#x}", at(role)?.function.address.0));
    let argument = |role: Role, pick: fn(&ProbeSite) -> u8| Ok::<_, anyhow::Error>(pick(at(role)?));
    let (alloc, free, realloc) = (place(Role::Alloc)?, place(Role::Free)?, place(Role::Realloc)?);
    let size = argument(Role::Alloc, |site| site.site.size_arg)?;
    let freed = argument(Role::Free, |site| site.site.pointer_arg)?;
    let (old, new_size) = (
        argument(Role::Realloc, |site| site.site.pointer_arg)?,
        argument(Role::Realloc, |site| site.site.size_arg)?,
    );
    let (reset, delete) = (place(Role::Reset)?, place(Role::Delete)?);
    Ok(format!(
        "interval:ms:100 {{ printf(\"in front\\n\"); }}\n\
         uprobe:{alloc} {{ @size[tid] = arg{size}; }}\n\
         uretprobe:{alloc} /@size[tid]/ {{ @bytes[retval] = @size[tid]; @stack[retval] = ustack(127); delete(@size[tid]); }}\n\
         uprobe:{free} {{ delete(@bytes[arg{freed}]); delete(@stack[arg{freed}]); }}\n\
         uprobe:{realloc} {{ @new[tid] = arg{new_size}; delete(@bytes[arg{old}]); delete(@stack[arg{old}]); }}\n\
         uretprobe:{realloc} /@new[tid]/ {{ @bytes[retval] = @new[tid]; @stack[retval] = ustack(127); delete(@new[tid]); }}\n\
         uprobe:{reset} {{ @resets[arg0] = count(); }}\n\
         uprobe:{delete} {{ @resets[arg0] = count(); }}\n\
         interval:ms:100 {{ printf(\"behind\\n\"); }}\n"
    ))
}
