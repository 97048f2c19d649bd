//! How to get the names that are missing: one sentence for each file.

use std::path::Path;

use super::files::name_below_root;
use crate::{addr::BuildId, target::read_in_root};

/// The file has some ten lines.
const MOST_BYTES: u64 = 64 << 10;

/// Which system a binary belongs to: `os-release(5)`, as far as it is needed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OsRelease {
    /// `debian`, `ubuntu`, `fedora`, `alpine` …
    pub id: String,
    /// Systems that it is made from.
    pub like: Vec<String>,
    /// `bookworm`, if it has one.
    pub codename: Option<String>,
}

impl OsRelease {
    /// The system that `pid` sees, which in a container is not the host's; empty if unknown.
    pub fn of_process(pid: u32) -> Self {
        ["etc/os-release", "usr/lib/os-release"]
            .iter()
            .find_map(|name| read_in_root(pid, name, MOST_BYTES))
            .map_or_else(Self::default, |text| Self::parse(&text))
    }

    /// Parses the file.
    pub fn parse(text: &str) -> Self {
        let value = |key: &str| {
            text.lines()
                .find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))
                .map(|value| value.trim_matches(['"', '\'']).to_owned())
                .filter(|value| !value.is_empty())
        };
        Self {
            id: value("ID").unwrap_or_default(),
            like: value("ID_LIKE")
                .map(|like| like.split_ascii_whitespace().map(str::to_owned).collect())
                .unwrap_or_default(),
            codename: value("VERSION_CODENAME"),
        }
    }

    fn is(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.id == *name || self.like.iter().any(|like| like == name))
    }
}

/// What to do to get the names of the nameless functions of a file.
pub fn symbol_advice(os: &OsRelease, module: &Path, build_id: Option<&BuildId>) -> String {
    let path = module.display();
    if module.starts_with("[vdso]") {
        return "[vdso]: the debug package of the kernel has its names; nothing is lost without them"
            .to_owned();
    }
    let Some((id, debug_file)) = build_id.and_then(|id| Some((id, name_below_root(id)?))) else {
        return format!(
            "{path}: it has no build ID, so no debug file can be matched to it; install a build that was not \
             stripped"
        );
    };
    let by_id = format!(
        "debuginfod-find debuginfo {id}, with DEBUGINFOD_URLS naming a server for this system, and copy the file \
         that it prints to /{}",
        debug_file.display()
    );
    match package_advice(os, module) {
        Some(package) => format!("{path}: {package}. Or: {by_id}"),
        None => format!("{path}: {by_id}"),
    }
}

/// Whether a note is the advice on a file, which a capture carries as text.
pub(super) fn is_advice_on(note: &str, module: &str, build_id: &BuildId) -> bool {
    note.strip_prefix(module).is_some_and(|rest| {
        rest.starts_with(": ") && rest.contains(&format!("debuginfod-find debuginfo {build_id},"))
    })
}

fn package_advice(os: &OsRelease, module: &Path) -> Option<String> {
    if !is_packaged(module) {
        return None;
    }
    let path = module.display();
    if os.is(&["debian", "ubuntu"]) {
        let archive = if os.is(&["ubuntu"]) {
            "Ubuntu's archive of debug symbol packages (ddebs)".to_owned()
        } else {
            match os.codename.as_deref() {
                Some(codename) => format!("the suite {codename}-debug of Debian's debug archive"),
                None => "Debian's debug archive".to_owned(),
            }
        };
        return Some(match debian_package(module) {
            Some(package) => format!(
                "apt-get install {package}, in the version of the installed package; it is in {archive}, or where \
                 the server's own package came from"
            ),
            None => format!(
                "add {archive} to apt's sources, and install what find-dbgsym-packages {path} names (it is in the \
                 package debian-goodies)"
            ),
        });
    }
    if os.is(&["fedora", "rhel", "centos"]) {
        return Some(format!("dnf debuginfo-install \"$(rpm -qf --qf '%{{name}}' {path})\""));
    }
    None
}

/// Whether a file lies where only packages put files.
fn is_packaged(module: &Path) -> bool {
    let system = ["/usr", "/lib", "/lib64", "/bin", "/sbin"];
    system.iter().any(|root| module.starts_with(root)) && !module.starts_with("/usr/local")
}

/// The debug package of a file whose package is certain by its path.
fn debian_package(module: &Path) -> Option<String> {
    let mut parts = module.strip_prefix("/usr/lib/postgresql").ok()?.components();
    let major = parts.next()?.as_os_str().to_str()?;
    let is_server = parts.next()?.as_os_str() == "bin" && parts.next()?.as_os_str() == "postgres";
    let is_number = !major.is_empty() && major.bytes().all(|byte| byte.is_ascii_digit());
    (is_server && is_number).then(|| format!("postgresql-{major}-dbgsym"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOKWORM: &str = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nNAME=\"Debian GNU/Linux\"\n\
                            VERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\nID=debian\n";

    fn advice(os: &str, module: &str) -> String {
        let id = BuildId(vec![0xab, 0xcd, 0xef]);
        symbol_advice(&OsRelease::parse(os), Path::new(module), Some(&id))
    }

    #[test]
    fn os_release_is_read_with_and_without_quotes() {
        let os = OsRelease::parse(BOOKWORM);
        assert_eq!(os, OsRelease { id: "debian".into(), like: vec![], codename: Some("bookworm".into()) });
        let rocky = OsRelease::parse("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\nVERSION_ID='9'\n");
        assert!(rocky.is(&["fedora"]) && !rocky.is(&["debian"]));
        assert_eq!(OsRelease::parse(""), OsRelease::default());
    }

    #[test]
    fn debian_names_the_package_of_the_server() {
        let text = advice(BOOKWORM, "/usr/lib/postgresql/15/bin/postgres");
        assert!(text.contains("apt-get install postgresql-15-dbgsym,"), "{text}");
        assert!(text.contains("suite bookworm-debug"), "{text}");
        assert!(text.ends_with("/usr/lib/debug/.build-id/ab/cdef.debug"), "{text}");
    }

    #[test]
    fn debian_has_a_tool_for_everything_else() {
        let text = advice(BOOKWORM, "/usr/lib/postgresql/15/lib/postgis-3.so");
        assert!(text.contains("find-dbgsym-packages /usr/lib/postgresql/15/lib/postgis-3.so"), "{text}");
        let text = advice("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", "/usr/lib/x86_64-linux-gnu/libc.so.6");
        assert!(text.contains("Ubuntu's archive") && !text.contains("Debian's"), "{text}");
    }

    #[test]
    fn others_have_the_build_id() {
        let text = advice("ID=arch\n", "/usr/bin/postgres");
        assert!(text.starts_with("/usr/bin/postgres: debuginfod-find debuginfo abcdef,"), "{text}");
        for own in ["/opt/pg/bin/postgres", "/usr/local/pgsql/bin/postgres", "/home/pg/bin/postgres"] {
            let text = advice(BOOKWORM, own);
            assert!(text.starts_with(&format!("{own}: debuginfod-find debuginfo abcdef,")), "{text}");
        }
        let text = advice("ID=rocky\nID_LIKE=\"rhel centos fedora\"\n", "/usr/pgsql-16/bin/postgres");
        assert!(
            text.contains("dnf debuginfo-install \"$(rpm -qf --qf '%{name}' /usr/pgsql-16/bin/postgres)\""),
            "{text}"
        );
    }

    #[test]
    fn advice_is_told_from_other_notes() {
        let id = BuildId(vec![0xab, 0xcd, 0xef]);
        for module in ["/usr/lib/postgresql/15/bin/postgres", "/opt/pg/bin/postgres"] {
            assert!(is_advice_on(&advice(BOOKWORM, module), module, &id));
            assert!(!is_advice_on(&advice(BOOKWORM, module), module, &BuildId(vec![1, 2, 3])));
            assert!(!is_advice_on(&advice(BOOKWORM, module), "/opt/pg", &id));
            assert!(!is_advice_on(&format!("{module}: the tables have a gap"), module, &id));
        }
    }

    #[test]
    fn without_a_build_id_nothing_can_be_matched() {
        let text = symbol_advice(&OsRelease::parse(BOOKWORM), Path::new("/opt/pg/bin/postgres"), None);
        assert!(text.contains("no build ID"), "{text}");
    }
}
