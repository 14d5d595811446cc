//! The rules of `docs/affinity.md`, one by one.

mod balancing;
mod cookie_rules;
mod rings;
mod several;

use std::{
    collections::BTreeMap,
    time::{Duration, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::header::{COOKIE, HeaderName};
use proptest::prelude::*;

use super::*;
use crate::settings::{
    Balance, Cookie, CookieKey, Drain, Forwarded, ForwardedMode, Http, Service, Settings, State,
};

const CLIENT: &str = "198.51.100.7:40000";

fn backend(number: u8) -> settings::Backend {
    settings::Backend {
        name: format!("b{number}"),
        id: format!("{number:016x}"),
        address: SocketAddr::from(([10, 2, 0, number], 9000)),
        weight: 100,
        state: State::Up,
        pool: 0,
    }
}

fn by_cookie() -> Affinity {
    Affinity::Cookie(Cookie {
        name: "sluice".to_owned(),
        ttl: Some(Duration::from_secs(86_400)),
        path: "/".to_owned(),
        domain: None,
        secure: false,
        http_only: true,
        same_site: None,
    })
}

/// Three backends up, one key.
fn settings(affinity: Affinity, balance: Balance) -> Settings {
    let second = Duration::from_secs(1);
    let http = Http {
        head_timeout: second,
        body_timeout: second,
        connect_timeout: second,
        response_timeout: second,
        keep_alive: second,
        idle_timeout: second,
        head_bytes: 16_384,
        retries: 2,
        pool: 32,
        tcp_keepalive: second,
        tcp_user_timeout: second,
        h2c: false,
        max_streams: 128,
    };
    let service = Service {
        name: "chat".to_owned(),
        listen: Vec::new(),
        affinity,
        balance,
        fail_open: true,
        upgrades: Vec::new(),
        http,
        forwarded: Forwarded { mode: ForwardedMode::Append, trusted: Vec::new(), request_id: None },
        drain: Drain { rate: 100 },
        splice: false,
        log_sample: 0.0,
        backends: vec![backend(1), backend(2), backend(3)],
        pools: Vec::new(),
        routes: Vec::new(),
        proxy_protocol: Default::default(),
        limits: Default::default(),
        tls: None,
        backend_tls: None,
        redirect_https: false,
        passthrough: None,
    };
    let key = CookieKey { id: "k1".to_owned(), secret: STANDARD.encode([1; 32]) };
    Settings {
        edge: "edge".to_owned(),
        source_addresses: Vec::new(),
        hash_seed: 7,
        cookie_keys: vec![key],
        services: vec![service],
        ticket_keys: Vec::new(),
    }
}

/// A pool and the settings that it was made from.
struct Case {
    settings: Settings,
    pool: Rc<Pool>,
    now: SystemTime,
    shares: Vec<Share>,
}

impl Case {
    fn new(affinity: Affinity, balance: Balance) -> Self {
        let settings = settings(affinity, balance);
        let pool = Pool::new(&settings, &settings.services[0]);
        Self {
            settings,
            pool,
            now: UNIX_EPOCH + Duration::from_secs(1_800_000_000),
            shares: ONLY_DEFAULT.to_vec(),
        }
    }

    fn change(&mut self, change: impl FnOnce(&mut Service)) {
        change(&mut self.settings.services[0]);
        self.pool.update(&self.settings, &self.settings.services[0]);
    }

    fn ask(
        &self,
        headers: &[(HeaderName, &str)],
        uri: &str,
        tried: &[Rc<Backend>],
    ) -> Option<Picked> {
        let headers: HeaderMap =
            headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
        let uri = uri.parse().unwrap();
        let pools = &self.shares;
        let ask = Ask { client: CLIENT.parse().unwrap(), headers: &headers, uri: &uri, pools };
        self.pool.pick(&ask, tried, self.now)
    }

    /// A request without anything.
    fn newcomer(&self) -> Option<Picked> {
        self.ask(&[], "/", &[])
    }

    fn with_cookie(&self, value: &str) -> Option<Picked> {
        self.ask(&[(COOKIE, value)], "/", &[])
    }

    fn after(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    fn millis(&self) -> u64 {
        group::millis(self.now)
    }
}
