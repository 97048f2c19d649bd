//! `cargo xtask licences`: every dependency may be used under licences that the top manifest allows.
//!
//! `cargo metadata` knows all that is needed, the list included: it stands in
//! `[workspace.metadata.licences]`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use xtask::process::{cargo, output};

/// Check the licences of all dependencies against the list in Cargo.toml
#[derive(clap::Args)]
pub(crate) struct Licences {}

impl Licences {
    pub(crate) fn run(self) -> Result<()> {
        let count = check()?;
        println!("licences: {count} packages, all allowed");
        Ok(())
    }
}

/// Checks all packages of all features and platforms; how many there are.
pub(crate) fn check() -> Result<usize> {
    let text = output(&mut cargo(["metadata", "--format-version=1", "--all-features", "--locked"]))?;
    let metadata: Value = serde_json::from_str(&text).context("cannot understand cargo metadata")?;
    let policy = Policy::read(&metadata["metadata"]["licences"])?;
    let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
    let mut refused = Vec::new();
    let mut unused: BTreeSet<&str> = policy.exceptions.keys().map(String::as_str).collect();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        unused.remove(name);
        match package["license"].as_str() {
            None => refused.push(format!("{name}: states no licence")),
            Some(licence) => {
                if let Err(reason) = policy.judge(name, licence) {
                    refused.push(format!("{name}: {licence}: {reason}"));
                }
            }
        }
    }
    refused.extend(unused.iter().map(|name| format!("{name}: an exception for what is not used")));
    if !refused.is_empty() {
        bail!("licences that [workspace.metadata.licences] does not allow:\n  {}", refused.join("\n  "));
    }
    Ok(packages.len())
}

/// What is allowed.
#[derive(Debug, Default)]
struct Policy {
    everywhere: BTreeSet<String>,
    /// More licences, for single packages.
    exceptions: BTreeMap<String, BTreeSet<String>>,
}

impl Policy {
    fn read(value: &Value) -> Result<Self> {
        let strings = |list: &Value| -> Option<BTreeSet<String>> {
            list.as_array()?.iter().map(|entry| entry.as_str().map(str::to_owned)).collect()
        };
        let everywhere = strings(&value["allow"])
            .context("[workspace.metadata.licences] in Cargo.toml has no list `allow`")?;
        let exceptions = match value["exceptions"].as_object() {
            None => BTreeMap::new(),
            Some(table) => table
                .iter()
                .map(|(name, list)| Some((name.clone(), strings(list)?)))
                .collect::<Option<_>>()
                .context("`exceptions` in [workspace.metadata.licences] are no lists")?,
        };
        Ok(Self { everywhere, exceptions })
    }

    /// Whether the package may be used under its SPDX expression.
    fn judge(&self, package: &str, expression: &str) -> Result<(), String> {
        let more = self.exceptions.get(package);
        let allows = |licence: &str| {
            self.everywhere.contains(licence) || more.is_some_and(|more| more.contains(licence))
        };
        let tokens = tokens(expression);
        let mut parser = Parser { tokens: &tokens, allows: &allows };
        let allowed = parser.any()?;
        match parser.tokens.first() {
            Some(rest) => Err(format!("`{rest}` was not expected")),
            None if allowed => Ok(()),
            None => Err("not allowed".into()),
        }
    }
}

/// Old manifests write `MIT/Apache-2.0`.
fn tokens(expression: &str) -> Vec<String> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    spaced.split_whitespace().map(str::to_owned).collect()
}

/// A recursive descent over the words of an SPDX expression; AND binds tighter than OR.
struct Parser<'t> {
    tokens: &'t [String],
    allows: &'t dyn Fn(&str) -> bool,
}

impl Parser<'_> {
    fn take(&mut self, word: &str) -> bool {
        match self.tokens.split_first() {
            Some((first, rest)) if first == word => {
                self.tokens = rest;
                true
            }
            _ => false,
        }
    }

    fn any(&mut self) -> Result<bool, String> {
        let mut allowed = self.all()?;
        while self.take("OR") {
            allowed |= self.all()?;
        }
        Ok(allowed)
    }

    fn all(&mut self) -> Result<bool, String> {
        let mut allowed = self.one()?;
        while self.take("AND") {
            allowed &= self.one()?;
        }
        Ok(allowed)
    }

    fn one(&mut self) -> Result<bool, String> {
        if self.take("(") {
            let allowed = self.any()?;
            return if self.take(")") { Ok(allowed) } else { Err("a `)` is missing".into()) };
        }
        let (first, rest) = self.tokens.split_first().ok_or("it ends too early")?;
        if matches!(first.as_str(), "OR" | "AND" | "WITH" | ")") {
            return Err(format!("`{first}` stands where a licence should"));
        }
        self.tokens = rest;
        if self.take("WITH") {
            // An exception only permits more, so that it does not matter which one it is.
            self.tokens = self.tokens.split_first().ok_or("it ends too early")?.1;
        }
        Ok((self.allows)(first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        let list =
            serde_json::json!({ "allow": ["MIT", "Apache-2.0"], "exceptions": { "inferno": ["CDDL-1.0"] } });
        Policy::read(&list).expect("it is good")
    }

    #[test]
    fn expressions() {
        for good in
            ["MIT", "MIT/Unlicense", "GPL-2.0 OR MIT", "(MIT OR X) AND Apache-2.0", "Apache-2.0 WITH E"]
        {
            assert_eq!(policy().judge("some", good), Ok(()), "{good}");
        }
        for bad in ["GPL-2.0", "MIT AND X", "X OR MIT AND Y", "(MIT OR X) AND X", "CDDL-1.0", "X WITH E"] {
            assert_eq!(policy().judge("some", bad), Err("not allowed".into()), "{bad}");
        }
        for broken in ["", "MIT OR", "(MIT", "MIT MIT", "AND MIT", "MIT)", "MIT WITH"] {
            let reason = policy().judge("some", broken).expect_err(broken);
            assert_ne!(reason, "not allowed", "{broken}");
        }
    }

    #[test]
    fn an_exception_is_for_one_package() {
        assert_eq!(policy().judge("inferno", "CDDL-1.0"), Ok(()));
        assert!(policy().judge("other", "CDDL-1.0").is_err());
    }
}
