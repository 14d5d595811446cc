//! The pages that change something. What is asked for is the agent's to judge.

use axum::{
    Json,
    body::Bytes,
    extract::{Path, Query, State},
    http::StatusCode,
};
use tokio::sync::oneshot;

use super::{
    body::{self, parse},
    problem::Problem,
};
use crate::{
    overrides::Change,
    run::changes::{Ask, Done},
};

const ACTIONS: [&str; 5] = ["drain", "undrain", "maintenance", "weight", "reset-flows"];

type Answer = Result<Json<Done>, Problem>;

/// What is asked for beside the change.
struct How {
    force: bool,
    revision: Option<u64>,
}

/// `POST /v1/services/{service}/backends/{backend}/{action}`
pub async fn backend(
    State(state): State<super::State>,
    Path((service, backend, action)): Path<(String, String, String)>,
    bytes: Bytes,
) -> Answer {
    let paced = || parse::<body::Paced>(&bytes);
    let (change, how) = match action.as_str() {
        "drain" => {
            let body = paced()?;
            (Change::Drain(body.pace()?), How { force: body.force, revision: body.revision })
        }
        "maintenance" => {
            let body = paced()?;
            (Change::Maintenance(body.pace()?), How { force: body.force, revision: body.revision })
        }
        "undrain" => {
            let body: body::Plain = parse(&bytes)?;
            (Change::Undrain, How { force: body.force, revision: body.revision })
        }
        "weight" => {
            let body: body::Weight = parse(&bytes)?;
            (Change::Weight(body.weight), How { force: body.force, revision: body.revision })
        }
        "reset-flows" => {
            let body: body::Plain = parse(&bytes)?;
            (Change::ResetFlows, How { force: body.force, revision: body.revision })
        }
        other => {
            let error = format!("a backend cannot be asked to {other:?}");
            let remedy = crate::overrides::suggestion(other, &ACTIONS);
            return Err(Problem::new(StatusCode::NOT_FOUND, error, remedy));
        }
    };
    ask(&state, (service, backend), change, how).await
}

/// `POST /v1/services/{service}/backends`
pub async fn add(
    State(state): State<super::State>,
    Path(service): Path<String>,
    bytes: Bytes,
) -> Answer {
    let body: body::Add = parse(&bytes)?;
    let how = How { force: false, revision: body.revision };
    let new = body.backend();
    ask(&state, (service, new.name.clone()), Change::Add(new), how).await
}

/// `DELETE /v1/services/{service}/backends/{backend}`
pub async fn remove(
    State(state): State<super::State>,
    Path((service, backend)): Path<(String, String)>,
    Query(body): Query<body::Plain>,
) -> Answer {
    let how = How { force: body.force, revision: body.revision };
    ask(&state, (service, backend), Change::Remove, how).await
}

/// `POST /v1/drain`
pub async fn drain_edge(State(state): State<super::State>, bytes: Bytes) -> Answer {
    let body: body::Edge = parse(&bytes)?;
    let how = How { force: false, revision: body.revision };
    ask(&state, Default::default(), Change::DrainEdge(body.ask()?), how).await
}

/// `POST /v1/undrain`
pub async fn undrain_edge(State(state): State<super::State>, bytes: Bytes) -> Answer {
    plain(&state, Change::UndrainEdge, &bytes).await
}

/// `POST /v1/config/forget`
pub async fn forget(State(state): State<super::State>, bytes: Bytes) -> Answer {
    plain(&state, Change::Forget, &bytes).await
}

async fn plain(state: &super::State, change: Change, bytes: &Bytes) -> Answer {
    let body: body::Plain = parse(bytes)?;
    let how = How { force: body.force, revision: body.revision };
    ask(state, Default::default(), change, how).await
}

async fn ask(
    state: &super::State,
    (service, backend): (String, String),
    change: Change,
    how: How,
) -> Answer {
    let (reply, answer) = oneshot::channel();
    let How { force, revision } = how;
    let ask = Ask { service, backend, change, force, revision, reply };
    let gone = || {
        let remedy = "try again, and look into its log";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the agent is about to end", remedy)
    };
    state.asks.send(ask).await.map_err(|_| gone())?;
    Ok(Json(answer.await.map_err(|_| gone())??))
}
