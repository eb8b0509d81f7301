//! TLS of servers and clients: certificates from PEM files, read anew when they change.

use crate::tokens::TokenFile;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
pub use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use tracing::{info, warn};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Files of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFiles {
    /// Its certificate, followed by those between it and the authority.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authority of clients; with it, clients must show certificates.
    pub client_ca: Option<PathBuf>,
}

/// What is spoken inside TLS, by the names of ALPN.
const GRPC: &[u8] = b"h2";
const PAGES: &[u8] = b"http/1.1";

/// A server's side of TLS.
pub struct ServerTls {
    files: ServerFiles,
    speaks: &'static [u8],
    current: Mutex<(Vec<SystemTime>, Arc<ServerConfig>)>,
}

impl ServerTls {
    /// Reads the files of a server of gRPC.
    ///
    /// # Errors
    /// One clause that names the file.
    pub fn new(files: ServerFiles) -> Result<Self, String> {
        Self::speaking(GRPC, files)
    }

    /// Reads the files of a server of pages.
    ///
    /// # Errors
    /// As [`ServerTls::new`].
    pub fn for_pages(files: ServerFiles) -> Result<Self, String> {
        Self::speaking(PAGES, files)
    }

    fn speaking(speaks: &'static [u8], files: ServerFiles) -> Result<Self, String> {
        let current = Mutex::new((files.times(), Arc::new(files.read(speaks)?)));
        Ok(Self { files, speaks, current })
    }

    /// What holds for a new connection. Files that have changed and are wrong leave everything as it was.
    fn config(&self) -> Arc<ServerConfig> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let times = self.files.times();
        if times != current.0 {
            match self.files.read(self.speaks) {
                Ok(config) => {
                    info!(cert = %self.files.cert.display(), "certificates read anew");
                    current.1 = Arc::new(config);
                }
                Err(error) => warn!(error, "the old certificates stay"),
            }
            current.0 = times;
        }
        Arc::clone(&current.1)
    }

    /// Connections of a listener whose handshakes have succeeded.
    pub fn accept(self, listener: TcpListener) -> ReceiverStream<std::io::Result<TlsStream<TcpStream>>> {
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(async move {
            loop {
                let (stream, peer) = match listener.accept().await {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // As when there are too many open files: others will be closed.
                        warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                };
                if sender.is_closed() {
                    return;
                }
                let _ = stream.set_nodelay(true);
                let (acceptor, sender) = (TlsAcceptor::from(self.config()), sender.clone());
                tokio::spawn(async move {
                    match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                        Ok(Ok(stream)) => drop(sender.send(Ok(stream)).await),
                        Ok(Err(error)) => warn!(%peer, %error, "refused: no TLS, or no certificate that is trusted"),
                        Err(_) => warn!(%peer, "refused: its TLS handshake took too long"),
                    }
                });
            }
        });
        ReceiverStream::new(receiver)
    }
}

impl ServerFiles {
    fn times(&self) -> Vec<SystemTime> {
        let all = [Some(&self.cert), Some(&self.key), self.client_ca.as_ref()];
        let time = |path: &PathBuf| fs::metadata(path).and_then(|file| file.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        all.into_iter().flatten().map(time).collect()
    }

    fn read(&self, speaks: &[u8]) -> Result<ServerConfig, String> {
        let named = |path: &Path| {
            let path = path.display().to_string();
            move |error: &dyn std::fmt::Display| format!("{path}: {error}")
        };
        let chain = certificates(&self.cert)?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| named(&self.key)(&error))?;
        let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| error.to_string())?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path)? {
                    roots.add(certificate).map_err(|error| named(path)(&error))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| named(path)(&error))?)
            }
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|error| named(&self.cert)(&error))?;
        config.alpn_protocols = vec![speaks.to_vec()];
        Ok(config)
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let named = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let found = CertificateDer::pem_file_iter(path).map_err(|error| named(&error))?;
    let found: Vec<_> = found.collect::<Result<_, _>>().map_err(|error| named(&error))?;
    if found.is_empty() { Err(named(&"holds no certificate")) } else { Ok(found) }
}

/// How a client shows and asks who is who.
#[derive(Clone, Debug, Default)]
pub struct ClientSecurity {
    /// Speak TLS.
    pub tls: bool,
    /// The servers' authority; those of the system when there is none.
    pub ca: Option<PathBuf>,
    /// Our own certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Sent with every call.
    pub token: Option<TokenFile>,
}

impl ClientSecurity {
    /// Where `authority` (HOST:PORT) answers, whose certificate must be that of `host`. The files are read now.
    ///
    /// # Errors
    /// One clause that names the file or the address.
    pub fn endpoint(&self, authority: &str, host: &str) -> Result<Endpoint, String> {
        if authority.contains("://") {
            return Err("is an URL; only HOST:PORT is wanted here, without what stands before ://".to_owned());
        }
        let scheme = if self.tls { "https" } else { "http" };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{authority}")).map_err(|error| error.to_string())?;
        if endpoint.uri().port_u16().is_none() {
            return Err("is not HOST:PORT".to_owned());
        }
        if !self.tls {
            return Ok(endpoint);
        }
        let read = |path: &Path| fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
        let mut tls = ClientTlsConfig::new().domain_name(host);
        tls = match &self.ca {
            Some(path) => tls.ca_certificate(Certificate::from_pem(read(path)?)),
            None => tls.with_native_roots(),
        };
        if let Some((cert, key)) = &self.identity {
            tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
        }
        endpoint.tls_config(tls).map_err(|error| format!("TLS: {error}"))
    }
}
