//! A session with a server: one connection, so one backend, for as long as it lives.

use std::path::Path;

use anyhow::{Context, Result, bail};
use postgres::{Client, NoTls, SimpleQueryMessage};
use xtask::postgres::Server;

/// A connection over the socket, which sends what it is told as `psql` does: by the simple protocol,
/// one message for each call, and waits until the server is done with it.
pub struct Session {
    client: Client,
    backend: u32,
}

impl Session {
    /// Connects to the database `postgres`.
    pub fn open(server: &Server) -> Result<Self> {
        Self::open_database(server, "postgres")
    }

    /// Connects to another database.
    pub fn open_database(server: &Server, database: &str) -> Result<Self> {
        Self::connect(server.socket_dir(), server.port(), database)
            .with_context(|| format!("cannot connect to {}", server.build().name))
    }

    /// Connects to whatever server has its socket there.
    pub fn connect(socket_dir: &Path, port: u16, database: &str) -> Result<Self> {
        let mut client = postgres::Config::new()
            .host_path(socket_dir)
            .port(port)
            .user("postgres")
            .dbname(database)
            .application_name("pgleak-tests")
            .connect(NoTls)
            .context("cannot connect")?;
        let pid = text(&mut client, "select pg_backend_pid()")?.parse().context("a pid that is no number")?;
        Ok(Self { client, backend: pid })
    }

    /// The server process of this session.
    pub fn backend_pid(&self) -> u32 {
        self.backend
    }

    /// Runs statements in one message, and so in one transaction unless they say otherwise.
    pub fn run(&mut self, sql: &str) -> Result<()> {
        self.client.batch_execute(sql).map_err(|error| failed(sql, &error))
    }

    /// Runs a statement that gives one value.
    pub fn text(&mut self, sql: &str) -> Result<String> {
        text(&mut self.client, sql)
    }

    /// Runs a statement that gives one whole number.
    pub fn integer(&mut self, sql: &str) -> Result<i64> {
        let value = self.text(sql)?;
        value.parse().with_context(|| format!("`{sql}` gave {value:?}, which is no whole number"))
    }

    /// Runs a statement that must fail; gives its SQLSTATE.
    pub fn sqlstate(&mut self, sql: &str) -> Result<String> {
        match self.client.batch_execute(sql) {
            Ok(()) => bail!("`{sql}` did not fail"),
            Err(error) => match error.code() {
                Some(code) => Ok(code.code().to_owned()),
                None => Err(failed(sql, &error)),
            },
        }
    }
}

fn text(client: &mut Client, sql: &str) -> Result<String> {
    let messages = client.simple_query(sql).map_err(|error| failed(sql, &error))?;
    let mut rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    match (rows.next(), rows.next()) {
        (Some(row), None) if row.len() == 1 => {
            row.get(0).map(str::to_owned).with_context(|| format!("`{sql}` gave NULL"))
        }
        _ => bail!("`{sql}` did not give one row with one value"),
    }
}

/// The crate's own message is "db error" and keeps the server's for the source.
fn failed(sql: &str, error: &postgres::Error) -> anyhow::Error {
    match error.as_db_error() {
        Some(server) => anyhow::anyhow!("`{sql}` failed: {} ({})", server.message(), server.code().code()),
        None => anyhow::anyhow!("`{sql}` failed: {error}"),
    }
}
