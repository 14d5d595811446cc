//! One request and its answer: checked, sent to a backend, or to another one, and answered.

use std::{
    future::{Future, poll_fn},
    io, mem,
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant, SystemTime},
};

use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Uri, Version,
    body::Incoming,
    client::conn::http1,
    header::{CONTENT_LENGTH, HeaderValue},
    http::request::Parts,
};
use hyper_util::rt::TokioIo;
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::{
    body::{BackendBody, Gate, RequestBody, ResponseBody},
    client::Client,
    deadline::Wait,
    limits::{pace::Pause, queue::Turn},
    outcome::{Outcome, Reason},
    pool::{Ask, Backend, ONLY_DEFAULT, Picked},
    proxy_protocol::header,
    request::{self, Checked},
    response,
    routing::Route,
    service::Plan,
    settings::{SendProxy, Share},
    splice::{Splicing, tcp::Peer},
    stream::Stream,
    times::Time,
    tls, upgrade,
    upstream::{Connected, Pieces, Sender, connect},
};

/// Largest head of a backend's response.
pub const RESPONSE_HEAD_BYTES: usize = 64 << 10;

/// How long a backend may think about `Expect: 100-continue`. Many do not know it and wait for the body.
const CONTINUE_TIMEOUT: Duration = Duration::from_secs(1);

/// Answers a request, whatever it takes.
pub async fn answer(
    client: &Rc<Client>,
    mut head: Parts,
    body: RequestBody,
) -> Response<ResponseBody> {
    let plan = client.service.plan();
    client.begin(&plan, &head);
    client.service.count(Outcome::Request);
    let has_body = !body.is_empty();
    let mut asks_upgrade = true;
    let result = match request::check(&mut head, has_body, &plan.settings.upgrades) {
        Err(outcome) => Err(outcome.into()),
        Ok(_) if is_too_large(&head, &plan) => Err(Outcome::BodyTooLarge.into()),
        Ok(checked) if plan.settings.redirect_https => {
            asks_upgrade = checked.asks_upgrade;
            if has_body {
                client.leave_unread();
            }
            response::to_https(&head).inspect(|_| client.service.count(Outcome::RedirectedToHttps))
        }
        Ok(checked) => {
            asks_upgrade = checked.asks_upgrade;
            let until_close = head.version == Version::HTTP_10;
            let address = request::prepare(&mut head, &checked, &plan, client);
            client.note(|entry| {
                entry.client = address;
                entry.request_id =
                    plan.request_id.as_ref().and_then(|name| head.headers.get(name).cloned());
            });
            match plan.routes.find(&head, checked.upgrade.is_some()) {
                Err(outcome) => Err(outcome.into()),
                Ok(route) => {
                    let pools = route.map_or(ONLY_DEFAULT, Route::pools);
                    let asked = None;
                    let plan = &plan;
                    let to = Exchange { client, plan, address, until_close, route, pools, asked };
                    to.take(head, body, &checked).await
                }
            }
        }
    };
    let mut response = result.unwrap_or_else(|reason| {
        client.service.count(reason);
        client.note(|entry| entry.refused = Some(reason.label()));
        if has_body {
            client.leave_unread();
        }
        response::refusal(reason)
    });
    let upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    // What HTTP/2 says in place of a 101 (RFC 8441, section 4).
    let status = if upgraded && client.http2 { StatusCode::OK } else { response.status() };
    client.note(|entry| {
        entry.status = status.as_u16();
        entry.upgraded = upgraded;
    });
    client.service.count(Outcome::of_status(status));
    client.answers(upgraded);
    if asks_upgrade && !upgraded {
        // What follows the head may be of the other protocol.
        client.leave_unread();
    }
    if !upgraded && (asks_upgrade || client.closing.get()) {
        response::close(response.headers_mut());
    }
    if !matches!(response.body(), ResponseBody::Backend(_)) {
        client.answered();
    }
    response
}

/// Whether a request says itself that its body is larger than it may be.
fn is_too_large(head: &Parts, plan: &Plan) -> bool {
    let most = u64::from(plan.settings.limits.body_bytes);
    let length = head.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    most > 0 && length.and_then(|length| length.parse::<u64>().ok()).is_some_and(|it| it > most)
}

/// A request on its way.
pub struct Exchange<'a> {
    pub client: &'a Rc<Client>,
    pub plan: &'a Plan,
    /// Who the client is.
    pub address: std::net::SocketAddr,
    /// The client knows no other end of a body than the connection's, unless there is a length.
    pub until_close: bool,
    /// If the service has one for it.
    pub route: Option<&'a Route>,
    /// That it may go to.
    pub pools: &'a [Share],
    /// The head's fields and target as they were before the route changed them, if it does: what a client belongs to
    /// is its own word.
    pub asked: Option<(HeaderMap, Uri)>,
}

/// Backends that failed, and how the last one did.
pub struct Tried {
    pub backends: Vec<Rc<Backend>>,
    pub last: Outcome,
}

impl Tried {
    pub fn none() -> Self {
        Self { backends: Vec::new(), last: Outcome::NoBackend }
    }
}

impl Exchange<'_> {
    /// Goes the way of its route, or of all requests.
    async fn take(
        mut self,
        mut head: Parts,
        body: RequestBody,
        checked: &Checked,
    ) -> Result<Response<ResponseBody>, Reason> {
        if let Some(route) = self.route {
            self.client.note(|entry| entry.route = Some(route.name.clone()));
            if let Some(answer) = route.answer(&head) {
                return self.answered(answer?, !body.is_empty());
            }
            if route.changes_requests() {
                self.asked = Some((head.headers.clone(), head.uri.clone()));
                route.change_request(&mut head);
            }
        }
        match &checked.upgrade {
            Some(protocol) => upgrade::handshake(&self, head, protocol).await,
            None => self.forward(head, body, checked.expects_continue.then(Arc::default)).await,
        }
    }

    /// The route had the answer itself.
    fn answered(
        &self,
        (outcome, mut response): (Outcome, Response<ResponseBody>),
        has_body: bool,
    ) -> Result<Response<ResponseBody>, Reason> {
        self.client.service.count(outcome);
        if has_body {
            self.client.leave_unread();
            response::close(response.headers_mut());
        }
        Ok(response)
    }

    /// Chooses a backend; none is left when `tried` has as many as the settings allow.
    pub fn pick(&self, head: &Parts, tried: &Tried) -> Result<Picked, Outcome> {
        if tried.backends.len() > self.plan.settings.http.retries as usize {
            return Err(tried.last);
        }
        let (headers, uri) = match &self.asked {
            Some((headers, uri)) => (headers, uri),
            None => (&head.headers, &head.uri),
        };
        let service = &self.client.service;
        // The backends are those of the settings of now, which may number the pools in another way.
        let now = service.plan();
        let pools = &now.shares(self.plan, self.pools);
        let ask = Ask { client: self.address, headers, uri, pools };
        let picked =
            service.pool.pick(&ask, &tried.backends, SystemTime::now()).ok_or(tried.last)?;
        self.client.note(|entry| {
            entry.backend = Some(picked.backend.clone());
            entry.sticky = Some(picked.sticky);
            entry.retries = tried.backends.len();
            entry.pool = now.pool_name(picked.backend.pool()).map(Into::into);
        });
        Ok(picked)
    }

    /// Chooses a backend and waits until it has room.
    pub async fn choose(&self, head: &Parts, tried: &Tried) -> Result<Picked, Outcome> {
        let picked = self.pick(head, tried)?;
        if tried.backends.is_empty() {
            self.client.service.outcomes.stuck(picked.sticky);
        }
        self.wait_for_room(picked, head, tried).await
    }

    /// Waits until the backend that was chosen has room, or another one, if that takes the client no more.
    pub async fn wait_for_room(
        &self,
        mut picked: Picked,
        head: &Parts,
        tried: &Tried,
    ) -> Result<Picked, Outcome> {
        let service = &self.client.service;
        let limits = &self.plan.settings.limits;
        let most = limits.connections_per_backend;
        let mut waits = false;
        loop {
            let backend = &picked.backend;
            if most == 0 || backend.queue.is_empty() && backend.active() <= most {
                return Ok(picked);
            }
            let place = backend.queue.enter(limits.queue).ok_or(Outcome::BackendFull)?;
            // However often it is sent on, it waits once.
            if !mem::replace(&mut waits, true) {
                service.count(Outcome::Queued);
                self.client.deadline.set(Wait::Connect, limits.queue_timeout);
            }
            // Who has its turn does not wait any more, and so counts as one more.
            let turn = place.turn(|| service.pool.keeps(&picked), || backend.active() < most);
            let turn = self.in_time(turn).await;
            drop(place);
            match turn {
                Ok(Turn::Come) => return Ok(picked),
                Ok(Turn::Never) => {}
                Err(_) => return Err(Outcome::QueueTimeout),
            }
            drop(picked);
            picked = self.pick(head, tried)?;
        }
    }

    /// Whether connections to backends can carry another client's requests: not if they begin with this one's address.
    fn keeps(&self) -> bool {
        self.plan.settings.proxy_protocol.send == SendProxy::Off
    }

    /// Connects within the time for it; for a connection that may be spliced, so that it fits the client's.
    pub async fn connect(
        &self,
        backend: &Backend,
        fitting: Option<&Peer>,
    ) -> Result<Connected<Stream>, Outcome> {
        let deadline = &self.client.deadline;
        deadline.set(Wait::Connect, self.client.timeouts().connect);
        let begun = Instant::now();
        let Splicing { flows, ports, .. } = &*self.client.service.splicing;
        let connecting =
            pin!(connect(backend.address(), &self.plan.sources, (flows, ports), fitting));
        let Connected { stream, port_is_checked } = match self.in_time(connecting).await {
            Ok(Ok(connected)) => connected,
            Ok(Err(error)) => {
                if is_the_peers(&error) {
                    backend.connects.note(false);
                }
                return Err(Outcome::ConnectFailed);
            }
            Err(_) => {
                backend.connects.note(false);
                return Err(Outcome::ConnectTimeout);
            }
        };
        let stream = match self.introduce(stream).await {
            Ok(stream) => self.secure(stream, backend).await,
            Err(outcome) => Err(outcome),
        };
        backend.connects.note(stream.is_ok());
        if stream.is_ok() {
            self.client.service.times.took(Time::BackendConnect, begun.elapsed());
        }
        Ok(Connected { stream: stream?, port_is_checked })
    }

    /// Says who the client is, where backends want to be told: before anything else.
    async fn introduce(&self, mut stream: TcpStream) -> Result<TcpStream, Outcome> {
        let Client { peer, local, .. } = **self.client;
        let header = header::write(self.plan.settings.proxy_protocol.send, peer, local);
        // A new socket has room for it.
        let written = stream.write_all(&header).await;
        written.map(|()| stream).map_err(|_| Outcome::ConnectFailed)
    }

    /// With TLS on it, where the backends want it: within the same time.
    async fn secure(&self, stream: TcpStream, backend: &Backend) -> Result<Stream, Outcome> {
        let (Some(config), Some(told)) = (&self.plan.backend_tls, &self.plan.settings.backend_tls)
        else {
            return Ok(stream.into());
        };
        let config = config.clone().ok_or(Outcome::BackendTlsFailed)?;
        let name = tls::server_name(told, backend.address().ip());
        let name = name.ok_or(Outcome::BackendTlsFailed)?;
        // Boxed: most backends need no room for it.
        match self.in_time(Box::pin(tls::connect(stream, config, name))).await {
            Ok(Ok(stream)) => Ok(Stream::Asked(Box::new(stream))),
            Ok(Err(outcome)) => Err(outcome),
            Err(_) => Err(Outcome::ConnectTimeout),
        }
    }

    /// Waits for what the connection's deadline is about.
    pub async fn in_time<T>(&self, future: impl Future<Output = T>) -> Result<T, Wait> {
        let mut future = pin!(future);
        poll_fn(|cx| {
            if let Poll::Ready(value) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(value));
            }
            match self.client.deadline.take_expired() {
                Some(wait) => Poll::Ready(Err(wait)),
                None => Poll::Pending,
            }
        })
        .await
    }

    async fn forward(
        &self,
        mut head: Parts,
        mut body: RequestBody,
        gate: Option<Arc<Gate>>,
    ) -> Result<Response<ResponseBody>, Reason> {
        let service = &self.client.service;
        if let Some(gate) = &gate {
            body.hold_behind(gate);
        }
        let mut tried = Tried::none();
        loop {
            let picked = self.choose(&head, &tried).await?;
            if !tried.backends.is_empty() {
                service.count(Outcome::RetryConnect);
            }
            body.goes_to(&picked.backend);
            let kept = self.keeps().then(|| service.kept.take(picked.backend.address())).flatten();
            if let Some(sender) = kept {
                service.count(Outcome::Reused);
                match self.send(&picked.backend, sender, head, body, &gate, true).await {
                    Ok((sender, response)) => return self.pass(response, Some(sender), picked),
                    Err(Failed::Over(outcome)) => return Err(outcome),
                    Err(Failed::Again(again)) => {
                        service.count(Outcome::RetryReused);
                        (head, body) = *again;
                    }
                }
            }
            let failed = match self.connect(&picked.backend, None).await {
                Ok(Connected { stream, .. }) => match open(TokioIo::new(Pieces::new(stream))).await
                {
                    Ok(sender) => {
                        match self.send(&picked.backend, sender, head, body, &gate, false).await {
                            Ok((sender, response)) => {
                                let sender = self.keeps().then_some(sender);
                                return self.pass(response, sender, picked);
                            }
                            Err(Failed::Over(outcome)) => {
                                picked.backend.failed.set(picked.backend.failed.get() + 1);
                                return Err(outcome);
                            }
                            Err(Failed::Again(again)) => {
                                (head, body) = *again;
                                Outcome::BackendClosed
                            }
                        }
                    }
                    Err(_) => Outcome::ConnectFailed,
                },
                Err(outcome) => outcome,
            };
            picked.backend.failed.set(picked.backend.failed.get() + 1);
            tried.last = failed;
            tried.backends.push(picked.backend);
        }
    }

    /// Sends the request and waits for the head of the response. `reused`: the backend may have closed the connection
    /// just before, so that a request without effect may be sent again (RFC 9110, section 9.2.2).
    async fn send(
        &self,
        backend: &Backend,
        mut sender: Sender,
        head: Parts,
        body: RequestBody,
        gate: &Option<Arc<Gate>>,
        reused: bool,
    ) -> Result<(Sender, Response<Incoming>), Failed> {
        let client = self.client;
        let copy = (reused && body.is_empty() && is_idempotent(&head.method)).then(|| head.clone());
        let mut request = Request::from_parts(head, body);
        if let Some(gate) = gate {
            let gate = gate.clone();
            hyper::ext::on_informational(&mut request, move |response| {
                if response.status() == StatusCode::CONTINUE {
                    gate.open();
                }
            });
            client.deadline.set(Wait::Continue, CONTINUE_TIMEOUT);
        } else {
            client.deadline.set(Wait::Response, client.timeouts().response);
        }
        let begun = Instant::now();
        let mut answer = pin!(sender.try_send_request(request));
        let answer = loop {
            match (self.in_time(answer.as_mut()).await, gate) {
                (Ok(answer), _) => break answer,
                (Err(Wait::Continue), Some(gate)) => {
                    client.deadline.set(Wait::Response, client.timeouts().response);
                    gate.open();
                }
                (Err(Wait::Body), _) => return Err(Failed::Over(Outcome::BodyTimeout.into())),
                (Err(_), _) => {
                    backend.answers.note(false);
                    return Err(Failed::Over(Outcome::ResponseTimeout.into()));
                }
            }
        };
        if let Some(gate) = gate {
            gate.shut();
        }
        match answer {
            Ok(response) => {
                backend.answers.note(!response.status().is_server_error());
                client.service.times.took(Time::BackendAnswer, begun.elapsed());
                Ok((sender, response))
            }
            Err(mut failed) => {
                if let Some(outcome) = client.body_failed() {
                    return Err(Failed::Over(outcome));
                }
                // One that was kept may simply be over.
                if !reused || failed.error().is_parse() {
                    backend.answers.note(false);
                }
                if let Some(request) = failed.take_message() {
                    return Err(Failed::Again(Box::new(request.into_parts())));
                }
                let error = failed.into_error();
                match copy {
                    _ if error.is_parse() => Err(Failed::Over(Outcome::BackendGarbage.into())),
                    Some(head) => Err(Failed::Again(Box::new((head, RequestBody::Empty)))),
                    None => Err(Failed::Over(Outcome::BackendClosed.into())),
                }
            }
        }
    }

    /// What a response gets besides: what the route says, and the sidecar's cookie in any case.
    pub fn dress(&self, headers: &mut HeaderMap, set_cookie: Option<HeaderValue>) {
        if let Some(route) = self.route {
            route.change_response(headers);
        }
        response::stick(headers, set_cookie);
    }

    /// Makes the client's response of the backend's. The connection is kept if it can carry another request: `sender`.
    pub fn pass(
        &self,
        response: Response<Incoming>,
        sender: Option<Sender>,
        picked: Picked,
    ) -> Result<Response<ResponseBody>, Reason> {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            picked.backend.failed.set(picked.backend.failed.get() + 1);
            return Err(Outcome::UnaskedSwitch.into());
        }
        let (mut head, incoming) = response.into_parts();
        response::prepare(&mut head);
        self.dress(&mut head.headers, picked.set_cookie);
        let kept = self.client.service.kept.clone();
        if hyper::body::Body::is_end_stream(&incoming) {
            if let Some(sender) = sender {
                kept.put(picked.backend.address(), sender);
            }
            return Ok(Response::from_parts(head, ResponseBody::Empty));
        }
        let body = BackendBody {
            incoming,
            client: self.client.clone(),
            backend: picked.backend,
            lease: Some(picked.lease),
            sender: sender.map(|sender| (sender, kept)),
            until_close: self.until_close && !head.headers.contains_key(CONTENT_LENGTH),
            pause: Pause::default(),
        };
        Ok(Response::from_parts(head, ResponseBody::Backend(body)))
    }
}

/// How a request did not get its answer.
enum Failed {
    /// There is nothing more to do.
    Over(Reason),
    /// It may be sent again.
    Again(Box<(Parts, RequestBody)>),
}

/// Whether a connect has failed for what the peer or the way to it did, and not for want of something of the edge's own.
fn is_the_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable,
        TimedOut,
    };
    [
        ConnectionAborted,
        ConnectionRefused,
        ConnectionReset,
        HostUnreachable,
        NetworkUnreachable,
        TimedOut,
    ]
    .contains(&error.kind())
}

fn is_idempotent(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::PUT, Method::DELETE, Method::TRACE]
        .contains(method)
}

/// Makes a connection ready for requests. A task of its own drives it to its end.
pub async fn open<T>(io: T) -> hyper::Result<Sender>
where
    T: hyper::rt::Read + hyper::rt::Write + Unpin + 'static,
{
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(RESPONSE_HEAD_BYTES)
        .handshake::<_, RequestBody>(io)
        .await?;
    tokio::task::spawn_local(async move {
        // Whoever waits for an answer learns of an error.
        let _ = connection.await;
    });
    Ok(sender)
}
