//! The series grows old: points are thinned out with age, and go when they are too old or too many.
//!
//! It is done a process at a time, so that nobody waits for the database for long.

use std::time::Duration;

use rusqlite::{OptionalExtension as _, params};

use super::{
    database::{Database, DatabaseError},
    shelf::SharedShelf,
};

/// Points that are older than the first have one left of each so long: the last, with the most that was held.
const TIERS: [(Duration, Duration); 3] = [
    (Duration::from_secs(2 * 3600), Duration::from_secs(60)),
    (Duration::from_secs(2 * 86400), Duration::from_secs(600)),
    (Duration::from_secs(14 * 86400), Duration::from_secs(3600)),
];

/// What is younger never goes for want of room.
const LEAST_KEPT: Duration = Duration::from_secs(900);

/// Pages that are given back at once.
const PAGES: u32 = 256;

/// Others get their turn in between.
const PAUSE: Duration = Duration::from_millis(1);

/// A part of the series, in milliseconds since 1970; the end is not part of it.
#[derive(Clone, Copy, Debug)]
struct Part {
    from_ms: i64,
    to_ms: i64,
    step_ms: i64,
}

/// Thins out what is old, takes away what is too old, and more of that until the series is no larger than it may be.
///
/// # Errors
/// If it cannot be written.
pub(super) fn thin_out(
    shelf: &SharedShelf,
    now_ms: i64,
    keep: Duration,
    max_size: u64,
) -> Result<(), DatabaseError> {
    thin_by(
        &mut |work| {
            let result = shelf.with_now(|shelf| work(&mut shelf.database));
            std::thread::sleep(PAUSE);
            result
        },
        now_ms,
        keep,
        max_size,
    )
}

/// Does one thing with the database.
type Turn<'a> =
    dyn FnMut(&mut dyn FnMut(&mut Database) -> Result<u64, DatabaseError>) -> Result<u64, DatabaseError> + 'a;

fn thin_by(turn: &mut Turn<'_>, now_ms: i64, keep: Duration, max_size: u64) -> Result<(), DatabaseError> {
    let mut rows = Vec::new();
    turn(&mut |database| {
        rows = database.process_rows()?;
        Ok(0)
    })?;
    for (tier, (age, step)) in TIERS.iter().enumerate() {
        let step_ms = millis(*step);
        // Whole steps only, each of them once.
        let to_ms = (now_ms - millis(*age)).div_euclid(step_ms) * step_ms;
        let mut from_ms = 0;
        turn(&mut |database| {
            from_ms = database.thinned(tier)?;
            Ok(0)
        })?;
        let part = Part { from_ms, to_ms, step_ms };
        for row in rows.iter().filter(|_| from_ms < to_ms) {
            turn(&mut |database| database.thin_one(*row, part))?;
        }
        turn(&mut |database| database.set_thinned(tier, to_ms.max(from_ms)))?;
    }
    let mut keep_ms = millis(keep);
    loop {
        for row in &rows {
            turn(&mut |database| database.forget(*row, now_ms - keep_ms))?;
        }
        turn(&mut |database| database.forget_ended(now_ms - keep_ms))?;
        while turn(&mut Database::give_back)? > 0 {}
        if turn(&mut |database| database.series_size())? <= max_size || keep_ms <= millis(LEAST_KEPT) {
            return Ok(());
        }
        keep_ms = (keep_ms / 4 * 3).max(millis(LEAST_KEPT));
    }
}

impl Database {
    fn process_rows(&self) -> Result<Vec<i64>, DatabaseError> {
        let read = || {
            let mut statement = self.connection.prepare("SELECT id FROM process")?;
            let rows = statement.query_map([], |row| row.get(0))?;
            rows.collect::<rusqlite::Result<_>>()
        };
        read().map_err(|error| self.failed(error))
    }

    /// Up to where a tier is thinned out.
    fn thinned(&self, tier: usize) -> Result<i64, DatabaseError> {
        let to =
            self.connection
                .query_row("SELECT to_ms FROM thinned WHERE tier = ?", [tier as i64], |row| row.get(0));
        to.optional().map(Option::unwrap_or_default).map_err(|error| self.failed(error))
    }

    fn set_thinned(&mut self, tier: usize, to_ms: i64) -> Result<u64, DatabaseError> {
        let set = "INSERT OR REPLACE INTO thinned VALUES (?, ?)";
        self.connection
            .execute(set, params![tier as i64, to_ms])
            .map(|_| 0)
            .map_err(|error| self.failed(error))
    }

    /// Leaves one point of each step.
    fn thin_one(&mut self, row: i64, part: Part) -> Result<u64, DatabaseError> {
        let mut thin = || -> rusqlite::Result<usize> {
            let transaction = self.connection.transaction()?;
            let mut gone = 0;
            let mut kept: Option<(i64, i64)> = None;
            let points: Vec<(i64, i64)> = transaction
                .prepare_cached(
                    "SELECT at_ms, peak FROM memory WHERE process = ? AND at_ms >= ? AND at_ms < ? ORDER BY at_ms DESC",
                )?
                .query_map(params![row, part.from_ms, part.to_ms], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<rusqlite::Result<_>>()?;
            for (at_ms, peak) in points {
                match &mut kept {
                    Some((last_ms, most)) if *last_ms / part.step_ms == at_ms / part.step_ms => {
                        transaction
                            .prepare_cached("DELETE FROM memory WHERE process = ? AND at_ms = ?")?
                            .execute([row, at_ms])?;
                        gone += 1;
                        if peak > *most {
                            *most = peak;
                            transaction
                                .prepare_cached("UPDATE memory SET peak = ? WHERE process = ? AND at_ms = ?")?
                                .execute([peak, row, *last_ms])?;
                        }
                    }
                    _ => kept = Some((at_ms, peak)),
                }
            }
            let points: Vec<(i64, i64)> = transaction
                .prepare_cached(
                    "SELECT label, at_ms FROM context WHERE process = ? AND at_ms >= ? AND at_ms < ?
                     ORDER BY label DESC, at_ms DESC",
                )?
                .query_map(params![row, part.from_ms, part.to_ms], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<rusqlite::Result<_>>()?;
            let mut kept = None;
            for (label, at_ms) in points {
                let of = (label, at_ms / part.step_ms);
                if kept == Some(of) {
                    transaction
                        .prepare_cached("DELETE FROM context WHERE process = ? AND label = ? AND at_ms = ?")?
                        .execute([row, label, at_ms])?;
                    gone += 1;
                }
                kept = Some(of);
            }
            transaction.commit()?;
            Ok(gone)
        };
        thin().map(|gone| gone as u64).map_err(|error| self.failed(error))
    }

    /// Takes away what is older than that of one process.
    fn forget(&mut self, row: i64, before_ms: i64) -> Result<u64, DatabaseError> {
        let gone = |table| {
            let delete = format!("DELETE FROM {table} WHERE process = ? AND at_ms < ?");
            self.connection.prepare_cached(&delete)?.execute([row, before_ms])
        };
        let gone = gone("memory").and_then(|memory| Ok(memory + gone("context")?));
        gone.map(|gone| gone as u64).map_err(|error| self.failed(error))
    }

    /// Takes away processes that ended before that, and servers that have none any more.
    fn forget_ended(&mut self, before_ms: i64) -> Result<u64, DatabaseError> {
        let mut forget = || -> rusqlite::Result<usize> {
            let transaction = self.connection.transaction()?;
            let ended = transaction.execute("DELETE FROM process WHERE last_ms < ?", [before_ms])?;
            transaction.execute(
                "DELETE FROM server WHERE NOT EXISTS (SELECT 1 FROM process WHERE process.server = server.id)",
                [],
            )?;
            transaction.commit()?;
            Ok(ended)
        };
        forget().map(|ended| ended as u64).map_err(|error| self.failed(error))
    }

    /// Gives some free pages back to the file system; how many are left.
    fn give_back(&mut self) -> Result<u64, DatabaseError> {
        let give = || -> rusqlite::Result<i64> {
            let free = |name| self.connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
            let before = free("freelist_count")?;
            // It gives a page back with each step.
            let mut vacuum = self.connection.prepare(&format!("PRAGMA incremental_vacuum({PAGES})"))?;
            let mut steps = vacuum.query([])?;
            while steps.next()?.is_some() {}
            let after = free("freelist_count")?;
            Ok(if after < before { after } else { 0 })
        };
        give().map(|left| u64::try_from(left).unwrap_or(0)).map_err(|error| self.failed(error))
    }

    /// Bytes of the file without the index of captures.
    fn series_size(&self) -> Result<u64, DatabaseError> {
        let captures = "SELECT coalesce(sum(length(record)), 0) FROM capture";
        let captures: i64 =
            self.connection.query_row(captures, [], |row| row.get(0)).map_err(|error| self.failed(error))?;
        Ok(self.size()?.saturating_sub(u64::try_from(captures).unwrap_or(0)))
    }
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::series::{
        Writer,
        tests::{BOOT, database, look},
    };

    fn thin(database: &mut Database, now_ms: i64, keep: Duration, max_size: u64) {
        thin_by(&mut |work| work(database), now_ms, keep, max_size).expect("thinned");
    }

    #[test]
    fn age_thins_out_and_keeps_the_peaks() {
        let (_directory, mut database) = database();
        let mut writer = Writer::default();
        let day = 86_400_000;
        for at in 0..2000 {
            let peak = if at == 777 { 1 << 30 } else { 0 };
            let look = look(at * 5000, 1_000_000 + at as u64 * 100_000 + peak, at as u64 * 8192);
            writer.write(&mut database, &look, BOOT).expect("written");
        }
        let known = database.processes_since(0, BOOT).expect("read").pop().expect("one");
        let count = |database: &Database| database.memory_of(known.row, (0, 1 << 40), 1 << 30).expect("read");
        let keep = Duration::from_secs(30 * 86400);
        thin(&mut database, day / 2, keep, 1 << 30);
        let minutes = count(&database);
        assert_eq!(minutes.len(), 2000 / 12 + 1);
        assert!(minutes.iter().any(|point| point.peak > 1 << 30), "the peak is gone");
        thin(&mut database, 3 * day, keep, 1 << 30);
        let tens = count(&database);
        assert_eq!(tens.len(), 2000 / 120 + 1);
        assert!(tens.iter().any(|point| point.peak > 1 << 30), "the peak is gone");
        thin(&mut database, 40 * day, keep, 1 << 30);
        assert_eq!(database.processes_since(0, BOOT).expect("read"), []);
    }

    #[test]
    fn the_file_is_bounded() {
        let (_directory, mut database) = database();
        let mut writer = Writer::default();
        let hour = 3_600_000;
        for at in 0..40_000 {
            let look = look(at * 60_000, 1_000_000 + (at as u64 % 2) * 1_000_000, at as u64);
            writer.write(&mut database, &look, BOOT).expect("written");
        }
        let now = 40_000 * 60_000;
        let before = database.size().expect("read");
        thin(&mut database, now, Duration::from_secs(365 * 86400), before / 20);
        let after = database.size().expect("read");
        assert!(after <= before / 20, "{before} to {after}");
        // What is newest stays.
        let known = database.processes_since(0, BOOT).expect("read").pop().expect("one");
        assert!(!database.memory_of(known.row, (now - hour, now), 100).expect("read").is_empty());
    }

    /// Months of a process that lives on: each hour's work is that of an hour, and not of all that there is.
    #[test]
    fn it_takes_what_is_new_and_not_what_is_there() {
        let (_directory, mut database) = database();
        let mut writer = Writer::default();
        let hour = 3_600_000;
        for at in 0..20 * 24 * 60 {
            writer
                .write(&mut database, &look(at * 60_000, 1 << 20, at as u64 * 8192), BOOT)
                .expect("written");
        }
        let now = 20 * 24 * hour;
        thin(&mut database, now, Duration::from_secs(30 * 86400), 1 << 30);
        let mut steps = 0_u64;
        let mut turns = 0;
        let changes = |database: &Database| database.connection.total_changes();
        let before = changes(&database);
        thin_by(
            &mut |work| {
                turns += 1;
                work(&mut database)
            },
            now + hour,
            Duration::from_secs(30 * 86400),
            1 << 30,
        )
        .expect("thinned");
        steps += changes(&database) - before;
        assert!(steps < 500 && turns < 30, "{steps} changes in {turns} turns");
    }
}
