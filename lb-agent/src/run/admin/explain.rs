//! `POST /v1/explain`: a question, for which cookies may be needed that belong in no log. Changes nothing.

use axum::{Json, body::Bytes, extract::State};

use super::{blocking, body::parse, problem::Problem};
use crate::run::explain::{self, Explanation, Question};

pub async fn explain(
    State(state): State<super::State>,
    bytes: Bytes,
) -> Result<Json<Explanation>, Problem> {
    let question: Question = parse(&bytes)?;
    let picture = state.view.picture();
    let answer = blocking(move || Ok(explain::explain(&question, &picture))).await?;
    Ok(Json(answer?))
}
