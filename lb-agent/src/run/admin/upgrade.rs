//! `POST /v1/upgrade`: for root alone, since it has the agent execute a file.

use std::{env, path::PathBuf};

use axum::{Extension, Json, body::Bytes, extract::State, http::StatusCode};
use serde::Deserialize;

use super::{Over, blocking, body::parse, problem::Problem};
use crate::run::upgrade::{Accepted, Order, program::File, trial};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    /// The new program.
    program: PathBuf,
    /// By which the asker knows its upgrade again in the status.
    id: String,
}

/// Answers before it happens: who asks sees in the status what has become of it. Who goes away before the answer has
/// asked for nothing.
pub async fn upgrade(
    State(state): State<super::State>,
    Extension(over): Extension<Over>,
    bytes: Bytes,
) -> Result<(StatusCode, Json<Accepted>), Problem> {
    if over != Over::Local {
        let error = "an upgrade is not for the TCP address, with or without a token";
        let remedy = "use the Unix socket as root, as `lb-agent upgrade` does";
        return Err(Problem::new(StatusCode::FORBIDDEN, error, remedy));
    }
    let Body { program, id } = parse(&bytes)?;
    let busy = || {
        let error = "another upgrade is under way";
        Problem::new(StatusCode::CONFLICT, error, "wait for its end; `lb-agent status` shows it")
    };
    let _turn = state.upgrades.take().ok_or_else(busy)?;
    if !state.view.is_ready() {
        let error = "the agent is still starting";
        return Err(Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            error,
            "try again once it is ready",
        ));
    }
    let (file, able) = blocking({
        let program = program.clone();
        move || {
            let file = File::of(&program)?;
            let arguments: Vec<_> = env::args_os().skip(1).collect();
            Ok((file, trial::of(&program, &arguments)?))
        }
    })
    .await
    .map_err(|problem| {
        let remedy = "nothing is changed, and the agent goes on as it is";
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, problem.error, remedy)
    })?;
    let from = env!("CARGO_PKG_VERSION").to_owned();
    let accepted = Accepted { id: id.clone(), from, to: able.version.clone() };
    let order = Order { id, program, file, version: able.version };
    if !state.upgrades.order(order) {
        return Err(busy());
    }
    Ok((StatusCode::ACCEPTED, Json(accepted)))
}
