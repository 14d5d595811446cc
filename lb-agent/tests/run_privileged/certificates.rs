//! Certificates whose files change under a running edge.

use std::{fs, path::Path};

use lb_agent::events::{Kind, Page};
use rcgen::{CertificateParams, KeyPair};

use crate::{
    edge::{ADMIN, Edge},
    network::{text, wait_until},
    sidecar::{BACKEND, Web, config, two_serve},
};

/// A new certificate, in PEM, and its key.
fn pair() -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["chat.example".to_owned()]).unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn is_told(edge: &Edge, gauge: u8) -> bool {
    let (_, metrics) = edge.netns.http(ADMIN, "/metrics").unwrap_or_default();
    metrics.lines().any(|it| it == format!("sluice_certificates_refused {gauge}.0"))
}

fn refusals(edge: &Edge) -> Vec<String> {
    let (_, body) = edge.netns.http(ADMIN, "/v1/events?limit=1000").unwrap();
    let events = serde_json::from_str::<Page>(&body).unwrap().events.into_iter();
    let refused = events.filter(|it| it.kind == Kind::CertificatesRefused);
    refused.map(|it| it.text).collect()
}

#[test]
fn a_key_that_is_not_the_certificates_is_told_of_until_it_is() {
    let mut edge = Edge::new();
    let _web = Web::start(&edge.server, "10.2.0.2:9000", "b2");
    let directory = edge.config_file().parent().map(Path::to_owned).unwrap();
    let (certificate, key) = (directory.join("chat.pem"), directory.join("chat.key"));
    let (first, second) = (pair(), pair());
    fs::write(&certificate, &first.0).unwrap();
    fs::write(&key, &first.1).unwrap();
    let tls = format!("tls.certificates = [{{ certificate = {certificate:?}, key = {key:?} }}]");
    edge.start(&config(&edge, &tls, &BACKEND));
    let workers = two_serve(&edge);
    assert!(is_told(&edge, 0) && edge.status().certificates_refused.is_none());

    fs::write(&key, &second.1).unwrap();
    wait_until("the pair is refused", || {
        edge.status().certificates_refused.is_some_and(|it| it.contains("do not belong together"))
    });
    assert!(is_told(&edge, 1));
    let [refused] = &refusals(&edge)[..] else { panic!("{:?}", refusals(&edge)) };
    assert!(refused.contains("chat.pem") && !refused.contains("PRIVATE"), "{refused}");
    let status = text(&edge.output(&format!("status --admin {ADMIN}")));
    assert!(status.contains("the changed certificates are refused"), "{status}");
    assert!(status.contains("do not belong together"), "{status}");
    assert_eq!(two_serve(&edge), workers);

    fs::write(&certificate, &second.0).unwrap();
    wait_until("the pair is taken", || edge.status().certificates_refused.is_none());
    assert!(is_told(&edge, 0));
}
