//! What the guest's console has to say for a kernel to pass.

use anyhow::{Result, bail};

/// Every check that the guest makes. One that is not heard of has failed.
const CHECKS: [&str; 29] = [
    "measure",
    "program alloc_enter",
    "program alloc_exit",
    "program free_enter",
    "program realloc_enter",
    "program realloc_exit",
    "program reset_enter",
    "program delete_enter",
    "program create_enter",
    "program outside_alloc_enter",
    "program outside_alloc_exit",
    "program outside_free_enter",
    "program outside_realloc_enter",
    "program outside_realloc_exit",
    "program loader_enter",
    "program process_exit",
    "program process_exec",
    "program measure_enter",
    "chain plain",
    "chain recursive",
    "chain qsort",
    "chain library",
    "stacks",
    "counters",
    "uprobe_multi links",
    "session links",
    "several processes",
    "sampling",
    "foresight",
];

/// Reads the console; see `tests/src/bin/kernel-guest` for its lines.
///
/// # Errors
/// A panic, a check that failed, is missing, unknown or there twice, or an end that did not come.
pub(super) fn judge(console: &str) -> Result<()> {
    let mut wrong = Vec::new();
    let mut passed = Vec::new();
    let mut ended = false;
    for line in console.lines() {
        if line.contains("Kernel panic") {
            wrong.push(line.to_owned());
        }
        // The firmware leaves its control characters before the first line.
        let Some((_, said)) = line.split_once("guest: ") else { continue };
        match said.split_once(' ') {
            None if said == "end" => ended = true,
            Some(("ok", rest)) => passed.push(rest.split_once(": ").map_or(rest, |(name, _)| name)),
            _ => wrong.push(said.to_owned()),
        }
    }
    for name in CHECKS {
        match passed.iter().filter(|passed| **passed == name).count() {
            1 => {}
            0 => wrong.push(format!("`{name}` did not pass")),
            times => wrong.push(format!("`{name}` passed {times} times")),
        }
    }
    let unknown = passed.iter().filter(|name| !CHECKS.contains(*name));
    wrong.extend(unknown.map(|name| format!("`{name}` is no check that is known")));
    if !ended {
        wrong.push("the guest did not come to its end".to_owned());
    }
    if wrong.is_empty() { Ok(()) } else { bail!("{}", wrong.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> String {
        let lines: String = CHECKS.iter().map(|name| format!("guest: ok {name}: fine\r\n")).collect();
        format!("\x1b[2Jsome firmware\n{lines}guest: end\n")
    }

    fn why(console: &str) -> String {
        judge(console).expect_err("something is wrong").to_string()
    }

    #[test]
    fn everything_once_and_an_end_is_a_pass() {
        judge(&all()).expect("a pass");
    }

    #[test]
    fn whatever_is_missing_or_wrong_is_named() {
        assert!(why("").contains("`counters` did not pass"));
        assert!(why(&all().replace("guest: end", "")).contains("did not come to its end"));
        assert!(why(&all().replace("ok stacks: fine", "failed stacks: two")).contains("failed stacks: two"));
        assert!(why(&all().replace("ok stacks", "ok stack")).contains("`stack` is no check"));
        assert!(why(&(all() + "guest: ok stacks: again\n")).contains("passed 2 times"));
        assert!(why(&(all() + "[ 1.0] Kernel panic - not syncing\n")).contains("Kernel panic"));
    }
}
