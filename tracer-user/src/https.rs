//! What requests to other hosts trust.

use std::sync::Arc;

use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// Takes the provider that all of pgleak uses; only the first call for a process counts.
pub(crate) fn install_provider() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Trusts the certificate authorities that this system trusts; `None` if it has none.
pub(crate) fn system_tls() -> Option<TlsConfig> {
    install_provider();
    let system = rustls_native_certs::load_native_certs().certs;
    let roots: Vec<Certificate<'static>> =
        system.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
    let roots = RootCerts::Specific(Arc::new(roots));
    (!system.is_empty()).then(|| TlsConfig::builder().root_certs(roots).build())
}
