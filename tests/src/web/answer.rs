//! What curl shows with `--include`.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// An answer as curl shows it.
#[derive(Clone, Debug)]
pub struct Answer {
    pub version: String,
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    /// Interim answers have no body, the last one has the rest.
    pub(super) fn parse(text: &str) -> Result<Vec<Self>> {
        let mut answers = Vec::new();
        let mut rest = text;
        while rest.starts_with("HTTP/") {
            let (head, body) = rest.split_once("\r\n\r\n").context("a head without an end")?;
            let mut lines = head.lines();
            let mut words = lines.next().context("no status line")?.splitn(3, ' ');
            let version = words.next().unwrap_or_default().to_owned();
            let status = words.next().and_then(|code| code.parse().ok()).context("no status")?;
            let headers = lines.filter_map(|line| line.split_once(": "));
            let headers = headers.map(|(n, v)| (n.to_ascii_lowercase(), v.to_owned())).collect();
            answers.push(Self { version, status, headers, body: String::new() });
            rest = body;
        }
        ensure!(!answers.is_empty(), "not an answer: {text}");
        answers.last_mut().expect("not empty").body = rest.to_owned();
        Ok(answers)
    }

    /// The value of a header, by its name in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(it, _)| it == name).map(|(_, value)| value.as_str())
    }

    /// The backend that answered.
    #[must_use]
    pub fn backend(&self) -> &str {
        self.header("x-backend").unwrap_or_default()
    }

    /// The body, which is JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.body).with_context(|| format!("not JSON: {self:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interim_answers_are_told_from_the_last_one() {
        let text =
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nX-Backend: web-1\r\n\r\n{\"a\": 1}";
        let answers = Answer::parse(text).unwrap();
        assert_eq!(answers.iter().map(|it| it.status).collect::<Vec<_>>(), [100, 200]);
        assert_eq!((answers[1].backend(), answers[0].backend()), ("web-1", ""));
        assert_eq!(answers[1].json().unwrap()["a"], 1);
        assert!(Answer::parse("hello").is_err());
    }
}
