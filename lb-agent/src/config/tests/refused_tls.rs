//! What is refused in `[service.tls]` and `[service.backend_tls]`.

use super::*;

/// What is wrong with an l7 service that has these lines.
fn refused_with(lines: &str) -> String {
    let text = with(&minimal_l7(), "[[service.backend]]", &format!("{lines}\n[[service.backend]]"));
    let errors = errors(&text);
    errors.split_once("service \"chat\": ").unwrap().1.to_owned()
}

const FILES: &str = "tls.certificates = [{ certificate = \"/c\", key = \"/k\" }]\n";

#[test]
fn values_of_tls() {
    for (lines, expected) in [
        (
            "tls = {}",
            "tls: certificates is missing: add e.g. certificates = [{ certificate = \"/etc/sluice/chat.pem\", key = \"/etc/sluice/chat.key\" }]",
        ),
        (
            "tls.certificates = []",
            "tls: certificates is empty: write 1 to 1000, e.g. [{ certificate = \"/etc/sluice/chat.pem\", key = \"/etc/sluice/chat.key\" }]",
        ),
        (
            "tls.certificates = [{ key = \"/k\" }]",
            "tls: certificate 1: certificate is missing: add e.g. certificate = \"/etc/sluice/chat.pem\"",
        ),
        (
            "tls.certificates = [{ certificate = \"/c\" }]",
            "tls: certificate \"/c\": key is missing: add e.g. key = \"/etc/sluice/chat.key\"",
        ),
    ] {
        assert_eq!(refused_with(lines), expected);
    }
    for (line, expected) in [
        (
            "tls.unknown_sni = \"drop\"",
            "tls: unknown_sni \"drop\" is not a choice here: write \"default\" or \"refuse\"",
        ),
        (
            "tls.min_version = \"1.1\"",
            "tls: min_version \"1.1\" is not a choice here: write \"1.2\" or \"1.3\"",
        ),
        ("tls.alpn = []", "tls: alpn [] is empty: write e.g. [\"h2\", \"http/1.1\"]"),
        (
            "tls.client_auth = \"optional\"",
            "tls: client_auth \"optional\" needs to know whose certificates are accepted: add e.g. client_ca = \"/etc/sluice/clients.pem\"",
        ),
        (
            "tls.client_cert_header = \"X\"",
            "tls: client_cert_header \"X\" needs to know whose certificates are accepted: add e.g. client_ca = \"/etc/sluice/clients.pem\"",
        ),
        (
            "tls.client_ca = \"/c\"\ntls.client_cert_header = \"Host\"",
            "tls: client_cert_header \"Host\" has another meaning: write e.g. \"X-Client-Subject\"",
        ),
        (
            "redirect = \"https\"",
            "redirect \"https\" would send clients round in circles: write it in a service of its own, without tls",
        ),
    ] {
        assert_eq!(refused_with(&format!("{FILES}{line}")), expected);
    }
}

#[test]
fn values_of_backend_tls() {
    for (line, expected) in [
        (
            "backend_tls = { verify = false, ca = \"/c\" }",
            "backend_tls: ca \"/c\" verifies nothing with verify = false: remove one of them",
        ),
        (
            "backend_tls = { key = \"/k\" }",
            "backend_tls: key \"/k\" is of no use without certificate: add e.g. certificate = \"/etc/sluice/edge.pem\"",
        ),
        (
            "backend_tls = { sni = \"10.0.0.1:1\" }",
            "backend_tls: sni \"10.0.0.1:1\" is not a DNS name: write e.g. \"chat.internal\"",
        ),
    ] {
        assert_eq!(refused_with(line), expected);
    }
}
