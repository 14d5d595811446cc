//! Who may change something: root at the Unix socket, and at the TCP address who has the token. Never a page of another
//! site in an operator's browser: [`browser`](super::browser) turns away whoever says that he is one.
//!
//! A browser asks before it sends JSON to another site, which nobody here answers. So a request whose body does not say
//! that it is JSON changes nothing; and the token is in no cookie, which a browser would send unasked.

use std::path::PathBuf;

use axum::{
    extract::{self, Request},
    http::{
        HeaderMap, Method, StatusCode,
        header::{AUTHORIZATION, CONTENT_TYPE},
    },
    middleware::Next,
    response::{IntoResponse, Response},
};
use ring::{hmac, rand::SystemRandom};

use super::{Over, State, blocking, problem::Problem, token};

/// Lets through what may be.
pub async fn changes(
    extract::State((state, over)): extract::State<(State, Over)>,
    request: Request,
    next: Next,
) -> Response {
    let (method, headers) = (request.method(), request.headers());
    let changes = !matches!(*method, Method::GET | Method::HEAD);
    if changes && let Err(problem) = check(&state, over, method, headers).await {
        return problem.into_response();
    }
    next.run(request).await
}

async fn check(
    state: &State,
    over: Over,
    method: &Method,
    headers: &HeaderMap,
) -> Result<(), Problem> {
    if method != Method::DELETE {
        is_json(headers)?;
    }
    match over {
        Over::Local => Ok(()),
        Over::Tcp => {
            let picture = state.view.picture();
            let config = picture.sources.as_ref().map(|sources| &sources.config.edge);
            let file = config.and_then(|edge| edge.admin_token_file.clone());
            has_token(file, headers).await
        }
    }
}

fn is_json(headers: &HeaderMap) -> Result<(), Problem> {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let essence = value.split(';').next().unwrap_or("").trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let error = format!("the body is {value:?}, and not JSON");
    let remedy = "send `Content-Type: application/json`, and {} where there is nothing to say";
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, error, remedy))
}

async fn has_token(file: Option<PathBuf>, headers: &HeaderMap) -> Result<(), Problem> {
    let Some(file) = file else {
        let error = "changes over TCP are not allowed";
        let remedy = "use the Unix socket as root (`lb-agent` does), or name a file with a token: [edge] \
                      admin_token_file";
        return Err(Problem::new(StatusCode::FORBIDDEN, error, remedy));
    };
    // Read with each request, so that a new one counts at once.
    let wanted = blocking(move || Ok(token::load(&file).map_err(|why| (file, why)))).await?;
    let wanted = wanted.map_err(|(file, why)| {
        tracing::error!("{}: {why}", file.display());
        let error = format!("the file of [edge] admin_token_file {why}");
        Problem::new(StatusCode::FORBIDDEN, error, token::REMEDY)
    })?;
    let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.split_once(' '));
    let given = given.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let remedy = "send `Authorization: Bearer TOKEN`, with the token of [edge] admin_token_file";
    match given {
        None => Err(Problem::new(StatusCode::UNAUTHORIZED, "changes need a token", remedy)),
        Some((_, given)) if is_same(given.trim().as_bytes(), wanted.as_bytes()) => Ok(()),
        Some(_) => Err(Problem::new(StatusCode::UNAUTHORIZED, "the token is a wrong one", remedy)),
    }
}

/// Takes the same time however much of it is right.
fn is_same(given: &[u8], wanted: &[u8]) -> bool {
    let Ok(key) = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()) else {
        return false;
    };
    hmac::verify(&key, given, hmac::sign(&key, wanted).as_ref()).is_ok()
}
