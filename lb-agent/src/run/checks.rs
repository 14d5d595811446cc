//! From the configuration's health tables to what the health runner is to do. Pure.

use std::collections::HashMap;

use lb_sidecar::proxy_protocol::header;

use crate::{
    config::{self, Config},
    health::{Check, HttpSpec, Kind, Target, TargetKey, TlsSpec, WebSocketSpec},
};

/// Every backend of the configuration with its check.
#[must_use]
pub fn targets(config: &Config) -> HashMap<TargetKey, Target> {
    let of_service = |service: &config::Service| {
        let mut check = check(&service.health);
        if let Some(l7) = service.l7() {
            check.preamble = header::write_local(l7.proxy_protocol.send);
        }
        let targets = service.backends.iter().map(move |backend| {
            let target = Target { addr: backend.address, check: check.clone() };
            (key(&service.name, backend), target)
        });
        targets.collect::<Vec<_>>()
    };
    config.services.iter().flat_map(of_service).collect()
}

/// Names the target that a backend is.
#[must_use]
pub fn key(service: &str, backend: &config::Backend) -> TargetKey {
    TargetKey {
        service: service.to_owned(),
        backend: backend.name.clone(),
        address: backend.address,
    }
}

/// What the checks themselves find wrong with a configuration, beyond what its reader has found.
#[must_use]
pub fn problems(config: &Config) -> Vec<String> {
    let of_service = |service: &config::Service| {
        let name = service.name.clone();
        let problems = check(&service.health).problems().into_iter();
        problems.map(move |problem| format!("service {name:?}: health: {problem}"))
    };
    config.services.iter().flat_map(of_service).collect()
}

/// The check that a health table asks for.
#[must_use]
pub fn check(health: &config::Health) -> Check {
    Check {
        kind: kind(&health.probe),
        interval: health.interval,
        timeout: health.timeout,
        rise: health.rise,
        fall: health.fall,
        jitter_percent: u8::try_from(health.jitter_percent).unwrap_or(u8::MAX),
        slow_start: health.slow_start,
        port: health.port,
        preamble: Vec::new(),
    }
}

fn kind(probe: &config::Probe) -> Kind {
    match probe {
        config::Probe::None => Kind::None,
        config::Probe::Tcp => Kind::Tcp,
        config::Probe::Http(http) => Kind::Http(http_spec(http)),
        config::Probe::Https(http, tls) => Kind::Https(
            http_spec(http),
            TlsSpec {
                verify: tls.verify != config::Verify::No,
                ca: match &tls.verify {
                    config::Verify::Ca(path) => Some(path.clone()),
                    config::Verify::No | config::Verify::System => None,
                },
                server_name: tls.server_name.clone(),
            },
        ),
        config::Probe::Websocket(target) => {
            Kind::WebSocket(WebSocketSpec { path: target.path.clone(), host: target.host.clone() })
        }
    }
}

fn http_spec(http: &config::HttpProbe) -> HttpSpec {
    HttpSpec {
        path: http.target.path.clone(),
        host: http.target.host.clone(),
        // Both sides write such sets alike; a test holds them to it.
        status: http.status.to_string().parse().unwrap_or_default(),
        body: (!http.body.is_empty()).then(|| http.body.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(health: &str) -> Config {
        let text = format!(
            r#"
            [edge]
            name = "e"
            interfaces = ["eth0"]
            source_addresses = ["10.2.0.1"]
            hash_seed = "s"
            [[service]]
            name = "chat"
            listen = ["203.0.113.10:80"]
            health = {health}
            [[service.backend]]
            name = "a"
            address = "10.2.0.2:9000"
            "#
        );
        crate::config::parse("edge.toml", &text).unwrap().0
    }

    #[test]
    fn what_is_configured_is_what_is_checked() {
        let config = config(
            r#"{ kind = "https", path = "/up", host = "chat.example", status = "200-204, 304", body = "ok",
                 verify = true, ca = "/etc/ca.pem", interval = "3s", timeout = "2s", rise = 4, fall = 5,
                 jitter = 20, slow_start = "30s", port = 8443 }"#,
        );
        let targets = targets(&config);
        let target = &targets[&key("chat", &config.services[0].backends[0])];
        assert_eq!(target.addr, "10.2.0.2:9000".parse().unwrap());
        let check = &target.check;
        assert_eq!((check.rise, check.fall, check.jitter_percent), (4, 5, 20));
        assert_eq!(check.port, Some(8443));
        let Kind::Https(http, tls) = &check.kind else { panic!("{check:?}") };
        assert!(http.status.contains(203) && http.status.contains(304));
        assert!(!http.status.contains(205));
        assert_eq!(http.body.as_deref(), Some("ok"));
        assert_eq!(tls.server_name.as_deref(), Some("chat.example"));
        assert_eq!(tls.ca.as_deref(), Some("/etc/ca.pem".as_ref()));
        assert_eq!(problems(&config), Vec::<String>::new());
    }

    #[test]
    fn every_set_of_status_codes_is_taken_over() {
        for set in ["\"100-599\"", "204", "[\"200-299\", 304]", "\"200, 201, 301-302\""] {
            let config = config(&format!(r#"{{ kind = "http", status = {set} }}"#));
            let config::Probe::Http(configured) = &config.services[0].health.probe else {
                panic!("{config:?}")
            };
            let Kind::Http(checked) = check(&config.services[0].health).kind else { panic!() };
            for code in 100..600 {
                let wanted = configured.status.contains(code);
                assert_eq!(checked.status.contains(code), wanted, "{set}: {code}");
            }
        }
    }
}
