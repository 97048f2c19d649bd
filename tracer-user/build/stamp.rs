//! What the eBPF object was built from, as a fingerprint. `cargo xtask build` writes it beside the
//! object, the build script of `pgleak` compares it; both include this file.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The object, from the top of the source tree.
pub(crate) const OBJECT: &str = "target/bpf/tracer.o";
/// Its fingerprint.
pub(crate) const STAMP: &str = "target/bpf/tracer.stamp";

/// Everything that the object is made from: the sources and manifest of `tracer-ebpf`, its
/// libraries as `Cargo.lock` pins them, and the profiles in the top manifest.
pub(crate) fn fingerprint(root: &Path) -> io::Result<String> {
    let crate_dir = root.join("tracer-ebpf");
    let mut files = vec![crate_dir.join("Cargo.toml")];
    collect(&crate_dir.join("src"), &mut files)?;
    files.sort();
    let mut hash = Fnv1a::new();
    for file in files {
        let name = file.strip_prefix(root).unwrap_or(&file);
        hash.part(name.as_os_str().as_encoded_bytes());
        hash.part(&fs::read(&file)?);
    }
    let lock = fs::read_to_string(root.join("Cargo.lock"))?;
    for package in lock.split("\n\n").filter(|block| block.contains("\nname = \"aya-ebpf")) {
        hash.part(package.trim().as_bytes());
    }
    let manifest = fs::read_to_string(root.join("Cargo.toml"))?;
    hash.part(section(&manifest, "[profile.bpf]").as_bytes());
    hash.part(section(&manifest, "[profile.release]").as_bytes());
    Ok(format!("{:016x}", hash.0))
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// A section of a manifest, up to the next one.
fn section<'t>(manifest: &'t str, header: &str) -> &'t str {
    let Some(start) = manifest.find(header) else { return "" };
    let rest = &manifest[start..];
    let end = rest[header.len()..].find("\n[").map_or(rest.len(), |at| at + header.len());
    rest[..end].trim_end()
}

/// FNV-1a with 64 bits: the standard library's hash may differ between the compilers of its two
/// users, and nothing here is an attacker's.
struct Fnv1a(u64);

impl Fnv1a {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// Length first, so that bytes cannot move from one part to the next unseen.
    fn part(&mut self, bytes: &[u8]) {
        let length = (bytes.len() as u64).to_le_bytes();
        for &byte in length.iter().chain(bytes) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}
