//! Clients of HTTP/2: one that behaves (the `h2` crate's), and raw frames for one that does not.

use std::{future::poll_fn, time::Duration};

use base64::Engine as _;
use bytes::Bytes;
use h2::{RecvStream, client::SendRequest};
use hyper::{Request, Response, StatusCode, http::HeaderMap};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::spawn_local,
    time::timeout,
};

use super::{Client, Edge, LONG, Server, field, read_head};

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// Codes of RST_STREAM and GOAWAY (RFC 9113, section 7).
pub const NO_ERROR: u32 = 0;
pub const PROTOCOL_ERROR: u32 = 1;
pub const FLOW_CONTROL_ERROR: u32 = 3;
pub const REFUSED_STREAM: u32 = 7;
pub const ENHANCE_YOUR_CALM: u32 = 11;

/// What a client that behaves has of a connection.
#[derive(Clone)]
pub struct Polite(pub SendRequest<Bytes>);

impl Edge {
    pub async fn http2(&self) -> Polite {
        self.http2_with(&mut h2::client::Builder::new()).await
    }

    pub async fn http2_with(&self, builder: &mut h2::client::Builder) -> Polite {
        let (sender, connection) = builder.handshake(self.connect().await.0).await.unwrap();
        spawn_local(async move {
            let _ = connection.await;
        });
        Polite(sender)
    }

    /// A connection on which frames are written by hand; settings are exchanged.
    pub async fn frames(&self) -> Client {
        let mut client = self.connect().await;
        client.send([PREFACE, &frame(SETTINGS, 0, 0, &[])[..]].concat()).await;
        client
    }
}

/// What came of a request.
pub struct Got {
    pub head: Response<()>,
    pub body: String,
    pub trailers: Option<HeaderMap>,
}

impl Got {
    pub fn status(&self) -> u16 {
        self.head.status().as_u16()
    }
}

impl Polite {
    pub async fn get(&self, uri: &str) -> Got {
        self.ask(Request::get(uri).body(()).unwrap()).await.unwrap()
    }

    /// A request without a body.
    pub async fn ask(&self, request: Request<()>) -> Result<Got, h2::Error> {
        let mut sender = timeout(LONG, self.0.clone().ready()).await.expect("room for a stream")?;
        let (response, _) = sender.send_request(request, true)?;
        read(timeout(LONG, response).await.expect("an answer")?).await
    }
}

/// The whole of an answer, which opens the windows as it comes.
pub async fn read(response: Response<RecvStream>) -> Result<Got, h2::Error> {
    let (head, mut stream) = response.into_parts();
    let mut body = Vec::new();
    while let Some(data) = timeout(LONG, stream.data()).await.expect("more of the body") {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    let trailers = poll_fn(|cx| stream.poll_trailers(cx)).await?;
    let body = String::from_utf8_lossy(&body).into_owned();
    Ok(Got { head: Response::from_parts(head, ()), body, trailers })
}

pub fn get(uri: &str) -> Request<()> {
    Request::get(uri).body(()).unwrap()
}

pub fn ok(got: &Got) {
    assert_eq!(got.head.status(), StatusCode::OK, "{}", got.body);
}

/// A frame (RFC 9113, section 4.1).
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Fields as HPACK literals that enter no table (RFC 7541, section 6.2.2).
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name, value] {
            length(&mut bytes, text.len());
            bytes.extend(text.as_bytes());
        }
    }
    bytes
}

/// A length with a prefix of seven bits (section 5.1).
fn length(bytes: &mut Vec<u8>, length: usize) {
    if length < 127 {
        bytes.push(length as u8);
        return;
    }
    bytes.push(127);
    let mut rest = length - 127;
    while rest >= 128 {
        bytes.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    bytes.push(rest as u8);
}

pub const GET: &[(&str, &str)] =
    &[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/")];

pub fn request(stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(fields))
}

/// A frame that came.
#[derive(Debug)]
pub struct Came {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Came {
    /// The code of a RST_STREAM or GOAWAY.
    pub fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

impl Client {
    /// The next frame; none at the end of the connection.
    pub async fn frame(&mut self) -> Option<Came> {
        let mut header = [0; 9];
        timeout(LONG, self.0.read_exact(&mut header)).await.expect("a frame or the end").ok()?;
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
        let mut payload = vec![0; length];
        timeout(LONG, self.0.read_exact(&mut payload)).await.expect("a whole frame").ok()?;
        let stream = u32::from_be_bytes(header[5..9].try_into().unwrap());
        Some(Came { kind: header[3], flags: header[4], stream, payload })
    }

    /// The next frame of this kind; others are passed over.
    pub async fn frame_of(&mut self, kind: u8) -> Came {
        let mut others = Vec::new();
        while let Some(came) = self.frame().await {
            if came.kind == kind {
                return came;
            }
            others.push(came);
        }
        panic!("no frame of kind {kind}, but {others:?}");
    }

    /// Whether the connection ends within this time.
    pub async fn ends_within(&mut self, time: Duration) -> bool {
        timeout(time, async { while self.frame().await.is_some() {} }).await.is_ok()
    }
}

/// A WebSocket's two directions over a stream.
pub struct Chat {
    pub sent: h2::SendStream<Bytes>,
    pub received: RecvStream,
}

impl Polite {
    /// Asks for a WebSocket by extended CONNECT; the settings that allow it must have come.
    pub async fn connect(&self, uri: &str) -> Result<(Response<()>, Chat), h2::Error> {
        self.connect_to(uri, "websocket").await
    }

    pub async fn connect_to(
        &self,
        uri: &str,
        protocol: &'static str,
    ) -> Result<(Response<()>, Chat), h2::Error> {
        let mut request = Request::builder().method("CONNECT").uri(uri).body(()).unwrap();
        request.extensions_mut().insert(h2::ext::Protocol::from_static(protocol));
        let mut sender = timeout(LONG, self.0.clone().ready()).await.expect("room for a stream")?;
        timeout(LONG, async {
            while !sender.is_extended_connect_protocol_enabled() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("SETTINGS_ENABLE_CONNECT_PROTOCOL");
        let (response, sent) = sender.send_request(request, false)?;
        let (head, received) = timeout(LONG, response).await.expect("an answer")?.into_parts();
        Ok((Response::from_parts(head, ()), Chat { sent, received }))
    }
}

impl Chat {
    pub fn send(&mut self, bytes: impl Into<Bytes>) {
        self.sent.send_data(bytes.into(), false).unwrap();
    }

    pub fn close(&mut self) {
        self.sent.send_data(Bytes::new(), true).unwrap();
    }

    /// So many bytes, or those up to the end.
    pub async fn read(&mut self, count: usize) -> Result<Vec<u8>, h2::Error> {
        let mut read = Vec::new();
        while read.len() < count {
            match timeout(LONG, self.received.data()).await.expect("more, or the end") {
                Some(data) => {
                    let data = data?;
                    self.received.flow_control().release_capacity(data.len())?;
                    read.extend_from_slice(&data);
                }
                None => break,
            }
        }
        Ok(read)
    }
}

impl Server {
    /// Upgrades to a WebSocket as it should be, says `greeting`, and sends back what it gets.
    pub async fn chatting(greeting: &'static str) -> Self {
        Self::new(move |mut stream| async move {
            let Some(head) = read_head(&mut stream).await else { return };
            stream.write_all(switch(&head).as_bytes()).await.unwrap();
            stream.write_all(greeting.as_bytes()).await.unwrap();
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        })
        .await
    }
}

/// The 101 to an upgrade (RFC 6455, section 4.2.2).
pub fn switch(asked: &str) -> String {
    let key = field(asked, "sec-websocket-key").expect("a key");
    let key = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let hash = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, key.as_bytes());
    let accept = base64::engine::general_purpose::STANDARD.encode(hash);
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
    )
}
