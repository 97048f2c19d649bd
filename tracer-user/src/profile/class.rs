//! Leak, cache or work in flight: judged by when the survivors of a place were allocated.

use super::{Life, Tally};

/// What a place that holds memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Survivors from nearly every part of the record window, at a steady rate, for good.
    Leak,
    /// The same, in contexts that end with a statement, a query or a transaction.
    Held,
    /// Grew at first and then no more, or by an entry for each object that was touched.
    Cache,
    /// Survivors from the end of the window only: work that had not ended.
    InFlight,
    /// Too little to tell, or in no known pattern.
    Unclear,
}

impl Class {
    /// As it stands in a report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Leak => "leak",
            Self::Held => "held until reset",
            Self::Cache => "cache",
            Self::InFlight => "in flight",
            Self::Unclear => "unclear",
        }
    }
}

/// What it takes to be called a leak.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Floor {
    /// Fewer survivors than this say nothing about a rate: eight chunks at random times still
    /// leave a quarter of the window empty four times out of ten.
    pub chunks: u64,
    /// Slower growth is not worth somebody's night: 256 B/s are 21 MiB a day.
    pub bytes_per_second: f64,
    /// The part of the time slices that must have survivors.
    pub slices: f64,
}

/// The floor that [`super::judge`] applies.
pub const FLOOR: Floor = Floor { chunks: 8, bytes_per_second: 256.0, slices: 0.75 };

/// Fewer slices than this cannot show a course over time.
const MIN_SLICES: usize = 4;

/// A slice counts at most as much as this many slices of its lowest quarter, so that neither a
/// warm-up nor a query in progress hides a leak at the same place, and some chance survivors of
/// different kinds do not look like one.
const CAP: u64 = 3;

/// A third of the window with less than this part of the growth has stopped growing, or lost what
/// was allocated in it. A steady leak has a third of it in each.
const HARDLY_ANY: f64 = 0.10;

/// How a place grew.
#[derive(Clone, Debug, PartialEq)]
pub struct Course {
    /// What it is.
    pub class: Class,
    /// Why, as a sentence without a full stop.
    pub reason: String,
    /// Bytes held per second of the record window.
    pub growth_per_second: f64,
    /// The part of it that is steady, without bursts.
    pub steady_per_second: f64,
    /// How sure this is, from 0 to 1.
    pub confidence: f64,
    /// Whether it grew until the end of the recording, whatever it is.
    pub still_grows: bool,
    /// Of a recording in windows, or by samples: where the growth lies nineteen times of twenty, in bytes per second.
    pub interval: Option<[f64; 2]>,
}

impl Course {
    /// What steady growth is, by how long it lives and by the objects that explain it.
    pub(super) fn of_what_kind(&mut self, life: Life, objects: Option<&'static str>) {
        self.still_grows = true;
        if let Some(object) = objects {
            self.class = Class::Cache;
            self.reason.push_str(&format!(
                ". It is one entry for each {object} that the process has touched; PostgreSQL keeps them for \
                 good, so this ends when all have been touched"
            ));
        } else if life != Life::Process {
            self.class = Class::Held;
            self.reason.push_str(&format!(", but no longer than {}", life.end()));
        }
    }
}

/// Surer than this is sure enough to stop recording.
const FIRM: f64 = 0.9;

/// What something surely is, so that recording it for longer would tell no more.
pub fn firm_class(slices: &[Tally], record_ns: u64) -> Option<Class> {
    let course = classify(slices, record_ns, 0.5);
    let is_firm = course.class != Class::Unclear && course.confidence >= FIRM;
    is_firm.then_some(course.class)
}

/// Less than this part of all allocations was released: nothing, but for some that were in flight.
const HARDLY_RELEASED: f64 = 0.02;

/// Classes a place by its survivors in equal slices of a record window, and by the part of all its
/// allocations that was released.
pub(super) fn classify(slices: &[Tally], record_ns: u64, released: f64) -> Course {
    let seconds = record_ns as f64 / 1e9;
    let held: u64 = slices.iter().map(|slice| slice.held).sum();
    let count: u64 = slices.iter().map(|slice| slice.count).sum();
    let per_second = |bytes: u64| if seconds > 0.0 { bytes as f64 / seconds } else { 0.0 };
    let mut course = Course {
        class: Class::Unclear,
        reason: String::new(),
        growth_per_second: per_second(held),
        steady_per_second: per_second(held),
        confidence: 0.0,
        still_grows: false,
        interval: None,
    };
    let slice_seconds = seconds / slices.len().max(1) as f64;
    if slices.len() < MIN_SLICES || count == 0 {
        course.reason = "the recording was too short to see how it grows".to_owned();
        return course;
    }

    let parts = coarsen(slices, count);
    let capped = cap(&parts);
    let steady = Shares::of(&capped);
    course.steady_per_second = per_second(capped.iter().map(|part| part.held).sum());
    let occupied = parts.iter().filter(|part| part.count > 0).count();
    let everywhere = occupied as f64 >= parts.len() as f64 * FLOOR.slices;

    if count >= FLOOR.chunks
        && course.steady_per_second >= FLOOR.bytes_per_second
        && everywhere
        // Where nothing is released, few old ones only mean that there were few.
        && (steady.early >= HARDLY_ANY || released < HARDLY_RELEASED)
        && steady.late >= HARDLY_ANY
    {
        course.class = Class::Leak;
        course.confidence = confidence(slices, count, &steady);
        let filled = slices.iter().filter(|slice| slice.count > 0).count();
        course.reason = format!(
            "{filled} of {} time slices left survivors, so that what is allocated here stays{}",
            slices.len(),
            trend(&steady)
        );
        return course;
    }

    // What is no leak is told by where nothing survives, which takes chunks to be sure of.
    course.confidence = 1.0 - (-(count as f64) / 8.0).exp();
    let raw = Shares::of(slices);
    let grown = grown_until(slices, held);
    let begun = slices.iter().position(|slice| slice.count > 0).unwrap_or(0);
    let (class, reason) = if begun * 4 >= slices.len() * 3 || raw.late >= 1.0 - HARDLY_ANY {
        (
            Class::InFlight,
            format!(
                "what survives is from the last {:.1} s of the recording; older chunks were released",
                (slices.len() - first_that_matters(slices, held)) as f64 * slice_seconds
            ),
        )
    } else if raw.late < HARDLY_ANY {
        (
            Class::Cache,
            format!(
                "{} of it came in the first {:.1} of {seconds:.1} s and hardly anything since: it filled up",
                if grown.all { "all" } else { "nearly all" },
                grown.slices as f64 * slice_seconds
            ),
        )
    } else if count < FLOOR.chunks {
        let plural = if count == 1 { "chunk survives" } else { "chunks survive" };
        (
            Class::Unclear,
            format!("only {count} {plural}, too few to tell a leak: capture longer if it matters"),
        )
    } else if course.steady_per_second < FLOOR.bytes_per_second && everywhere {
        (Class::Unclear, format!("it grows by less than {:.0} bytes a second", FLOOR.bytes_per_second))
    } else if steady.early < HARDLY_ANY {
        (Class::Unclear, "the older the chunks, the fewer are left: they seem to be released late".to_owned())
    } else if steady.late < HARDLY_ANY {
        (Class::Unclear, "it slows down: perhaps a cache that is still filling".to_owned())
    } else {
        let filled = slices.iter().filter(|slice| slice.count > 0).count();
        let all = slices.len();
        (
            Class::Unclear,
            format!("it grew in {filled} of {all} time slices only, not steadily: capture longer"),
        )
    };
    (course.class, course.reason) = (class, reason);
    course
}

/// What is soon replaced and grows all the same: each chunk is young, and there is more of them, or
/// they are larger, at the end of nearly every slice. `held` is what was there then.
pub(super) fn grows_by_replacement(course: &mut Course, held: &[u64], record_ns: u64) {
    let third = held.len() / 3;
    if held.len() < MIN_SLICES || third == 0 || course.class == Class::Cache {
        return;
    }
    let (first, last) = (&held[..third], &held[held.len() - third..]);
    // Not the means: what is in flight at some of these moments jumps up and down.
    let early = first.iter().max().copied().unwrap_or(0) as f64;
    let late = last.iter().min().copied().unwrap_or(0) as f64;
    let rises = held.windows(2).filter(|pair| pair[1] > pair[0]).count();
    let seconds = record_ns as f64 / 1e9 / 3.0;
    let per_second = (late - early) / seconds.max(f64::EPSILON);
    let often = rises as f64 / (held.len() - 1) as f64;
    if early > 0.0
        && late >= early * LEAST_GROWTH
        && often >= MOST_RISE
        && per_second >= FLOOR.bytes_per_second
    {
        course.class = Class::Leak;
        course.growth_per_second = per_second;
        course.steady_per_second = per_second;
        course.confidence = often * (1.0 - early / late);
        course.reason = format!(
            "its chunks are released, but each time for more: it held more at the end of {rises} of {} time \
             slices than before, {:.1} times as much late as early",
            held.len() - 1,
            late / early
        );
    }
}

/// What grows by replacement has grown by half from the most that it held in its first third to the
/// least in its last, and in nearly every step between: chance does neither.
const LEAST_GROWTH: f64 = 1.5;
const MOST_RISE: f64 = 0.85;

/// How sure a leak is: many survivors, from all slices, and as many late as early. Eight chunks
/// at the floor are worth a half, some hundred steady ones nearly one.
fn confidence(slices: &[Tally], count: u64, steady: &Shares) -> f64 {
    let many = 1.0 - (-(count as f64) / 12.0).exp();
    let filled = slices.iter().filter(|slice| slice.count > 0).count() as f64 / slices.len() as f64;
    let trend = (steady.late / steady.early.max(f64::EPSILON)).clamp(0.0, 1.0).sqrt();
    many * filled * trend
}

/// What a steady leak's parts say about its rate.
fn trend(shares: &Shares) -> &'static str {
    if shares.late < shares.early / 3.0 {
        "; it slows down, as a cache does that is still filling"
    } else if shares.early < shares.late / 3.0 {
        "; it speeds up"
    } else {
        ", at a steady rate"
    }
}

/// Joins neighbouring slices when there are too few survivors to expect some in each: with three
/// a part on average, one part in twenty is empty by chance.
fn coarsen(slices: &[Tally], count: u64) -> Vec<Tally> {
    let parts = usize::try_from(count / 3).unwrap_or(usize::MAX).clamp(MIN_SLICES, slices.len());
    let mut joined = vec![Tally::default(); parts];
    for (index, slice) in slices.iter().enumerate() {
        joined[index * parts / slices.len()] += *slice;
    }
    joined
}

/// Limits every part to [`CAP`] times the one that a quarter of those with survivors stay below.
fn cap(parts: &[Tally]) -> Vec<Tally> {
    let limit = |field: fn(&Tally) -> u64| {
        let mut values: Vec<u64> = parts.iter().map(field).filter(|value| *value > 0).collect();
        values.sort_unstable();
        values.get(values.len().saturating_sub(1) / 4).map_or(0, |low| low.saturating_mul(CAP))
    };
    let (held, count) = (limit(|part| part.held), limit(|part| part.count));
    parts
        .iter()
        .map(|part| Tally { count: part.count.min(count), held: part.held.min(held), ..*part })
        .collect()
}

/// The parts of growth in the first and in the last third.
struct Shares {
    early: f64,
    late: f64,
}

impl Shares {
    /// By bytes or by count, whichever is more: an array that doubles by realloc is small in its
    /// first third, and a table of big blocks has few chunks in its last.
    fn of(parts: &[Tally]) -> Self {
        let third = (parts.len() / 3).max(1);
        let share = |range: &[Tally]| {
            let part = |field: fn(&Tally) -> u64| {
                let all: u64 = parts.iter().map(field).sum();
                range.iter().map(field).sum::<u64>() as f64 / all.max(1) as f64
            };
            part(|part| part.held).max(part(|part| part.count))
        };
        Self { early: share(&parts[..third]), late: share(&parts[parts.len() - third..]) }
    }
}

struct Grown {
    slices: usize,
    all: bool,
}

/// After how many slices nearly all of it was there.
fn grown_until(slices: &[Tally], held: u64) -> Grown {
    let mut sum = 0;
    for (index, slice) in slices.iter().enumerate() {
        sum += slice.held;
        if sum as f64 >= held as f64 * (1.0 - HARDLY_ANY) {
            return Grown { slices: index + 1, all: sum == held };
        }
    }
    Grown { slices: slices.len(), all: true }
}

/// The first slice before which there is next to nothing.
fn first_that_matters(slices: &[Tally], held: u64) -> usize {
    let mut sum = 0;
    slices
        .iter()
        .position(|slice| {
            sum += slice.held;
            sum as f64 > held as f64 * HARDLY_ANY
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(counts: &[u64], bytes: u64) -> Course {
        let slices: Vec<Tally> = counts
            .iter()
            .map(|count| Tally { count: *count, requested: count * bytes, held: count * bytes })
            .collect();
        classify(&slices, 10_000_000_000, 0.5)
    }

    #[test]
    fn survivors_from_every_slice_are_a_leak() {
        let course = of(&[9, 11, 10, 10, 8, 12, 10, 9, 11, 10], 1_000);
        assert_eq!(course.class, Class::Leak, "{}", course.reason);
        assert_eq!(course.growth_per_second, 10_000.0);
        // Nine checkpoints in ten seconds: few, but regular.
        assert_eq!(of(&[1, 1, 1, 0, 1, 1, 1, 1, 1, 1], 82_000).class, Class::Leak);
        // One every other second.
        assert_eq!(of(&[2, 0, 2, 0, 2, 0, 2, 0, 2, 0], 82_000).class, Class::Leak);
    }

    #[test]
    fn a_leak_shows_through_a_warm_up_and_through_a_running_query() {
        let warm_up = of(&[5_000, 900, 10, 10, 10, 10, 10, 10, 10, 10], 1_000);
        assert_eq!(warm_up.class, Class::Leak, "{}", warm_up.reason);
        assert!(warm_up.steady_per_second < 20_000.0);
        assert!(warm_up.growth_per_second > 590_000.0);
        assert_eq!(of(&[10, 10, 10, 10, 10, 10, 10, 10, 10, 8_000], 1_000).class, Class::Leak);
    }

    #[test]
    fn growth_by_doubling_is_a_leak_though_its_first_bytes_are_few() {
        let slices: Vec<Tally> =
            (0..10).map(|i| Tally { count: 2, requested: 1_000 << i, held: 1_000 << i }).collect();
        let course = classify(&slices, 10_000_000_000, 0.5);
        assert_eq!(course.class, Class::Leak, "{}", course.reason);
    }

    #[test]
    fn what_fills_up_is_a_cache() {
        assert_eq!(of(&[5_000, 900, 40, 0, 0, 0, 0, 0, 0, 0], 1_000).class, Class::Cache);
        assert_eq!(of(&[800, 400, 200, 100, 50, 25, 12, 6, 3, 1], 100).class, Class::Cache);
        assert_eq!(of(&[3, 0, 0, 0, 0, 0, 0, 0, 0, 0], 100_000).class, Class::Cache);
    }

    #[test]
    fn what_is_young_is_in_flight() {
        assert_eq!(of(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 700], 1_000).class, Class::InFlight);
        assert_eq!(of(&[0, 0, 0, 0, 0, 0, 0, 0, 40, 700], 1_000).class, Class::InFlight);
        // One entry that is replaced again and again.
        assert_eq!(of(&[0, 0, 0, 0, 0, 0, 0, 0, 1, 0], 9_000).class, Class::InFlight);
    }

    #[test]
    fn what_is_never_released_is_a_leak_however_it_speeds_up() {
        let slices: Vec<Tally> =
            (0..10).map(|i| Tally { count: 1 << i, requested: 500 << i, held: 500 << i }).collect();
        assert_eq!(classify(&slices, 10_000_000_000, 0.5).class, Class::Unclear);
        let course = classify(&slices, 10_000_000_000, 0.0);
        assert_eq!(course.class, Class::Leak, "{}", course.reason);
        assert!(course.reason.contains("it speeds up"), "{}", course.reason);
    }

    #[test]
    fn noise_is_nothing() {
        assert_eq!(of(&[1, 0, 1, 0, 0, 1, 0, 1, 0, 1], 8_000).class, Class::Unclear, "five chunks");
        assert_eq!(of(&[1, 1, 1, 1, 1, 1, 1, 1, 1, 1], 100).class, Class::Unclear, "100 B/s");
        assert_eq!(of(&[1, 2, 4, 8, 16, 32, 64, 128, 256, 512], 500).class, Class::Unclear, "ageing");
        assert_eq!(of(&[0, 0, 0, 0, 20, 20, 0, 0, 0, 20], 5_000).class, Class::Unclear, "bursts");
    }

    #[test]
    fn growth_by_replacement_is_no_matter_of_chance() {
        let young = || of(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 7], 60_000);
        let after = |held: &[u64]| {
            let mut course = young();
            grows_by_replacement(&mut course, held, 10_000_000_000);
            course
        };
        let course = after(&[40, 80, 120, 160, 200, 240, 280, 320, 360, 420].map(|kilo| kilo * 1000));
        assert_eq!(course.class, Class::Leak, "{}", course.reason);
        assert!((course.growth_per_second - 60_000.0).abs() < 20_000.0, "{}", course.growth_per_second);
        // What `create table` held at ten moments, between nothing and a lot.
        for held in [
            [100, 400, 900, 1_200, 0, 3_000, 9_000, 11_000, 700, 12_300],
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 420_000],
            [420_000; 10],
        ] {
            assert_eq!(after(&held).class, Class::InFlight, "{held:?}");
        }
        assert_eq!(after(&[]).class, Class::InFlight);
    }

    #[test]
    fn many_steady_survivors_are_firm_and_few_are_not() {
        let steady = |count: u64| vec![Tally { count, requested: count * 900, held: count * 1000 }; 10];
        assert_eq!(firm_class(&steady(10), 10_000_000_000), Some(Class::Leak));
        assert_eq!(firm_class(&steady(1), 10_000_000_000), None);
        assert_eq!(firm_class(&[], 10_000_000_000), None);
    }

    #[test]
    fn a_course_needs_time() {
        let course = of(&[10, 10, 10], 1_000);
        assert_eq!((course.class, course.growth_per_second), (Class::Unclear, 3_000.0));
        assert_eq!(of(&[], 1).class, Class::Unclear);
    }
}
