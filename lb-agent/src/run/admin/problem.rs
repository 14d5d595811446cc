//! Errors as all pages tell them.

use axum::{
    Json,
    body::to_bytes,
    http::{
        HeaderValue, StatusCode,
        header::{CONTENT_TYPE, WWW_AUTHENTICATE},
    },
    response::{IntoResponse, Response},
};
use serde_json::json;

use crate::overrides::{Kind, Refusal};

/// What is wrong, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub status: StatusCode,
    pub error: String,
    pub remedy: String,
}

impl Problem {
    pub fn new(status: StatusCode, error: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { status, error: error.into(), remedy: remedy.into() }
    }

    pub fn failed(error: &anyhow::Error) -> Self {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Self::new(status, format!("{error:#}"), "the agent's log may say more")
    }
}

/// The longest complaint of the framework; a longer one is left out.
const LONGEST: usize = 4 << 10;

/// What the framework refuses by itself, it refuses in plain text: a body that is too large, a query or a path that
/// cannot be read. Those errors, too, get the form of all others.
pub async fn in_json(response: Response) -> Response {
    let status = response.status();
    let kind = response.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    if !status.is_client_error() || !kind.is_some_and(|kind| kind.starts_with(b"text/plain")) {
        return response;
    }
    let complaint = to_bytes(response.into_body(), LONGEST).await.unwrap_or_default();
    let complaint = String::from_utf8_lossy(&complaint);
    let error = match complaint.trim() {
        "" => status.to_string(),
        complaint => complaint.to_owned(),
    };
    let remedy = match status {
        StatusCode::PAYLOAD_TOO_LARGE => {
            format!("send at most {} bytes", super::MOST_BYTES)
        }
        _ => "docs/admin.md lists all requests, with their values".to_owned(),
    };
    Problem { status, error, remedy }.into_response()
}

impl From<Refusal> for Problem {
    fn from(Refusal { kind, error, remedy }: Refusal) -> Self {
        let status = match kind {
            Kind::Unknown => StatusCode::NOT_FOUND,
            Kind::Conflict => StatusCode::CONFLICT,
            Kind::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
            Kind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self { status, error, remedy }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Self { status, error, remedy } = self;
        let body = Json(json!({ "error": error, "remedy": remedy }));
        let mut response = (status, body).into_response();
        if status == StatusCode::UNAUTHORIZED {
            let value = HeaderValue::from_static("Bearer realm=\"sluice\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, value);
        }
        response
    }
}
