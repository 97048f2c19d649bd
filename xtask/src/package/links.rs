//! Which packages a program needs, by the libraries that it links and the newest of their symbol versions that it uses.

use std::{collections::BTreeMap, path::Path, process::Command};

use anyhow::{Context, Result, bail};

use crate::process::output;

/// A library, its package, and what its symbol versions begin with. A library that is not here was never meant to be linked.
const LIBRARIES: [(&str, &str, &str); 5] = [
    ("ld-linux-x86-64.so.2", "libc6", "GLIBC_"),
    ("libc.so.6", "libc6", "GLIBC_"),
    ("libgcc_s.so.1", "libgcc-s1", "GCC_"),
    ("libm.so.6", "libc6", "GLIBC_"),
    ("libpthread.so.0", "libc6", "GLIBC_"),
];

/// The packages with their least versions: `libc6 (>= 2.34)`.
pub(super) fn packages(program: &Path) -> Result<Vec<String>> {
    let read = |what| {
        let mut command = Command::new("readelf");
        command.args(["--wide", what]).arg(program).env("LC_ALL", "C");
        output(&mut command).context("readelf is in the package binutils")
    };
    of(&read("--dynamic")?, &read("--version-info")?)
        .with_context(|| format!("cannot tell what {} needs", program.display()))
}

/// The same from what readelf has said.
fn of(dynamic: &str, versions: &str) -> Result<Vec<String>> {
    let mut packages: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    for library in needed(dynamic) {
        let Some((_, package, _)) = LIBRARIES.iter().find(|(known, _, _)| *known == library) else {
            bail!("it links {library}, which no package is known for: see LIBRARIES in {}", file!());
        };
        packages.entry(package).or_default();
    }
    for version in used(versions) {
        let known =
            LIBRARIES.iter().find_map(|(_, package, prefix)| Some((package, version.strip_prefix(prefix)?)));
        let Some((package, number)) = known.and_then(|(package, number)| Some((package, parse(number)?)))
        else {
            bail!(
                "it uses {version}, which no version of a package is known for: see LIBRARIES in {}",
                file!()
            );
        };
        let least = packages.entry(package).or_default();
        if *least < number {
            *least = number;
        }
    }
    if packages.is_empty() {
        bail!("it links nothing, or readelf says it in another way than before");
    }
    Ok(packages.into_iter().map(|(package, least)| dependency(package, &least)).collect())
}

fn dependency(package: &str, least: &[u32]) -> String {
    if least.is_empty() {
        return package.to_owned();
    }
    let numbers: Vec<String> = least.iter().map(u32::to_string).collect();
    format!("{package} (>= {})", numbers.join("."))
}

/// Libraries that the program names: ` 0x1 (NEEDED)  Shared library: [libc.so.6]`.
fn needed(dynamic: &str) -> impl Iterator<Item = &str> {
    let lines = dynamic.lines().filter(|line| line.contains("(NEEDED)"));
    lines.filter_map(|line| Some(line.split_once('[')?.1.split_once(']')?.0))
}

/// Versions that it wants of others, not those that it has: `  0x0010:   Name: GLIBC_2.34  Flags: none  Version: 9`.
fn used(versions: &str) -> impl Iterator<Item = &str> {
    let needs = versions.split_once("Version needs section").map_or("", |(_, needs)| needs);
    needs.lines().filter_map(|line| line.split_once("Name: ")?.1.split_whitespace().next())
}

fn parse(number: &str) -> Option<Vec<u32>> {
    // The mark of relative relocations that are packed, which the loader of 2.36 is the first to read.
    if number == "ABI_DT_RELR" {
        return Some(vec![2, 36]);
    }
    number.split('.').map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DYNAMIC: &str = "
 0x0000000000000001 (NEEDED)             Shared library: [libgcc_s.so.1]
 0x0000000000000001 (NEEDED)             Shared library: [libc.so.6]
 0x000000000000000c (INIT)               0x1000
";
    const VERSIONS: &str = "
Version needs section '.gnu.version_r' contains 2 entries:
  000000: Version: 1  File: libgcc_s.so.1  Cnt: 2
  0x0010:   Name: GCC_4.2.0  Flags: none  Version: 3
  0x0020:   Name: GCC_3.3  Flags: none  Version: 4
  0x0030: Version: 1  File: libc.so.6  Cnt: 3
  0x0040:   Name: GLIBC_2.9  Flags: none  Version: 5
  0x0050:   Name: GLIBC_2.34  Flags: none  Version: 2
  0x0060:   Name: GLIBC_2.2.5  Flags: none  Version: 6
";

    #[test]
    fn the_newest_version_of_each_counts() {
        let packages = of(DYNAMIC, VERSIONS).expect("it is all known");
        assert_eq!(packages, ["libc6 (>= 2.34)", "libgcc-s1 (>= 4.2.0)"]);
    }

    #[test]
    fn what_is_not_known_is_no_guess() {
        for (dynamic, versions, part) in [
            ("(NEEDED) [libssl.so.3]", VERSIONS, "libssl.so.3"),
            (DYNAMIC, "Version needs section\n Name: GLIBC_PRIVATE  Flags", "GLIBC_PRIVATE"),
            (DYNAMIC, "Version needs section\n Name: OTHER_1  Flags", "OTHER_1"),
            ("", "", "nothing"),
        ] {
            let error = of(dynamic, versions).expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
