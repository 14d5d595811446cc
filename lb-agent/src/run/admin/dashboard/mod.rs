//! The dashboard: a page, its style and its scripts as they lie here, inside this program. What it shows comes by
//! [`stream`](super::stream), what it changes goes to the pages of the API.

use axum::{
    extract::Path,
    http::{
        StatusCode,
        header::{CACHE_CONTROL, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
};

use super::problem::Problem;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// Name, kind and text.
const FILES: [(&str, &str, &str); 9] = [
    ("index.html", HTML, include_str!("index.html")),
    ("style.css", CSS, include_str!("style.css")),
    ("icon.svg", SVG, include_str!("icon.svg")),
    ("main.js", SCRIPT, include_str!("main.js")),
    ("model.js", SCRIPT, include_str!("model.js")),
    ("view.js", SCRIPT, include_str!("view.js")),
    ("chart.js", SCRIPT, include_str!("chart.js")),
    ("steer.js", SCRIPT, include_str!("steer.js")),
    ("text.js", SCRIPT, include_str!("text.js")),
];

/// `GET /`
pub async fn page() -> Result<Response, Problem> {
    file(Path("index.html".to_owned())).await
}

/// `GET /dashboard/{file}`
pub async fn file(Path(name): Path<String>) -> Result<Response, Problem> {
    let Some((_, kind, text)) = FILES.iter().find(|(file, ..)| *file == name) else {
        let error = format!("the dashboard has no file {name:?}");
        return Err(Problem::new(StatusCode::NOT_FOUND, error, "the dashboard is the page /"));
    };
    // Another agent may serve other files at once.
    Ok(([(CONTENT_TYPE, *kind), (CACHE_CONTROL, "no-cache")], *text).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the policy of [`browser`](super::super::browser) would not let run must not be there, nor what comes from
    /// elsewhere; and text becomes a page only as text.
    #[test]
    fn nothing_is_inline_and_nothing_comes_from_elsewhere() {
        for (name, kind, text) in FILES {
            for forbidden in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "new Function",
            ] {
                assert!(!text.contains(forbidden), "{name}: {forbidden}");
            }
            let foreign = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!foreign.contains("://"), "{name}");
            if kind == HTML {
                for forbidden in [" style=", " onclick=", "<style", "javascript:"] {
                    assert!(!text.contains(forbidden), "{name}: {forbidden}");
                }
                let scripts = text.matches("<script").count();
                assert_eq!(
                    scripts,
                    text.matches("<script type=\"module\" src=\"/dashboard/").count()
                );
            }
        }
    }

    #[test]
    fn every_file_that_is_asked_for_is_there() {
        let known = |name: &str| FILES.iter().any(|(file, ..)| *file == name);
        for (file, _, text) in FILES {
            let quoted = text.split(['"', '\'']).filter_map(|part| {
                part.strip_prefix("/dashboard/").or_else(|| part.strip_prefix("./"))
            });
            for name in quoted {
                assert!(known(name), "{file} asks for {name}");
            }
        }
    }
}
