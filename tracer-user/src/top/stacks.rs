//! Where what is live was allocated, while a capture still records.
//!
//! Nothing feeds it yet: a capture tells its stacks when it has ended. The place on the screen is there, and appears
//! with the first stack.

use super::text::harmless;
use crate::target::human_bytes;

/// The stacks that hold most at one moment, the largest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LiveStacks {
    /// As many as are known; what fits is shown.
    pub stacks: Vec<LiveStack>,
}

/// One of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LiveStack {
    /// Bytes that were allocated there while recording and are not freed yet.
    pub held_bytes: u64,
    /// Its functions, innermost first, as reports list them.
    pub path: Vec<String>,
}

impl LiveStack {
    /// As one line.
    pub(super) fn line(&self) -> String {
        format!("{:>10}  {}", human_bytes(self.held_bytes), harmless(&self.path.join(" < ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_is_one_line() {
        let path = ["palloc", "evil\u{1b}[2J", "main"].map(str::to_owned).to_vec();
        let stack = LiveStack { held_bytes: 3 << 20, path };
        assert_eq!(stack.line(), "    3.0 MB  palloc < evil?[2J < main");
    }
}
