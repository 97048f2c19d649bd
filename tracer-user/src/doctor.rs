//! What works on this host and for one process, and what to do about what does not.

use std::{fmt, fs, path::Path};

use crate::{
    bpf::{ContextNames, Limits, Mechanism, Tracer, check_kernel},
    guard::{measure_probe_costs, prove_return_probes},
    probe::CostClass,
    session::{Prepared, prepare},
    target::{Seccomp, cgroup_memory, mem_available_bytes, status},
};

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// As it should be.
    Good,
    /// It works, with something to know.
    Note,
    /// A capture will not work.
    Bad,
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// How it came out.
    pub health: Health,
    /// What was looked at.
    pub what: String,
    /// What was found.
    pub found: String,
    /// What to do.
    pub advice: Option<String>,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.health {
            Health::Good => "ok  ",
            Health::Note => "note",
            Health::Bad => "BAD ",
        };
        write!(f, "{mark}  {:<18} {}", self.what, self.found)?;
        if let Some(advice) = &self.advice {
            write!(f, "\n      {:<18} -> {advice}", "")?;
        }
        Ok(())
    }
}

fn good(what: &str, found: impl Into<String>) -> Check {
    Check { health: Health::Good, what: what.to_owned(), found: found.into(), advice: None }
}

fn note(what: &str, found: impl Into<String>, advice: impl Into<String>) -> Check {
    Check { health: Health::Note, what: what.to_owned(), found: found.into(), advice: Some(advice.into()) }
}

fn bad(what: &str, found: impl Into<String>, advice: impl Into<String>) -> Check {
    Check { health: Health::Bad, what: what.to_owned(), found: found.into(), advice: Some(advice.into()) }
}

/// Looks at the host, and at the process with that pid if one is given.
pub fn examine(pid: Option<u32>) -> Vec<Check> {
    let mut checks = host();
    let prepared = pid.map(|pid| (pid, prepare(pid, None)));
    match &prepared {
        Some((_, Ok(prepared))) => checks.extend(process(prepared)),
        Some((pid, Err(error))) => {
            checks.push(bad(
                &format!("process {pid}"),
                error.to_string(),
                "`pgleak list` shows the server processes",
            ));
        }
        None => {}
    }
    checks.extend(programs(prepared.as_ref().and_then(|(_, prepared)| prepared.as_ref().ok())));
    checks
}

fn host() -> Vec<Check> {
    let release = read_line("/proc/sys/kernel/osrelease");
    let mut checks = vec![match check_kernel() {
        Ok(()) => good("kernel", format!("{release} has bpf_loop, attach cookies and ring buffers")),
        Err(error) => bad("kernel", error.to_string(), "Linux 6.1 or newer, as root"),
    }];
    checks.push(if cfg!(target_arch = "x86_64") {
        good("architecture", "x86_64")
    } else {
        bad(
            "architecture",
            std::env::consts::ARCH,
            "pgleak unwinds x86_64 stacks only; run it on such a host",
        )
    });
    checks.push(match fs::read_to_string("/sys/bus/event_source/devices/uprobe/type") {
        Ok(kind) => good("uprobes", format!("perf event source of type {}", kind.trim())),
        Err(error) => bad("uprobes", error.to_string(), "a kernel with CONFIG_UPROBE_EVENTS"),
    });
    checks.push(if Path::new("/sys/kernel/btf/vmlinux").exists() {
        good("BTF", "/sys/kernel/btf/vmlinux (not needed by this version)")
    } else {
        note("BTF", "no /sys/kernel/btf/vmlinux", "nothing: this version does not need it")
    });
    let tracefs = ["/sys/kernel/tracing/uprobe_events", "/sys/kernel/debug/tracing/uprobe_events"];
    checks.push(if tracefs.iter().any(|path| Path::new(path).exists()) {
        good("tracefs", "mounted (not needed: probes are perf events)")
    } else {
        good("tracefs", "not mounted, and not needed: probes are perf events")
    });
    checks.push(capabilities());
    if let Ok(lockdown) = fs::read_to_string("/sys/kernel/security/lockdown")
        && lockdown.contains("[confidentiality]")
    {
        checks.push(bad(
            "lockdown",
            "the kernel is locked down for confidentiality",
            "eBPF programs may not read memory under it; boot without lockdown=confidentiality",
        ));
    }
    let available = mem_available_bytes();
    let cgroup = cgroup_memory(std::process::id()).ok().flatten().map(|cgroup| cgroup.headroom_bytes());
    let most = available.into_iter().chain(cgroup).min().map(|bytes| bytes / 4);
    checks.push(match most {
        Some(most) if most >= 64 << 20 => {
            good("memory", format!("the kernel maps may take up to {} MiB", most >> 20))
        }
        Some(most) => bad(
            "memory",
            format!("the kernel maps may take {} MiB at the most", most >> 20),
            format!("capture with --map-memory {}M", most >> 20),
        ),
        None => note("memory", "neither /proc/meminfo nor the cgroup says how much there is", "mount /proc"),
    });
    checks
}

/// Bits of `CapEff` (`include/uapi/linux/capability.h`): to look at a process of another user takes the first;
/// to probe it the next two, or by perf events the last, which includes those.
const SYS_PTRACE: u32 = 19;
const PERFMON: u32 = 38;
const BPF: u32 = 39;
const SYS_ADMIN: u32 = 21;

fn capabilities() -> Check {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    let has = |bit: u32| effective >> bit & 1 == 1;
    let mut missing = Vec::new();
    if !has(SYS_PTRACE) {
        missing.push("CAP_SYS_PTRACE");
    }
    if !has(SYS_ADMIN) {
        missing.extend(
            [(BPF, "CAP_BPF"), (PERFMON, "CAP_PERFMON")]
                .iter()
                .filter(|(bit, _)| !has(*bit))
                .map(|(_, name)| *name),
        );
    }
    if missing.is_empty() {
        good("capabilities", "all that are needed")
    } else {
        bad("capabilities", format!("without {}", missing.join(", ")), "run pgleak as root, or with these")
    }
}

fn process(prepared: &Prepared) -> Vec<Check> {
    let pid = prepared.process.pid;
    let version = &prepared.plan.version;
    let mut checks = vec![
        good(&format!("process {pid}"), format!("{} of {version}", prepared.title.kind)),
        good("binary", {
            let id = prepared.image.build_id().map_or_else(|| "none".to_owned(), ToString::to_string);
            format!("{}, build ID {id}", prepared.binary.path.display())
        }),
    ];
    if prepared.binary.deleted {
        checks.push(note(
            "binary",
            "the file on disk is another one or gone: the server was upgraded under the process",
            "nothing: pgleak reads and probes the file that the process runs",
        ));
    }
    for site in &prepared.plan.sites {
        let place = if site.probe == site.function.address {
            format!("{} ({})", site.function.address, site.function.found_by)
        } else {
            let distance = site.probe.0 - site.function.address.0;
            format!("{}+{distance} ({})", site.function.address, site.function.found_by)
        };
        let found = format!("{place}, `{}`", site.instruction);
        checks.push(match (site.cost, &site.note) {
            (CostClass::Emulated, _) => good(site.function.name(), format!("{found}, emulated: cheap")),
            (CostClass::SingleStepped, why) => note(
                site.function.name(),
                format!("{found}, single-stepped: about ten times dearer in a virtual machine"),
                why.clone().unwrap_or_else(|| "mind the slowdown that `capture` foresees".to_owned()),
            ),
        });
    }
    checks.extend(prepared.plan.not_followed.iter().map(|(kind, why)| {
        note("probes", why.to_string(), format!("nothing in {kind} contexts will be traced; the others are"))
    }));
    let (rows, pages) = prepared.mappings.table_sizes();
    let modules = prepared.mappings.modules().modules().len();
    checks.push(good("unwind tables", format!("{rows} rows, {pages} index entries for {modules} objects")));
    checks.extend(
        prepared
            .mappings
            .notes()
            .into_iter()
            .map(|text| note("unwind tables", text, "stacks through it are cut, and counted")),
    );
    checks.push(match status(pid).ok().and_then(|status| status.seccomp) {
        None | Some(Seccomp::Disabled) => good("seccomp", "the process is not filtered"),
        Some(_) => note(
            "seccomp",
            "the process runs under a filter",
            "return probes are tried on a child of pgleak first",
        ),
    });
    checks
}

/// Loads the programs for real, with small maps.
fn programs(prepared: Option<&Prepared>) -> Vec<Check> {
    let (rows, pages) = prepared.map_or((0, 0), |prepared| prepared.mappings.table_sizes());
    let budget = Limits::least_bytes(rows, pages) + (1 << 20);
    let Some(limits) = Limits::within(budget, rows, pages) else { return Vec::new() };
    let nothing = ContextNames::default();
    let names = prepared.map_or(nothing, |prepared| ContextNames::of(&prepared.plan.layout));
    let mut tracer = match Tracer::load_for_the_best(limits, names) {
        Ok(tracer) => tracer,
        Err(error) => return vec![bad("eBPF programs", error.to_string(), "see the line about the kernel")],
    };
    for (program, count) in tracer.verified_instructions() {
        tracing::debug!("{program}: the verifier looked at {count} instructions");
    }
    let verified: u32 = tracer.verified_instructions().iter().map(|(_, count)| count).sum();
    let mut checks =
        vec![good("eBPF programs", format!("all load; the verifier looked at {verified} instructions"))];
    checks.push(match tracer.mechanism() {
        Mechanism::PerfLinks => note(
            "attaching",
            "perf links: this kernel has no uprobe_multi links for whole processes (Linux 6.11)".to_owned(),
            "it takes CAP_SYS_ADMIN, and detaching takes a tenth of a second a probe",
        ),
        mechanism => good("attaching", mechanism.name()),
    });
    checks.push(match measure_probe_costs(&mut tracer) {
        Ok(costs) => good(
            "cost of a probe",
            format!(
                "{:.0} ns emulated, {:.0} ns single-stepped, {:.0} ns more for a return",
                costs.emulated_ns, costs.stepped_ns, costs.return_ns
            ),
        ),
        Err(error) => {
            bad("cost of a probe", error.to_string(), "probes on pgleak itself should work as root")
        }
    });
    if let Some(prepared) = prepared.filter(|prepared| prepared.is_filtered()) {
        checks.push(match prove_return_probes(&mut tracer, prepared.process.pid) {
            Ok(()) => good("return probes", "a child under a seccomp filter lives with them"),
            Err(error) => bad("return probes", error.to_string(), "update the kernel"),
        });
    }
    checks
}

fn read_line(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}
