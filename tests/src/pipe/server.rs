//! The server's end of a pipe.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Ending, Mode, PIECE, Terms};
use crate::chat::Side;

/// What the first byte after a [`Mode::Stream`]'s own tells; the rest is the number of bytes that came.
const ACCOUNT: usize = 8;

/// Serves a pipe to its end. `rest` came with the request. An error is how the connection was lost, or
/// `InvalidData` for a wrong byte.
pub(crate) async fn serve(mut stream: TcpStream, rest: &[u8], query: &str) -> io::Result<()> {
    let Some(terms) = Terms::parse(query) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the query of a pipe"));
    };
    let served = match terms.mode {
        Mode::Echo => echo(&mut stream, rest, &terms).await,
        Mode::Stream { bytes, piece, pause, awaited } => {
            if awaited && rest.is_empty() {
                stream.readable().await?;
            }
            exchange(&mut stream, rest, &terms, (bytes, piece, pause)).await
        }
    };
    if served.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::InvalidData) {
        // The client must not take it for an end in good order.
        stream.set_zero_linger()?;
    }
    served
}

async fn echo(stream: &mut TcpStream, rest: &[u8], terms: &Terms) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    let (mut came, mut length) = (0, rest.len());
    buffer[..length].copy_from_slice(rest);
    loop {
        stream.write_all(&buffer[..length]).await?;
        came += length as u64;
        match terms.end {
            Some((after, ending)) if came >= after => return leave(stream, ending).await,
            _ => {}
        }
        length = stream.read(&mut buffer).await?;
        if length == 0 {
            return stream.shutdown().await;
        }
    }
}

/// Leaves; what comes after our FIN is the client's to end.
async fn leave(stream: &mut TcpStream, ending: Ending) -> io::Result<()> {
    match ending {
        Ending::Reset => stream.set_zero_linger(),
        Ending::Fin | Ending::Half => {
            stream.shutdown().await?;
            let mut buffer = vec![0; PIECE];
            while stream.read(&mut buffer).await? > 0 {}
            Ok(())
        }
    }
}

async fn exchange(
    stream: &mut TcpStream,
    rest: &[u8],
    terms: &Terms,
    (bytes, piece, pause): (u64, usize, Duration),
) -> io::Result<()> {
    let (mut from, mut to) = stream.split();
    let (ours, theirs) = (terms.pattern(Side::Server), terms.pattern(Side::Client));
    let send = async {
        let mut buffer = vec![0; piece.clamp(1, PIECE)];
        let mut sent = 0;
        while sent < bytes {
            let length = buffer.len().min(usize::try_from(bytes - sent).unwrap_or(usize::MAX));
            ours.fill(sent, &mut buffer[..length]);
            to.write_all(&buffer[..length]).await?;
            sent += length as u64;
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
        io::Result::Ok(())
    };
    let check = |at, bytes: &[u8]| {
        theirs.verify(at, bytes).map_err(|wrong| io::Error::new(io::ErrorKind::InvalidData, wrong))
    };
    let receive = async {
        check(0, rest)?;
        let mut came = rest.len() as u64;
        let mut buffer = vec![0; PIECE];
        loop {
            let length = from.read(&mut buffer).await?;
            if length == 0 {
                return Ok(came);
            }
            check(came, &buffer[..length])?;
            came += length as u64;
        }
    };
    let ((), came) = tokio::try_join!(send, receive)?;
    let account: [u8; ACCOUNT] = came.to_be_bytes();
    stream.write_all(&account).await?;
    stream.shutdown().await
}
