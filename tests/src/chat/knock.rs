//! One handshake and one message: who answers, and which cookie comes with it.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderValue, header};
use tokio_tungstenite::tungstenite::{self, Message};

use super::{BACKEND_HEADER, ECHO, HELLO};
use crate::netns::NsHandle;

const PATIENCE: Duration = Duration::from_secs(10);

/// What a handshake came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Knock {
    pub backend: String,
    /// `Set-Cookie`, with its attributes.
    pub set_cookie: Option<String>,
}

impl Knock {
    /// The cookie as a client sends it back.
    #[must_use]
    pub fn cookie(&self) -> Option<&str> {
        self.set_cookie.as_deref().and_then(|cookie| cookie.split(';').next())
    }
}

/// Opens a chat from `namespace`, has a message echoed, and closes it.
pub fn knock(namespace: &NsHandle, target: SocketAddr, cookie: Option<&str>) -> Result<Knock> {
    namespace
        .run(|| chat(target, cookie))
        .with_context(|| format!("a chat with {target}, cookie {cookie:?}"))
}

fn chat(target: SocketAddr, cookie: Option<&str>) -> Result<Knock> {
    let stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = "ws://chat.test/chat".into_client_request()?;
    if let Some(cookie) = cookie {
        request.headers_mut().insert(header::COOKIE, HeaderValue::from_str(cookie)?);
    }
    let (mut socket, response) = tungstenite::client(request, stream)?;
    let value = |name: &str| -> Result<Option<String>> {
        let value = response.headers().get(name).map(HeaderValue::to_str).transpose()?;
        Ok(value.map(str::to_owned))
    };
    let backend = value(BACKEND_HEADER)?.context("the backend does not say who it is")?;
    ensure!(
        socket.read()? == Message::text(format!("{HELLO}{backend}")),
        "not greeted by {backend}"
    );
    let message = Message::binary([ECHO].as_slice());
    socket.send(message.clone())?;
    ensure!(socket.read()? == message, "a wrong echo");
    socket.close(None)?;
    // To the end of the stream, so that nothing is left of it at the edge.
    while socket.read().is_ok() {}
    Ok(Knock { backend, set_cookie: value(header::SET_COOKIE.as_str())? })
}

#[cfg(test)]
mod tests {
    use super::super::{ChatServer, ServerConfig};
    use super::*;

    #[test]
    fn a_server_without_an_edge_sets_no_cookie() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let server = ChatServer::start(None, ServerConfig::new("chat-1", [any])).unwrap();
        let knock = chat(server.addresses()[0], Some("a=b")).unwrap();
        assert_eq!(knock, Knock { backend: "chat-1".to_owned(), set_cookie: None });
    }

    #[test]
    fn a_cookie_goes_back_without_its_attributes() {
        let set_cookie = Some("sluice=v1.k.x; Path=/; HttpOnly".to_owned());
        let knock = Knock { backend: String::new(), set_cookie };
        assert_eq!(knock.cookie(), Some("sluice=v1.k.x"));
    }
}
