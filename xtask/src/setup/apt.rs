//! Packages of Debian and its relatives.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use xtask::process::{find_program, is_root, output, run};

/// Read by `pg_createcluster` and by the server packages' installation.
const CREATECLUSTER_DIR: &str = "/etc/postgresql-common/createcluster.d";

/// The package of a server; without a major, the one that the distribution's release prefers.
pub(super) fn server_package(major: Option<u32>) -> String {
    major.map_or_else(|| "postgresql".into(), |major| format!("postgresql-{major}"))
}

/// Installs packages, and those alone that they cannot do without.
pub(super) fn install(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    if find_program("apt-get").is_none() {
        bail!("this is no Debian or Ubuntu: install what Debian calls `{list}` with your package manager");
    }
    if !is_root() {
        bail!("this needs root: run `apt-get install --no-install-recommends {list}` and start again");
    }
    if !packages.iter().all(|package| is_known(package)) {
        run(&mut apt_get(&["update"]))?;
    }
    // What somebody else has installed stays, even where that stands in the way.
    let mut arguments = vec!["install", "--yes", "--no-install-recommends", "--no-remove"];
    arguments.extend(packages);
    // Lists that are some weeks old name files that are gone from the mirrors.
    run(&mut apt_get(&arguments)).or_else(|_| {
        run(&mut apt_get(&["update"]))?;
        run(&mut apt_get(&arguments))
    })
}

/// Installs a server without the cluster and the service that its package would bring.
pub(super) fn install_server(major: Option<u32>) -> Result<()> {
    // It brings the configuration of clusters, and no server yet.
    install(&["postgresql-common"])?;
    let before = clusters();
    let _no_cluster = NoCluster::declare()?;
    install(&[&server_package(major)])?;
    if clusters() != before {
        bail!("the package made a cluster although {CREATECLUSTER_DIR} says not to: see `pg_lsclusters`");
    }
    Ok(())
}

fn clusters() -> String {
    output(Command::new("pg_lsclusters").arg("--no-header")).unwrap_or_default()
}

fn is_known(package: &str) -> bool {
    output(Command::new("apt-cache").args(["show", "--no-all-versions", package]))
        .is_ok_and(|shown| !shown.trim().is_empty())
}

fn apt_get(arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command
        .args(["-q", "-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Use-Pty=0"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        // No service is started in run level 1; where nobody asks for it, there is no cluster to serve.
        .env("RUNLEVEL", "1");
    command
}

/// While it lives, a server's package makes no cluster.
struct NoCluster {
    file: PathBuf,
    made_dir: bool,
}

impl NoCluster {
    fn declare() -> Result<Self> {
        let dir = Path::new(CREATECLUSTER_DIR);
        let made_dir = !dir.exists();
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let file = dir.join("pgleak-setup.conf");
        fs::write(&file, "# There during `cargo xtask setup` of pgleak only.\ncreate_main_cluster = false\n")
            .with_context(|| format!("cannot write {}", file.display()))?;
        Ok(Self { file, made_dir })
    }
}

impl Drop for NoCluster {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.file) {
            eprintln!("cannot remove {}: {error}", self.file.display());
        }
        if self.made_dir {
            // Stays if somebody else has put a file there meanwhile.
            let _ = fs::remove_dir(CREATECLUSTER_DIR);
        }
    }
}
