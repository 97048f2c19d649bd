//! Debian's kernels, downloaded by apt and unpacked below `target`; nothing is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use xtask::debian::Apt;
use xtask::process::{output, run};

/// The newest kernel of Debian's development.
pub(super) const CURRENT: &str = "current";
/// Where that is.
const DEVELOPMENT: &str = "sid";

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
