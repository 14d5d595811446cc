//! Plain requests on connections that stay open.

use std::net::TcpStream;

use anyhow::{Context, Result, ensure};

use super::{BUFFER, Effort, STUCK, Sample, connection::Entrance, measure, wire::Wire};
use crate::bench::{
    account::Account,
    backend::{BODY, LARGE_PATH, large},
    poll::{Poll, Ready},
};

/// What is asked for, and what the answer must be.
#[derive(Clone, Copy)]
pub struct Page {
    path: &'static str,
    body: &'static [u8],
}

impl Page {
    /// A short answer, as of an API.
    pub fn short() -> Self {
        Self { path: "/api", body: BODY }
    }

    /// A megabyte.
    pub fn large() -> Self {
        Self { path: LARGE_PATH, body: large() }
    }
}

struct Browser {
    wire: Wire,
    page: Page,
    request: Vec<u8>,
    answer: Vec<u8>,
}

/// Keeps a request under way on so many connections. Like a browser, a client sends the cookie that the first
/// answer has set.
pub fn plain(
    entrance: &Entrance,
    page: Page,
    clients: usize,
    effort: &Effort,
    account: &Account,
) -> Result<Sample> {
    let poll = Poll::new()?;
    let mut ready = Ready::new();
    let mut buffer = vec![0; BUFFER];
    let mut browsers = Vec::with_capacity(clients);
    for number in 0..clients {
        let address = entrance.addresses[number % entrance.addresses.len()];
        let mut browser = Browser::open(TcpStream::connect(address)?, page)?;
        poll.readable(browser.wire.socket(), number)?;
        browser.ask()?;
        browsers.push(browser);
    }
    measure(effort, account, || {
        poll.wait(&mut ready, STUCK)?;
        ensure!(!ready.is_empty(), "no request was answered for {STUCK:?}");
        let mut done = 0;
        for number in ready.numbers() {
            let browser = &mut browsers[number];
            if browser.receive(&mut buffer)? {
                done += 1;
                browser.ask()?;
            }
        }
        Ok(done)
    })
}

impl Browser {
    fn open(stream: TcpStream, page: Page) -> Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let request = request(page, None);
        Ok(Self { wire: stream.into(), page, request, answer: Vec::new() })
    }

    fn ask(&mut self) -> Result<()> {
        self.answer.clear();
        ensure!(self.wire.send(&self.request)?, "a request found no room");
        Ok(())
    }

    /// Returns whether the answer is complete.
    fn receive(&mut self, buffer: &mut [u8]) -> Result<bool> {
        let Some(len) = self.wire.receive(buffer)? else { return Ok(false) };
        self.answer.extend(&buffer[..len]);
        let body = self.page.body;
        if !self.answer.ends_with(body) {
            ensure!(self.answer.len() < body.len() + BUFFER, "an answer without an end");
            return Ok(false);
        }
        let head = &self.answer[..self.answer.len() - body.len()];
        let text = || String::from_utf8_lossy(&self.answer[..self.answer.len().min(BUFFER)]);
        let is_whole = head.starts_with(b"HTTP/1.1 200 ") && head.ends_with(b"\r\n\r\n");
        ensure!(is_whole, "a wrong answer: {}", text());
        if let Some(cookie) = cookie(&self.answer).with_context(|| text().into_owned())? {
            self.request = request(self.page, Some(&cookie));
        }
        Ok(true)
    }
}

fn request(Page { path, .. }: Page, cookie: Option<&str>) -> Vec<u8> {
    let cookie = cookie.map(|it| format!("Cookie: {it}\r\n")).unwrap_or_default();
    format!("GET {path} HTTP/1.1\r\nHost: chat.example\r\nUser-Agent: bench\r\n{cookie}\r\n")
        .into_bytes()
}

/// The cookie that an answer sets: its name and value.
fn cookie(answer: &[u8]) -> Result<Option<String>> {
    const NAME: &[u8] = b"set-cookie:";
    let found = answer.split(|byte| *byte == b'\n').find_map(|line| {
        let (name, value) = line.split_at_checked(NAME.len())?;
        name.eq_ignore_ascii_case(NAME).then_some(value)
    });
    let Some(value) = found else { return Ok(None) };
    let pair = value.split(|byte| *byte == b';').next().unwrap_or_default();
    Ok(Some(std::str::from_utf8(pair)?.trim().to_owned()))
}
