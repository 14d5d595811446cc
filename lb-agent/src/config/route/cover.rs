//! Routes that no request can reach, since an earlier one has all of theirs.

use lb_sidecar::routing::{host_covers, path::has_prefix, pattern};
use lb_sidecar::settings::{Conditions, FieldRule, PathRule, Route, ValueRule};

use super::super::error::{Place, Problems};

pub(super) fn check(routes: &[(Route, Place)], problems: &Problems<'_>) {
    for (n, (route, place)) in routes.iter().enumerate() {
        let covers = |(earlier, _): &&(Route, Place)| covers(&earlier.when, &route.when);
        if let Some((earlier, at)) = routes[..n].iter().find(covers) {
            let what = format!(
                "can never match: route {:?} on line {} has all of its requests",
                earlier.name, at.line
            );
            problems.warn(place, what, "put it before that one, or remove it");
        }
    }
}

/// Whether every request that the one matches is matched by the other, as far as can be told.
fn covers(wide: &Conditions, narrow: &Conditions) -> bool {
    let hosts = all(&narrow.hosts, &wide.hosts, |host, it| host_covers(it, host));
    let paths = all(&narrow.paths, &wide.paths, |path, it| path_covers(it, path))
        || wide.paths.iter().any(is_every_path);
    let methods = all(&narrow.methods, &wide.methods, |method, it| method == it);
    let fields = |wide: &[FieldRule], narrow: &[FieldRule], same_name: fn(&str, &str) -> bool| {
        let held = |rule: &FieldRule| {
            narrow
                .iter()
                .any(|it| same_name(&rule.name, &it.name) && value_covers(&rule.value, &it.value))
        };
        wide.iter().all(held)
    };
    hosts
        && paths
        && methods
        && fields(&wide.headers, &narrow.headers, |a, b| a.eq_ignore_ascii_case(b))
        && fields(&wide.query, &narrow.query, |a, b| a == b)
        && (wide.upgrade.is_none() || wide.upgrade == narrow.upgrade)
}

/// Whether each of the one list is held by some of the other; an empty list is everything.
fn all<T>(narrow: &[T], wide: &[T], holds: impl Fn(&T, &T) -> bool) -> bool {
    let held = |it: &T| wide.iter().any(|other| holds(it, other));
    wide.is_empty() || (!narrow.is_empty() && narrow.iter().all(held))
}

fn is_every_path(path: &PathRule) -> bool {
    matches!(path, PathRule::Prefix(prefix) if prefix == "/")
}

fn path_covers(wide: &PathRule, narrow: &PathRule) -> bool {
    match (wide, narrow) {
        _ if wide == narrow => true,
        (PathRule::Prefix(wide), PathRule::Exact(path) | PathRule::Prefix(path)) => {
            has_prefix(path.as_bytes(), wide)
        }
        (PathRule::Regex(text), PathRule::Exact(path)) => finds(text, path),
        _ => false,
    }
}

fn value_covers(wide: &ValueRule, narrow: &ValueRule) -> bool {
    match (wide, narrow) {
        (ValueRule::Any, _) => true,
        (ValueRule::Regex(text), ValueRule::Exact(value)) => finds(text, value),
        _ => wide == narrow,
    }
}

pub(super) fn finds(pattern: &str, text: &str) -> bool {
    pattern::compile(pattern).is_ok_and(|regex| regex.is_match(text.as_bytes()))
}
