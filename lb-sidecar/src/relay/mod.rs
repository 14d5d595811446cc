//! Stand-in until the real one is here.
use bytes::Bytes;
use std::time::Duration;
use tokio::{
    io::{AsyncWriteExt, copy_bidirectional_with_sizes},
    net::TcpStream,
};
pub struct End {
    pub stream: TcpStream,
    pub read_ahead: Bytes,
}
pub struct Options {
    pub idle_timeout: Duration,
    pub websocket: bool,
}
pub struct Ended {
    pub bytes_in: u64,
    pub bytes_out: u64,
}
pub async fn relay(mut client: End, mut backend: End, _: Options) -> Ended {
    let _ = backend.stream.write_all(&client.read_ahead).await;
    let _ = client.stream.write_all(&backend.read_ahead).await;
    let (bytes_in, bytes_out) =
        copy_bidirectional_with_sizes(&mut client.stream, &mut backend.stream, 1024, 1024)
            .await
            .unwrap_or_default();
    Ended { bytes_in, bytes_out }
}
