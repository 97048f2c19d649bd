//! How artifacts are made.

use std::str::FromStr;

use inferno::flamegraph::{Palette, color::BasicPalette};

use crate::profile::{Capture, Group};

/// Colours of the flame graphs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Colours(pub(super) Palette);

/// Names of the palettes that are offered.
const PALETTES: [&str; 10] =
    ["mem", "hot", "java", "aqua", "blue", "green", "orange", "purple", "red", "yellow"];

/// A palette that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no palette '{0}'; take one of {list}", list = PALETTES.join(", "))]
pub struct UnknownPalette(String);

impl FromStr for Colours {
    type Err = UnknownPalette;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if !PALETTES.contains(&text) {
            return Err(UnknownPalette(text.to_owned()));
        }
        Palette::from_str(text).map(Self).map_err(|_| UnknownPalette(text.to_owned()))
    }
}

impl Default for Colours {
    fn default() -> Self {
        // Flame graphs of memory are green by convention.
        Self(Palette::Basic(BasicPalette::Mem))
    }
}

/// How artifacts are made. The default is what a capture writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RenderOptions {
    /// Draw `flame.svg` from the top down.
    pub inverted: bool,
    /// Merge the stacks of `flame.svg` and `stacks.folded` from the leaf.
    pub reverse: bool,
    /// Leave out stacks that hold less.
    pub min_bytes: u64,
    /// Only contexts of this name.
    pub context: Option<String>,
    /// Only what this one of several processes holds.
    pub pid: Option<u32>,
    /// Put the path of the contexts below the stacks.
    pub by_context: bool,
    /// Put the kind of the process below the stacks: `client backend`.
    pub by_kind: bool,
    /// Title of the pictures.
    pub title: Option<String>,
    /// Colours of the pictures.
    pub colours: Colours,
}

impl RenderOptions {
    /// Whether a group is shown.
    pub(super) fn shows(&self, capture: &Capture, group: &Group) -> bool {
        let place = capture.profile.place(group);
        let is_of = |pid: u32| {
            capture.processes.get(group.process as usize).map_or(capture.target.pid, |process| process.pid)
                == pid
        };
        self.context.as_ref().is_none_or(|wanted| *wanted == place.name || *wanted == place.label())
            && self.pid.is_none_or(is_of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_offered_palette_is_one() {
        for name in PALETTES {
            assert!(name.parse::<Colours>().is_ok(), "{name}");
        }
        let error = "plaid".parse::<Colours>().expect_err("no palette");
        assert!(error.to_string().contains("mem, hot"));
    }
}
