//! Routes and pools through a worker.

mod harness;

use std::rc::Rc;

use harness::*;
use lb_sidecar::settings::{
    Action, Answer, Backend, Balance, Conditions, HeaderChanges, PathRule, Pool, Redirect, Route,
    Service, Share,
};
use tokio::sync::Notify;

/// A route for paths below a prefix.
fn below(prefix: &str, action: Action) -> Route {
    Route {
        name: prefix.trim_start_matches('/').to_owned(),
        when: Conditions {
            paths: vec![PathRule::Prefix(prefix.to_owned())],
            ..Conditions::default()
        },
        action,
        rewrite_prefix: None,
        request_headers: HeaderChanges::default(),
        response_headers: HeaderChanges::default(),
    }
}

fn to(shares: &[(u16, u32)]) -> Action {
    Action::Pools(shares.iter().map(|&(pool, weight)| Share { pool, weight }).collect())
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

fn changes(set: &[(&str, &str)], remove: &[&str]) -> HeaderChanges {
    HeaderChanges {
        remove: remove.iter().map(|it| (*it).to_owned()).collect(),
        set: set.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        add: Vec::new(),
    }
}

/// The first backend is the default pool, all others are the canary.
fn canary(service: &mut Service) {
    service.pools = vec![Pool { name: "canary".to_owned(), balance: Balance::RoundRobin }];
    for (n, backend) in service.backends.iter_mut().enumerate() {
        *backend = Backend { pool: u16::from(n > 0), ..backend.clone() };
    }
}

fn routes(edge: &Edge) -> Vec<String> {
    let report = edge.worker.report();
    let routes = report.services[0].routes.iter();
    routes.map(|(name, requests)| format!("{name} {requests}")).collect()
}

fn server(answer: &str) -> &str {
    field(answer, "server-name").unwrap_or_else(|| panic!("{answer}"))
}

#[test]
fn requests_of_one_connection_go_to_their_pools() {
    run(|| async {
        let (stable, canary_server) = (Server::echo("stable").await, Server::echo("canary").await);
        let edge = Edge::new(&[stable.address, canary_server.address], |service| {
            canary(service);
            service.routes = vec![below("/new", to(&[(1, 1)]))];
        });
        let mut client = edge.connect().await;
        for (path, name) in
            [("/", "stable"), ("/new", "canary"), ("/newer", "stable"), ("/new/x?y", "canary")]
        {
            assert_eq!(server(&client.get(path).await), name, "{path}");
        }
        assert_eq!(routes(&edge), ["new 2", "none 2"]);
        assert!(client.get("/new/../x").await.starts_with("HTTP/1.1 400 "), "in two ways");
        assert_eq!(edge.count("ambiguous_path"), 1);
        assert_eq!(routes(&edge), ["new 2", "none 2"]);
    });
}

#[test]
fn a_service_without_routes_leaves_paths_alone() {
    run(|| async {
        let backend = Server::echo("one").await;
        let edge = Edge::new(&[backend.address], |_| {});
        let mut client = edge.connect().await;
        assert!(client.get("/a/../%2f//b").await.contains("GET /a/../%2f//b HTTP/1.1\r\n"));
        assert!(routes(&edge).is_empty());
    });
}

#[test]
fn redirects_and_answers_need_no_backend() {
    run(|| async {
        let edge = Edge::new(&[nobody()], |service| {
            let answer = Answer {
                status: 418,
                body: "short and stout".to_owned(),
                content_type: "text/x-pot".to_owned(),
            };
            let to_https = Redirect { scheme: Some("https".to_owned()), ..redirect() };
            service.routes = vec![
                below(
                    "/old",
                    Action::Redirect(Redirect { prefix: Some("/new".into()), ..redirect() }),
                ),
                Route {
                    response_headers: changes(&[("x-kind", "pot")], &[]),
                    ..below("/tea", Action::Answer(answer))
                },
                below("/", Action::Redirect(to_https)),
            ];
        });
        let mut client = edge.connect().await;
        let answer = client.get("/old/a%20b?c").await;
        assert!(answer.starts_with("HTTP/1.1 302 Found\r\n"), "{answer}");
        assert_eq!(field(&answer, "location"), Some("/new/a%20b?c"));
        let answer = client.get("/tea").await;
        assert!(answer.starts_with("HTTP/1.1 418 "), "{answer}");
        assert!(answer.ends_with("\r\n\r\nshort and stout"), "{answer}");
        assert_eq!(field(&answer, "content-type"), Some("text/x-pot"));
        assert_eq!(field(&answer, "x-kind"), Some("pot"));
        assert_eq!(field(&client.get("/x").await, "location"), Some("https://a/x"));
        assert_eq!((edge.count("redirected"), edge.count("answered")), (2, 1));
        assert_eq!(edge.count("connection"), 1, "the connection is kept");

        client.send("POST /tea HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n").await;
        let answer = client.read_to_end().await;
        assert_eq!(field(&answer, "connection"), Some("close"), "nobody reads the body: {answer}");
    });
}

#[test]
fn a_redirect_without_a_host_to_go_to_is_refused() {
    run(|| async {
        let to_https = Redirect { scheme: Some("https".to_owned()), ..redirect() };
        let edge = Edge::new(&[nobody()], |service| {
            service.routes = vec![below("/", Action::Redirect(to_https))];
        });
        let mut client = edge.connect().await;
        client.send("GET / HTTP/1.0\r\n\r\n").await;
        let answer = client.read_to_end().await;
        assert!(answer.contains(" 400 Bad Request\r\n"), "{answer}");
        assert_eq!(edge.count("host_missing"), 1);
    });
}

#[test]
fn heads_are_changed_both_ways() {
    run(|| async {
        let backend = Server::echo("one").await;
        let edge = Edge::new(&[backend.address], |service| {
            service.routes = vec![Route {
                rewrite_prefix: Some("/v2".to_owned()),
                request_headers: changes(&[("host", "inner"), ("x-a", "1")], &["x-secret"]),
                response_headers: changes(&[("x-b", "2")], &["server-name"]),
                ..below("/api", to(&[(0, 1)]))
            }];
        });
        let mut client = edge.connect().await;
        client
            .send("GET /api/users?q HTTP/1.1\r\nHost: a\r\nX-Secret: s\r\nX-A: 7\r\nX-A: 8\r\n\r\n")
            .await;
        let answer = client.answer().await;
        let (head, seen) = answer.split_once("\r\n\r\n").unwrap();
        assert_eq!((field(head, "x-b"), field(head, "server-name")), (Some("2"), None));
        assert!(seen.starts_with("GET /v2/users?q HTTP/1.1\r\n"), "{seen}");
        assert_eq!((field(seen, "host"), field(seen, "x-secret")), (Some("inner"), None));
        assert_eq!(seen.matches("x-a: ").count(), 1, "{seen}");
        assert_eq!(field(seen, "x-forwarded-host"), Some("a"), "as the client said it");
    });
}

#[test]
fn an_upgrade_takes_its_route_and_keeps_its_canary() {
    run(|| async {
        let (stable, next) = (Server::echo("stable").await, Server::upgrading("").await);
        let other = Server::upgrading("").await;
        let addresses = [stable.address, next.address, other.address];
        let mut edge = Edge::new(&addresses, |service| {
            canary(service);
            service.affinity = by_cookie();
            let when = Conditions { upgrade: Some(true), ..Conditions::default() };
            service.routes = vec![Route {
                when,
                // A client is kept even if its cookie goes no further.
                request_headers: changes(&[], &["cookie"]),
                response_headers: changes(&[("x-route", "chats")], &["sec-websocket-protocol"]),
                ..below("/chats", to(&[(1, 1)]))
            }];
        });
        with_keys(&mut edge);
        let mut client = edge.connect().await;
        client.send(ASK).await;
        let head = client.read_until("\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert_eq!(field(&head, "x-route"), Some("chats"));
        let cookie = field(&head, "set-cookie").unwrap().split(';').next().unwrap().to_owned();
        assert!(cookie.starts_with("sluice.canary="), "{cookie}");
        let picked = |edge: &Edge| -> Vec<u64> {
            edge.worker.report().services[0].backends.iter().map(|it| it.picked).collect()
        };
        let before = picked(&edge);
        for _ in 0..4 {
            let mut again = edge.connect().await;
            let ask = ASK.replace("Host: a", &format!("Host: a\r\nCookie: {cookie}"));
            again.send(ask).await;
            let head = again.read_until("\r\n\r\n").await;
            assert_eq!(field(&head, "set-cookie"), None, "{head}");
        }
        let after: Vec<_> = picked(&edge).iter().zip(&before).map(|(new, old)| new - old).collect();
        assert!(after == [0, 4, 0] || after == [0, 0, 4], "{after:?}");
        assert_eq!(routes(&edge), ["chats 5", "none 0"]);
        assert_eq!(server(&edge.connect().await.get("/").await), "stable");
    });
}

#[test]
fn a_canary_gets_its_share_and_keeps_it() {
    run(|| async {
        let (stable, canary_server) = (Server::echo("stable").await, Server::echo("canary").await);
        let mut edge = Edge::new(&[stable.address, canary_server.address], |service| {
            canary(service);
            service.affinity = by_cookie();
            service.routes = vec![below("/", to(&[(0, 80), (1, 20)]))];
        });
        with_keys(&mut edge);
        let mut client = edge.connect().await;
        let mut cookies = Vec::new();
        for _ in 0..50 {
            let answer = client.get("/").await;
            let cookie = field(&answer, "set-cookie").unwrap().split(';').next().unwrap();
            cookies.push((server(&answer).to_owned(), cookie.to_owned()));
        }
        let of_canary = cookies.iter().filter(|(name, _)| name == "canary").count();
        assert_eq!(of_canary, 10);
        for (name, cookie) in &cookies {
            client.send(format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: {cookie}\r\n\r\n")).await;
            assert_eq!(server(&client.answer().await), name);
        }
        assert_eq!(edge.count("sticky_hit"), 50);
    });
}

#[test]
fn a_canary_that_does_not_answer_leaves_its_clients_to_the_others() {
    run(|| async {
        let stable = Server::echo("stable").await;
        let edge = Edge::new(&[stable.address, nobody()], |service| {
            canary(service);
            service.routes = vec![below("/", to(&[(0, 1), (1, 1)]))];
        });
        let mut client = edge.connect().await;
        for _ in 0..6 {
            assert_eq!(server(&client.get("/").await), "stable");
        }
        assert_eq!(edge.count("retry_connect"), 3);
    });
}

#[test]
fn new_routes_hold_for_the_next_request_of_a_connection() {
    run(|| async {
        let (stable, canary_server) = (Server::echo("stable").await, Server::echo("canary").await);
        let mut edge = Edge::new(&[stable.address, canary_server.address], |service| {
            canary(service);
            service.routes = vec![below("/a", to(&[(0, 1)]))];
        });
        let mut client = edge.connect().await;
        assert_eq!(server(&client.get("/a").await), "stable");
        edge.settings.services[0].routes = vec![below("/a", to(&[(1, 1)]))];
        edge.worker.apply(edge.settings.clone());
        assert_eq!(server(&client.get("/a").await), "canary");
        assert_eq!(routes(&edge), ["a 2", "none 0"], "its count goes on");
    });
}

#[test]
fn who_is_sent_on_stays_in_its_pool_though_that_has_another_number() {
    run(|| async {
        let (asked, release) = (Rc::new(Notify::new()), Rc::new(Notify::new()));
        let (was_asked, released) = (asked.clone(), release.clone());
        let busy = Server::new(move |mut stream| {
            let (asked, release) = (was_asked.clone(), released.clone());
            async move {
                read_head(&mut stream).await;
                asked.notify_one();
                release.notified().await;
            }
        })
        .await;
        let (rest, good) = (Server::upgrading("rest").await, Server::upgrading("good").await);
        for (inserts, greeting) in [(true, Some("good")), (false, None)] {
            let backends = [rest.address, busy.address, good.address];
            let mut edge = Edge::new(&backends, |service| {
                canary(service);
                service.routes = vec![below("/chat", to(&[(1, 1)]))];
                service.backends[2].weight = 0;
            });
            let mut client = edge.connect().await;
            client.send(ASK).await;
            asked.notified().await;
            let service = &mut edge.settings.services[0];
            service.backends[2].weight = 1;
            if inserts {
                let new = Pool { name: "new".to_owned(), balance: Balance::RoundRobin };
                service.pools.insert(0, new);
                service.backends.iter_mut().filter(|it| it.pool > 0).for_each(|it| it.pool += 1);
                service.backends[0].pool = 1;
                service.routes[0].action = to(&[(2, 1)]);
            } else {
                service.pools[0].name = "new".to_owned();
            }
            edge.worker.apply(edge.settings.clone());
            release.notify_one();
            match greeting {
                Some(greeting) => _ = client.read_until(greeting).await,
                // Its pool is no more.
                None => assert!(client.read_to_end().await.starts_with("HTTP/1.1 502 ")),
            }
        }
    });
}
