//! What the package says of itself: `deb-control(5)` and `deb-changelog(5)`.

/// pgleak is for one architecture only.
pub(super) const ARCHITECTURE: &str = "amd64";

/// The version, with the revision of the package that Debian wants behind that of the program.
pub(super) fn version() -> String {
    format!("{}-1", env!("CARGO_PKG_VERSION"))
}

/// The control file: `fixed` is what does not change from build to build, its first line the name.
pub(super) fn control(fixed: &str, maintainer: &str, depends: &[String], installed_kib: u64) -> String {
    let (name, rest) = fixed.split_once('\n').unwrap_or((fixed, ""));
    let version = version();
    format!(
        "{name}\nVersion: {version}\nArchitecture: {ARCHITECTURE}\nMaintainer: {maintainer}\n\
         Installed-Size: {installed_kib}\nDepends: {}\n{rest}",
        depends.join(", ")
    )
}

/// The changelog of the package, which points at that of the program.
pub(super) fn changelog(maintainer: &str, date: &str) -> String {
    format!(
        "pgleak ({}) unstable; urgency=medium\n\n  * Made by `cargo xtask dist`. What is new in pgleak stands in \
         changelog.gz.\n\n -- {maintainer}  {date}\n",
        version()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_computed_stands_between_what_is_fixed() {
        let depends = ["adduser".to_owned(), "libc6 (>= 2.34)".to_owned()];
        let text = control("Package: pgleak\nDescription: short\n long\n", "A <a@example.org>", &depends, 42);
        let version = version();
        assert_eq!(
            text,
            format!(
                "Package: pgleak\nVersion: {version}\nArchitecture: amd64\nMaintainer: A <a@example.org>\n\
                 Installed-Size: 42\nDepends: adduser, libc6 (>= 2.34)\nDescription: short\n long\n"
            )
        );
    }
}
