//! Puts together what goes into the package, and has dpkg-deb wrap it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{
    commit::Commit,
    control::{ARCHITECTURE, changelog, control, version},
    links, third_party,
    tree::Tree,
};
use crate::{
    process::{find_program, output},
    workspace,
};

/// What it takes, and the packages of Debian that have it.
const TOOLS: [(&str, &str); 5] = [
    ("dpkg-deb", "dpkg"),
    ("gzip", "gzip"),
    ("md5sum", "coreutils"),
    ("date", "coreutils"),
    ("readelf", "binutils"),
];

/// Where documents go.
const DOC: &str = "usr/share/doc/pgleak";

/// Files that an administrator changes: dpkg asks before it replaces them.
const CONFIGURATION: &str = "etc/pgleak/pgleak.toml";

/// What runs when the package comes and goes.
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

/// Shells, and where Debian has what they complete by.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/pgleak"),
    ("zsh", "usr/share/zsh/vendor-completions/_pgleak"),
    ("fish", "usr/share/fish/vendor_completions.d/pgleak.fish"),
];

/// Whether packages can be made here.
///
/// # Errors
/// If something is missing, with the name of its package.
pub fn check_tools() -> Result<()> {
    for (program, package) in TOOLS {
        if find_program(program).is_none() {
            bail!(
                "a Debian package is made with {program}, and there is none: install Debian's package {package}"
            );
        }
    }
    Ok(())
}

/// Makes the package of a program in a directory, `pgleak_VERSION_ARCHITECTURE.deb`, and gives its path. The same program and
/// commit give the same bytes.
///
/// # Errors
/// If a tool or a file is missing, or the program links what no package is known for.
pub fn debian(program: &Path, out: &Path) -> Result<PathBuf> {
    check_tools()?;
    let commit = Commit::of_sources()?;
    let tree = Tree::new()?;
    contents(&tree, program, &commit)?;
    about(&tree, program, &commit)?;
    tree.set_times(commit.epoch)?;
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let package = out.join(format!("pgleak_{}_{ARCHITECTURE}.deb", version()));
    let mut command = Command::new("dpkg-deb");
    // One way to compress, whatever the distribution's own is.
    command.args(["--root-owner-group", "-Zxz", "--build"]).arg(tree.root()).arg(&package);
    output(command.env("SOURCE_DATE_EPOCH", commit.epoch.to_string()))?;
    Ok(package)
}

/// What is installed.
fn contents(tree: &Tree, program: &Path, commit: &Commit) -> Result<()> {
    tree.add("usr/bin/pgleak", 0o755, &read(program)?)?;
    let packaging = |name: &str| read(&workspace::root().join("packaging").join(name));
    tree.add("usr/lib/systemd/system/pgleak.service", 0o644, &packaging("pgleak.service")?)?;
    // It may get passwords of others' services.
    tree.add(CONFIGURATION, 0o640, &packaging("pgleak.toml")?)?;
    for (shell, path) in COMPLETIONS {
        tree.add(path, 0o644, output(Command::new(program).args(["completions", shell]))?.as_bytes())?;
    }
    let pages = tempfile::tempdir().context("cannot make a temporary directory")?;
    output(Command::new(program).args(["man", "--out"]).arg(pages.path()))?;
    for page in sorted(pages.path())? {
        tree.add_compressed(&format!("usr/share/man/man1/{}", name_of(&page)), &read(&page)?)?;
    }
    tree.add(&format!("{DOC}/copyright"), 0o644, &packaging("debian/copyright")?)?;
    tree.add(&format!("{DOC}/examples/perf-links.conf"), 0o644, &packaging("perf-links.conf")?)?;
    tree.add("usr/share/lintian/overrides/pgleak", 0o644, &packaging("debian/lintian-overrides")?)?;
    let changes = changelog(&commit.author, &commit.date()?);
    tree.add_compressed(&format!("{DOC}/changelog.Debian"), changes.as_bytes())?;
    tree.add_compressed(&format!("{DOC}/changelog"), &read(&workspace::root().join("CHANGELOG.md"))?)?;
    tree.add_compressed(&format!("{DOC}/README.md"), &read(&workspace::root().join("README.md"))?)?;
    tree.add_compressed(&format!("{DOC}/third-party"), third_party::notices()?.as_bytes())?;
    for document in sorted(&workspace::root().join("docs"))? {
        let (path, bytes) = (format!("{DOC}/docs/{}", name_of(&document)), read(&document)?);
        match document.extension().is_some_and(|extension| extension == "md") {
            true => tree.add_compressed(&path, &bytes)?,
            false => tree.add(&path, 0o644, &bytes)?,
        }
    }
    Ok(())
}

/// What dpkg reads.
fn about(tree: &Tree, program: &Path, commit: &Commit) -> Result<()> {
    let debian = |name: &str| read(&workspace::root().join("packaging/debian").join(name));
    let mut depends = links::packages(program)?;
    // postinst calls it.
    depends.push("adduser".to_owned());
    depends.sort();
    let fixed = String::from_utf8(debian("control")?).context("packaging/debian/control is no text")?;
    let control = control(&fixed, &commit.author, &depends, tree.installed_kib()?);
    let files: Vec<PathBuf> =
        tree.files("")?.into_iter().filter(|file| file != Path::new(CONFIGURATION)).collect();
    let md5sums = tree.md5sums(&files)?;
    tree.add("DEBIAN/control", 0o644, control.as_bytes())?;
    tree.add("DEBIAN/md5sums", 0o644, md5sums.as_bytes())?;
    tree.add("DEBIAN/conffiles", 0o644, format!("/{CONFIGURATION}\n").as_bytes())?;
    SCRIPTS.into_iter().try_for_each(|name| tree.add(&format!("DEBIAN/{name}"), 0o755, &debian(name)?))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The files of a directory, in order.
fn sorted(directory: &Path) -> Result<Vec<PathBuf>> {
    let read = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut files = read.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.retain(|path| path.is_file());
    files.sort();
    Ok(files)
}
