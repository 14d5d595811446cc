use std::fs;

use rcgen::{CertificateParams, KeyPair};

use super::*;

const DAY: i64 = 86_400;

/// A directory of this test's own, gone afterwards.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sluice-tls-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.0.join(name);
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// `NAME.pem` and `NAME.key`, valid from then and for so many days.
    fn certificate(&self, name: &str, from: i64, days: i64) {
        let mut params = CertificateParams::new(["chat.example".to_owned()]).unwrap();
        let at = |seconds: i64| {
            std::time::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap())
        };
        params.not_before = at(from).into();
        params.not_after = at(from + days * DAY).into();
        let key = KeyPair::generate().unwrap();
        self.write(&format!("{name}.pem"), params.self_signed(&key).unwrap().pem());
        self.write(&format!("{name}.key"), key.serialize_pem());
    }

    fn config(&self, certificate: &str, key: &str, more: &str) -> Config {
        let text = format!(
            r#"
            [edge]
            name = "e"
            interfaces = ["eth0"]
            hash_seed = "s"
            [[service]]
            name = "chat"
            mode = "l7"
            listen = ["203.0.113.10:443"]
            [service.tls]
            certificates = [{{ certificate = "{0}/{certificate}", key = "{0}/{key}" }}]
            {more}
            [[service.backend]]
            address = "10.2.0.2:9000"
            "#,
            self.0.display()
        );
        config::parse("edge.toml", &text).unwrap_or_else(|it| panic!("{it}")).0
    }

    fn refused(&self, config: &Config) -> String {
        let errors = load(config, 1_000 * DAY).unwrap_err().to_string();
        errors.replace(&format!("{}/", self.0.display()), "")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_certificate_and_its_key_are_taken_and_never_shown() {
    let files = Directory::new("taken");
    files.certificate("a", 1_000 * DAY, 90);
    let (material, warnings) = load(&files.config("a.pem", "a.key", ""), 1_001 * DAY).unwrap();
    assert_eq!(warnings, []);
    let tls = &material.clients["chat"];
    assert_eq!(tls.certificates[0].names, ["chat.example"]);
    assert_eq!(material.expiries[0].not_after, 1_090 * DAY);
    assert!(!format!("{material:?}").contains("PRIVATE"), "{material:?}");
}

#[test]
fn ends_are_warned_of_early() {
    let files = Directory::new("ends");
    files.certificate("a", 1_000 * DAY, 90);
    for (day, more, expected) in [
        (1_059, "", None),
        (1_061, "", Some("expires in 29 days: renew it")),
        (1_061, "expiry_warning = \"7d\"", None),
        (1_091, "", Some("has expired: clients refuse it: renew it")),
        (999, "", Some("is not valid yet: set the clock right, or wait")),
    ] {
        let (_, warnings) = load(&files.config("a.pem", "a.key", more), day * DAY).unwrap();
        let warnings: Vec<_> = warnings.iter().map(ToString::to_string).collect();
        let expected: Vec<_> = expected
            .iter()
            .map(|it| {
                format!("{}/a.pem: service \"chat\": tls: certificate {it}", files.0.display())
            })
            .collect();
        assert_eq!(warnings, expected, "day {day}");
    }
}

#[test]
fn files_that_are_not_what_they_should_be_are_refused() {
    let files = Directory::new("refused");
    files.certificate("a", 1_000 * DAY, 90);
    files.certificate("b", 1_000 * DAY, 90);
    files.write("noise", [0xff; 100]);
    files.write("empty", "");
    files.write("text", "-----BEGIN CERTIFICATE-----\n????\n-----END CERTIFICATE-----\n");
    for (certificate, key, expected) in [
        ("a.pem", "b.key", "do not belong together"),
        ("a.key", "a.pem", "is not PEM"),
        ("noise", "a.key", "tls: certificate is not PEM: name a file in PEM"),
        ("empty", "a.key", "the certificate is not PEM"),
        ("text", "a.key", "the certificate is not PEM"),
        ("a.pem", "empty", "the key is not a private key in PEM"),
        ("a.pem", "none", "none: service \"chat\": tls: key cannot be read: No such file"),
        (".", "a.key", "is no file of at most 4 MiB"),
    ] {
        let refused = files.refused(&files.config(certificate, key, ""));
        assert!(refused.contains(expected), "{certificate} {key}: {refused}");
        assert!(!refused.contains("PRIVATE"), "{refused}");
    }
    let refused = files.refused(&files.config("a.pem", "a.key", "client_ca = \"/dev/null\""));
    assert!(
        refused.contains("/dev/null: service \"chat\": tls: client_ca is no file"),
        "{refused}"
    );
}

#[test]
fn only_answers_of_ocsp_are_stapled() {
    let files = Directory::new("ocsp");
    files.certificate("a", 1_000 * DAY, 90);
    let config =
        files.config("a.pem", &format!("a.key\", ocsp = \"{}/a.ocsp", files.0.display()), "");
    let good = [0x30, 7, 0x0a, 1, 0, 0xa0, 2, 0x30, 0];
    files.write("a.ocsp", good);
    let (material, _) = load(&config, 1_001 * DAY).unwrap();
    assert_eq!(material.clients["chat"].certificates[0].ocsp.as_deref(), Some(&good[..]));
    for foreign in [&b"-----BEGIN OCSP RESPONSE-----"[..], &good[..8], b""] {
        files.write("a.ocsp", foreign);
        assert_eq!(
            files.refused(&config).trim(),
            "a.ocsp: service \"chat\": tls: ocsp is not an answer of OCSP in DER: name a file that the -respout of \
             `openssl ocsp` has written"
        );
    }
}

#[test]
fn a_key_that_everybody_can_read_is_warned_of() {
    let files = Directory::new("modes");
    files.certificate("a", 1_000 * DAY, 90);
    fs::set_permissions(files.0.join("a.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let (_, warnings) = load(&files.config("a.pem", "a.key", ""), 1_001 * DAY).unwrap();
    assert!(warnings[0].to_string().contains("has mode 0644, which lets everybody at it"));
}
