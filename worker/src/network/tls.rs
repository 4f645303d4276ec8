//! Mutual TLS: who connects shows a certificate of the controller's authority, made out to whom it must be made out to; on the port
//! of requests to the controller, on that of the exchange to the workers of the same job. Handshakes run beside each other, so one
//! that stalls keeps nobody waiting.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client};

/// How long a client may take to show who it is.
const PATIENCE: Duration = Duration::from_secs(5);
/// Connections that wait to be served.
const WAITING: usize = 64;

/// Connections of clients that are who they must be.
pub struct TlsListener {
    address: SocketAddr,
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
}

impl TlsListener {
    /// `folder` holds `ca.crt`, `tls.crt` and `tls.key`; `client` is the name that a client's certificate must be made out to.
    ///
    /// # Errors
    /// When the files are not there or not what they should be, or the address cannot be bound.
    pub async fn bind(address: SocketAddr, folder: &Path, client: &str) -> io::Result<Self> {
        let acceptor = TlsAcceptor::from(Arc::new(config(folder)?));
        let client = ServerName::try_from(client.to_owned()).map_err(io::Error::other)?;
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let (sender, ready) = mpsc::channel(WAITING);
        tokio::spawn(async move {
            loop {
                let (stream, from) = match listener.accept().await {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be taken");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                };
                // Or what is said after the handshake waits for its acknowledgement, which clients delay by 40 ms.
                let _ = stream.set_nodelay(true);
                let (acceptor, client, sender) = (acceptor.clone(), client.clone(), sender.clone());
                tokio::spawn(async move {
                    match tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await {
                        Ok(Ok(stream)) if is(&stream, &client) => {
                            let _ = sender.send((stream, from)).await;
                        }
                        Ok(Ok(_)) => {
                            tracing::warn!(%from, "refused: the certificate is somebody else's")
                        }
                        Ok(Err(error)) => tracing::warn!(%from, %error, "refused"),
                        Err(_) => tracing::warn!(%from, "refused: no handshake in time"),
                    }
                });
            }
        });
        Ok(Self { address, ready })
    }
}

impl TlsListener {
    /// The next connection.
    pub async fn next(&mut self) -> (TlsStream<TcpStream>, SocketAddr) {
        match self.ready.recv().await {
            Some(accepted) => accepted,
            // The task that accepts lives as long as the runtime.
            None => std::future::pending().await,
        }
    }
}

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        self.next().await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// Whether the client's certificate is made out to this name.
fn is(stream: &TlsStream<TcpStream>, name: &ServerName<'_>) -> bool {
    let shown = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(<[_]>::first);
    shown
        .and_then(|c| webpki::EndEntityCert::try_from(c).ok())
        .is_some_and(|c| c.verify_is_valid_for_subject_name(name).is_ok())
}

/// Connects to others of the authority, and shows who this is.
#[derive(Clone)]
pub struct TlsClient(TlsConnector);

impl TlsClient {
    /// `folder`: as of `TlsListener::bind`.
    ///
    /// # Errors
    /// When the files are not there or not what they should be.
    pub fn new(folder: &Path) -> io::Result<Self> {
        let (roots, chain, key) = read(folder)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(io::Error::other)?;
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// # Errors
    /// When nobody is there, or somebody else than `host`.
    pub async fn connect(
        &self,
        host: String,
        port: u16,
    ) -> io::Result<client::TlsStream<TcpStream>> {
        let stream = TcpStream::connect((host.as_str(), port)).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(host).map_err(io::Error::other)?;
        self.0.connect(name, stream).await
    }
}

type Files = (
    RootCertStore,
    Vec<CertificateDer<'static>>,
    PrivateKeyDer<'static>,
);

fn read(folder: &Path) -> io::Result<Files> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(folder.join("ca.crt")).map_err(io::Error::other)? {
        roots
            .add(root.map_err(io::Error::other)?)
            .map_err(io::Error::other)?;
    }
    let chain = CertificateDer::pem_file_iter(folder.join("tls.crt"))
        .map_err(io::Error::other)?
        .collect::<Result<Vec<_>, _>>()
        .map_err(io::Error::other)?;
    let key = PrivateKeyDer::from_pem_file(folder.join("tls.key")).map_err(io::Error::other)?;
    Ok((roots, chain, key))
}

fn config(folder: &Path) -> io::Result<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let (roots, chain, key) = read(folder)?;
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(io::Error::other)?;
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(io::Error::other)
}
