//! `GET /v1/events`: what has happened, a page at a time.

use axum::{
    Json, Router,
    extract::{RawQuery, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::json;

use super::view::View;

const USUAL: usize = 100;
const MOST: usize = 1_000;

pub fn router() -> Router<View> {
    Router::new().route("/v1/events", get(events))
}

async fn events(State(view): State<View>, RawQuery(query): RawQuery) -> Response {
    match ask(query.as_deref().unwrap_or_default()) {
        Ok((since, limit)) => Json(view.events().page(since, limit)).into_response(),
        Err(error) => (StatusCode::BAD_REQUEST, Json(json!({ "error": error }))).into_response(),
    }
}

/// The values of `since` and `limit`.
fn ask(query: &str) -> Result<(Option<u64>, usize), String> {
    let (mut since, mut limit) = (None, USUAL);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let number = || value.parse().map_err(|_| format!("{name}={value}: write a number"));
        match name {
            "since" => since = Some(number()?),
            "limit" => {
                let number = number()?;
                let fits = usize::try_from(number).ok().filter(|it| (1..=MOST).contains(it));
                limit = fits.ok_or_else(|| format!("limit={number}: write 1 to {MOST}"))?;
            }
            _ => return Err(format!("{name}: not known; there are since and limit")),
        }
    }
    Ok((since, limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_has_since_and_limit() {
        for (query, wanted) in [
            ("", Ok((None, 100))),
            ("since=7", Ok((Some(7), 100))),
            ("since=0&limit=1000", Ok((Some(0), 1_000))),
            ("limit=0", Err("limit=0: write 1 to 1000")),
            ("limit=1001", Err("limit=1001: write 1 to 1000")),
            ("since=x", Err("since=x: write a number")),
            ("since", Err("since=: write a number")),
            ("from=1", Err("from: not known; there are since and limit")),
        ] {
            assert_eq!(ask(query), wanted.map_err(str::to_owned), "{query}");
        }
    }
}
