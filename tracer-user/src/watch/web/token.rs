//! The token that opens the page at a network address: loopback is open to every user of the host.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use super::WebError;

/// Its file in the store's directory.
pub(super) const FILE: &str = "token";

/// Bytes of chance in it.
const BYTES: usize = 32;

/// The token of a store; made if there is none.
pub(super) fn read_or_make(directory: &Path) -> Result<String, WebError> {
    let path = directory.join(FILE);
    let failed = |source| WebError::Token { path: path.clone(), source };
    match fs::read_to_string(&path) {
        Ok(token) if token.trim().len() >= BYTES => return Ok(token.trim().to_owned()),
        // One that was not written to its end.
        Ok(_) => fs::remove_file(&path).map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let mut bytes = [0_u8; BYTES];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| failed(error.into()))?;
    let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
    writeln!(file, "{token}").and_then(|()| file.sync_all()).map_err(failed)?;
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_made_once_and_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().expect("a directory");
        let token = read_or_make(directory.path()).expect("made");
        assert_eq!(token.len(), 2 * BYTES);
        assert_eq!(read_or_make(directory.path()).expect("read"), token);
        let mode = fs::metadata(directory.path().join(FILE)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(directory.path().join(FILE), "half").expect("written");
        assert_ne!(read_or_make(directory.path()).expect("made anew"), "half");
    }
}
