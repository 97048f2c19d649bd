//! From a binary to product and version, by the strings and symbols in it.

use std::{fmt, path::Path};

use object::{Object as _, ObjectSymbol as _};

use super::CatalogError;
use crate::elf::Image;

/// Every server exports it to its extensions, no client program has it. psql holds the same
/// version string as the server, so the string alone proves nothing.
const SERVER_SYMBOL: &[u8] = b"TopMemoryContext";
const SERVER_SYMBOL_NAME: &str = "TopMemoryContext";

/// Exported by Greenplum and everything derived from it (`src/backend/cdb/cdbvars.c`), whatever
/// a vendor made of the version string.
const GREENPLUM_SYMBOL: &[u8] = b"GpIdentity";

/// What a version string says in parentheses, and whose it is. Order matters: the first that
/// occurs decides.
const MARKERS: [(&str, Product); 4] = [
    ("Apache Cloudberry", Product::Cloudberry),
    ("Cloudberry Database", Product::Cloudberry),
    ("Greenplum Database", Product::Greenplum),
    ("Greengage Database", Product::Greenplum),
];

/// Whose server it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Product {
    /// PostgreSQL, and builds of it that change nothing in its allocator.
    PostgreSql,
    /// Greenplum Database and its direct descendants.
    Greenplum,
    /// Cloudberry.
    Cloudberry,
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PostgreSql => "PostgreSQL",
            Self::Greenplum => "Greenplum",
            Self::Cloudberry => "Cloudberry",
        })
    }
}

/// What a server binary says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerVersion {
    /// Whose server.
    pub product: Product,
    /// The PostgreSQL major version; of a Greenplum, the one that it is based on (9 for 9.4).
    pub major: u32,
    /// The PostgreSQL version number, such as `15.18` or `19rc1`.
    pub number: String,
    /// The whole version string.
    pub full: String,
    /// The version of Greenplum or Cloudberry, if it is one; empty if it does not say.
    pub greenplum: Option<String>,
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.greenplum {
            Some(version) => write!(f, "{} {version} (PostgreSQL {})", self.product, self.number),
            None => write!(f, "{} {}", self.product, self.number),
        }
    }
}

impl ServerVersion {
    /// Whether it is a development version, whose layouts need not be those of the release.
    pub fn is_pre_release(&self) -> bool {
        !self.number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
    }
}

/// What server a binary is.
///
/// # Errors
/// If it is no server, or says no version or several.
pub fn identify(image: &Image) -> Result<ServerVersion, CatalogError> {
    let elf = image.elf()?;
    let defines = |name: &[u8]| {
        elf.dynamic_symbols()
            .chain(elf.symbols())
            .any(|symbol| symbol.is_definition() && symbol.name_bytes() == Ok(name))
    };
    if !defines(SERVER_SYMBOL) {
        let path = image.path().to_owned();
        return Err(CatalogError::NotAServer { path, symbol: SERVER_SYMBOL_NAME });
    }
    // A linker may have named the constants otherwise; the whole file holds them in any case.
    let found = image.section(".rodata").map(|(_, bytes)| version_strings(bytes)).unwrap_or_default();
    let found = if found.is_empty() { version_strings(image.bytes()) } else { found };
    parse(found, image.path(), defines(GREENPLUM_SYMBOL))
}

/// The NUL-terminated strings of the form `PostgreSQL VERSION …, compiled by …`, each once.
fn version_strings(bytes: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for text in bytes.split(|byte| *byte == 0) {
        let Some(rest) = text.strip_prefix(b"PostgreSQL ") else { continue };
        if !rest.first().is_some_and(u8::is_ascii_digit) {
            continue;
        }
        let text = String::from_utf8_lossy(text).into_owned();
        if text.contains(", compiled by ") && !found.contains(&text) {
            found.push(text);
        }
    }
    found
}

fn parse(
    mut found: Vec<String>,
    path: &Path,
    exports_greenplum: bool,
) -> Result<ServerVersion, CatalogError> {
    let full = match found.len() {
        0 => return Err(CatalogError::NoVersion { path: path.to_owned(), symbol: SERVER_SYMBOL_NAME }),
        1 => found.remove(0),
        _ => return Err(CatalogError::SeveralVersions { path: path.to_owned(), found }),
    };
    let number = full.split_ascii_whitespace().nth(1).unwrap_or_default().to_owned();
    let digits = number.split(|character: char| !character.is_ascii_digit()).next().unwrap_or_default();
    let Ok(major) = digits.parse() else {
        return Err(CatalogError::NoVersion { path: path.to_owned(), symbol: SERVER_SYMBOL_NAME });
    };
    // Greenplum and Cloudberry carry a PostgreSQL number, but not PostgreSQL's allocator: their
    // mark comes first.
    let marked = MARKERS.into_iter().find_map(|(marker, product)| {
        let (_, after) = full.split_once(marker)?;
        Some((product, after.split([')', ' ']).find(|word| !word.is_empty()).unwrap_or_default().to_owned()))
    });
    let (product, greenplum) = match marked {
        Some((product, version)) => (product, Some(version)),
        None if exports_greenplum => (Product::Greenplum, Some(String::new())),
        None => (Product::PostgreSql, None),
    };
    Ok(ServerVersion { product, major, number, full, greenplum })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> ServerVersion {
        parse(vec![text.to_owned()], Path::new("postgres"), false).expect("a version string")
    }

    #[test]
    fn only_whole_version_strings_count() {
        let rodata = b"upgrading to PostgreSQL 9.1.\0PostgreSQL 15.18\0PostgreSQL backend\0\
            PostgreSQL 15.18 on x86_64-pc-linux-gnu, compiled by gcc (Ubuntu 7.5.0) 7.5.0, 64-bit\0\
            since PostgreSQL 9.4.\0PostgreSQL 15.18 on x86_64-pc-linux-gnu, compiled by gcc (Ubuntu 7.5.0) 7.5.0, 64-bit\0";
        assert_eq!(
            version_strings(rodata),
            ["PostgreSQL 15.18 on x86_64-pc-linux-gnu, compiled by gcc (Ubuntu 7.5.0) 7.5.0, 64-bit"]
        );
    }

    #[test]
    fn postgresql_with_and_without_a_packager() {
        let debian = version(
            "PostgreSQL 15.18 (Debian 15.18-0+deb12u1) on x86_64-pc-linux-gnu, compiled by gcc (Debian \
             12.2.0-14+deb12u1) 12.2.0, 64-bit",
        );
        assert_eq!(
            (debian.product, debian.major, debian.number.as_str()),
            (Product::PostgreSql, 15, "15.18")
        );
        assert_eq!(debian.greenplum, None);
        assert_eq!(debian.to_string(), "PostgreSQL 15.18");
        assert!(!debian.is_pre_release());

        let candidate = version("PostgreSQL 19rc1 on x86_64-pc-linux-gnu, compiled by gcc, 64-bit");
        assert_eq!(candidate.major, 19);
        assert!(candidate.is_pre_release());
    }

    #[test]
    fn the_greenplum_mark_comes_before_the_number() {
        let greenplum = version(
            "PostgreSQL 12.12 (Greenplum Database 7.1.0 build commit:e7c2b1f) on x86_64-pc-linux-gnu, \
             compiled by gcc, 64-bit compiled on Jan 19 2024",
        );
        assert_eq!(greenplum.product, Product::Greenplum);
        assert_eq!(greenplum.greenplum.as_deref(), Some("7.1.0"));
        assert_eq!(greenplum.to_string(), "Greenplum 7.1.0 (PostgreSQL 12.12)");

        let cloudberry = version(
            "PostgreSQL 14.4 (Apache Cloudberry 2.0.0-incubating build 1) on x86_64-pc-linux-gnu, compiled \
             by gcc, 64-bit",
        );
        assert_eq!((cloudberry.product, cloudberry.major), (Product::Cloudberry, 14));
        assert_eq!(cloudberry.greenplum.as_deref(), Some("2.0.0-incubating"));
    }

    #[test]
    fn a_renamed_greenplum_is_known_by_what_it_exports() {
        let text = "PostgreSQL 12.12 (Some Warehouse 1) on x86_64, compiled by gcc".to_owned();
        let version = parse(vec![text], Path::new("postgres"), true).expect("a version string");
        assert_eq!((version.product, version.greenplum.as_deref()), (Product::Greenplum, Some("")));
    }

    #[test]
    fn no_version_or_two_is_refused() {
        assert!(matches!(
            parse(Vec::new(), Path::new("postgres"), false),
            Err(CatalogError::NoVersion { .. })
        ));
        let two = ["PostgreSQL 15.1 on a, compiled by b", "PostgreSQL 16.1 on a, compiled by b"];
        assert!(matches!(
            parse(two.map(str::to_owned).to_vec(), Path::new("postgres"), false),
            Err(CatalogError::SeveralVersions { found, .. }) if found.len() == 2
        ));
    }
}
