//! The admin API at `/run/sluice/EDGE/admin.sock`, for root alone.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use axum::serve::Listener;
use nix::unistd::geteuid;
use tokio::{
    net::{UnixListener, UnixStream, unix::SocketAddr},
    task::JoinHandle,
};

use super::{Over, State, connections, router};
use crate::sidecar::Directory;

const NAME: &str = "admin.sock";
const REFUSAL: &str = "{\"error\":\"only root may ask here\",\"remedy\":\"use sudo\"}";

/// Where the socket of the edge is whose directory this is.
#[must_use]
pub fn path(directory: &Path) -> PathBuf {
    directory.join(NAME)
}

/// The server. Dropping it removes the socket.
pub struct Local {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl Local {
    /// Serves until it is dropped. Needs a tokio runtime.
    pub fn serve(directory: &Directory, state: State) -> Result<Self> {
        directory.create()?;
        let path = path(directory.path());
        let listener = bind(&path)?;
        let router = router(state, Over::Local);
        let task = tokio::spawn(connections::serve(RootOnly(listener), router));
        Ok(Self { path, task })
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.task.abort();
        let _ = fs::remove_file(&self.path);
        // Unless there is something else in it.
        let _ = self.path.parent().map(fs::remove_dir);
    }
}

/// What a dead agent left is replaced; who listens there is not.
fn bind(path: &Path) -> Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        bail!(
            "{}: another process listens there; stop it (`ss -xlp` shows which it is)",
            path.display()
        );
    }
    let bind = || -> io::Result<UnixListener> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Nobody else may enter the directory meanwhile.
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    };
    bind().with_context(|| format!("{}: cannot listen there", path.display()))
}

/// Accepts from root and from the agent's own user; who else has come in is told so.
struct RootOnly(UnixListener);

impl Listener for RootOnly {
    type Io = UnixStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            match self.0.accept().await {
                Ok((stream, address)) if may_ask(&stream) => return (stream, address),
                Ok((stream, _)) => refuse(&stream),
                Err(error) => {
                    tracing::warn!(%error, "the admin socket cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

fn may_ask(stream: &UnixStream) -> bool {
    let own = geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own)
}

fn refuse(stream: &UnixStream) {
    let length = REFUSAL.len();
    let answer = format!(
        "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{REFUSAL}"
    );
    let _ = stream.try_write(answer.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("sluice-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_an_error_that_names_it() {
        let directory = directory("local");
        let path = path(&directory);
        let first = bind(&path).unwrap();
        let error = format!("{:#}", bind(&path).unwrap_err());
        assert!(
            error.contains("admin.sock: another process") && error.contains("ss -xlp"),
            "{error}"
        );
        drop(first);
        assert!(path.exists(), "it is stale");
        let _second = bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::remove_dir_all(directory).unwrap();
    }
}
