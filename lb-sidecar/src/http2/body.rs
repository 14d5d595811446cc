//! A request's body on an HTTP/2 stream. The client may send more only when what came before has gone on to the backend.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::RecvStream;
use hyper::{
    HeaderMap, Response, StatusCode,
    body::{Body, Frame, SizeHint},
};

use super::stream::Respond;
use crate::{
    framing::{Violation, forbidden_in_trailer},
    outcome::{Outcome, Reason},
};

/// See the module.
pub struct Received {
    stream: RecvStream,
    /// Taken and not given back to the client's window yet.
    taken: usize,
    data_ended: bool,
    /// The client sends the body when it is told to.
    waits: Option<Respond>,
}

impl Received {
    pub fn new(stream: RecvStream, waits: Option<Respond>) -> Self {
        Self { stream, taken: 0, data_ended: false, waits }
    }

    pub fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn tell_to_continue(&mut self) {
        if let Some(respond) = self.waits.take() {
            let mut response = Response::new(());
            *response.status_mut() = StatusCode::CONTINUE;
            // Whoever is answered already needs no telling.
            _ = respond.borrow_mut().send_informational(response);
        }
    }

    /// Whoever asks for more has passed on what it had.
    fn give_back(&mut self) {
        if self.taken > 0 {
            // It fails only where the stream has ended.
            _ = self.stream.flow_control().release_capacity(self.taken);
            self.taken = 0;
        }
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = Reason;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Reason>>> {
        self.tell_to_continue();
        self.give_back();
        while !self.data_ended {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    self.taken = data.len();
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(reason(&error)))),
                None => self.data_ended = true,
            }
        }
        Poll::Ready(match ready!(self.stream.poll_trailers(cx)) {
            Ok(Some(trailers)) => Some(checked(trailers).map(Frame::trailers)),
            Ok(None) => None,
            Err(error) => Some(Err(reason(&error))),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    /// The length is in the head, if it is known.
    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

fn checked(trailers: HeaderMap) -> Result<HeaderMap, Reason> {
    match trailers.keys().any(|name| forbidden_in_trailer(name.as_str().as_bytes())) {
        true => Err(Violation::ForbiddenTrailer.into()),
        false => Ok(trailers),
    }
}

impl Drop for Received {
    /// The answer may take its time after the last of the body.
    fn drop(&mut self) {
        self.give_back();
    }
}

/// What the library refuses is malformed: a length that does not hold, a trailer that is none.
fn reason(error: &h2::Error) -> Reason {
    match error.is_library() {
        true => Outcome::BadBody.into(),
        false => Outcome::BodyCut.into(),
    }
}
