//! Messages over a Unix stream: frames of a 32-bit length and JSON, some with a file descriptor.
//!
//! ```text
//! 1 bit: a descriptor comes with the frame | 31 bits, big-endian: length of the JSON | JSON
//! ```
//!
//! A descriptor is sent with the first bytes of its frame, so that it is there when the frame is whole, and descriptors
//! arrive in the order of the frames that have one. This module knows no message.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, IoSlice, IoSliceMut},
    marker::PhantomData,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use bytes::{Buf, BytesMut};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{io::Interest, net::UnixStream};

/// The longest JSON of a message, in bytes (64 MiB).
pub const MOST_BYTES: usize = 64 << 20;

const HEADER: usize = 4;
const WITH_DESCRIPTOR: u32 = 1 << 31;

/// Bytes taken from the socket at a time.
const CHUNK: usize = 64 << 10;

/// Descriptors that may have arrived before the rest of their frames.
const MOST_DESCRIPTORS: usize = 64;

/// Makes both ends of a connection's messages.
pub fn channel<Out: Serialize, In: DeserializeOwned>(
    stream: UnixStream,
) -> (Sender<Out>, Receiver<In>) {
    let stream = Arc::new(stream);
    let sender = Sender { stream: Arc::clone(&stream), messages: PhantomData };
    let receiver = Receiver {
        stream,
        buffer: BytesMut::new(),
        descriptors: VecDeque::new(),
        messages: PhantomData,
    };
    (sender, receiver)
}

/// Sends messages. The connection ends once both halves are dropped.
pub struct Sender<Out> {
    stream: Arc<UnixStream>,
    messages: PhantomData<fn(Out)>,
}

impl<Out: Serialize> Sender<Out> {
    /// Sends one message, and a descriptor with it. After an error, and when it is dropped half-way, the connection is
    /// of no use any more.
    pub async fn send(
        &mut self,
        message: &Out,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let mut frame = vec![0; HEADER];
        serde_json::to_writer(&mut frame, message)?;
        let length = frame.len() - HEADER;
        if length > MOST_BYTES {
            return Err(too_long(length));
        }
        // At most MOST_BYTES, which leaves the bit free.
        let flag = if descriptor.is_some() { WITH_DESCRIPTOR } else { 0 };
        frame[..HEADER].copy_from_slice(&(length as u32 | flag).to_be_bytes());
        let mut sent = 0;
        while sent < frame.len() {
            let with = descriptor.filter(|_| sent == 0);
            let part = &frame[sent..];
            sent +=
                self.stream.async_io(Interest::WRITABLE, || send(&self.stream, part, with)).await?;
        }
        Ok(())
    }
}

fn send(
    stream: &UnixStream,
    bytes: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.as_slice();
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    Ok(sendmsg(stream.as_fd(), &[IoSlice::new(bytes)], &mut control, flags)?)
}

/// Receives messages.
pub struct Receiver<In> {
    stream: Arc<UnixStream>,
    buffer: BytesMut,
    descriptors: VecDeque<OwnedFd>,
    messages: PhantomData<fn() -> In>,
}

impl<In: DeserializeOwned> Receiver<In> {
    /// Waits for a message and the descriptor that came with it; none once the other side has closed the connection.
    /// May be dropped while it waits. After an error the connection is of no use any more.
    pub async fn receive(&mut self) -> io::Result<Option<(In, Option<OwnedFd>)>> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(Some(message));
            }
            let Self { stream, buffer, descriptors, .. } = self;
            let read = stream
                .async_io(Interest::READABLE, || receive(stream, buffer, descriptors))
                .await?;
            match read {
                0 if self.buffer.is_empty() => return Ok(None),
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                _ => {}
            }
        }
    }

    /// The first message of those that have arrived as a whole.
    fn take(&mut self) -> io::Result<Option<(In, Option<OwnedFd>)>> {
        let Some(header) = self.buffer.first_chunk() else { return Ok(None) };
        let header = u32::from_be_bytes(*header);
        let length = (header & !WITH_DESCRIPTOR) as usize;
        if length > MOST_BYTES {
            return Err(too_long(length));
        }
        let Some(json) = self.buffer.get(HEADER..HEADER + length) else { return Ok(None) };
        let message = serde_json::from_slice(json)?;
        self.buffer.advance(HEADER + length);
        if self.buffer.is_empty() {
            // After large settings, nothing of them is kept.
            self.buffer = BytesMut::new();
        }
        let descriptor = match header & WITH_DESCRIPTOR {
            0 => None,
            _ => Some(self.descriptors.pop_front().ok_or_else(|| {
                io::Error::new(ErrorKind::InvalidData, "the descriptor of a message did not arrive")
            })?),
        };
        Ok(Some((message, descriptor)))
    }
}

fn receive(
    stream: &UnixStream,
    buffer: &mut BytesMut,
    descriptors: &mut VecDeque<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let before = buffer.len();
    buffer.resize(before + CHUNK, 0);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let result =
        recvmsg(stream.as_fd(), &mut [IoSliceMut::new(&mut buffer[before..])], &mut control, flags);
    buffer.truncate(before + result.as_ref().map_or(0, |message| message.bytes));
    let message = result?;
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = part {
            descriptors.extend(received);
        }
    }
    let lost = message.flags.contains(ReturnFlags::CTRUNC);
    if lost || descriptors.len() > MOST_DESCRIPTORS {
        let what = "more descriptors than messages that have one, or than this process may open";
        return Err(io::Error::new(ErrorKind::InvalidData, what));
    }
    Ok(message.bytes)
}

fn too_long(length: usize) -> io::Error {
    let what = format!("a message of {length} bytes: the most are {MOST_BYTES}");
    io::Error::new(ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read, Write},
    };

    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    use tokio::io::AsyncWriteExt;

    use super::*;

    type Both = (Sender<String>, Receiver<String>);

    fn connected() -> (Both, Both) {
        let (one, other) = UnixStream::pair().unwrap();
        (channel(one), channel(other))
    }

    async fn received(bytes: &[u8]) -> io::Result<Option<(String, Option<OwnedFd>)>> {
        let (mut raw, other) = UnixStream::pair().unwrap();
        let (_sender, mut receiver) = channel::<String, String>(other);
        raw.write_all(bytes).await.unwrap();
        drop(raw);
        receiver.receive().await
    }

    #[tokio::test]
    async fn messages_and_descriptors_arrive_in_order_and_belong_together() {
        let ((mut sender, _), (_, mut receiver)) = connected();
        let sending = tokio::spawn(async move {
            for n in 0..1_000 {
                let (read, mut write) = io::pipe().unwrap();
                write!(write, "{n}").unwrap();
                // Every third one has none.
                let descriptor = (n % 3 != 0).then_some(read.as_fd());
                sender.send(&n.to_string(), descriptor).await.unwrap();
            }
        });
        for n in 0..1_000 {
            let (message, descriptor) = receiver.receive().await.unwrap().unwrap();
            assert_eq!(message, n.to_string());
            assert_eq!(descriptor.is_some(), n % 3 != 0);
            let Some(descriptor) = descriptor else { continue };
            let flags = fcntl(&descriptor, FcntlArg::F_GETFD).unwrap();
            assert!(FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC));
            let mut text = String::new();
            File::from(descriptor).read_to_string(&mut text).unwrap();
            assert_eq!(text, message);
        }
        sending.await.unwrap();
        assert!(receiver.receive().await.unwrap().is_none(), "the other side has ended");
    }

    #[tokio::test]
    async fn a_message_larger_than_the_sockets_buffers_arrives_and_leaves_nothing_behind() {
        let ((mut sender, _), (_, mut receiver)) = connected();
        let large = "x".repeat(5 << 20);
        let expected = large.clone();
        let sending = tokio::spawn(async move {
            let file = File::open("/dev/null").unwrap();
            sender.send(&large, Some(file.as_fd())).await.unwrap();
            sender.send(&"after".to_owned(), None).await.unwrap();
        });
        let (message, descriptor) = receiver.receive().await.unwrap().unwrap();
        assert!(message == expected && descriptor.is_some());
        assert_eq!(receiver.receive().await.unwrap().unwrap().0, "after");
        assert!(receiver.buffer.capacity() <= CHUNK);
        sending.await.unwrap();
    }

    #[tokio::test]
    async fn a_receiver_that_stops_waiting_loses_nothing() {
        let (mut raw, other) = UnixStream::pair().unwrap();
        let (_sender, mut receiver) = channel::<String, String>(other);
        let frame = [&[0, 0, 0, 4][..], b"\"ok\""].concat();
        for byte in &frame[..7] {
            raw.write_all(&[*byte]).await.unwrap();
            let waiting =
                tokio::time::timeout(std::time::Duration::from_millis(1), receiver.receive());
            assert!(waiting.await.is_err(), "it is not whole yet");
        }
        raw.write_all(&frame[7..]).await.unwrap();
        assert_eq!(receiver.receive().await.unwrap().unwrap().0, "ok");
    }

    #[tokio::test]
    async fn garbage_and_messages_that_break_off_are_errors() {
        assert!(received(b"").await.unwrap().is_none());
        for (bytes, expected) in [
            (&b"\0\0"[..], ErrorKind::UnexpectedEof),
            (b"\0\0\0\x09\"half", ErrorKind::UnexpectedEof),
            (b"\0\0\0\x05hello", ErrorKind::InvalidData),
            (b"\0\0\0\x0212", ErrorKind::InvalidData),
            (b"GET / HTTP/1.1\r\n\r\n", ErrorKind::InvalidData),
        ] {
            let error = received(bytes).await.unwrap_err();
            assert_eq!(error.kind(), expected, "{bytes:?}: {error}");
        }
        let error = received(b"\x7f\xff\xff\xff").await.unwrap_err().to_string();
        assert!(error.contains("2147483647 bytes"), "{error}");
        let error = received(b"\x80\0\0\x04\"ok\"").await.unwrap_err().to_string();
        assert!(error.contains("did not arrive"), "{error}");
    }

    #[tokio::test]
    async fn descriptors_without_messages_do_not_pile_up() {
        let (one, other) = UnixStream::pair().unwrap();
        let (_sender, mut receiver) = channel::<String, String>(other);
        let file = File::open("/dev/null").unwrap();
        // A frame that never ends, each byte with a descriptor.
        for _ in 0..=MOST_DESCRIPTORS {
            send(&one, &[1], Some(file.as_fd())).unwrap();
        }
        let error = receiver.receive().await.unwrap_err();
        assert!(error.to_string().contains("more descriptors"), "{error}");
    }

    #[tokio::test]
    async fn what_is_too_long_is_not_sent() {
        let ((mut sender, _), _other) = connected();
        let error = sender.send(&"x".repeat(MOST_BYTES), None).await.unwrap_err();
        assert!(error.to_string().contains("the most are"), "{error}");
    }
}
