//! The DevTools protocol over its WebSocket: one page, one question after the other.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{Message, WebSocket, client};

use crate::netns::NsHandle;

/// A page that is attached to.
#[derive(Debug)]
pub struct Session {
    socket: WebSocket<TcpStream>,
    id: Option<String>,
    asked: u64,
    /// What has happened meanwhile that somebody may complain of.
    events: Vec<Value>,
}

impl Session {
    /// Attaches to the first page of the browser at `url`.
    pub fn connect(namespace: &NsHandle, url: &str, patience: Duration) -> Result<Self> {
        let address = url.strip_prefix("ws://").and_then(|it| it.split('/').next());
        let address: SocketAddr = address.context("no address")?.parse()?;
        let stream = namespace.run(|| TcpStream::connect(address))?;
        stream.set_read_timeout(Some(patience))?;
        let (socket, _) = client(url, stream).map_err(|error| anyhow::anyhow!("{url}: {error}"))?;
        let mut session = Self { socket, id: None, asked: 0, events: Vec::new() };
        let targets = session.call("Target.getTargets", json!({}))?;
        let targets = targets["targetInfos"].as_array().cloned().unwrap_or_default();
        let page = targets.iter().find(|it| it["type"] == "page").context("no page")?;
        let attach = json!({ "targetId": page["targetId"], "flatten": true });
        let answer = session.call("Target.attachToTarget", attach)?;
        session.id = answer["sessionId"].as_str().map(str::to_owned);
        Ok(session)
    }

    /// Asks, and waits for the answer.
    pub fn call(&mut self, method: &str, parameters: Value) -> Result<Value> {
        self.asked += 1;
        let mut question = json!({ "id": self.asked, "method": method, "params": parameters });
        if let Some(id) = &self.id {
            question["sessionId"] = id.as_str().into();
        }
        self.socket.send(Message::text(question.to_string()))?;
        loop {
            let message = self.socket.read().with_context(|| format!("{method}: no answer"))?;
            let text = match message {
                Message::Text(text) => text,
                Message::Close(_) => bail!("{method}: the browser is gone"),
                _ => continue,
            };
            let mut value: Value = serde_json::from_str(&text)?;
            if value["id"] == self.asked {
                let error = &value["error"];
                ensure!(error.is_null(), "{method}: {error}");
                return Ok(value["result"].take());
            }
            if value["id"].is_null() {
                self.events.push(value);
            }
        }
    }

    /// Errors among the events.
    pub fn complaints(&self) -> Vec<String> {
        let complaint = |event: &Value| {
            let parameters = &event["params"];
            match event["method"].as_str()? {
                "Runtime.exceptionThrown" => Some(parameters["exceptionDetails"].to_string()),
                "Log.entryAdded" if parameters["entry"]["level"] == "error" => {
                    Some(parameters["entry"].to_string())
                }
                "Runtime.consoleAPICalled" if parameters["type"] == "error" => {
                    Some(parameters["args"].to_string())
                }
                _ => None,
            }
        };
        self.events.iter().filter_map(complaint).collect()
    }
}
