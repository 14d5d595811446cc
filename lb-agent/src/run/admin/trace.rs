//! `POST /v1/trace`: packets as they pass, a line of JSON for each, until it ends or nobody reads any more.

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};

use super::{blocking, body::parse, problem::Problem};
use crate::{
    bpf::{sys::now_ticks, traced::Traced},
    object,
    overrides::Refusal,
    run::{
        datalog,
        trace::{plan::Question, says::Names, session::Session},
    },
};

pub async fn trace(State(state): State<super::State>, bytes: Bytes) -> Result<Response, Problem> {
    let question: Question = parse(&bytes)?;
    let picture = state.view.picture();
    let Some(pins) = picture.sources.as_ref().map(|sources| sources.pins.clone()) else {
        let error = "the agent is starting".to_owned();
        return Err(Refusal::failed(error, "ask again in a moment".to_owned()).into());
    };
    let names = Names::of(&picture);
    let mut turn = state.desk.turn()?;
    let plan = question.plan(&names, now_ticks())?;
    let filter = plan.filter;
    // The verifier takes its time.
    let mut traced = blocking(move || Traced::load(object::traced()?, &pins, &filter)).await?;
    let log = datalog::start(traced.ebpf_mut());
    let program = traced.program().try_clone().map_err(|error| Problem::failed(&error.into()))?;
    let cut = state.desk.swap(&mut turn, program).await.map_err(|it| Problem::failed(&it))?;
    tracing::info!(?question, "an operator traces packets");
    let session = Session { traced, plan, names, cut, turn, log };
    let lines = session.start().map_err(|error| Problem::failed(&error))?;
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}
