//! nghttp2's h2load: requests over HTTP/2.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::{
    bench::{account::Account, load::Sample},
    netns::NsHandle,
    process, tls,
};

/// Clients, requests that each has under way, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub clients: usize,
    pub streams: usize,
    pub time: Duration,
}

/// Runs it to its end, its handshakes included. Every request must have been answered with 2xx.
pub fn run(at: &NsHandle, address: SocketAddr, plan: &Plan, account: &Account) -> Result<Sample> {
    let Plan { clients, streams, time } = plan;
    let mut command = at.command("h2load");
    command.args(["--threads=1", "--tls13-ciphers=TLS_AES_128_GCM_SHA256"]);
    command.arg(format!("--clients={clients}"));
    command.arg(format!("--max-concurrent-streams={streams}"));
    command.arg(format!("--duration={}ms", time.as_millis()));
    command.arg(format!("--connect-to={address}")).arg(format!("https://{}/api", tls::NAME));
    let start = account.now()?;
    let said = process::run(&mut command)?;
    let expense = account.since(&start)?;
    let done = succeeded(&said).with_context(|| format!("h2load said:\n{said}"))?;
    Ok(Sample { done, expense })
}

/// Requests that were answered with 2xx; an error if there are others.
fn succeeded(said: &str) -> Result<u64> {
    let line = |name: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(name));
        line.with_context(|| format!("no {name}"))
    };
    let number = |line: &str, what: &str| {
        let words: Vec<&str> = line.split([' ', ',']).filter(|it| !it.is_empty()).collect();
        let at = words.iter().position(|word| *word == what);
        let number = at.and_then(|at| words.get(at.checked_sub(1)?)?.parse::<u64>().ok());
        number.with_context(|| format!("no number of {what}"))
    };
    ensure!(line("Application protocol: ")? == "h2", "not HTTP/2");
    let requests = line("requests: ")?;
    for what in ["failed", "errored", "timeout"] {
        ensure!(number(requests, what)? == 0, "requests have {what}");
    }
    let statuses = line("status codes: ")?;
    for what in ["3xx", "4xx", "5xx"] {
        ensure!(number(statuses, what)? == 0, "answers with {what}");
    }
    let done = number(statuses, "2xx")?;
    ensure!(done > 0, "nothing was answered");
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "TLS Protocol: TLSv1.3
Application protocol: h2
finished in 2.00s, 10.50 req/s, 1.00KB/s
requests: 21 total, 31 started, 21 done, 21 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 21 2xx, 0 3xx, 0 4xx, 0 5xx
";

    #[test]
    fn only_answers_that_are_all_well_count() {
        assert_eq!(succeeded(SAID).unwrap(), 21);
        for (good, bad) in [
            ("0 failed", "1 failed"),
            ("0 timeout", "2 timeout"),
            ("0 5xx", "1 5xx"),
            ("21 2xx", "0 2xx"),
            ("protocol: h2", "protocol: http/1.1"),
            ("status codes", "codes"),
        ] {
            assert!(succeeded(&SAID.replace(good, bad)).is_err(), "{bad}");
        }
    }
}
