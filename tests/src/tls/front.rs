//! A server that ends TLS for another one of the same machine: what stands behind an edge which passes TLS on.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::Files;
use crate::chat::{adopt, listen_in};
use crate::netns::{NsHandle, NsTask};

/// See the module. Its connections are cut on drop.
#[derive(Debug)]
pub struct Front {
    _task: NsTask<()>,
}

impl Front {
    /// Listens on all addresses of a namespace, for whoever listens on another port of its loopback.
    pub fn start(namespace: &NsHandle, files: &Files, port: u16, behind: u16) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(
                CertificateDer::pem_file_iter(&files.certificate)?.collect::<Result<_, _>>()?,
                PrivateKeyDer::from_pem_file(&files.key)?,
            )?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let any: [SocketAddr; 2] = [([0, 0, 0, 0], port).into(), ([0_u16; 8], port).into()];
        let (listeners, _) = listen_in(Some(namespace), &any)?;
        let task = NsTask::start(Some(namespace), "tls-front", move |mut stop| async move {
            for listener in listeners {
                tokio::task::spawn_local(accept(adopt(listener), acceptor.clone(), behind));
            }
            stop.requested().await;
        });
        Ok(Self { _task: task })
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, behind: u16) {
    // Whatever goes wrong is the client's to see.
    while let Ok((stream, _)) = listener.accept().await {
        let acceptor = acceptor.clone();
        tokio::task::spawn_local(async move {
            let _ = stream.set_nodelay(true);
            let mut client = acceptor.accept(stream).await?;
            let mut server = TcpStream::connect(("127.0.0.1", behind)).await?;
            server.set_nodelay(true)?;
            copy_bidirectional(&mut client, &mut server).await
        });
    }
}
