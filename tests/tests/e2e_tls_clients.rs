//! Clients of others over TLS and HTTP/2: Node.js, Python and Chromium with `wss`, curl, nghttp, h2load, openssl. Needs
//! root and packages: `cargo xtask test --full` installs them.

use std::fs;
use std::net::SocketAddr;

use serde_json::Value;
use tests::owner::OwnedDir;
use tests::privilege::require_root;
use tests::tls::{Authority, Files, NAME};
use tests::topology::{VIP4, VIP6};
use tests::web::seen::{items, stayed};
use tests::web::{WebPlan, WebSite};

const PORT: u16 = 443;

/// A site that is served by TLS.
struct Secure {
    site: WebSite,
    scratch: OwnedDir,
}

/// Certificate and key in the scratch directory, for [`NAME`] and the addresses.
fn issue(authority: &Authority, scratch: &OwnedDir) -> Files {
    let files = Files::new(scratch.path());
    authority.issue(&files, &[&VIP4.to_string(), &VIP6.to_string()]).unwrap();
    files
}

/// With more keys of `[service.tls]`.
fn secure(keys: &str) -> Secure {
    secure_with(|authority, scratch| (issue(authority, scratch), keys.to_owned()))
}

fn secure_with(files: impl FnOnce(&Authority, &OwnedDir) -> (Files, String)) -> Secure {
    require_root();
    let scratch = OwnedDir::scratch("tls").unwrap();
    let authority = Authority::new().unwrap();
    let trusted = scratch.path().join("ca.pem");
    fs::write(&trusted, authority.pem()).unwrap();
    let (Files { certificate, key }, keys) = files(&authority, &scratch);
    let ocsp = scratch.path().join("chat.ocsp");
    let ocsp = if ocsp.exists() { format!(", ocsp = {ocsp:?}") } else { String::new() };
    let tables = format!(
        "\n[service.tls]\ncertificates = [{{ certificate = {certificate:?}, key = {key:?}{ocsp} }}]\n{keys}\n"
    );
    let plan = WebPlan { port: PORT, tables, authority: Some(trusted), ..WebPlan::default() };
    Secure { site: plan.build().unwrap(), scratch }
}

impl Secure {
    /// What `openssl s_client` says, whatever it thinks of the server.
    fn openssl(&self, target: SocketAddr, arguments: &[&str], input: &str) -> String {
        // It ends with an error where it is refused, which is for the caller to see.
        let script = "openssl s_client \"$@\" 2>&1 || true";
        let target = target.to_string();
        let always = ["-c", script, "openssl", "-connect", &target, "-servername", NAME];
        self.site.run("sh", &[&always[..], arguments].concat(), input).unwrap()
    }
}

#[test]
fn npm_ws_and_python_websockets_chat_over_wss() {
    let it = secure("");
    for target in it.site.listeners() {
        let url = format!("wss://{target}");
        let sessions = it.site.node("ws.js", &[&url, "4"]).unwrap();
        stayed(&sessions, 4);
        for session in items(&sessions) {
            assert_eq!(session["extensions"], "permessage-deflate", "{session}");
        }
        stayed(&it.site.python("chat.py", &[&url, "4"]).unwrap(), 4);
    }
    it.site.wait_counted("upgraded", 16).unwrap();
    assert_eq!(it.site.counted("splice_tls").unwrap(), 16, "XDP has no keys");
}

#[test]
fn nobody_stays_with_a_certificate_that_he_does_not_trust() {
    // From the beginning: the one that clients trust has signed another one.
    let it = secure_with(|_, scratch| (issue(&Authority::new().unwrap(), scratch), String::new()));
    let target = it.site.listeners()[0];
    let url = format!("wss://{target}");
    let error = it.site.node("ws.js", &[&url, "1"]).unwrap_err().to_string();
    assert!(error.contains("UNABLE_TO_VERIFY_LEAF_SIGNATURE"), "{error}");
    let error = it.site.python("chat.py", &[&url, "1"]).unwrap_err().to_string();
    assert!(error.contains("CERTIFICATE_VERIFY_FAILED"), "{error}");
    assert_eq!(it.site.counted("request").unwrap(), 0);
    // These two go without a word, and curl says why.
    let error = it.site.curl(&[&format!("https://{target}/echo")]).unwrap_err().to_string();
    assert!(error.contains("unable to get local issuer certificate"), "{error}");
    it.site.wait_counted("tls_refused", 1).unwrap();
}

/// Has a page chat in two WebSocket sessions and a Socket.IO one, and returns what the access log has of these.
fn browse(it: &Secure) -> Vec<Value> {
    let (backend, seen) = it.site.browse(&format!("https://{NAME}/page")).unwrap();
    assert_eq!(seen["errors"], Value::Array(Vec::new()), "{seen}");
    assert_eq!(seen["transport"], "websocket", "{seen}");
    for (chats, number) in [("websocket", 2), ("socketio", 2)] {
        let backends = items(&seen[chats]);
        assert_eq!(backends.len(), number, "{seen}");
        assert!(backends.iter().all(|it| *it == *backend), "loaded from {backend}: {seen}");
    }
    assert_eq!(seen["cookie"], "", "scripts cannot read it: {seen}");
    let upgrades = it.site.wait_logged("upgrade", 3).unwrap();
    assert_eq!(upgrades.len(), 3, "{upgrades:#?}");
    upgrades
}

#[test]
fn a_page_in_chromium_chats_over_wss() {
    let it = secure("alpn = [\"http/1.1\"]");
    let upgrades = browse(&it);
    assert!(upgrades.iter().all(|it| it["protocol"] == "HTTP/1.1"), "{upgrades:#?}");
    it.site.wait_counted("splice_tls", 3).unwrap();
    assert_eq!(it.site.counted("http2_connection").unwrap(), 0);
}

#[test]
fn a_page_in_chromium_chats_over_http2() {
    let it = secure("");
    let upgrades = browse(&it);
    assert!(upgrades.iter().all(|it| it["protocol"] == "HTTP/2"), "{upgrades:#?}");
    it.site.wait_counted("splice_http2", 3).unwrap();
    // The page and its chats are streams of one connection.
    let requests = it.site.wait_logged("request", 1).unwrap();
    let page = requests.iter().find(|it| it["path"] == "/page").unwrap();
    assert!(upgrades.iter().all(|it| it["connection"] == page["connection"]), "{upgrades:#?}");
}

#[test]
fn curl_speaks_http2() {
    let it = secure("");
    for target in it.site.listeners() {
        let resolve = format!("{NAME}:{PORT}:{}", target.ip());
        let url = format!("https://{NAME}/echo");
        let jar = if target.is_ipv4() { "jar4" } else { "jar6" };
        let asked = ["--http2", "--resolve", &resolve, "--cookie-jar", jar, "--cookie", jar, &url];
        let first = it.site.answers(&asked).unwrap().pop().unwrap();
        assert_eq!((first.version.as_str(), first.status), ("HTTP/2", 200));
        let cookie = first.header("set-cookie").expect("a cookie");
        assert!(cookie.starts_with("sluice=") && cookie.contains("Secure"), "{cookie}");
        let again = it.site.answers(&asked).unwrap().pop().unwrap();
        assert_eq!(again.backend(), first.backend());
        let seen = again.json().unwrap();
        assert_eq!(seen["headers"]["x-forwarded-proto"], "https", "{seen}");
        assert_eq!(seen["headers"]["host"], NAME, "{seen}");
        assert_eq!(seen["version"], "1.1", "to the backend: {seen}");

        // Up and down, with more than windows hold.
        fs::write(it.site.scratch().path().join("upload"), vec![b'x'; 5_000_000]).unwrap();
        let up = [&asked[..], &["--upload-file", "upload"]].concat();
        let answer = it.site.answers(&up).unwrap().pop().unwrap();
        assert_eq!(answer.json().unwrap()["bytes"], 5_000_000);
        let stream = format!("https://{NAME}/stream?pieces=3000");
        let down = ["--http2", "--resolve", &resolve, &stream];
        let answer = it.site.answers(&down).unwrap().pop().unwrap();
        // curl shows the trailer after the body.
        let (body, trailers) = answer.body.trim_end().rsplit_once('\n').unwrap();
        assert_eq!(body.lines().count(), 300_000);
        assert!(trailers.to_ascii_lowercase().starts_with("x-sum: "), "{trailers}");

        // Whoever does not want it does without.
        let old = ["--http1.1", "--resolve", &resolve, &url];
        let answer = it.site.answers(&old).unwrap().pop().unwrap();
        assert_eq!((answer.version.as_str(), answer.status), ("HTTP/1.1", 200));
    }
}

/// Without TLS, where HTTP/2 is known beforehand or asked for by an upgrade.
fn plain() -> WebSite {
    require_root();
    let tables = "\n[service.http]\nh2c = true\n".to_owned();
    WebPlan { tables, ..WebPlan::default() }.build().unwrap()
}

#[test]
fn curl_knows_or_asks_for_http2_without_tls() {
    let site = plain();
    for target in site.listeners() {
        let url = format!("http://{target}/echo");
        let known = site.answers(&["--http2-prior-knowledge", &url]).unwrap().pop().unwrap();
        assert_eq!((known.version.as_str(), known.status), ("HTTP/2", 200));
        // RFC 9113, section 3.1: the upgrade to h2c is obsolete. It is ignored, and no backend hears of it.
        let asked = site.answers(&["--http2", &url]).unwrap().pop().unwrap();
        assert_eq!((asked.version.as_str(), asked.status), ("HTTP/1.1", 200));
        let headers = &asked.json().unwrap()["headers"];
        assert_eq!(headers["upgrade"], Value::Null, "{headers}");
    }
    site.wait_counted("http2_connection", 2).unwrap();
}

#[test]
fn nghttp_asks_for_much_at_once() {
    let it = secure("");
    let site = plain();
    for (site, scheme) in [(&it.site, "https"), (&site, "http")] {
        for target in site.listeners() {
            let url = |path: &str| format!("{scheme}://{target}{path}");
            let said = site.run("nghttp", &["-v", "-n", "-m", "40", &url("/echo")], "").unwrap();
            assert!(!said.contains("verification failed"), "{said}");
            assert_eq!(said.matches(":status: 200").count(), 40, "{said}");
            assert!(said.contains("SETTINGS_ENABLE_CONNECT_PROTOCOL(0x08):1"), "{said}");
            assert!(!said.contains("RST_STREAM") && !said.contains("ENHANCE_YOUR_CALM"), "{said}");

            fs::write(site.scratch().path().join("body"), vec![b'x'; 300_000]).unwrap();
            // In small frames, with a trailer, and padded.
            let sent = ["--data", "body", "--trailer", "x-sum: 1", "--padding", "64"];
            let said = site.run("nghttp", &[&sent[..], &[&url("/echo")]].concat(), "").unwrap();
            assert!(said.contains("\"bytes\":300000"), "{said}");
            // A window smaller than a frame.
            let narrow = ["-w", "10", "-W", "12", "-n", "-s", &url("/stream?pieces=100")];
            let said = site.run("nghttp", &narrow, "").unwrap();
            assert!(said.contains(" 200 "), "{said}");
        }
    }
}

#[test]
fn h2load_gets_all_its_answers() {
    const REQUESTS: &str = "2000";
    let it = secure("");
    let site = plain();
    for (site, scheme) in [(&it.site, "https"), (&site, "http")] {
        for target in site.listeners() {
            let url = format!("{scheme}://{target}/nothing");
            // By itself it asks for an IPv6 address without brackets, which is no authority.
            let authority = format!(":authority: {NAME}");
            let arguments = ["-n", REQUESTS, "-c", "10", "-m", "32", "-H", &authority, &url];
            let said = site.run("h2load", &arguments, "").unwrap();
            assert!(said.contains("2000 succeeded, 0 failed, 0 errored, 0 timeout"), "{said}");
            assert!(said.contains("status codes: 2000 2xx"), "{said}");
        }
        site.wait_counted("http2_connection", 20).unwrap();
        site.wait_counted("status_2xx", 4000).unwrap();
    }
}

#[test]
fn openssl_chooses_http2() {
    let it = secure("");
    for target in it.site.listeners() {
        let strict = ["-verify_return_error", "-verify_hostname", NAME];
        let said = it.openssl(target, &[&strict[..], &["-alpn", "h2,http/1.1"]].concat(), "");
        assert!(said.contains("ALPN protocol: h2\n"), "{said}");
        assert!(said.contains("Verify return code: 0 (ok)"), "{said}");
        let said = it.openssl(target, &[&strict[..], &["-alpn", "http/1.1"]].concat(), "");
        assert!(said.contains("ALPN protocol: http/1.1\n"), "{said}");
    }
}

/// Has the authority say in a file that the certificate is good, as its OCSP responder would.
fn staple(authority: &Authority, scratch: &OwnedDir) {
    let openssl = |arguments: &[&str]| {
        let mut command = tests::process::command("openssl");
        tests::process::run(command.args(arguments).current_dir(scratch.path())).unwrap()
    };
    fs::write(scratch.path().join("ca.key"), authority.key_pem()).unwrap();
    let serial = openssl(&["x509", "-in", "chat.pem", "-noout", "-serial"]);
    let serial = serial.trim().strip_prefix("serial=").unwrap();
    // State, end, revocation, serial number, file, subject.
    let index = format!("V\t391231235959Z\t\t{serial}\tunknown\t/CN=chat\n");
    fs::write(scratch.path().join("index"), index).unwrap();
    openssl(&[
        "ocsp",
        "-index",
        "index",
        "-CA",
        "ca.pem",
        "-rsigner",
        "ca.pem",
        "-rkey",
        "ca.key",
        "-issuer",
        "ca.pem",
        "-cert",
        "chat.pem",
        "-ndays",
        "1",
        "-respout",
        "chat.ocsp",
    ]);
}

#[test]
fn openssl_is_shown_what_the_authority_says_of_the_certificate() {
    let it = secure_with(|authority, scratch| {
        let files = issue(authority, scratch);
        staple(authority, scratch);
        (files, String::new())
    });
    for version in ["-tls1_2", "-tls1_3"] {
        let said = it.openssl(it.site.listeners()[0], &["-status", version], "");
        assert!(said.contains("OCSP Response Status: successful (0x0)"), "{said}");
        assert!(said.contains("Cert Status: good"), "{said}");
        // Who does not ask is not told.
        let said = it.openssl(it.site.listeners()[0], &[version], "");
        assert!(!said.contains("Cert Status"), "{said}");
    }
    let it = secure("");
    let said = it.openssl(it.site.listeners()[0], &["-status"], "");
    assert!(said.contains("OCSP response: no response sent"), "{said}");
}

#[test]
fn openssl_shows_certificates_of_its_own() {
    const ASK: &str = "GET /echo HTTP/1.1\r\nHost: chat.test\r\nConnection: close\r\n\r\n";
    let it = secure_with(|authority, scratch| {
        let ca = scratch.path().join("ca.pem");
        let keys = format!("client_ca = {ca:?}\nclient_cert_header = \"X-Client\"");
        (issue(authority, scratch), keys)
    });
    let stranger = Authority::new().unwrap();
    let directory = OwnedDir::scratch("stranger").unwrap();
    let (known, unknown) = (Files::new(it.scratch.path()), issue(&stranger, &directory));
    let target = it.site.listeners()[0];
    let show = |files: &Files| {
        let (certificate, key) = (files.certificate.to_str().unwrap(), files.key.to_str().unwrap());
        it.openssl(target, &["-ign_eof", "-cert", certificate, "-key", key], ASK)
    };
    let said = show(&known);
    assert!(said.contains("HTTP/1.1 200 OK") && said.contains("\"x-client\":\""), "{said}");
    let said = show(&unknown);
    assert!(said.contains("alert unknown ca") && !said.contains("HTTP/1.1 200"), "{said}");
    it.site.wait_counted("tls_untrusted", 1).unwrap();
    let said = it.openssl(target, &["-ign_eof"], ASK);
    assert!(said.contains("alert certificate required"), "{said}");
    it.site.wait_counted("tls_untrusted", 2).unwrap();
}

#[test]
fn openssl_sees_an_expired_certificate_of_which_the_agent_has_warned() {
    let it = secure_with(|authority, scratch| {
        let files = Files::new(scratch.path());
        authority.issue_expired(&files).unwrap();
        (files, String::new())
    });
    let said = it.openssl(it.site.listeners()[0], &[], "");
    assert!(said.contains("Verify return code: 10 (certificate has expired)"), "{said}");
    let log = it.site.edge.log();
    assert!(log.iter().any(|line| line.contains("has expired: clients refuse it")), "{log:#?}");
}
