//! Whom an HTTPS connection trusts. One cryptography provider for the whole program: rustls with ring.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

/// Makes ring the provider of every TLS connection of this process. Calling it again changes nothing.
pub fn install_tls() {
    // An `Err` says that a provider is there already, which is what we want.
    let _ = ring::default_provider().install_default();
}

/// Whom to believe that they are who they say.
#[derive(Debug, Clone)]
pub(crate) enum Trust {
    /// The certificate authorities of this machine.
    System,
    /// These, and no others: certificate authorities, or the very certificate that the server shows. A
    /// BMC's own certificate is often neither signed by anybody nor made out to its address.
    Only(Vec<CertificateDer<'static>>),
    /// Anybody (`verify: false`).
    Anybody,
}

/// Why a file of certificates can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificatesError {
    #[error("could not read the certificates in {0}")]
    Unreadable(PathBuf, #[source] rustls::pki_types::pem::Error),
    #[error("{0} holds no certificate: it has to be a PEM file")]
    Empty(PathBuf),
}

impl Trust {
    /// Trusts what the PEM file `path` holds, and nothing else.
    pub(crate) fn only_file(path: &Path) -> Result<Trust, CertificatesError> {
        let unreadable = |source| CertificatesError::Unreadable(path.to_owned(), source);
        let certificates =
            CertificateDer::pem_file_iter(path).map_err(unreadable)?.collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
        if certificates.is_empty() { Err(CertificatesError::Empty(path.to_owned())) } else { Ok(Trust::Only(certificates)) }
    }

    /// Has `builder` trust accordingly.
    pub(crate) fn apply(&self, builder: reqwest::ClientBuilder) -> Result<reqwest::ClientBuilder, rustls::Error> {
        match self {
            Trust::System => Ok(builder),
            Trust::Anybody => Ok(builder.tls_danger_accept_invalid_certs(true)),
            Trust::Only(certificates) => {
                let provider = Arc::new(ring::default_provider());
                let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
                    .with_safe_default_protocol_versions()?
                    .dangerous()
                    .with_custom_certificate_verifier(Arc::new(OnlyThese::new(certificates, provider)))
                    .with_no_client_auth();
                Ok(builder.tls_backend_preconfigured(config))
            }
        }
    }
}

/// Accepts a server that shows one of the given certificates itself, or one signed by any of them.
#[derive(Debug)]
struct OnlyThese {
    known: Vec<CertificateDer<'static>>,
    /// None where no given certificate can serve as an authority.
    signed: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl OnlyThese {
    fn new(certificates: &[CertificateDer<'static>], provider: Arc<CryptoProvider>) -> OnlyThese {
        let mut roots = RootCertStore::empty();
        // Those that can't be an authority are left out: they still count as themselves.
        roots.add_parsable_certificates(certificates.iter().cloned());
        let signed = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().ok();
        OnlyThese { known: certificates.to_vec(), signed, provider }
    }
}

impl ServerCertVerifier for OnlyThese {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // Its name and dates don't matter: the operator vouched for exactly this certificate, and the
        // handshake's signature, checked below, shows that the server holds its key.
        if self.known.iter().any(|known| known == end_entity) {
            return Ok(ServerCertVerified::assertion());
        }
        match &self.signed {
            Some(signed) => signed.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now),
            None => Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
