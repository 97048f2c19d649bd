//! Asks a server whether it takes connections, as `pg_isready` does: by starting one.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Version 3.0 of the protocol, as the start-up message holds it.
const PROTOCOL: u32 = 3 << 16;

/// Whether the server behind the socket lets `postgres` in.
pub(super) fn accepts_connections(socket: &Path) -> bool {
    try_connection(socket).unwrap_or(false)
}

fn try_connection(socket: &Path) -> io::Result<bool> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(&startup_message("postgres", "postgres"))?;
    let mut kind = [0];
    stream.read_exact(&mut kind)?;
    // `R` is an answer about authentication; while starting up the server sends `E`, an error.
    if kind != *b"R" {
        return Ok(false);
    }
    // Terminate, so that the server's log holds no lost connection.
    stream.write_all(&[b'X', 0, 0, 0, 4])?;
    Ok(true)
}

fn startup_message(user: &str, database: &str) -> Vec<u8> {
    let mut body = PROTOCOL.to_be_bytes().to_vec();
    for text in ["user", user, "database", database, ""] {
        body.extend_from_slice(text.as_bytes());
        body.push(0);
    }
    let length = u32::try_from(body.len() + 4).expect("a few dozen bytes");
    [&length.to_be_bytes()[..], &body].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_startup_message_counts_its_own_length() {
        let message = startup_message("u", "d");
        assert_eq!(message, b"\0\0\0\x1b\0\x03\0\0user\0u\0database\0d\0\0");
        assert_eq!(message.len(), 0x1b);
    }
}
