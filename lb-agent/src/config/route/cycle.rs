//! Redirects that lead to themselves: browsers go round until they give up.

use lb_sidecar::routing::{host_matches, path::has_prefix};
use lb_sidecar::settings::{Action, PathRule, Redirect, Route};

use super::super::error::{Place, Problems};
use super::cover::finds;

/// Refuses those that are plain to see: of which nothing but host and path decides, and both lead back.
pub(super) fn check(routes: &[(Route, Place)], problems: &Problems<'_>) {
    for (n, (route, place)) in routes.iter().enumerate() {
        let Action::Redirect(redirect) = &route.action else { continue };
        let when = &route.when;
        let by_more = !when.headers.is_empty()
            || !when.query.is_empty()
            || !when.methods.is_empty()
            || when.upgrade.is_some();
        // Another scheme or port may be another listener.
        if by_more || redirect.scheme.is_some() || redirect.port.is_some() {
            continue;
        }
        let path = redirect.path.as_deref().or(redirect.prefix.as_deref());
        if path.is_none() && redirect.host.is_none() {
            // Says nothing, as has been reported.
            continue;
        }
        let leads_back = host_leads_back(redirect, &when.hosts)
            && path.is_none_or(|path| any_has(&when.paths, path));
        let met_before = |(earlier, _): &(Route, Place)| may_meet(earlier, redirect, path);
        if leads_back && !routes[..n].iter().any(met_before) {
            problems.error(
                place,
                "redirects to itself: clients would go round",
                "lead to another host or path, or add a condition that the new place does not meet",
            );
        }
    }
}

/// Whether who follows it comes with a host of the route again.
fn host_leads_back(redirect: &Redirect, hosts: &[String]) -> bool {
    match &redirect.host {
        None => true,
        Some(host) => hosts.iter().any(|rule| host_matches(rule, host)),
    }
}

/// Whether an earlier route could have who follows the redirect.
fn may_meet(earlier: &Route, redirect: &Redirect, path: Option<&str>) -> bool {
    let when = &earlier.when;
    let host = redirect.host.as_deref().is_none_or(|host| {
        when.hosts.is_empty() || when.hosts.iter().any(|rule| host_matches(rule, host))
    });
    host && path.is_none_or(|path| any_has(&when.paths, path))
}

fn any_has(paths: &[PathRule], path: &str) -> bool {
    let has = |rule: &PathRule| match rule {
        PathRule::Exact(wanted) => wanted == path,
        PathRule::Prefix(prefix) => has_prefix(path.as_bytes(), prefix),
        PathRule::Regex(text) => finds(text, path),
    };
    paths.is_empty() || paths.iter().any(has)
}
