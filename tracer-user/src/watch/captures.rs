//! The index of captures: a row of the database for each.

use std::collections::HashSet;

use rusqlite::params;

use super::{
    database::{Database, DatabaseError},
    record::{CaptureNumber, Record, Status},
};

impl Database {
    /// Makes a row for a capture that is about to begin, and gives it its number.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn begin(&mut self, record: &mut Record) -> Result<(), DatabaseError> {
        let begin = |connection: &mut rusqlite::Connection| -> rusqlite::Result<CaptureNumber> {
            let transaction = connection.transaction()?;
            transaction.execute(
                "INSERT INTO capture (begun_ms, status, record) VALUES (?, ?, '')",
                params![record.begun_ms, record.status.name()],
            )?;
            let number = CaptureNumber(transaction.last_insert_rowid());
            let numbered = Record { number, ..record.clone() };
            transaction.execute(
                "UPDATE capture SET record = ? WHERE number = ?",
                params![text_of(&numbered), number.0],
            )?;
            transaction.commit()?;
            Ok(number)
        };
        record.number = begin(&mut self.connection).map_err(|error| self.failed(error))?;
        Ok(())
    }

    /// From now on, captures get numbers above that.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn number_above(&mut self, used: CaptureNumber) -> Result<(), DatabaseError> {
        // Where AUTOINCREMENT remembers the last one; the row comes with the first.
        let number = |connection: &rusqlite::Connection| -> rusqlite::Result<()> {
            connection.execute(
                "INSERT INTO sqlite_sequence (name, seq) SELECT 'capture', 0
                 WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'capture')",
                [],
            )?;
            let raise = "UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = 'capture'";
            connection.execute(raise, [used.0]).map(drop)
        };
        number(&self.connection).map_err(|error| self.failed(error))
    }

    /// Writes what became of a capture, be it of another database.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn note(&mut self, record: &Record) -> Result<(), DatabaseError> {
        self.connection
            .execute(
                "INSERT OR REPLACE INTO capture (number, begun_ms, status, record) VALUES (?, ?, ?, ?)",
                params![record.number.0, record.begun_ms, record.status.name(), text_of(record)],
            )
            .map(drop)
            .map_err(|error| self.failed(error))
    }

    /// Captures that were begun at that time or later, the newest first, at most so many.
    ///
    /// # Errors
    /// If they cannot be read.
    pub(super) fn records(&self, since_ms: i64, most: u32) -> Result<Vec<Record>, DatabaseError> {
        self.read_records("begun_ms >= ? ORDER BY number DESC LIMIT ?", params![since_ms, most])
    }

    /// One of them.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn record(&self, number: CaptureNumber) -> Result<Option<Record>, DatabaseError> {
        self.read_records("number = ?", params![number.0]).map(|mut records| records.pop())
    }

    /// Those that are said to be so far, the oldest first.
    ///
    /// # Errors
    /// If they cannot be read.
    pub(super) fn records_that_are(&self, status: Status) -> Result<Vec<Record>, DatabaseError> {
        self.read_records("status = ? ORDER BY number", params![status.name()])
    }

    /// Takes away what is only remembered, beyond the last so many captures.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn forget_records(&mut self, most: u32) -> Result<(), DatabaseError> {
        let forget = "DELETE FROM capture WHERE status IN ('expired', 'failed') AND number <=
                      (SELECT number FROM capture ORDER BY number DESC LIMIT 1 OFFSET ?)";
        self.connection.execute(forget, [most]).map(drop).map_err(|error| self.failed(error))
    }

    /// The numbers that there are.
    ///
    /// # Errors
    /// If they cannot be read.
    pub(super) fn numbers(&self) -> Result<HashSet<CaptureNumber>, DatabaseError> {
        let read = || {
            let mut statement = self.connection.prepare("SELECT number FROM capture")?;
            let rows = statement.query_map([], |row| row.get(0).map(CaptureNumber))?;
            rows.collect::<rusqlite::Result<_>>()
        };
        read().map_err(|error| self.failed(error))
    }

    fn read_records(
        &self,
        which: &str,
        values: &[&dyn rusqlite::ToSql],
    ) -> Result<Vec<Record>, DatabaseError> {
        let read = || -> rusqlite::Result<Vec<(i64, String)>> {
            let mut statement = self
                .connection
                .prepare_cached(&format!("SELECT number, record FROM capture WHERE {which}"))?;
            let rows = statement.query_map(values, |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect()
        };
        let rows = read().map_err(|error| self.failed(error))?;
        // One that cannot be understood must not hide all others.
        let understood = |(number, text): (i64, String)| match serde_json::from_str(&text) {
            Ok(record) => Some(record),
            Err(error) => {
                tracing::warn!(
                    "the record of capture {number} in {} cannot be understood: {error}",
                    self.path().display()
                );
                None
            }
        };
        Ok(rows.into_iter().filter_map(understood).collect())
    }
}

fn text_of(record: &Record) -> String {
    serde_json::to_string(record).expect("a record is plain data with names for keys")
}
