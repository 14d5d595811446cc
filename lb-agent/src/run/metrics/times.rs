//! Metrics of how long things take in the sidecar.

use lb_sidecar::times::Time;

use super::{Samples, metrics};
use crate::run::status::Status;

metrics! {
    Histogram "sluice_client_handshake_seconds" ["service"]
        "From the moment that a client's connection is let in to the head of its first answer: TLS, the client's request, the backend's 101 or answer":
        |it, to| each(it, to, Time::ClientHandshake);
    Histogram "sluice_tls_handshake_seconds" ["service"]
        "TLS handshakes with clients that were completed": |it, to| each(it, to, Time::TlsHandshake);
    Histogram "sluice_request_seconds" ["service"]
        "From a request's head to the end of its answer, refused ones included; of an upgrade, to its 101":
        |it, to| each(it, to, Time::Request);
    Histogram "sluice_backend_connect_seconds" ["service"]
        "Connections that were made to backends: TCP, and the PROXY header and TLS where backends have them":
        |it, to| each(it, to, Time::BackendConnect);
    Histogram "sluice_backend_answer_seconds" ["service"]
        "From a request on its way to a backend to the head of the backend's answer":
        |it, to| each(it, to, Time::BackendAnswer);
}

fn each(status: &Status, to: &mut Samples<'_>, what: Time) {
    for service in &status.services {
        if let Some(times) = service.times.get(what.label()) {
            to.histogram(&[&service.name], times);
        }
    }
}
