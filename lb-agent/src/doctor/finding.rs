//! What is found.

use std::fmt;

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, and something is lost.
    Warning,
    /// It does not work.
    Problem,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
        })
    }
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub level: Level,
    /// What was looked at.
    pub thing: String,
    /// What was found.
    pub what: String,
    /// What to do about it; none where all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    pub fn ok(thing: impl Into<String>, what: impl Into<String>) -> Self {
        Self { level: Level::Ok, thing: thing.into(), what: what.into(), remedy: None }
    }

    pub fn warning(
        thing: impl Into<String>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { level: Level::Warning, remedy: Some(remedy.into()), ..Self::ok(thing, what) }
    }

    pub fn problem(
        thing: impl Into<String>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { level: Level::Problem, remedy: Some(remedy.into()), ..Self::ok(thing, what) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { level, thing, what, remedy } = self;
        write!(f, "{level:<8}{thing}: {what}")?;
        match remedy {
            Some(remedy) => write!(f, "\n        {remedy}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_what_was_found_and_the_next_one_the_remedy() {
        let ok = Finding::ok("clock", "synchronised");
        assert_eq!(ok.to_string(), "ok      clock: synchronised");
        let problem = Finding::problem("bpffs", "not mounted", "mount it");
        assert_eq!(problem.to_string(), "problem bpffs: not mounted\n        mount it");
        let json = serde_json::to_value(&ok).unwrap();
        let wanted = serde_json::json!({ "level": "ok", "thing": "clock", "what": "synchronised" });
        assert_eq!(json, wanted);
    }
}
