use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_platform_verifier::Verifier;

use super::{Options, ScrapeError};

/// A bundle of certificates larger than this is a mistaken file.
const MAX_PEM: u64 = 4 * 1024 * 1024;

/// The TLS side of the client. For plain HTTP no root is loaded: a container
/// without any must still be able to scrape.
pub(super) fn config(options: &Options, https: bool) -> Result<ClientConfig, ScrapeError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let fail = |file: &Path, reason: String| ScrapeError::TlsSetup {
        file: file.to_owned(),
        reason,
    };
    let general = |e: rustls::Error| fail(Path::new("client"), e.to_string());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(general)?;
    if !https {
        return Ok(builder
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth());
    }

    let own = match &options.ca_file {
        Some(file) => certificates(file).map_err(|reason| fail(file, reason))?,
        None => Vec::new(),
    };
    let inner = Verifier::new_with_extra_roots(own.iter().cloned(), provider).map_err(|e| {
        fail(
            options
                .ca_file
                .as_deref()
                .unwrap_or(Path::new("system roots")),
            e.to_string(),
        )
    })?;
    let builder = builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(SystemOrNamed { inner, named: own }));

    match (&options.client_cert, &options.client_key) {
        (None, None) => Ok(builder.with_no_client_auth()),
        (Some(cert), key) => {
            // One file may hold both.
            let key_file = key.as_ref().unwrap_or(cert);
            let chain = certificates(cert).map_err(|reason| fail(cert, reason))?;
            let pem = read(key_file).map_err(|reason| fail(key_file, reason))?;
            let key = PrivateKeyDer::from_pem_slice(&pem)
                .map_err(|_| fail(key_file, "no private key in it (PEM)".to_owned()))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|e| fail(cert, e.to_string()))
        }
        (None, Some(key)) => Err(fail(key, "a key without its certificate".to_owned())),
    }
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let open = File::open(file).map_err(|e| e.to_string())?;
    open.take(MAX_PEM)
        .read_to_end(&mut bytes)
        .map_err(|e| e.to_string())?;
    Ok(bytes)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = read(file)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err("no certificate in it (PEM)".to_owned()),
    }
}

/// The system's roots and those of `ca_file`; and a self-signed certificate that
/// the user named itself. `openssl req -x509` marks its certificates as
/// authorities, which WebPKI refuses for a server; other clients take them.
#[derive(Debug)]
struct SystemOrNamed {
    inner: Verifier,
    named: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for SystemOrNamed {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verdict = self.inner.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match verdict {
            // WebPKI checks the dates before it looks at this mark, so what is
            // left to check is the name.
            Err(e)
                if only_marked_as_authority(&e) && self.named.iter().any(|c| c == end_entity) =>
            {
                let parsed = ParsedCertificate::try_from(end_entity)?;
                rustls::client::verify_server_name(&parsed, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

fn only_marked_as_authority(error: &rustls::Error) -> bool {
    matches!(error, rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other))
        if other.to_string().contains("CaUsedAsEndEntity"))
}

/// Makes ring the provider of the process once; the client looks it up even when
/// it is handed a finished configuration.
pub(super) fn install_provider() {
    if CryptoProvider::get_default().is_none() {
        // Another thread may have been faster; either way there is one now.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}
