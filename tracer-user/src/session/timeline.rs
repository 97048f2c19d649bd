//! The time that a profile is about: stretches of recording, one behind the other.

use crate::profile::Slice;

/// A time while allocations were recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stretch {
    /// `CLOCK_MONOTONIC` when it began.
    pub start_ns: u64,
    /// How long it was.
    pub length_ns: u64,
    /// How long the process would have taken for the same work if nobody had looked; the same where that is
    /// not asked.
    pub stands_for_ns: u64,
}

/// All stretches of a capture, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timeline(Vec<Stretch>);

impl Timeline {
    /// Of these stretches, oldest first.
    pub fn new(stretches: Vec<Stretch>) -> Self {
        Self(stretches)
    }

    /// One that begins then (`CLOCK_MONOTONIC`) and stands for itself.
    pub fn whole(start_ns: u64, length_ns: u64) -> Self {
        Self(vec![Stretch { start_ns, length_ns, stands_for_ns: length_ns }])
    }

    /// How long all of them stand for.
    pub fn length_ns(&self) -> u64 {
        self.0.iter().map(|stretch| stretch.stands_for_ns).sum()
    }

    /// Cuts it into about `count` parts, equal ones in each stretch, and no fewer than there are stretches.
    pub fn slices(&self, count: u64) -> Vec<Slice> {
        let each_ns = (self.length_ns() / count.max(1)).max(1);
        let mut slices = Vec::new();
        let mut start_ns = 0;
        for stretch in &self.0 {
            // To the nearest number.
            let parts = ((stretch.stands_for_ns + each_ns / 2) / each_ns).max(1);
            let length_ns = (stretch.stands_for_ns / parts).max(1);
            slices.extend((0..parts).map(|part| Slice { start_ns: start_ns + part * length_ns, length_ns }));
            start_ns += stretch.stands_for_ns.max(parts);
        }
        slices
    }

    /// The slice that a moment is in; what lies between two stretches counts to the end of the first.
    pub fn slice_of(&self, born_ns: u64, slices: &[Slice]) -> Option<usize> {
        let after = self.0.partition_point(|stretch| stretch.start_ns <= born_ns).max(1);
        let stretch = self.0.get(after - 1)?;
        let before: u64 = self.0[..after - 1].iter().map(|stretch| stretch.stands_for_ns.max(1)).sum();
        let since = u128::from(born_ns.saturating_sub(stretch.start_ns).min(stretch.length_ns));
        let stands = since * u128::from(stretch.stands_for_ns) / u128::from(stretch.length_ns.max(1));
        // The end of recording and the last allocation are not the same moment.
        let at = before + (stands as u64).min(stretch.stands_for_ns.saturating_sub(1));
        let slice = slices.partition_point(|slice| slice.start_ns <= at);
        slice.checked_sub(1).or((!slices.is_empty()).then_some(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_stretch_is_cut_into_equal_parts() {
        let timeline = Timeline::whole(1000, 300);
        let slices = timeline.slices(3);
        assert_eq!(
            slices.iter().map(|slice| (slice.start_ns, slice.length_ns)).collect::<Vec<_>>(),
            [(0, 100), (100, 100), (200, 100)]
        );
        for (born, slice) in [(0, 0), (1000, 0), (1099, 0), (1100, 1), (1299, 2), (1300, 2), (9999, 2)] {
            assert_eq!(timeline.slice_of(born, &slices), Some(slice), "{born}");
        }
        assert_eq!(timeline.slice_of(5, &[]), None);
        assert_eq!(Timeline::default().slice_of(5, &slices), None);
    }

    #[test]
    fn stretches_lie_behind_one_another_and_count_for_what_they_stand_for() {
        let of = |start_ns, length_ns, stands_for_ns| Stretch { start_ns, length_ns, stands_for_ns };
        let timeline = Timeline::new(vec![of(1000, 400, 100), of(9000, 400, 100), of(20_000, 800, 200)]);
        assert_eq!(timeline.length_ns(), 400);
        let slices = timeline.slices(4);
        assert_eq!(slices.iter().map(|slice| slice.start_ns).collect::<Vec<_>>(), [0, 100, 200, 300]);
        for (born, slice) in
            [(1000, 0), (1399, 0), (2000, 0), (9000, 1), (9399, 1), (20_000, 2), (20_399, 2), (20_400, 3)]
        {
            assert_eq!(timeline.slice_of(born, &slices), Some(slice), "{born}");
        }
        // As many slices as there are stretches, however few are asked for.
        assert_eq!(timeline.slices(1).len(), 3);
        let idle = Timeline::new(vec![of(1000, 400, 0), of(9000, 400, 0)]);
        let slices = idle.slices(10);
        assert_eq!([1200, 9200].map(|born| idle.slice_of(born, &slices)), [Some(0), Some(1)]);
    }
}
