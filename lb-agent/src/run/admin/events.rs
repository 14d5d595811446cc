//! `GET /v1/events`: what has happened, a page at a time.

use axum::{
    Json,
    extract::{self, RawQuery},
    http::StatusCode,
};

use super::{State, problem::Problem};
use crate::events::Page;

const USUAL: usize = 100;
const MOST: usize = 1_000;

/// `GET /v1/events`
pub async fn events(
    extract::State(state): extract::State<State>,
    RawQuery(query): RawQuery,
) -> Result<Json<Page>, Problem> {
    let (since, limit) = ask(query.as_deref().unwrap_or_default())?;
    Ok(Json(state.view.events().page(since, limit)))
}

/// The values of `since` and `limit`.
fn ask(query: &str) -> Result<(Option<u64>, usize), Problem> {
    let wrong = |error: String, remedy: String| {
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error, remedy)
    };
    let (mut since, mut limit) = (None, USUAL);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let number = || {
            let not_one = |_| wrong(format!("{pair}: not a number"), "write e.g. 5".to_owned());
            value.parse::<u64>().map_err(not_one)
        };
        match name {
            "since" => since = Some(number()?),
            "limit" => {
                let fits = usize::try_from(number()?).ok().filter(|it| (1..=MOST).contains(it));
                let beyond =
                    || wrong(format!("{pair}: out of range"), format!("write 1 to {MOST}"));
                limit = fits.ok_or_else(beyond)?;
            }
            _ => {
                let remedy = "there are since and limit".to_owned();
                return Err(wrong(format!("{name}: not known"), remedy));
            }
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
            ("limit=0", Err("limit=0: out of range")),
            ("limit=1001", Err("limit=1001: out of range")),
            ("since=x", Err("since=x: not a number")),
            ("since", Err("since: not a number")),
            ("from=1", Err("from: not known")),
        ] {
            let asked = ask(query).map_err(|problem| problem.error);
            assert_eq!(asked, wanted.map_err(str::to_owned), "{query}");
        }
    }
}
