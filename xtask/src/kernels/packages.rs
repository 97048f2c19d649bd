//! Debian's kernels, downloaded by apt and unpacked below `target`; nothing is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use xtask::process::{output, run};

/// The newest kernel of Debian's development.
pub(super) const CURRENT: &str = "current";
/// Where that is.
const DEVELOPMENT: &str = "sid";
/// What Debian's archive is signed by.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The newest kernel of a series, such as `6.12`, or [`CURRENT`]: its image.
///
/// # Errors
/// If the archive has none, or cannot be reached.
pub(super) fn fetch(series: &str, dir: &Path) -> Result<PathBuf> {
    let (apt, pattern) = if series == CURRENT {
        (Apt::of_suite(DEVELOPMENT, dir)?, "[0-9]".to_owned())
    } else {
        (Apt::of_system(), format!("{}[.]", series.replace('.', "[.]")))
    };
    // Cloud kernels have everything that is needed built in, and are the smallest.
    let listed = output(apt.command("apt-cache").args([
        "search",
        "--names-only",
        &format!("^linux-(image|binary)-{pattern}[^ ]*-cloud-amd64$"),
    ]))?;
    let package =
        newest(&listed).with_context(|| format!("no package of Linux {series}: `apt-get update`?"))?;
    let unpacked = dir.join(package);
    if unpacked.exists() {
        return image(&unpacked);
    }
    let download = tempfile::tempdir_in(dir).context("cannot make a directory")?;
    run(apt.command("apt-get").args(["-q", "download", package]).current_dir(download.path()))?;
    let archive = only_file(download.path(), |_| true)?;
    let extracted = download.path().join("extracted");
    run(Command::new("dpkg-deb").arg("--extract").args([&archive, &extracted]))?;
    // Only what is complete gets the name that the next run trusts.
    fs::rename(&extracted, &unpacked).with_context(|| format!("cannot make {}", unpacked.display()))?;
    image(&unpacked)
}

/// apt with the system's lists, or with lists of its own.
struct Apt(Vec<String>);

impl Apt {
    fn of_system() -> Self {
        Self(Vec::new())
    }

    /// Another suite of the mirror that the system uses, without telling the system.
    fn of_suite(suite: &str, dir: &Path) -> Result<Self> {
        let state = dir.join("apt").join(suite);
        for name in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(state.join(name))
                .with_context(|| format!("cannot make {}", state.display()))?;
        }
        let sources = state.join("suite.list");
        let line = format!("deb [signed-by={KEYRING}] {} {suite} main\n", mirror()?);
        fs::write(&sources, line).with_context(|| format!("cannot write {}", sources.display()))?;
        let option = |name: &str, path: PathBuf| format!("{name}={}", path.display());
        let apt = Self(vec![
            option("Dir::Etc::SourceList", sources),
            "Dir::Etc::SourceParts=-".into(),
            option("Dir::State::Lists", state.join("lists")),
            option("Dir::Cache", state.clone()),
            // The unprivileged user that apt would download as may not reach this directory.
            "APT::Sandbox::User=root".into(),
            "Acquire::Languages=none".into(),
        ]);
        run(apt.command("apt-get").args(["-q", "update", "--error-on=any"]))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(self.0.iter().flat_map(|option| ["-o", option]));
        command
    }
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

/// The name with the highest numbers, of lines of `NAME - DESCRIPTION`. Where a kernel is in two
/// packages, `linux-binary` has the image, and `linux-image` only depends on it.
fn newest(listed: &str) -> Option<&str> {
    let names = listed.lines().filter_map(|line| line.split_once(" - ")).map(|(name, _)| name.trim());
    names.max_by_key(|name| (numbers(name), name.starts_with("linux-binary-")))
}

fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

/// Below `/boot`, or beside the modules in packages of 7.x.
fn image(unpacked: &Path) -> Result<PathBuf> {
    let boot = unpacked.join("boot");
    if boot.exists() {
        return only_file(&boot, |name| name.starts_with("vmlinuz-"));
    }
    let modules = only_file(&unpacked.join("usr/lib/modules"), |_| true)?;
    only_file(&modules, |name| name == "vmlinuz")
}

fn only_file(dir: &Path, wanted: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        if wanted(&entry.file_name().to_string_lossy()) {
            found.push(entry.path());
        }
    }
    match found.pop() {
        Some(file) if found.is_empty() => Ok(file),
        _ => bail!("{} does not hold exactly one such file", dir.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers_and_not_text() {
        let listed = "linux-image-6.12.99+deb12-cloud-amd64 - Linux\n\
                      linux-image-6.12.117+deb12-cloud-amd64 - Linux\n\
                      linux-image-6.12.100+deb12-cloud-amd64 - Linux\n";
        assert_eq!(newest(listed), Some("linux-image-6.12.117+deb12-cloud-amd64"));
        assert_eq!(newest(""), None);
    }

    #[test]
    fn the_package_with_the_image_is_taken() {
        let listed = "linux-binary-7.2.13+deb14-cloud-amd64 - Linux\n\
                      linux-image-7.2.13+deb14-cloud-amd64 - Linux\n";
        assert_eq!(newest(listed), Some("linux-binary-7.2.13+deb14-cloud-amd64"));
    }
}
