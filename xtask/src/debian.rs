//! Packages of Debian's archive, downloaded by apt and unpacked below a directory; nothing is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{output, run};

/// Below what was unpacked, the names of the packages' files, a line each: `NAME_VERSION_ARCHITECTURE.deb`.
pub const PACKAGES: &str = "packages";

/// What Debian's archive is signed by.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// apt with the system's lists, or with lists of its own.
#[derive(Debug)]
pub struct Apt {
    options: Vec<String>,
    /// Where its own archives are.
    archives: Option<PathBuf>,
}

impl Apt {
    /// The suite of this system.
    pub fn of_system() -> Self {
        Self { options: Vec::new(), archives: None }
    }

    /// Another suite of the mirror that the system uses, without telling the system; with `dir` for its lists.
    /// Nothing is installed there, so that what a package depends on is all that it needs.
    ///
    /// # Errors
    /// If the archive cannot be reached.
    pub fn of_suite(suite: &str, dir: &Path) -> Result<Self> {
        Self::of_suites(&[suite], dir)
    }

    /// The same of several suites; the first has the name.
    ///
    /// # Errors
    /// If the archive cannot be reached.
    pub fn of_suites(suites: &[&str], dir: &Path) -> Result<Self> {
        let suite = suites.first().context("at least one suite")?;
        let state = dir.join("apt").join(suite);
        for name in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(state.join(name))
                .with_context(|| format!("cannot make {}", state.display()))?;
        }
        let (sources, status) = (state.join("suite.list"), state.join("status"));
        let mirror = mirror()?;
        let line = |suite: &&str| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
        fs::write(&sources, suites.iter().map(line).collect::<String>())
            .with_context(|| format!("cannot write {}", sources.display()))?;
        fs::write(&status, "").with_context(|| format!("cannot write {}", status.display()))?;
        let option = |name: &str, path: PathBuf| format!("{name}={}", path.display());
        let options = vec![
            option("Dir::Etc::SourceList", sources),
            "Dir::Etc::SourceParts=-".into(),
            option("Dir::State::Lists", state.join("lists")),
            option("Dir::State::status", status),
            option("Dir::Cache", state.clone()),
            // The unprivileged user that apt would download as may not reach this directory.
            "APT::Sandbox::User=root".into(),
            "Acquire::Languages=none".into(),
        ];
        let apt = Self { options, archives: Some(state.join("archives")) };
        run(apt.command("apt-get").args(["-q", "update", "--error-on=any"]))?;
        Ok(apt)
    }

    /// A program of apt's, as it has to be called.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(self.options.iter().flat_map(|option| ["-o", option]));
        command
    }
}

/// A directory tree with packages of suites and all that they need, below
/// `dir`; made once. A package whose name ends with `=` gets the version of the first.
///
/// # Errors
/// If the archive does not have them, or cannot be reached.
pub fn unpacked(suites: &[&str], packages: &[&str], dir: &Path) -> Result<PathBuf> {
    let suite = suites.first().context("at least one suite")?;
    let root = dir.join(format!("{suite}-{}", packages.first().context("at least one package")?));
    if root.exists() {
        return Ok(root);
    }
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let apt = Apt::of_suites(suites, dir)?;
    let first = packages.first().context("at least one package")?;
    let shown = output(apt.command("apt-cache").args(["show", "--no-all-versions", first]))?;
    let version = shown.lines().find_map(|line| line.strip_prefix("Version: "));
    let version = version.with_context(|| format!("{suite} has no {first}"))?;
    let exact = packages.iter().map(|name| match name.ends_with('=') {
        true => format!("{name}{version}"),
        false => (*name).to_owned(),
    });
    println!("downloading {} of Debian's {suite}", packages.join(", "));
    output(
        apt.command("apt-get")
            .args(["-q", "-y", "--no-install-recommends", "--download-only", "install"])
            .args(exact),
    )?;
    let archives = apt.archives.as_deref().context("a suite has archives of its own")?;
    let making = tempfile::tempdir_in(dir).context("cannot make a directory")?;
    let tree = making.path().join("root");
    // What packages of today have below /usr only, older ones bring at the top.
    fs::create_dir_all(tree.join("usr"))?;
    for name in ["bin", "lib", "lib64", "sbin"] {
        fs::create_dir_all(tree.join("usr").join(name))?;
        std::os::unix::fs::symlink(format!("usr/{name}"), tree.join(name))?;
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(archives)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            extract(&path, &tree)?;
            names.extend(path.file_name().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    if names.is_empty() {
        bail!("apt has downloaded nothing for {packages:?} of {suite}");
    }
    names.sort_unstable();
    fs::write(tree.join(PACKAGES), names.join("\n") + "\n").context("cannot note the packages")?;
    // Only what is complete gets the name that the next run trusts.
    fs::rename(&tree, &root).with_context(|| format!("cannot make {}", root.display()))?;
    fs::remove_dir_all(dir.join("apt").join(suite))
        .with_context(|| format!("cannot clear {}", dir.display()))?;
    Ok(root)
}

/// By tar, which keeps links to directories where `dpkg-deb` would put directories.
fn extract(package: &Path, tree: &Path) -> Result<()> {
    let script = r#"dpkg-deb --fsys-tarfile "$1" | tar --extract --keep-directory-symlink --directory "$2""#;
    output(Command::new("sh").args(["-c", script, "sh"]).arg(package).arg(tree)).map(drop)
}

/// Where this system gets Debian's main archive from.
fn mirror() -> Result<String> {
    let targets = output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Created-By: Packages",
        "Label: Debian",
        "Component: main",
    ]))?;
    let first = targets.lines().find(|line| !line.is_empty());
    first.map(str::to_owned).context("apt knows no archive of Debian: run `apt-get update`")
}
