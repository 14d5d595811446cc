//! Readiness of many sockets on one thread.

use std::{io, os::fd::AsFd, time::Duration};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// How many sockets are reported at a time.
const AT_ONCE: usize = 256;

/// Which sockets are watched, each under a number of its owner's choice. A closed one is forgotten.
pub struct Poll(Epoll);

/// The numbers of the sockets that are ready.
pub struct Ready {
    events: Vec<EpollEvent>,
    len: usize,
}

impl Poll {
    pub fn new() -> io::Result<Self> {
        Ok(Self(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?))
    }

    /// Reports as long as there is something to read or to accept.
    pub fn readable(&self, socket: impl AsFd, number: usize) -> io::Result<()> {
        self.add(socket, number, EpollFlags::EPOLLIN)
    }

    /// Reports once when the connection stands, and then whenever something has come.
    pub fn changes(&self, socket: impl AsFd, number: usize) -> io::Result<()> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        self.add(socket, number, flags)
    }

    /// Instead of what was reported of it: as long as it takes something.
    pub fn only_writable(&self, socket: impl AsFd, number: usize) -> io::Result<()> {
        self.modify(socket, number, EpollFlags::EPOLLOUT)
    }

    /// Instead of what was reported of it: as long as there is something to read.
    pub fn only_readable(&self, socket: impl AsFd, number: usize) -> io::Result<()> {
        self.modify(socket, number, EpollFlags::EPOLLIN)
    }

    fn modify(&self, socket: impl AsFd, number: usize, flags: EpollFlags) -> io::Result<()> {
        Ok(self.0.modify(socket, &mut EpollEvent::new(flags, number as u64))?)
    }

    fn add(&self, socket: impl AsFd, number: usize, flags: EpollFlags) -> io::Result<()> {
        Ok(self.0.add(socket, EpollEvent::new(flags, number as u64))?)
    }

    /// Waits for the next ones.
    pub fn wait(&self, ready: &mut Ready, timeout: Duration) -> io::Result<()> {
        let timeout = EpollTimeout::try_from(timeout).unwrap_or(EpollTimeout::MAX);
        ready.len = match self.0.wait(&mut ready.events, timeout) {
            Err(nix::errno::Errno::EINTR) => 0,
            waited => waited?,
        };
        Ok(())
    }
}

impl Ready {
    pub fn new() -> Self {
        Self { events: vec![EpollEvent::empty(); AT_ONCE], len: 0 }
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn numbers(&self) -> impl Iterator<Item = usize> {
        self.events[..self.len].iter().map(|event| event.data() as usize)
    }
}
