//! Whose code is linked into the program, and under which licences: their texts ask to go with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::process::{cargo, output};

/// What the names of files with licences begin with.
const FILES: [&str; 6] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];

/// The notices of all libraries, each text once.
pub(super) fn notices() -> Result<String> {
    // All features, since the programs for the kernel are behind one.
    let arguments = [
        "metadata",
        "--format-version=1",
        "--locked",
        "--all-features",
        "--filter-platform",
        "x86_64-unknown-linux-gnu",
    ];
    let metadata: Value =
        serde_json::from_str(&output(&mut cargo(arguments))?).context("cannot understand cargo metadata")?;
    let linked = linked(&metadata)?;
    let mut text = "pgleak holds these libraries, and the standard library of Rust (the Rust project contributors, MIT OR \
                    Apache-2.0):\n\n"
        .to_owned();
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in &linked {
        let name = name_of(package);
        let said = |key: &str| package[key].as_str().unwrap_or("see its text");
        let _ = writeln!(text, "  {name}: {}, {}", said("license"), said("repository"));
        let manifest = Path::new(package["manifest_path"].as_str().unwrap_or_default());
        for notice in read_notices(manifest.parent().unwrap_or(manifest))? {
            texts.entry(notice).or_default().insert(name.clone());
        }
    }
    // By who is first in the list, so that the order is that of names and not that of texts.
    let mut by_name: Vec<(BTreeSet<String>, String)> =
        texts.into_iter().map(|(text, names)| (names, text)).collect();
    by_name.sort();
    for (names, notice) in by_name {
        let names: Vec<String> = names.into_iter().collect();
        let _ = write!(text, "\n{}\n{}:\n\n{}\n", "-".repeat(78), names.join(", "), notice.trim_end());
    }
    Ok(text)
}

/// The packages that `pgleak` is linked with, sorted by name; its own workspace's and those that run at build time only
/// are left out.
fn linked(metadata: &Value) -> Result<Vec<&Value>> {
    let list = |value: &'static str| metadata[value].as_array().with_context(|| format!("no {value}"));
    let packages: BTreeMap<&str, &Value> =
        list("packages")?.iter().filter_map(|package| Some((package["id"].as_str()?, package))).collect();
    let nodes = metadata["resolve"]["nodes"].as_array().context("nothing is resolved")?;
    let nodes: BTreeMap<&str, &Value> =
        nodes.iter().filter_map(|node| Some((node["id"].as_str()?, node))).collect();
    let members: BTreeSet<&str> = list("workspace_members")?.iter().filter_map(Value::as_str).collect();
    let first =
        members.iter().find(|id| packages.get(*id).is_some_and(|package| package["name"] == "pgleak"));
    let mut to_visit = vec![*first.context("the workspace has no pgleak")?];
    let mut seen = BTreeSet::new();
    while let Some(id) = to_visit.pop() {
        let is_macro = packages.get(id).is_none_or(|package| is_macro(package));
        if is_macro || !seen.insert(id) {
            continue;
        }
        let needed = nodes.get(id).and_then(|node| node["deps"].as_array()).into_iter().flatten();
        to_visit
            .extend(needed.filter(|needed| is_linked(needed)).filter_map(|needed| needed["pkg"].as_str()));
    }
    let mut linked: Vec<&Value> =
        seen.difference(&members).filter_map(|id| packages.get(id).copied()).collect();
    linked.sort_by_key(|package| name_of(package));
    Ok(linked)
}

fn is_macro(package: &Value) -> bool {
    let targets = package["targets"].as_array().into_iter().flatten();
    targets.into_iter().any(|target| target["kind"] == serde_json::json!(["proc-macro"]))
}

/// A kind that is null is neither `dev` nor `build`.
fn is_linked(needed: &Value) -> bool {
    needed["dep_kinds"].as_array().into_iter().flatten().any(|kind| kind["kind"].is_null())
}

fn name_of(package: &Value) -> String {
    let text = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
    format!("{} {}", text("name"), text("version"))
}

/// The texts in a directory of sources, in the order of their files.
fn read_notices(directory: &Path) -> Result<Vec<String>> {
    let read = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut files = Vec::new();
    for entry in read {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        if path.is_file() && FILES.iter().any(|start| name.starts_with(start)) {
            files.push(path);
        }
    }
    files.sort();
    let read = |path: PathBuf| fs::read(&path).with_context(|| format!("cannot read {}", path.display()));
    let texts = files.into_iter().map(read).collect::<Result<Vec<_>>>()?;
    Ok(texts.into_iter().map(|bytes| String::from_utf8_lossy(&bytes).replace("\r\n", "\n")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_linked_by_way_of_others_counts_and_what_builds_does_not() {
        let package = |id: &str, kind: &str| serde_json::json!({ "id": id, "name": id, "version": "1.0.0", "targets": [{ "kind": [kind] }] });
        let node = |id: &str, deps: &[(&str, Option<&str>)]| {
            let deps: Vec<Value> = deps
                .iter()
                .map(|(pkg, kind)| serde_json::json!({ "pkg": pkg, "dep_kinds": [{ "kind": kind }] }))
                .collect();
            serde_json::json!({ "id": id, "deps": deps })
        };
        let metadata = serde_json::json!({
            "packages": [package("pgleak", "lib"), package("own", "lib"), package("far", "lib"), package("near", "lib"),
                package("macro", "proc-macro"), package("syn", "lib"), package("cc", "lib")],
            "resolve": { "nodes": [
                node("pgleak", &[("own", None), ("macro", None), ("cc", Some("build")), ("near", None)]),
                node("own", &[("far", None)]), node("macro", &[("syn", None)]), node("near", &[("far", None)]),
            ] },
            "workspace_members": ["own", "pgleak"],
        });
        let names: Vec<String> = linked(&metadata).expect("all is there").into_iter().map(name_of).collect();
        assert_eq!(names, ["far 1.0.0", "near 1.0.0"]);
    }
}
