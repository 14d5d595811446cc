//! TCP: the handshake is the whole check.

use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::Deadline;
use crate::health::failure::{Failure, Stage};

/// Closes the connection with a FIN and without data. A backend that has reset it by now is not healthy.
pub(super) async fn finish(mut stream: TcpStream, deadline: Deadline) -> Result<(), Failure> {
    let closed = deadline.wait(Stage::Connect, stream.shutdown()).await?;
    closed.map_err(|e| Failure::broken(Stage::Connect, &e))
}
