use hyper::{
    Request,
    header::{CONTENT_TYPE, LOCATION},
};
use proptest::prelude::*;

use super::*;
use crate::settings::{
    Answer, Conditions, FieldRule, HeaderChanges, PathRule as Path, Redirect, ValueRule,
};

fn route(name: &str, when: Conditions) -> settings::Route {
    settings::Route {
        name: name.to_owned(),
        when,
        action: Action::Pools(vec![Share { pool: 0, weight: 1 }]),
        rewrite_prefix: None,
        request_headers: HeaderChanges::default(),
        response_headers: HeaderChanges::default(),
    }
}

fn head(method: &str, target: &str, fields: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().method(method).uri(target);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn matches(when: Conditions, head: &Parts) -> bool {
    let routes = Routes::new(&[route("a", when)], None);
    routes.find(head, false).unwrap().is_some()
}

fn by_path(paths: &[Path], path: &str) -> Result<bool, Outcome> {
    let when = Conditions { paths: paths.to_vec(), ..Conditions::default() };
    let routes = Routes::new(&[route("a", when)], None);
    routes.find(&head("GET", path, &[]), false).map(|it| it.is_some())
}

fn prefix(prefix: &str) -> [Path; 1] {
    [Path::Prefix(prefix.to_owned())]
}

#[test]
fn hosts_are_compared_without_case_port_and_last_dot() {
    let when = |host: &str| Conditions { hosts: vec![host.to_owned()], ..Conditions::default() };
    let is = |rule: &str, host: &str| matches(when(rule), &head("GET", "/", &[("host", host)]));
    for host in ["a.example", "A.Example", "a.example:8080", "a.example.", "a.example.:80"] {
        assert!(is("a.example", host), "{host}");
        assert!(is("*.example", host), "{host}");
    }
    for host in ["b.example", "a.example.org", "xa.example", "", "example"] {
        assert!(!is("a.example", host), "{host}");
    }
    assert!(is("*.example", "a.b.example"), "at any depth");
    for host in ["example", ".example", "aexample", ""] {
        assert!(!is("*.example", host), "{host}");
    }
    assert!(is("[2001:db8::1]", "[2001:DB8::1]:80"));
    assert!(is("192.0.2.1", "192.0.2.1:80"));
    assert!(!matches(when("a"), &head("GET", "/", &[])), "no host at all");
}

#[test]
fn prefixes_end_with_a_segment() {
    for (rule, path, is) in [
        ("/api", "/api", true),
        ("/api", "/api/", true),
        ("/api", "/api/users", true),
        ("/api", "/apis", false),
        ("/api", "/ap", false),
        ("/api", "/API", false),
        ("/api/", "/api", false),
        ("/api/", "/api/", true),
        ("/api/", "/api/users", true),
        ("/", "/", true),
        ("/", "/anything", true),
        ("/api", "/%61pi/x", true),
        ("/räume", "/r%C3%A4ume", true),
    ] {
        assert_eq!(by_path(&prefix(rule), path), Ok(is), "{rule} {path}");
    }
}

#[test]
fn whole_paths_and_patterns() {
    let exact = [Path::Exact("/chat".to_owned())];
    assert_eq!(by_path(&exact, "/chat?a=b"), Ok(true));
    assert_eq!(by_path(&exact, "/ch%61t"), Ok(true), "a letter is a letter");
    assert_eq!(by_path(&exact, "/chat/"), Ok(false));
    let rooms = [Path::Regex("^/room/[0-9]+$".to_owned())];
    assert_eq!(by_path(&rooms, "/room/42"), Ok(true));
    assert_eq!(by_path(&rooms, "/room/42x"), Ok(false));
    assert_eq!(by_path(&[Path::Regex("oo".to_owned())], "/room"), Ok(true), "anywhere");
    assert_eq!(by_path(&[Path::Regex("(".to_owned())], "/room"), Ok(false), "never checked");
}

#[test]
fn a_path_that_can_be_read_in_two_ways_goes_round_no_route() {
    for path in [
        "//api",
        "/a//b",
        "/a/./b",
        "/a/..",
        "/../a",
        "/a/%2e%2E/b",
        "/a%2fb",
        "/a%2Fb",
        "/a%5cb",
        "/a/..;/b",
        "/a/.;x",
        "/a%00",
        "/a%",
        "/a%2",
        "/a%zz",
        "/./",
    ] {
        assert_eq!(by_path(&prefix("/admin"), path), Err(Outcome::AmbiguousPath), "{path}");
        assert!(matches(Conditions::default(), &head("GET", path, &[])), "nobody asks: {path}");
    }
    for path in ["/", "/a/", "/a.b", "/...", "/a/..b", "/a%20b", "/a;b/c", "/%25", "/a%252fb"] {
        assert_eq!(by_path(&prefix("/"), path), Ok(true), "{path}");
    }
    assert_eq!(by_path(&prefix("/"), "*"), Ok(false));
}

#[test]
fn methods_headers_parameters_and_upgrades() {
    let field = |name: &str, value| FieldRule { name: name.to_owned(), value };
    let exact = |value: &str| ValueRule::Exact(value.to_owned());
    let request =
        head("POST", "/?v=2&w=a%20b+c&flag&v=3", &[("x-a", "1"), ("x-a", "2"), ("x-b", "z9")]);
    let by_method =
        |method: &str| Conditions { methods: vec![method.to_owned()], ..Conditions::default() };
    assert!(matches(by_method("POST"), &request) && !matches(by_method("GET"), &request));
    for (rule, is) in [
        (field("x-a", ValueRule::Any), true),
        (field("x-a", exact("2")), true),
        (field("x-a", exact("3")), false),
        (field("x-b", ValueRule::Regex("^z[0-9]$".to_owned())), true),
        (field("x-c", ValueRule::Any), false),
    ] {
        let when = Conditions { headers: vec![rule.clone()], ..Conditions::default() };
        assert_eq!(matches(when, &request), is, "{rule:?}");
    }
    for (rule, is) in [
        (field("v", exact("3")), true),
        (field("w", exact("a b c")), true),
        (field("flag", exact("")), true),
        (field("flag", ValueRule::Any), true),
        (field("V", ValueRule::Any), false),
        (field("", ValueRule::Any), false),
    ] {
        let when = Conditions { query: vec![rule.clone()], ..Conditions::default() };
        assert_eq!(matches(when, &request), is, "{rule:?}");
    }
    let upgrade = Conditions { upgrade: Some(true), ..Conditions::default() };
    let routes = Routes::new(&[route("a", upgrade)], None);
    assert!(routes.find(&request, true).unwrap().is_some());
    assert!(routes.find(&request, false).unwrap().is_none());
}

#[test]
fn the_first_that_matches_is_taken_and_counted_on() {
    let when = |prefix: &str| Conditions {
        paths: vec![Path::Prefix(prefix.to_owned())],
        ..Conditions::default()
    };
    let first = [route("narrow", when("/a/b")), route("wide", when("/a"))];
    let routes = Routes::new(&first, None);
    let name = |path: &str| {
        let found = routes.find(&head("GET", path, &[]), false).unwrap();
        found.map(|it| it.name.to_string())
    };
    assert_eq!(name("/a/b/c").as_deref(), Some("narrow"));
    assert_eq!(name("/a/c").as_deref(), Some("wide"));
    assert_eq!(name("/a").as_deref(), Some("wide"));
    assert_eq!(name("/"), None);
    let counts = |routes: &Routes| {
        routes.report().into_iter().map(|(name, hits)| format!("{name} {hits}")).collect::<Vec<_>>()
    };
    assert_eq!(counts(&routes), ["narrow 1", "wide 2", "none 1"]);
    let next = Routes::new(&[route("wide", when("/")), route("new", when("/x"))], Some(&routes));
    next.find(&head("GET", "/", &[]), false).unwrap();
    assert_eq!(counts(&next), ["wide 3", "new 0", "none 1"]);
    assert!(Routes::default().report().is_empty());
}

fn redirect() -> Redirect {
    Redirect {
        status: 302,
        scheme: None,
        host: None,
        port: None,
        path: None,
        prefix: None,
        keep_query: true,
    }
}

fn location(redirect: Redirect, path_prefix: &str, head: &Parts) -> Option<String> {
    let when = Conditions { paths: prefix(path_prefix).to_vec(), ..Conditions::default() };
    let route = settings::Route { action: Action::Redirect(redirect), ..route("a", when) };
    let route = Route::new(&route, Hits::default());
    let (outcome, response) = route.answer(head)?.ok()?;
    assert_eq!((outcome, response.status().as_u16()), (Outcome::Redirected, 302));
    Some(response.headers()[LOCATION].to_str().unwrap().to_owned())
}

#[test]
fn redirects_change_what_they_say_and_keep_the_rest() {
    let asked = head("GET", "/%61/b%20c?d=e", &[("host", "x.example:8080")]);
    let some = |text: &str| Some(text.to_owned());
    for (redirect, expected) in [
        (Redirect { scheme: some("https"), ..redirect() }, "https://x.example/%61/b%20c?d=e"),
        (Redirect { host: some("y.example"), ..redirect() }, "//y.example/%61/b%20c?d=e"),
        (Redirect { port: Some(81), ..redirect() }, "//x.example:81/%61/b%20c?d=e"),
        (Redirect { path: some("/z"), ..redirect() }, "/z?d=e"),
        (Redirect { path: some("/z"), keep_query: false, ..redirect() }, "/z"),
        (Redirect { prefix: some("/z"), ..redirect() }, "/z/b%20c?d=e"),
        (Redirect { prefix: some("/"), ..redirect() }, "/b%20c?d=e"),
    ] {
        assert_eq!(location(redirect.clone(), "/a", &asked).as_deref(), Some(expected));
    }
    let without_host = head("GET", "/a", &[("host", "")]);
    assert_eq!(
        location(Redirect { scheme: some("https"), ..redirect() }, "/a", &without_host),
        None
    );
}

#[test]
fn a_prefix_is_rewritten_with_its_slashes_right() {
    for (rule, new, asked, expected) in [
        ("/a", "/b", "/a", "/b"),
        ("/a", "/b", "/a/", "/b/"),
        ("/a", "/b", "/a/c?d", "/b/c?d"),
        ("/a", "/", "/a", "/"),
        ("/a", "/", "/a/c", "/c"),
        ("/a", "/b/", "/a/c", "/b/c"),
        ("/a/", "/b", "/a/c", "/b/c"),
        ("/", "/b", "/c", "/b/c"),
        ("/ä", "/b", "/%C3%A4/%20", "/b/%20"),
    ] {
        let when = Conditions { paths: prefix(rule).to_vec(), ..Conditions::default() };
        let settings = settings::Route { rewrite_prefix: Some(new.to_owned()), ..route("a", when) };
        let mut head = head("GET", asked, &[]);
        Route::new(&settings, Hits::default()).change_request(&mut head);
        assert_eq!(head.uri.to_string(), expected, "{rule} {new} {asked}");
    }
}

#[test]
fn a_fixed_answer_has_its_body_and_headers() {
    let action = Action::Answer(Answer {
        status: 403,
        body: "no".to_owned(),
        content_type: "text/html".to_owned(),
    });
    let changes = HeaderChanges {
        remove: Vec::new(),
        set: vec![("x-a".to_owned(), "1".to_owned())],
        add: vec![("x-a".to_owned(), "2".to_owned())],
    };
    let route =
        settings::Route { action, response_headers: changes, ..route("a", Conditions::default()) };
    let route = Route::new(&route, Hits::default());
    let (outcome, response) = route.answer(&head("GET", "/", &[])).unwrap().unwrap();
    assert_eq!((outcome, response.status().as_u16()), (Outcome::Answered, 403));
    assert_eq!(response.headers()[CONTENT_TYPE], "text/html");
    assert_eq!(response.headers()["content-length"], "2");
    let values: Vec<_> = response.headers().get_all("x-a").iter().collect();
    assert_eq!(values, ["1", "2"]);
}

#[test]
fn a_bad_pattern_says_where() {
    let bad = pattern::compile("ab[c").unwrap_err();
    assert_eq!((bad.column, bad.what.as_str()), (Some(3), "unclosed character class"));
    assert!(pattern::compile(&"a".repeat(1_025)).unwrap_err().column.is_none());
    assert!(pattern::compile("(a{1000}){1000}").unwrap_err().what.contains("memory"));
}

proptest! {
    /// Whatever is appended: either a new segment begins, or the prefix does not match.
    #[test]
    fn a_prefix_has_itself_and_what_is_below(
        segments in prop::collection::vec("[a-z.%]{1,4}", 1..4),
        rest in "[a-z/]{0,6}",
    ) {
        let rule = format!("/{}", segments.join("/"));
        let path = format!("{rule}{rest}");
        let below = rest.is_empty() || rest.starts_with('/');
        prop_assert_eq!(path::has_prefix(path.as_bytes(), &rule), below);
    }

    /// The decoded path of a request has as many segments as the one that came.
    #[test]
    fn decoding_makes_no_segments(path in "/([a-c/.;]|%2[ef5F]|%[0-9a-z]{0,2}){0,12}") {
        if let Some(decoded) = path::decoded(&path) {
            let slashes = |bytes: &[u8]| bytes.iter().filter(|it| **it == b'/').count();
            prop_assert_eq!(slashes(&decoded), slashes(path.as_bytes()));
            let mut segments = decoded[1..].split(|it| *it == b'/');
            prop_assert!(segments.all(|it| it != b"." && it != b".."));
        }
    }

    #[test]
    fn a_wildcard_has_all_names_below_and_no_other(host in "[a-c.]{0,8}") {
        let below = host.len() > 2 && host.ends_with(".b");
        prop_assert_eq!(host_matches("*.b", &host), below);
    }

    /// What a rule covers is matched by it wherever the other is.
    #[test]
    fn covering_hosts_match_what_the_covered_do(
        wide in "(\\*\\.)?[ab](\\.[ab]){0,2}",
        narrow in "(\\*\\.)?[ab](\\.[ab]){0,2}",
        host in "[ab](\\.[ab]){0,3}",
    ) {
        if host_covers(&wide, &narrow) && host_matches(&narrow, &host) {
            prop_assert!(host_matches(&wide, &host));
        }
    }

    /// Rewriting to the same prefix changes nothing but the way in which it was written.
    #[test]
    fn what_follows_a_prefix_stays(rest in "(/[a-c%41]{1,3}){0,3}", new in "/[x-z]{1,3}") {
        let path = format!("/a{rest}");
        if path::decoded(&path).is_some() {
            prop_assert_eq!(path::joined(&new, path::after_prefix(&path, "/a")), format!("{new}{rest}"));
        }
    }
}
