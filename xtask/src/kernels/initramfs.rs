//! The guest's only file system: the test program as init, the fixture, and their libraries.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use xtask::process::{cargo, output, run};
use xtask::workspace;

/// How the fixture is compiled: no frame pointers, and no call that replaces its caller's frame.
const C_FLAGS: [&str; 6] =
    ["-O2", "-fomit-frame-pointer", "-fno-optimize-sibling-calls", "-Wall", "-Wextra", "-Werror"];

/// Builds the programs and the archive; the archive's path.
///
/// # Errors
/// If a program is not built, or a library not found.
pub(super) fn build(dir: &Path) -> Result<PathBuf> {
    let guest = dir.join("guest");
    fs::create_dir_all(&guest).with_context(|| format!("cannot make {}", guest.display()))?;
    let (init, chains, library) = (guest.join("init"), guest.join("chains"), guest.join("libchains.so"));
    run(&mut cargo(["build", "--package", "pgleak-tests", "--bin", "kernel-guest"]))?;
    // Without debug information, a quarter of the size, and quicker to unpack.
    let built = workspace::target().join("debug/kernel-guest");
    run(Command::new("strip").arg("-o").args([&init, &built]))?;
    compile(
        "chains_lib.c",
        &library,
        &["-shared".as_ref(), "-fPIC".as_ref(), "-Wl,-soname,libchains.so".as_ref()],
    )?;
    compile("chains.c", &chains, &["-rdynamic".as_ref(), library.as_ref(), "-Wl,-rpath,$ORIGIN".as_ref()])?;

    let mut files =
        BTreeMap::from([("init".to_owned(), init.clone()), ("chains".to_owned(), chains.clone())]);
    files.insert("libchains.so".to_owned(), library.clone());
    for program in [&init, &chains] {
        for path in libraries(program)?.into_iter().filter(|path| *path != library) {
            files.insert(path.to_string_lossy().trim_start_matches('/').to_owned(), path);
        }
    }
    let archive = dir.join("initramfs.cpio");
    fs::write(&archive, cpio(&files)?).with_context(|| format!("cannot write {}", archive.display()))?;
    Ok(archive)
}

fn compile(source: &str, to: &Path, arguments: &[&Path]) -> Result<()> {
    let source = workspace::root().join("tests/fixtures").join(source);
    run(Command::new("cc").args(C_FLAGS).arg("-o").args([to, &source]).args(arguments))
}

/// What the program's loader would open, and the loader.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let listed = output(Command::new("ldd").arg(program))?;
    let paths = listed.lines().filter_map(|line| {
        let path = line.split_once(" => ").map_or(line, |(_, path)| path).trim().split(' ').next()?;
        path.starts_with('/').then(|| PathBuf::from(path))
    });
    Ok(paths.collect())
}

/// A `newc` archive (kernel, `Documentation/driver-api/early-userspace/buffer-format.rst`).
fn cpio(files: &BTreeMap<String, PathBuf>) -> Result<Vec<u8>> {
    const DIRECTORY: u32 = 0o040_755;
    const PROGRAM: u32 = 0o100_755;
    let mut archive = Vec::new();
    let mut directories: Vec<&Path> =
        files.keys().flat_map(|name| Path::new(name).ancestors().skip(1)).collect();
    // A directory sorts before what it holds.
    directories.sort_unstable();
    directories.dedup();
    for directory in directories.iter().filter(|directory| !directory.as_os_str().is_empty()) {
        entry(&mut archive, &directory.to_string_lossy(), DIRECTORY, &[])?;
    }
    for (name, path) in files {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        entry(&mut archive, name, PROGRAM, &bytes)?;
    }
    entry(&mut archive, "TRAILER!!!", 0, &[])?;
    Ok(archive)
}

fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
    // Inode, mode, owner, group, links, time, size, four device numbers, name's size, checksum.
    // Each entry of one link is a file of its own, whatever its inode.
    let size = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    let name_size = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
    write!(archive, "070701")?;
    for field in [0, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0] {
        write!(archive, "{field:08x}")?;
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(bytes);
    archive.resize(archive.len().next_multiple_of(4), 0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_the_header_and_padding_of_newc() {
        let mut archive = Vec::new();
        entry(&mut archive, "init", 0o100_755, b"hello").expect("written to memory");
        assert_eq!(&archive[..14], b"07070100000000");
        assert_eq!(&archive[14..22], b"000081ed");
        assert_eq!(&archive[110..115], b"init\0");
        assert_eq!(&archive[116..121], b"hello");
        assert_eq!(archive.len(), 124);
    }
}
