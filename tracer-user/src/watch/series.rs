//! The series of memory and contexts: written as it is seen, thinned out with age, bounded in size.

use std::collections::{HashMap, HashSet, hash_map::Entry};

use rusqlite::{Connection, OptionalExtension as _, params};

use super::{
    database::{Database, DatabaseError},
    growth::Point,
    history::Course,
    observe::{Look, Seen},
    record::Subject,
};
use crate::target::ProcessId;

/// A process that holds the same as before gets a point no more often.
const UNCHANGED_EVERY_MS: i64 = 60_000;

/// A change of less is none.
const UNCHANGED_BYTES: u64 = 16 << 10;

/// So many names of contexts are told apart, and of servers: those of the server are some hundred, and an extension may
/// invent more.
const MOST_NAMES: i64 = 10_000;

/// What all others are called.
const OTHERS: &str = "(others)";

/// What is written of each process, so that what does not change is not written again.
#[derive(Debug, Default)]
pub(super) struct Writer {
    processes: HashMap<ProcessId, Written>,
    labels: HashMap<String, i64>,
}

#[derive(Debug)]
struct Written {
    row: i64,
    memory: (i64, u64, u64),
    contexts: HashMap<i64, (i64, u64)>,
}

/// A process as the series knows it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(super) struct KnownProcess {
    /// Its number in the series.
    pub row: i64,
    /// What it is.
    #[serde(flatten)]
    pub subject: Subject,
    /// When it was first seen, in milliseconds since 1970.
    pub first_ms: i64,
    /// When it was last seen.
    pub last_ms: i64,
    /// Whether it is of this boot of the host.
    pub this_boot: bool,
}

/// A point of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub(super) struct MemoryPoint {
    /// Milliseconds since 1970.
    pub at_ms: i64,
    /// Anonymous memory.
    pub anon: u64,
    /// The most of it since the point before.
    pub peak: u64,
    /// Touched shared memory.
    pub shmem: u64,
}

/// What contexts of one name held.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(super) struct ContextSeries {
    /// Their name.
    pub label: String,
    /// Milliseconds since 1970, bytes, and how many contexts.
    pub points: Vec<(i64, u64, u64)>,
}

impl Writer {
    /// The number of a process in the series, if it was written there.
    pub(super) fn row(&self, id: ProcessId) -> Option<i64> {
        self.processes.get(&id).map(|written| written.row)
    }

    /// Writes a look, all of it or nothing.
    ///
    /// # Errors
    /// If it cannot be written: then the next look is written anew.
    pub(super) fn write(
        &mut self,
        database: &mut Database,
        look: &Look,
        boot: &str,
    ) -> Result<(), DatabaseError> {
        let result = self.write_all(&mut database.connection, look, boot);
        if result.is_err() {
            // What was to be known is not there.
            *self = Self::default();
        }
        result.map_err(|error| database.failed(error))
    }

    fn write_all(&mut self, connection: &mut Connection, look: &Look, boot: &str) -> rusqlite::Result<()> {
        let transaction = connection.transaction()?;
        for seen in &look.processes {
            self.write_one(&transaction, look.at_ms, seen, boot)?;
        }
        transaction.commit()?;
        let alive: HashSet<ProcessId> = look.processes.iter().map(|seen| seen.id).collect();
        self.processes.retain(|id, _| alive.contains(id));
        Ok(())
    }

    fn write_one(
        &mut self,
        connection: &Connection,
        at_ms: i64,
        seen: &Seen,
        boot: &str,
    ) -> rusqlite::Result<()> {
        let Self { processes, labels } = self;
        let written = match processes.entry(seen.id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let row = row_of(connection, at_ms, seen, boot)?;
                new.insert(Written { row, memory: (0, 0, 0), contexts: HashMap::new() })
            }
        };
        let (anon, shmem) = (seen.memory().own(), seen.memory().rss_shmem);
        let (before_ms, before_anon, before_shmem) = written.memory;
        let is_same =
            anon.abs_diff(before_anon) < UNCHANGED_BYTES && shmem.abs_diff(before_shmem) < UNCHANGED_BYTES;
        if !is_same || at_ms - before_ms >= UNCHANGED_EVERY_MS {
            connection
                .prepare_cached("INSERT OR REPLACE INTO memory VALUES (?, ?, ?, ?, ?)")?
                .execute(params![written.row, at_ms, anon as i64, anon as i64, shmem as i64])?;
            written.memory = (at_ms, anon, shmem);
            let process = &seen.process.parsed;
            connection
                .prepare_cached(
                    "UPDATE process SET last_ms = ?, kind = ?, database = ?, user = ? WHERE id = ?",
                )?
                .execute(params![at_ms, process.kind, process.database, process.user, written.row])?;
        }
        for context in seen.contexts.iter().flatten() {
            let label = match labels.get(&context.label) {
                Some(label) => *label,
                None => {
                    let label = id_of(connection, "label", &context.label)?;
                    if labels.len() as i64 > MOST_NAMES {
                        labels.clear();
                    }
                    labels.insert(context.label.clone(), label);
                    label
                }
            };
            let (before_ms, before) = written.contexts.get(&label).copied().unwrap_or((0, u64::MAX));
            if context.bytes == before && at_ms - before_ms < UNCHANGED_EVERY_MS * 5 {
                continue;
            }
            written.contexts.insert(label, (at_ms, context.bytes));
            connection
                .prepare_cached("INSERT OR REPLACE INTO context VALUES (?, ?, ?, ?, ?)")?
                .execute(params![written.row, label, at_ms, context.bytes as i64, context.contexts as i64])?;
        }
        Ok(())
    }
}

fn row_of(connection: &Connection, at_ms: i64, seen: &Seen, boot: &str) -> rusqlite::Result<i64> {
    let server = id_of(connection, "server", &seen.server)?;
    let process = &seen.process.parsed;
    connection.query_row(
        "INSERT INTO process (server, boot, pid, start_ticks, kind, database, user, first_ms, last_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?8)
         ON CONFLICT (boot, pid, start_ticks) DO UPDATE SET last_ms = ?8 RETURNING id",
        params![
            server,
            boot,
            seen.id.pid,
            seen.id.start_ticks as i64,
            process.kind,
            process.database,
            process.user,
            at_ms
        ],
        |row| row.get(0),
    )
}

/// The number of a name in one of the tables of names.
fn id_of(connection: &Connection, table: &'static str, name: &str) -> rusqlite::Result<i64> {
    let find = format!("SELECT id FROM {table} WHERE name = ?");
    let found = connection.prepare_cached(&find)?.query_row([name], |row| row.get(0)).optional()?;
    match found {
        Some(id) => Ok(id),
        None => {
            let count: i64 =
                connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0))?;
            if count >= MOST_NAMES && name != OTHERS {
                return id_of(connection, table, OTHERS);
            }
            connection.execute(&format!("INSERT INTO {table} (name) VALUES (?)"), [name])?;
            Ok(connection.last_insert_rowid())
        }
    }
}

impl Database {
    /// What processes of this boot held in the last while: for a service that was started again.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn courses(
        &self,
        since_ms: i64,
        boot: &str,
    ) -> Result<Vec<(ProcessId, Course)>, DatabaseError> {
        let read = || -> rusqlite::Result<Vec<(ProcessId, Course)>> {
            let mut courses: HashMap<ProcessId, Course> = HashMap::new();
            let id = |row: &rusqlite::Row<'_>| -> rusqlite::Result<ProcessId> {
                Ok(ProcessId { pid: row.get(0)?, start_ticks: row.get::<_, i64>(1)? as u64 })
            };
            let mut memory = self.connection.prepare(
                "SELECT pid, start_ticks, at_ms, anon FROM process JOIN memory ON memory.process = process.id
                 WHERE boot = ? AND last_ms >= ?2 AND at_ms >= ?2 ORDER BY at_ms",
            )?;
            let mut rows = memory.query(params![boot, since_ms])?;
            while let Some(row) = rows.next()? {
                let point = Point { at_ms: row.get(2)?, bytes: row.get::<_, i64>(3)? as u64 };
                courses.entry(id(row)?).or_default().anon.push_back(point);
            }
            let mut contexts = self.connection.prepare(
                "SELECT pid, start_ticks, at_ms, bytes, label.name FROM process
                 JOIN context ON context.process = process.id JOIN label ON label.id = context.label
                 WHERE boot = ? AND last_ms >= ?2 AND at_ms >= ?2 ORDER BY at_ms",
            )?;
            let mut rows = contexts.query(params![boot, since_ms])?;
            while let Some(row) = rows.next()? {
                let point = Point { at_ms: row.get(2)?, bytes: row.get::<_, i64>(3)? as u64 };
                let course = courses.entry(id(row)?).or_default();
                course.contexts.entry(row.get(4)?).or_default().push_back(point);
            }
            Ok(courses.into_iter().collect())
        };
        read().map_err(|error| self.failed(error))
    }

    /// A process by its number in the series.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn process(&self, row: i64, boot: &str) -> Result<Option<KnownProcess>, DatabaseError> {
        self.known("process.id = ?2", row, boot).map(|mut found| found.pop())
    }

    /// Processes that were last seen at that time or later.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn processes_since(
        &self,
        since_ms: i64,
        boot: &str,
    ) -> Result<Vec<KnownProcess>, DatabaseError> {
        self.known("last_ms >= ?2", since_ms, boot)
    }

    fn known(&self, which: &str, value: i64, boot: &str) -> Result<Vec<KnownProcess>, DatabaseError> {
        let read = || {
            let mut statement = self.connection.prepare(&format!(
                "SELECT process.id, pid, start_ticks, server.name, kind, database, user, first_ms, last_ms, boot = ?1
                 FROM process JOIN server ON server.id = process.server WHERE {which} ORDER BY last_ms DESC"
            ))?;
            let rows = statement.query_map(params![boot, value], |row| {
                Ok(KnownProcess {
                    row: row.get(0)?,
                    subject: Subject {
                        pid: row.get(1)?,
                        start_ticks: row.get::<_, i64>(2)? as u64,
                        server: row.get(3)?,
                        kind: row.get(4)?,
                        database: row.get(5)?,
                        user: row.get(6)?,
                        context: None,
                        growing: Vec::new(),
                    },
                    first_ms: row.get(7)?,
                    last_ms: row.get(8)?,
                    this_boot: row.get(9)?,
                })
            })?;
            rows.collect::<rusqlite::Result<_>>()
        };
        read().map_err(|error| self.failed(error))
    }

    /// What a process held between two times, at most `most` points, the last of each part of that time.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn memory_of(
        &self,
        row: i64,
        (from_ms, to_ms): (i64, i64),
        most: u32,
    ) -> Result<Vec<MemoryPoint>, DatabaseError> {
        let step = ((to_ms - from_ms) / i64::from(most.max(1))).max(1);
        let read = || -> rusqlite::Result<Vec<MemoryPoint>> {
            let mut statement = self.connection.prepare_cached(
                "SELECT at_ms, anon, peak, shmem FROM memory WHERE process = ? AND at_ms BETWEEN ? AND ? ORDER BY at_ms",
            )?;
            let mut rows = statement.query(params![row, from_ms, to_ms])?;
            let mut points: Vec<MemoryPoint> = Vec::new();
            while let Some(row) = rows.next()? {
                let number = |at| row.get::<_, i64>(at).map(|value| value as u64);
                let mut point =
                    MemoryPoint { at_ms: row.get(0)?, anon: number(1)?, peak: number(2)?, shmem: number(3)? };
                match points.last_mut() {
                    Some(last) if (last.at_ms - from_ms) / step == (point.at_ms - from_ms) / step => {
                        point.peak = point.peak.max(last.peak);
                        *last = point;
                    }
                    _ => points.push(point),
                }
            }
            Ok(points)
        };
        read().map_err(|error| self.failed(error))
    }

    /// What its contexts held, those that had most at the end of that time first.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn contexts_of(
        &self,
        row: i64,
        (from_ms, to_ms): (i64, i64),
        most: u32,
    ) -> Result<Vec<ContextSeries>, DatabaseError> {
        let step = ((to_ms - from_ms) / i64::from(most.max(1))).max(1);
        let read = || -> rusqlite::Result<Vec<ContextSeries>> {
            let mut statement = self.connection.prepare_cached(
                "SELECT label.name, max(at_ms), bytes, contexts FROM context JOIN label ON label.id = context.label
                 WHERE process = ? AND at_ms BETWEEN ? AND ? GROUP BY label, at_ms / ? ORDER BY label, 2",
            )?;
            let mut rows = statement.query(params![row, from_ms, to_ms, step])?;
            let mut series: Vec<ContextSeries> = Vec::new();
            while let Some(row) = rows.next()? {
                let label: String = row.get(0)?;
                let number = |at| row.get::<_, i64>(at).map(|value| value as u64);
                let point = (row.get(1)?, number(2)?, number(3)?);
                match series.last_mut() {
                    Some(last) if last.label == label => last.points.push(point),
                    _ => series.push(ContextSeries { label, points: vec![point] }),
                }
            }
            series.sort_by_key(|series| std::cmp::Reverse(series.points.last().map_or(0, |point| point.1)));
            Ok(series)
        };
        read().map_err(|error| self.failed(error))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{
        target::{Memory, testing::server},
        watch::observe::ContextBytes,
    };

    pub(in crate::watch) const BOOT: &str = "this";

    pub(in crate::watch) fn look(at_ms: i64, anon: u64, leaky: u64) -> Look {
        let memory = Memory { rss_anon: anon, ..Memory::default() };
        let process = server(7, "postgres: a b [local] idle", memory, None);
        let contexts = vec![ContextBytes { label: "Leaky".to_owned(), bytes: leaky, contexts: 1 }];
        let seen = Seen { id: process.id(), process, server: "/data".to_owned(), contexts: Some(contexts) };
        Look { at_ms, processes: vec![seen], ..Look::default() }
    }

    pub(in crate::watch) fn database() -> (tempfile::TempDir, Database) {
        let directory = tempfile::tempdir().expect("a directory");
        let database = Database::open(directory.path()).expect("a new one");
        (directory, database)
    }

    #[test]
    fn what_was_seen_is_there_after_a_restart() {
        let (directory, mut database) = database();
        let mut writer = Writer::default();
        for at in 0..20 {
            let look = look(at * 5000, 1_000_000 + at as u64 * 100_000, 8192 * at as u64);
            writer.write(&mut database, &look, BOOT).expect("written");
        }
        drop(database);
        let database = Database::open(directory.path()).expect("it is whole");
        let courses = database.courses(25_000, BOOT).expect("read");
        let [(id, course)] = &courses[..] else { panic!("{courses:?}") };
        assert_eq!((id.pid, course.anon.len(), course.contexts["Leaky"].len()), (7, 15, 15));
        assert_eq!(database.courses(0, "another boot").expect("read"), []);
        let known = database.processes_since(0, BOOT).expect("read").pop().expect("one");
        assert_eq!((known.subject.server.as_str(), known.subject.kind.as_str()), ("/data", "client backend"));
        let points = database.memory_of(known.row, (0, 100_000), 1000).expect("read");
        assert_eq!(points.len(), 20);
        assert_eq!(points[19].anon, 2_900_000);
        let few = database.memory_of(known.row, (0, 100_000), 5).expect("read");
        assert!((5..=6).contains(&few.len()), "{few:?}");
        let contexts = database.contexts_of(known.row, (0, 100_000), 1000).expect("read");
        assert_eq!((contexts.len(), contexts[0].points.len()), (1, 20));
    }

    #[test]
    fn what_does_not_change_is_written_once_a_minute() {
        let (_directory, mut database) = database();
        let mut writer = Writer::default();
        for at in 0..60 {
            writer.write(&mut database, &look(at * 5000, 1_000_000, 8192), BOOT).expect("written");
        }
        let known = database.processes_since(0, BOOT).expect("read").pop().expect("one");
        assert_eq!(database.memory_of(known.row, (0, 300_000), 10_000).expect("read").len(), 5);
    }
}
