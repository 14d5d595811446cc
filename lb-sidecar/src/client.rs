//! What the parts of a client's connection know of each other: its task, its requests, their bodies, and its end.
//!
//! Of HTTP/1.1 a connection is one client, request after request. Of HTTP/2 the connection is one, with its life and its
//! timer, and each stream another, with all that is of one request.

use std::{
    cell::{Cell, OnceCell, RefCell},
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use hyper::http::request::Parts;

use crate::{
    deadline::{Deadline, Wait},
    entry::{Entry, Lines},
    life::Life,
    limits::pace::Pace,
    outcome::{Outcome, Reason},
    proxy_protocol::Ends,
    service::{Plan, Service},
    splice::tcp::Peer,
    times::Time,
    tls,
    upgrade::Handover,
};

/// How long a connection that is to end waits for a last request: one may be on its way already.
const LAST_REQUEST: Duration = Duration::from_secs(2);

/// Timeouts of the request at hand.
#[derive(Clone, Copy)]
pub struct Timeouts {
    pub body: Duration,
    pub response: Duration,
    pub connect: Duration,
    pub keep_alive: Duration,
    pub head: Duration,
}

/// What the parts of a connection, or of a stream, know of each other.
pub struct Client {
    pub peer: SocketAddr,
    pub local: SocketAddr,
    pub service: Rc<Service>,
    pub life: Rc<Life>,
    /// When its connection was accepted.
    pub since: tokio::time::Instant,
    pub deadline: Deadline,
    timeouts: Cell<Timeouts>,
    /// When it was let in, until its first answer.
    accepted: Cell<Option<Instant>>,
    /// When the request came whose answer is not whole yet.
    begun: Cell<Option<Instant>>,
    /// A request is being answered.
    pub busy: Cell<bool>,
    /// All of an answer was given to whoever writes it, who has not got rid of it.
    leaving: Cell<bool>,
    /// The socket takes no more of what hyper has written.
    pub blocked: Cell<bool>,
    /// Something has been read.
    pub heard: Cell<bool>,
    /// Something the client sends is left unread.
    pub unread: Cell<bool>,
    /// What became of the request's body, if it went wrong.
    body_failed: Cell<Option<Reason>>,
    /// Why the answer was cut off, and whether the client could take that for its end.
    pub cut: Cell<Option<(Outcome, bool)>>,
    /// No more requests after this one.
    pub closing: Cell<bool>,
    /// A backend is asked to switch protocols, or has done so.
    pub switching: Cell<bool>,
    pub handover: RefCell<Option<Handover>>,
    /// What its backend's connection must fit, if it may be spliced.
    pub fitting: Cell<Option<Peer>>,
    /// Where its log lines go, if it is in the sample.
    pub lines: Option<Lines>,
    entry: RefCell<Option<Box<Entry>>>,
    /// Of all that it carries: from the client, and to it.
    pub pace: [Option<Rc<Pace>>; 2],
    /// It speaks HTTP/2.
    pub http2: bool,
    /// What was agreed on, if it came by TLS.
    pub tls: OnceCell<tls::Info>,
}

impl Client {
    /// Of a connection that was accepted then.
    pub fn new(
        Ends { peer, local }: Ends,
        since: tokio::time::Instant,
        service: Rc<Service>,
        life: Rc<Life>,
        plan: &Plan,
    ) -> Self {
        let timeouts = Timeouts::of(plan);
        let sample = plan.settings.log_sample;
        let lines = Lines::of(life.log().as_ref(), sample, &plan.edge, &service.name);
        Self {
            peer,
            local,
            service,
            life,
            since,
            deadline: Deadline::new(Wait::Head, timeouts.head.saturating_sub(since.elapsed())),
            timeouts: Cell::new(timeouts),
            accepted: Cell::new(Some(Instant::now())),
            begun: Cell::new(None),
            busy: Cell::new(false),
            leaving: Cell::new(false),
            blocked: Cell::new(false),
            heard: Cell::new(false),
            unread: Cell::new(false),
            body_failed: Cell::new(None),
            cut: Cell::new(None),
            closing: Cell::new(false),
            switching: Cell::new(false),
            handover: RefCell::new(None),
            fitting: Cell::new(None),
            lines,
            entry: RefCell::new(None),
            pace: [(); 2].map(|()| Pace::new(plan.settings.limits.bytes_per_second).map(Rc::new)),
            http2: false,
            tls: OnceCell::new(),
        }
    }

    /// A stream of this connection, whose head has come.
    pub fn stream(&self) -> Self {
        Self {
            peer: self.peer,
            local: self.local,
            service: self.service.clone(),
            life: self.life.clone(),
            since: self.since,
            deadline: Deadline::new(Wait::Response, self.timeouts().response),
            timeouts: self.timeouts.clone(),
            accepted: Cell::new(self.accepted.take()),
            begun: Cell::new(None),
            busy: Cell::new(false),
            leaving: Cell::new(false),
            blocked: Cell::new(false),
            heard: Cell::new(true),
            unread: Cell::new(false),
            body_failed: Cell::new(None),
            cut: Cell::new(None),
            closing: Cell::new(false),
            switching: Cell::new(false),
            handover: RefCell::new(None),
            // What is relayed over a stream is never spliced.
            fitting: Cell::new(None),
            lines: self.lines.clone(),
            entry: RefCell::new(None),
            pace: self.pace.clone(),
            http2: true,
            tls: self.tls.clone(),
        }
    }

    pub fn timeouts(&self) -> Timeouts {
        self.timeouts.get()
    }

    /// A request has come in.
    pub fn begin(&self, plan: &Plan, head: &Parts) {
        self.timeouts.set(Timeouts::of(plan));
        self.begun.set(Some(Instant::now()));
        self.busy.set(true);
        self.body_failed.set(None);
        if self.lines.is_some() {
            *self.entry.borrow_mut() = Some(Box::new(Entry::new(head, self.peer)));
        }
    }

    /// TLS has come that is to be passed on.
    pub fn begin_passing(&self, entry: impl FnOnce() -> Entry) {
        if self.lines.is_some() {
            *self.entry.borrow_mut() = Some(Box::new(entry()));
        }
    }

    /// Says something about the request to the log.
    pub fn note(&self, say: impl FnOnce(&mut Entry)) {
        if let Some(entry) = &mut *self.entry.borrow_mut() {
            say(entry);
        }
    }

    /// Nothing more can be said.
    pub fn write_entry(&self) {
        if let (Some(lines), Some(entry)) = (&self.lines, self.entry.borrow_mut().take()) {
            lines.request(&entry);
        }
    }

    /// The head of the answer is on its way; of an upgrade, that is all.
    pub fn answers(&self, upgraded: bool) {
        let times = &self.service.times;
        if let Some(accepted) = self.accepted.take() {
            times.took(Time::ClientHandshake, accepted.elapsed());
        }
        if upgraded && let Some(begun) = self.begun.take() {
            times.took(Time::Request, begun.elapsed());
        }
    }

    /// All of the answer was given to whoever writes it.
    pub fn answered(&self) {
        if let Some(begun) = self.begun.take() {
            self.service.times.took(Time::Request, begun.elapsed());
        }
        self.busy.set(false);
        self.leaving.set(true);
        self.deadline.set(Wait::Write, self.timeouts.get().body);
    }

    /// The socket, or the stream, has taken all that was written: if that is the whole answer, the next request is waited for.
    pub fn flushed(&self) {
        if self.leaving.take() {
            self.write_entry();
            if self.deadline.wait() == Wait::Write {
                self.deadline.set(Wait::Idle, self.timeouts.get().keep_alive);
                self.hurry();
            }
        }
    }

    /// A connection that is to end and waits for the next request does so no longer than it has to.
    pub fn hurry(&self) {
        if self.closing.get() && self.deadline.wait() == Wait::Idle {
            self.deadline.bring_near(LAST_REQUEST);
        }
    }

    /// The request's body could not be read.
    pub fn body_broke(&self, reason: Reason) {
        self.body_failed.set(Some(reason));
    }

    /// The request's body is longer than it may be.
    pub fn body_grew(&self) {
        self.body_failed.set(Some(Outcome::BodyTooLarge.into()));
    }

    pub fn body_failed(&self) -> Option<Reason> {
        self.body_failed.get()
    }

    /// The rest of the request will not be read.
    pub fn leave_unread(&self) {
        self.unread.set(true);
    }

    /// The answer cannot be completed.
    pub fn cut(&self, outcome: Outcome, looks_complete: bool) {
        self.cut.set(Some((outcome, looks_complete)));
        self.note(|entry| entry.refused = Some(outcome.label()));
        self.write_entry();
    }

    /// Ends the connection after the answer at hand or a last one, and soon if there is none.
    pub fn close_soon(&self) {
        self.closing.set(true);
        self.deadline.wake();
    }
}

impl Timeouts {
    fn of(plan: &Plan) -> Self {
        let http = &plan.settings.http;
        Self {
            body: http.body_timeout,
            response: http.response_timeout,
            connect: http.connect_timeout,
            keep_alive: http.keep_alive,
            head: http.head_timeout,
        }
    }
}
