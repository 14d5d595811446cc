//! Errors as all pages tell them.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header::WWW_AUTHENTICATE},
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
