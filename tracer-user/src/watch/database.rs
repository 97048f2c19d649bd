//! The service's database: one SQLite file with the series and the index of captures.

use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::store::free_bytes;

/// Its name in the store's directory.
pub(super) const FILE: &str = "pgleak.db";

/// Version of the tables that this program makes.
const SCHEMA: i64 = 1;

/// How long one side waits for the other.
const BUSY: Duration = Duration::from_secs(5);

/// With less than that, there is no room: its shared memory grows by 32 KiB, its log by a page.
const LEAST_ROOM: u64 = 256 << 10;

const TABLES: &str = "
    CREATE TABLE server (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
    CREATE TABLE process (
        id INTEGER PRIMARY KEY, server INTEGER NOT NULL REFERENCES server, boot TEXT NOT NULL,
        pid INTEGER NOT NULL, start_ticks INTEGER NOT NULL,
        kind TEXT NOT NULL, database TEXT, user TEXT,
        first_ms INTEGER NOT NULL, last_ms INTEGER NOT NULL,
        UNIQUE (boot, pid, start_ticks));
    CREATE INDEX process_last ON process (last_ms);
    CREATE TABLE memory (
        process INTEGER NOT NULL, at_ms INTEGER NOT NULL,
        anon INTEGER NOT NULL, peak INTEGER NOT NULL, shmem INTEGER NOT NULL,
        PRIMARY KEY (process, at_ms)) WITHOUT ROWID;
    CREATE TABLE label (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
    CREATE TABLE context (
        process INTEGER NOT NULL, label INTEGER NOT NULL, at_ms INTEGER NOT NULL,
        bytes INTEGER NOT NULL, contexts INTEGER NOT NULL,
        PRIMARY KEY (process, label, at_ms)) WITHOUT ROWID;
    CREATE TABLE thinned (tier INTEGER PRIMARY KEY, to_ms INTEGER NOT NULL);
    CREATE TABLE capture (
        number INTEGER PRIMARY KEY AUTOINCREMENT, begun_ms INTEGER NOT NULL, status TEXT NOT NULL,
        record TEXT NOT NULL);
    CREATE INDEX capture_begun ON capture (begun_ms);
";

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// It cannot be opened, or what was asked of it failed.
    #[error("cannot use the database {}: {source}", path.display())]
    Sqlite {
        /// Which.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// There can be no file.
    #[error("cannot make the database {}: {source}; give another store.directory", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is of a later version.
    #[error(
        "the database {} has format {found}, and this pgleak knows {SCHEMA}: a later version wrote it. Use that, or move \
         the file away", path.display()
    )]
    Later {
        /// Which.
        path: PathBuf,
        /// Its version.
        found: i64,
    },
}

/// The database, open.
#[derive(Debug)]
pub(super) struct Database {
    pub(super) connection: Connection,
    path: PathBuf,
    /// What became of a damaged one.
    pub moved: Option<PathBuf>,
}

impl Database {
    /// Opens the database of a directory, or makes it. One that is damaged is moved aside, and its captures are found
    /// again by their directories.
    ///
    /// # Errors
    /// If it can be neither opened nor made, or is of a later version.
    pub(super) fn open(directory: &Path) -> Result<Self, DatabaseError> {
        let path = directory.join(FILE);
        match Self::open_file(&path) {
            Err(DatabaseError::Sqlite { source, .. }) if is_damaged(&source) => {
                let moved = directory.join(format!("{FILE}.damaged-{}", jiff::Timestamp::now().as_second()));
                let failed = |source| DatabaseError::File { path: path.clone(), source };
                fs::rename(&path, &moved).map_err(failed)?;
                for rest in ["-wal", "-shm"] {
                    match fs::remove_file(directory.join(format!("{FILE}{rest}"))) {
                        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                        _ => {}
                    }
                }
                let mut database = Self::open_file(&path)?;
                database.moved = Some(moved);
                Ok(database)
            }
            result => result,
        }
    }

    fn open_file(path: &Path) -> Result<Self, DatabaseError> {
        // SQLite would make it readable for others.
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)
            .map_err(|source| DatabaseError::File { path: path.to_owned(), source })?;
        let failed = |source| DatabaseError::Sqlite { path: path.to_owned(), source };
        let connection = Connection::open(path).map_err(failed)?;
        connection.busy_timeout(BUSY).map_err(failed)?;
        // Only before the first table is made; what is deleted then gives its pages back.
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL").map_err(failed)?;
        // What is committed survives the end of this process; of the host, all but the last seconds.
        connection.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
        connection.pragma_update(None, "synchronous", "NORMAL").map_err(failed)?;
        connection.pragma_update(None, "journal_size_limit", 4 << 20).map_err(failed)?;
        let check: String =
            connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(failed)?;
        if check != "ok" {
            let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
            return Err(failed(rusqlite::Error::SqliteFailure(code, Some(check))));
        }
        let version: i64 =
            connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
        match version {
            0 => {
                let make = format!("BEGIN; {TABLES} PRAGMA user_version = {SCHEMA}; COMMIT;");
                connection.execute_batch(&make).map_err(failed)?;
            }
            SCHEMA => {}
            found => return Err(DatabaseError::Later { path: path.to_owned(), found }),
        }
        Ok(Self { connection, path: path.to_owned(), moved: None })
    }

    /// A second connection that only reads.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub(super) fn read_only(directory: &Path) -> Result<Self, DatabaseError> {
        let path = directory.join(FILE);
        let failed = |source| DatabaseError::Sqlite { path: path.clone(), source };
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&path, flags).map_err(failed)?;
        connection.busy_timeout(BUSY).map_err(failed)?;
        Ok(Self { connection, path, moved: None })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Says of an error which file it is about.
    pub(super) fn failed(&self, source: rusqlite::Error) -> DatabaseError {
        DatabaseError::Sqlite { path: self.path.clone(), source }
    }

    /// Bytes of its file.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn size(&self) -> Result<u64, DatabaseError> {
        let number = |name| self.connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let pages = number("page_count").map_err(|error| self.failed(error))?;
        let size = number("page_size").map_err(|error| self.failed(error))?;
        Ok(u64::try_from(pages * size).unwrap_or(0))
    }
}

impl DatabaseError {
    /// Whether there was no room for it.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Sqlite { source: rusqlite::Error::SqliteFailure(error, _), path } => match error.code {
                ErrorCode::DiskFull => true,
                // What it says as well where its shared memory cannot grow (`unixShmMap` in os_unix.c).
                ErrorCode::SystemIoFailure => has_no_room(path),
                _ => false,
            },
            Self::File { source, .. } => source.kind() == io::ErrorKind::StorageFull,
            _ => false,
        }
    }
}

/// Whether there is less room where a file is than SQLite takes at once.
fn has_no_room(path: &Path) -> bool {
    path.parent().and_then(|directory| free_bytes(directory).ok()).is_some_and(|free| free < LEAST_ROOM)
}

fn is_damaged(error: &rusqlite::Error) -> bool {
    matches!(error, rusqlite::Error::SqliteFailure(error, _)
        if matches!(error.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_database_is_put_aside_and_not_lost() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join(FILE), "this is no database, and long enough to have had a header")
            .expect("a file");
        let database = Database::open(directory.path()).expect("a new one");
        let moved = database.moved.clone().expect("the old one");
        assert!(fs::read_to_string(moved).expect("it is there").starts_with("this is no database"));
        drop(database);
        assert!(Database::open(directory.path()).expect("it is whole").moved.is_none());
    }

    #[test]
    fn one_of_a_later_version_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let database = Database::open(directory.path()).expect("a new one");
        database.connection.pragma_update(None, "user_version", 99).expect("it is written");
        drop(database);
        let error = Database::open(directory.path()).expect_err("too late").to_string();
        assert!(error.contains("format 99"), "{error}");
        assert!(directory.path().join(FILE).exists());
    }

    #[test]
    fn it_is_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().expect("a directory");
        let database = Database::open(directory.path()).expect("a new one");
        let mode = fs::metadata(database.path()).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
