//! The plain listing of the SystemTap script that pgleak replaces: each stack with what it holds.

use std::io::{self, Write};

use super::{RenderOptions, folded::cut};
use crate::profile::{Capture, Tally};

/// Writes the stacks by bytes held, each innermost frame first.
///
/// # Errors
/// Of the writer.
pub(super) fn write(capture: &Capture, options: &RenderOptions, out: &mut dyn Write) -> io::Result<()> {
    let profile = &capture.profile;
    let mut held = vec![Tally::default(); profile.stacks.len()];
    for group in &profile.groups {
        if options.shows(capture, group)
            && let Some(tally) = held.get_mut(group.stack.0 as usize)
        {
            *tally += group.survived;
        }
    }
    let mut order: Vec<usize> =
        (0..held.len()).filter(|at| held[*at].held > 0 && held[*at].held >= options.min_bytes).collect();
    order.sort_by(|a, b| held[*b].held.cmp(&held[*a].held).then(a.cmp(b)));
    for at in order {
        let (tally, stack) = (held[at], &profile.stacks[at]);
        writeln!(
            out,
            "{} bytes in {} chunks ({} bytes requested)",
            tally.held, tally.count, tally.requested
        )?;
        for frame in stack.frames.iter().filter_map(|id| profile.frames.get(id.0 as usize)) {
            let module = frame.module.and_then(|id| capture.modules.get(id.0 as usize));
            let module = module.map_or("", |module| module.path.as_str());
            writeln!(out, " {} : {} [{module}]", frame.address, frame.label())?;
        }
        if let Some(cut) = cut(stack.end) {
            writeln!(out, " {cut}")?;
        }
        writeln!(out)?;
    }
    Ok(())
}
