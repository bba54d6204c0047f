//! HTTPS: a certificate that the user named, one that nobody knows, and a client
//! certificate.

#![allow(clippy::unwrap_used, clippy::panic)]

mod server;

use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;

use memtrace_collect::{Endpoint, Options, ScrapeError, Scraper};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use server::{PROFILE, Server, profile};

/// A certificate and its key.
struct Pair {
    cert: String,
    key: String,
}

fn self_signed(name: &str, authority: bool) -> Pair {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    if authority {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    }
    let key = KeyPair::generate().unwrap();
    let cert = params.self_signed(&key).unwrap();
    Pair {
        cert: cert.pem(),
        key: key.serialize_pem(),
    }
}

fn https(pair: &Pair, clients: Option<&str>) -> Server {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            roots
                .add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap())
                .unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let chain = vec![CertificateDer::from_pem_slice(pair.cert.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
    let config = Arc::new(builder.with_single_cert(chain, key).unwrap());
    Server::start_with(
        |_, out| profile(out),
        move |stream| {
            Some(StreamOwned::new(
                ServerConnection::new(Arc::clone(&config)).ok()?,
                stream,
            ))
        },
    )
}

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

fn once() -> Options {
    let mut options = Options::default();
    options.retries = 0;
    options
}

fn scraper(server: &Server, host: &str, options: Options) -> Result<Scraper, ScrapeError> {
    let url = format!("https://{host}:{}", server.address.port());
    Scraper::new(Endpoint::parse(&url).unwrap(), options)
}

#[tokio::test]
async fn a_self_signed_certificate_that_the_user_named() {
    let files = Files::new();
    // With and without the mark of an authority, which openssl sets.
    for authority in [false, true] {
        let pair = self_signed("localhost", authority);
        let server = https(&pair, None);
        let mut options = once();
        options.ca_file = Some(files.write("ca.pem", &pair.cert));
        let mut named = scraper(&server, "localhost", options.clone()).unwrap();
        assert_eq!(named.heap().await.unwrap().body, PROFILE);
        named.heap().await.unwrap();
        assert_eq!(server.connections(), 1);

        let mut wrong_name = scraper(&server, "127.0.0.1", options).unwrap();
        let error = wrong_name.heap().await.unwrap_err();
        assert!(matches!(error, ScrapeError::Tls { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_stranger_with_the_same_name_is_refused() {
    let files = Files::new();
    let (known, stranger) = (
        self_signed("localhost", true),
        self_signed("localhost", true),
    );
    let server = https(&stranger, None);
    let mut options = once();
    options.ca_file = Some(files.write("ca.pem", &known.cert));
    let error = scraper(&server, "localhost", options)
        .unwrap()
        .heap()
        .await
        .unwrap_err();
    assert!(matches!(error, ScrapeError::Tls { .. }), "{error}");
    assert!(error.is_fatal());
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn a_client_certificate_opens_the_door() {
    let files = Files::new();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let issue = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        Pair {
            cert: params.signed_by(&key, &ca).unwrap().pem(),
            key: key.serialize_pem(),
        }
    };
    let (service, client) = (issue("localhost"), issue("memtrace"));
    let server = https(&service, Some(&ca.pem()));
    let mut options = once();
    options.ca_file = Some(files.write("ca.pem", &ca.pem()));

    let error = scraper(&server, "localhost", options.clone())
        .unwrap()
        .heap()
        .await
        .unwrap_err();
    assert!(matches!(error, ScrapeError::Tls { .. }), "{error}");

    options.client_cert = Some(files.write("client.pem", &client.cert));
    options.client_key = Some(files.write("client.key", &client.key));
    scraper(&server, "localhost", options.clone())
        .unwrap()
        .heap()
        .await
        .unwrap();

    // Both in one file.
    options.client_cert = Some(files.write("both.pem", &format!("{}{}", client.cert, client.key)));
    options.client_key = None;
    scraper(&server, "localhost", options)
        .unwrap()
        .heap()
        .await
        .unwrap();
}

#[tokio::test]
async fn unusable_files_and_wrong_protocols_are_explained() {
    let files = Files::new();
    let pair = self_signed("localhost", false);
    let server = https(&pair, None);
    let empty = files.write("empty.pem", "nothing\n");
    for (ca, cert, key) in [
        (Some(empty.clone()), None, None),
        (Some(files.0.path().join("none.pem")), None, None),
        (None, Some(empty.clone()), None),
        (None, None, Some(empty)),
    ] {
        let mut options = once();
        (options.ca_file, options.client_cert, options.client_key) = (ca, cert, key);
        let error = scraper(&server, "localhost", options).unwrap_err();
        assert!(matches!(error, ScrapeError::TlsSetup { .. }), "{error}");
    }

    // What a plain HTTP server says to a TLS greeting.
    let plain = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = plain.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in plain.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let mut options = once();
    options.ca_file = Some(files.write("ca.pem", &pair.cert));
    let endpoint = Endpoint::parse(&format!("https://127.0.0.1:{port}")).unwrap();
    let error = Scraper::new(endpoint, options)
        .unwrap()
        .heap()
        .await
        .unwrap_err();
    assert!(error.to_string().contains("try http://"), "{error}");
}
