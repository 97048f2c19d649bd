//! Requests to other hosts.

use std::{collections::BTreeMap, time::Duration};

use super::TellError;
use crate::https::system_tls;

/// For so long one may take.
const LONGEST: Duration = Duration::from_secs(30);

/// Sends a body by POST.
///
/// # Errors
/// If it does not arrive, or is not taken.
pub(super) fn post(
    url: &str,
    headers: &BTreeMap<String, String>,
    content: &str,
    body: &[u8],
) -> Result<(), TellError> {
    let mut config = ureq::Agent::config_builder()
        .user_agent(concat!("pgleak/", env!("CARGO_PKG_VERSION")))
        .timeout_global(Some(LONGEST))
        // A body that was meant for one host goes to no other.
        .max_redirects(0);
    if url.starts_with("https:") {
        config = config.tls_config(system_tls().ok_or(TellError::NoAuthorities)?);
    }
    let mut request = config.build().new_agent().post(url).content_type(content);
    for (name, value) in headers {
        request = request.header(name, value);
    }
    match request.send(body) {
        Ok(response) if response.status().is_success() => Ok(()),
        Ok(response) => Err(TellError::Answered(response.status().as_u16())),
        Err(error) => Err(TellError::Http(Box::new(error))),
    }
}

/// An address without the user, password and parameters that may be in it, for logs.
pub(super) fn without_secrets(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (authority, path) = rest.split_once('/').map_or((rest, ""), |(authority, path)| (authority, path));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let path = path.split(['?', '#']).next().unwrap_or_default();
    // Webhooks of chats have their secret in the path.
    let shown = if path.is_empty() { "" } else { "/…" };
    format!("{scheme}://{host}{shown}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_of_addresses_stay_out_of_logs() {
        assert_eq!(
            without_secrets("https://user:pw@hooks.example.org/services/T0/secret?x=1"),
            "https://hooks.example.org/…"
        );
        assert_eq!(without_secrets("http://localhost:4040"), "http://localhost:4040");
    }
}
