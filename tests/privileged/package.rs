//! The Debian package: what is in it, and what becomes of it on a machine, which is an overlay over this one.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use pgleak_tests::{
    Build,
    overlay::Overlay,
    pgleak::{Running, binary},
    planted::{self, CONTEXT, Call},
    service::ask,
    unit::Unit,
};
use xtask::{
    process::{find_program, output},
    workspace,
};

use crate::common::{PATIENCE, assert_no_probe_is_left, server};

/// The unit, where the package puts it.
const UNIT: &str = "/usr/lib/systemd/system/pgleak.service";

/// What enables it.
const WANTED: &str = "/etc/systemd/system/multi-user.target.wants/pgleak.service";

/// The configuration.
const CONFIGURATION: &str = "/etc/pgleak/pgleak.toml";

/// systemd's measure of what a unit may still do, tenfold: what is left is what attaching takes, and the network.
const EXPOSED: u32 = 30;

/// README.md, "Requirements".
const CAPABILITIES: [&str; 5] =
    ["CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH", "CAP_CHECKPOINT_RESTORE"];

/// The package, made once for all tests: compressing it takes its time.
fn package() -> &'static Path {
    static PACKAGE: OnceLock<PathBuf> = OnceLock::new();
    PACKAGE.get_or_init(|| package_in(&workspace::target().join("tested-package")))
}

fn package_in(out: &Path) -> PathBuf {
    xtask::package::debian(&binary().unwrap(), out).unwrap()
}

fn dpkg_deb(what: &str, package: &Path) -> String {
    output(Command::new("dpkg-deb").arg(what).arg(package).env("LC_ALL", "C")).unwrap()
}

/// A machine with the package installed.
fn installed() -> Overlay {
    let machine = Overlay::new().unwrap();
    // A developer may have one on the machine.
    machine.output(["dpkg", "--purge", "pgleak"]).unwrap();
    machine.install(package()).unwrap();
    machine
}

fn exists(machine: &Overlay, path: &str) -> bool {
    machine.path(path).symlink_metadata().is_ok()
}

/// Files of pgleak's, by their names.
fn of_pgleak(machine: &Overlay) -> Vec<String> {
    let found =
        machine.output(["find", "/etc", "/run", "/usr", "/var", "-xdev", "-name", "*pgleak*"]).unwrap();
    let mut paths: Vec<String> = found.lines().map(str::to_owned).collect();
    paths.sort();
    paths
}

#[test]
fn the_same_program_makes_the_same_package_with_all_that_belongs_in_it() {
    let (package, other) = (package(), tempfile::tempdir().unwrap());
    let again = package_in(other.path());
    assert!(fs::read(package).unwrap() == fs::read(&again).unwrap(), "two packages of one program differ");

    let info = dpkg_deb("--info", package);
    for part in [" Package: pgleak\n", " Architecture: amd64\n", " Maintainer: ", " Installed-Size: "] {
        assert!(info.contains(part), "{part} is not in {info}");
    }
    let depends = info.lines().find_map(|line| line.strip_prefix(" Depends: ")).unwrap();
    for part in ["adduser", "libc6 (>= 2.", "libgcc-s1 (>= "] {
        assert!(depends.contains(part), "{part} is not in {depends}");
    }
    let contents = dpkg_deb("--contents", package);
    for line in contents.lines() {
        let mut fields = line.split_whitespace();
        let (mode, owner, path) =
            (fields.next().unwrap(), fields.next().unwrap(), fields.next_back().unwrap());
        let wanted = match path {
            "./usr/bin/pgleak" => "-rwxr-xr-x",
            "./etc/pgleak/pgleak.toml" => "-rw-r-----",
            _ if path.ends_with('/') => "drwxr-xr-x",
            _ => "-rw-r--r--",
        };
        assert_eq!((mode, owner), (wanted, "root/root"), "{line}");
    }
    let doc = "usr/share/doc/pgleak";
    for path in [
        UNIT,
        CONFIGURATION,
        "/usr/share/man/man1/pgleak.1.gz",
        "/usr/share/man/man1/pgleak-capture.1.gz",
        "/usr/share/bash-completion/completions/pgleak",
        "/usr/share/zsh/vendor-completions/_pgleak",
        "/usr/share/fish/vendor_completions.d/pgleak.fish",
        &format!("/{doc}/copyright"),
        &format!("/{doc}/changelog.gz"),
        &format!("/{doc}/changelog.Debian.gz"),
        &format!("/{doc}/README.md.gz"),
        &format!("/{doc}/third-party.gz"),
        &format!("/{doc}/docs/verdict.md.gz"),
        &format!("/{doc}/examples/perf-links.conf"),
    ] {
        assert!(
            contents.lines().any(|line| line.ends_with(&format!(" .{path}"))),
            "{path} is not in {contents}"
        );
    }
    match find_program("lintian") {
        Some(lintian) => {
            drop(output(Command::new(lintian).arg("--fail-on=error,warning").arg(package)).unwrap())
        }
        // It comes with a hundred packages: what is above has to do.
        None => eprintln!("there is no lintian here, and it was not asked"),
    }
}

#[test]
fn it_is_installed_upgraded_and_purged() {
    let machine = Overlay::new().unwrap();
    machine.output(["dpkg", "--purge", "pgleak"]).unwrap();
    // Of captures that root made on this machine. It goes with the package, too.
    machine.output(["rm", "-rf", "/var/cache/pgleak"]).unwrap();
    let before = of_pgleak(&machine);
    let on_host = || output(Command::new("dpkg-query").args(["--list", "pgleak"])).ok();
    let host_before = on_host();
    let package = package();

    machine.install(package).unwrap();
    assert_eq!(machine.output(["dpkg", "--verify", "pgleak"]).unwrap(), "");
    let version = machine.output(["pgleak", "--version"]).unwrap();
    assert!(
        dpkg_deb("--info", package)
            .contains(&format!(" Version: {}-", version.trim_start_matches("pgleak ").trim()))
    );
    machine.output(["pgleak", "list", "--json"]).unwrap();
    let page = machine.output(["gzip", "-dc", "/usr/share/man/man1/pgleak-capture.1.gz"]).unwrap();
    assert!(page.contains(".TH PGLEAK-CAPTURE 1"), "{page}");
    let user = machine.output(["getent", "passwd", "pgleak"]).unwrap();
    assert!(user.contains(":/var/lib/pgleak:") && user.contains("nologin"), "{user}");
    // Enabled, as Debian's services are.
    assert!(exists(&machine, WANTED));

    // What the administrator has changed, and turned off, stays so.
    let configuration = machine.path(CONFIGURATION);
    let changed = fs::read_to_string(&configuration).unwrap() + "# ours\n";
    fs::write(&configuration, &changed).unwrap();
    machine.output(["systemctl", "--root=/", "disable", "pgleak.service"]).unwrap();
    assert!(!exists(&machine, WANTED));
    machine.install(package).unwrap();
    assert_eq!(fs::read_to_string(&configuration).unwrap(), changed);
    assert_eq!(configuration.metadata().unwrap().permissions().mode() & 0o7777, 0o640);
    assert!(!exists(&machine, WANTED));

    Unit::parse(&fs::read_to_string(machine.path(UNIT)).unwrap()).make_directories(&machine).unwrap();
    fs::write(machine.path("/var/lib/pgleak/something"), "").unwrap();
    machine.output(["dpkg", "--remove", "pgleak"]).unwrap();
    assert!(!exists(&machine, "/usr/bin/pgleak") && !exists(&machine, UNIT));
    assert!(exists(&machine, CONFIGURATION) && exists(&machine, "/var/lib/pgleak/something"));
    machine.output(["dpkg", "--purge", "pgleak"]).unwrap();
    assert_eq!(of_pgleak(&machine), before);
    assert_eq!(on_host(), host_before, "the machine itself was changed");
}

#[test]
fn systemd_understands_the_unit_and_finds_it_closed() {
    let machine = installed();
    let verified = machine.command(["systemd-analyze", "verify", "--man=no", UNIT]).output().unwrap();
    let said = String::from_utf8_lossy(&verified.stderr);
    // Of other units it may say what it likes.
    assert!(verified.status.success() && !said.contains("pgleak"), "{said}");
    // The drop-in belongs to it.
    let drop_in = format!("{UNIT}.d/perf-links.conf").replace("/usr/lib", "/etc");
    let example = "/usr/share/doc/pgleak/examples/perf-links.conf";
    let threshold = format!("--threshold={EXPOSED}");
    machine.output(["systemd-analyze", "security", "--offline=yes", &threshold, UNIT]).unwrap();
    machine.output(["install", "-D", "-m", "644", example, &drop_in]).unwrap();
    let verified = machine.command(["systemd-analyze", "verify", "--man=no", UNIT]).output().unwrap();
    let said = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success() && !said.contains("pgleak"), "{said}");
}

/// As the service does, but for what systemd forbids it beside.
#[test]
fn a_capture_works_with_what_the_unit_gives() {
    let machine = installed();
    let unit = Unit::parse(&fs::read_to_string(machine.path(UNIT)).unwrap());
    assert_eq!(unit.words("AmbientCapabilities").collect::<Vec<_>>(), CAPABILITIES);
    assert_eq!(unit.words("CapabilityBoundingSet").collect::<Vec<_>>(), CAPABILITIES);
    unit.make_directories(&machine).unwrap();
    let mut reads = unit.command(&machine, ["cat", CONFIGURATION]).unwrap();
    assert!(output(&mut reads).unwrap().contains("[census]"));

    let server = server(&Build::packaged(15).unwrap());
    planted::install(&server).unwrap();
    let mut session = planted::session(&server).unwrap();
    let pid = session.backend_pid();
    let pid_text = pid.to_string();
    let options = ["capture", "--pid", &pid_text, "--duration=2s", "--settle=0", "--out"];
    let mut capture = |command: &mut Command| {
        let running = Running::spawn(command).unwrap();
        running.wait_for("recording for", PATIENCE).unwrap();
        while running.is_running() {
            Call::PALLOC.run(&mut session, &[10, 100]).unwrap();
        }
        let finished = running.finish().unwrap().success().unwrap();
        assert!(finished.stdout.contains(CONTEXT), "{}", finished.stdout);
        assert!(finished.stdout.contains("planted_leak_palloc"), "{}", finished.stdout);
        assert!(!finished.stdout.contains("LOSSES"), "{}", finished.stdout);
    };
    // What root has left behind of a capture is not in the way.
    capture(machine.command(["pgleak"]).args(options).arg("/tmp/of-root"));
    capture(unit.command(&machine, ["pgleak"]).unwrap().args(options).arg("/var/lib/pgleak/of-service"));
    assert_no_probe_is_left(pid);

    let user: u32 = machine.output(["id", "-u", "pgleak"]).unwrap().trim().parse().unwrap();
    for (path, mode) in [("", 0o700), ("/capture.json", 0o600), ("/report.txt", 0o600)] {
        let metadata = machine.path(&format!("/var/lib/pgleak/of-service{path}")).metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.mode() & 0o7777), (user, mode), "{path}");
    }
    let cached = fs::read_dir(machine.path("/var/cache/pgleak-service/pgleak")).unwrap().count();
    assert!(cached > 0, "no unwind table is kept");
}

/// The service itself, with the configuration of the package.
#[test]
fn the_service_works_with_what_the_unit_gives() {
    let machine = installed();
    let unit = Unit::parse(&fs::read_to_string(machine.path(UNIT)).unwrap());
    unit.make_directories(&machine).unwrap();
    machine.output(["pgleak", "check-config", "--config", CONFIGURATION]).unwrap();
    let server = server(&Build::packaged(15).unwrap());
    planted::install(&server).unwrap();
    let mut session = planted::session(&server).unwrap();
    let pid = session.backend_pid();

    let service = Running::spawn(&mut unit.command(&machine, unit.words("ExecStart")).unwrap()).unwrap();
    service.wait_for("watching: ", PATIENCE).unwrap();
    let socket = machine.path("/run/pgleak/web.sock");
    assert_eq!(socket.metadata().unwrap().mode() & 0o777, 0o600);
    let get = |path: &str| {
        let answer =
            ask(UnixStream::connect(&socket).unwrap(), "GET", path, "Host: localhost\r\n", "").unwrap();
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.text()
    };
    assert_eq!(get("/healthz").trim(), "ok");
    // Nothing is known of a process before the first look.
    let deadline = Instant::now() + PATIENCE;
    while !get("/api/v1/state").contains(&format!("\"pid\":{pid}")) {
        assert!(Instant::now() < deadline, "{}", get("/api/v1/state"));
        thread::sleep(Duration::from_millis(100));
    }
    let pid_text = pid.to_string();
    let options = ["pgleak", "request", "--pid", &pid_text, "--duration=2s", "--overhead=full", "--wait"];
    let request = Running::spawn(&mut machine.command(options)).unwrap();
    while request.is_running() {
        Call::PALLOC.run(&mut session, &[10, 100]).unwrap();
    }
    let found = request.finish().unwrap().success().unwrap().stdout;
    assert!(found.contains("planted_leak_palloc"), "{found}");
    let user: u32 = machine.output(["id", "-u", "pgleak"]).unwrap().trim().parse().unwrap();
    let report = machine.path("/var/lib/pgleak/captures/000001/report.txt").metadata().unwrap();
    assert_eq!((report.uid(), report.mode() & 0o777), (user, 0o600));

    service.signal(libc::SIGHUP).unwrap();
    service.wait_for("the configuration was read again", PATIENCE).unwrap();
    service.signal(libc::SIGTERM).unwrap();
    service.finish().unwrap().success().unwrap();
    assert_no_probe_is_left(pid);
}
