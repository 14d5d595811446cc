//! The broker's end of the socket over which a worker makes its offers: see [`lb_sidecar::splice`].

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::fd::OwnedFd,
    time::Duration,
};

use lb_sidecar::splice::{ANSWER_BYTES, Answer, OFFER_BYTES};
use rustix::{
    cmsg_space,
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
        SendFlags, SocketFlags, SocketType, recvmsg, send, socketpair,
    },
};

use super::socket::Socket;

/// The agent's end.
#[derive(Debug)]
pub struct Channel(OwnedFd);

/// What came.
#[derive(Debug)]
pub enum Heard {
    /// An offer, with the client's socket and the backend's.
    Offer([u8; OFFER_BYTES], [Socket; 2]),
    /// An offer without its two descriptors. They get lost where this process may have no more.
    Incomplete([u8; OFFER_BYTES]),
    /// Nothing within the time.
    Nothing,
    /// The worker has closed its end.
    End,
}

impl Channel {
    /// A channel, and the worker's end of it.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self(ours), theirs))
    }

    /// Waits for an offer, at most so long.
    pub fn receive(&self, patience: Option<Duration>) -> io::Result<Heard> {
        loop {
            let heard = match patience {
                None => self.receive_with(RecvFlags::CMSG_CLOEXEC),
                Some(_) => self.receive_with(RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT),
            };
            match (heard, patience) {
                (Err(Errno::INTR), _) => {}
                (Err(Errno::AGAIN), Some(patience)) => {
                    let patience = Timespec::try_from(patience).unwrap_or_default();
                    match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&patience)) {
                        Ok(0) => return Ok(Heard::Nothing),
                        Ok(_) | Err(Errno::INTR) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                // It has died with an answer unread.
                (Err(Errno::CONNRESET), _) => return Ok(Heard::End),
                (heard, _) => return Ok(heard?),
            }
        }
    }

    fn receive_with(&self, flags: RecvFlags) -> Result<Heard, Errno> {
        let mut id = [0; OFFER_BYTES];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(2))];
        // Descriptors that are not taken out of it are closed with it.
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let message = recvmsg(&self.0, &mut [IoSliceMut::new(&mut id)], &mut control, flags)?;
        if message.bytes != OFFER_BYTES {
            // A message of no bytes is what the end looks like; no offer is shorter or longer.
            return Ok(Heard::End);
        }
        let mut sockets = [None, None];
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(mut descriptors) = message
                && descriptors.len() == sockets.len()
            {
                sockets = sockets.map(|_: Option<Socket>| descriptors.next().map(Socket::new));
            }
        }
        match sockets {
            [Some(client), Some(upstream)] if !message.flags.contains(ReturnFlags::CTRUNC) => {
                Ok(Heard::Offer(id, [client, upstream]))
            }
            _ => Ok(Heard::Incomplete(id)),
        }
    }

    /// False if nobody is there to hear it.
    pub fn answer(&self, id: [u8; OFFER_BYTES], answer: Answer) -> io::Result<bool> {
        let mut message = [0; ANSWER_BYTES];
        message[..OFFER_BYTES].copy_from_slice(&id);
        message[OFFER_BYTES] = answer.to_byte();
        loop {
            match send(&self.0, &message, SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(true),
                Err(Errno::PIPE | Errno::CONNRESET) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use lb_sidecar::splice::Refusal;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, recv, sendmsg};
    use std::os::fd::AsFd;

    use super::*;

    fn offer(end: &OwnedFd, bytes: &[u8], count: usize) {
        let descriptors = [end.as_fd(); 4];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(4))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors[..count])));
        sendmsg(end, &[IoSlice::new(bytes)], &mut control, SendFlags::empty()).unwrap();
    }

    fn open_descriptors() -> usize {
        std::fs::read_dir("/proc/self/fd").unwrap().count()
    }

    #[test]
    fn an_offer_comes_with_two_descriptors_and_nothing_else_is_one() {
        let (channel, worker) = Channel::pair().unwrap();
        offer(&worker, &[1; 8], 2);
        assert!(matches!(channel.receive(None), Ok(Heard::Offer(id, _)) if id == [1; 8]));
        let before = open_descriptors();
        for count in [0, 1, 3, 4] {
            offer(&worker, &[2; 8], count);
            assert!(matches!(channel.receive(None), Ok(Heard::Incomplete(id)) if id == [2; 8]));
        }
        // Other tests of this process may open some meanwhile, but not for long.
        let until = std::time::Instant::now() + Duration::from_secs(10);
        while open_descriptors() > before {
            assert!(std::time::Instant::now() < until, "descriptors stay open");
            std::thread::yield_now();
        }
        offer(&worker, &[3; 7], 2);
        assert!(matches!(channel.receive(None), Ok(Heard::End)));
    }

    #[test]
    fn an_end_is_heard_and_patience_ends() {
        let (channel, worker) = Channel::pair().unwrap();
        let patience = Some(Duration::from_millis(1));
        assert!(matches!(channel.receive(patience), Ok(Heard::Nothing)));
        offer(&worker, &[1; 8], 2);
        assert!(matches!(channel.receive(patience), Ok(Heard::Offer(..))));
        assert!(channel.answer([1; 8], Answer::Refused(Refusal::Busy)).unwrap());
        let mut answer = [0; 64];
        let (length, _) = recv(&worker, &mut answer, RecvFlags::empty()).unwrap();
        assert_eq!(answer[..length], [1, 1, 1, 1, 1, 1, 1, 1, Refusal::Busy as u8]);
        drop(worker);
        assert!(matches!(channel.receive(None), Ok(Heard::End)));
        assert!(!channel.answer([1; 8], Answer::Spliced).unwrap());
    }
}
