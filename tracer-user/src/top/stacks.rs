//! Where what is live was allocated, while a capture still records: as the capture tells it, a line each.

use super::text::harmless;
use crate::{session::LiveStack, target::human_bytes};

/// Columns of a context's name.
const CONTEXT: usize = 20;

/// A stack as one line.
pub(super) fn line(stack: &LiveStack) -> String {
    let context: String = harmless(&stack.context).chars().take(CONTEXT).collect();
    format!(
        "{:>10}  {context:<CONTEXT$}  {}",
        human_bytes(stack.held_bytes),
        harmless(&stack.path.join(" < "))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_is_one_line() {
        let path = ["palloc", "evil\u{1b}[2J", "main"].map(str::to_owned).to_vec();
        let context = "CacheMemoryContext and more".to_owned();
        let stack = LiveStack { held_bytes: 3 << 20, chunks: 5, context, path };
        assert_eq!(line(&stack), "    3.0 MB  CacheMemoryContext a  palloc < evil?[2J < main");
    }
}
