//! Numbers of tests, as the standard library's test harness prints them.

use std::fmt;

/// A sum of test results.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) passed: u64,
    pub(super) failed: u64,
    pub(super) skipped: u64,
    /// Names of what failed.
    pub(super) failures: Vec<String>,
}

impl Tally {
    /// Counts a failure that has no line of its own.
    pub(super) fn fail(&mut self, name: &str) {
        self.failed += 1;
        self.failures.push(name.to_owned());
    }

    /// One test was counted as passed and had skipped itself.
    pub(super) fn skipped_inside(&mut self) {
        self.passed = self.passed.saturating_sub(1);
        self.skipped += 1;
    }

    pub(super) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.failures.extend(other.failures);
    }

    /// Takes in a line of output: `test result: FAILED. 3 passed; 1 failed; 2 ignored; …` or
    /// `test NAME ... FAILED`.
    pub(super) fn read(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
            self.failures.push(name.to_owned());
        }
        let Some((_, counts)) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for part in counts.split("; ") {
            let Some((number, what)) = part.split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.skipped += number,
                _ => {}
            }
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_several_runs() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "test a::b ... ok",
            "test a::c ... FAILED",
            "test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; 7 filtered out; finished in 0.00s",
            "test result: ok. 10 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.50s",
        ] {
            tally.read(line);
        }
        assert_eq!(tally.to_string(), "13 passed, 1 failed, 2 skipped");
        assert_eq!(tally.failures, ["a::c"]);
        tally.skipped_inside();
        assert_eq!(tally.to_string(), "12 passed, 1 failed, 3 skipped");
    }
}
