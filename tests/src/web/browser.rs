//! Chromium, which opens a page that reports what it saw.

use std::time::Instant;

use anyhow::{Result, bail};
use serde_json::Value;

use super::site::{PATIENCE, WebSite};
use crate::browser;
use crate::process::{self, Process};
use crate::tls;

impl WebSite {
    /// Has a headless browser open a page which reports to the backend that it was loaded from. Returns
    /// the backend and its report. The browser knows the edge's IPv4 address as [`tls::NAME`].
    pub fn browse(&self, url: &str) -> Result<(String, Value)> {
        let home = self.scratch().path().join("home");
        self.trust(&home)?;
        let mut command = browser::command(self.client(), &home)?;
        let address = self.lab.vips()[0];
        command.arg(format!("--host-resolver-rules=MAP {} {address}", tls::NAME)).arg(url);
        let browser = Process::spawn("chromium", command)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut lines = self.servers().iter().flat_map(Process::output);
            if let Some(report) = lines.find_map(|line| {
                let (name, report) = line.split_once(": report ")?;
                Some((name.to_owned(), report.to_owned()))
            }) {
                let (name, report) = report;
                return Ok((name, serde_json::from_str(&report)?));
            }
            if Instant::now() >= deadline {
                bail!("no report from {url}; chromium said:\n{}", browser.output().join("\n"));
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// Makes the authority one that Chromium trusts, whose own are in a database below its home.
    fn trust(&self, home: &std::path::Path) -> Result<()> {
        let database = home.join(".pki/nssdb");
        std::fs::create_dir_all(&database)?;
        let Some(authority) = self.authority() else { return Ok(()) };
        let certutil = |arguments: &[&str]| {
            let mut command = process::command("certutil");
            command.arg("-d").arg(format!("sql:{}", database.display())).args(arguments);
            process::run(&mut command)
        };
        certutil(&["-N", "--empty-password"])?;
        let file = authority.to_str().expect("a path of our own");
        certutil(&["-A", "-n", "tests", "-t", "C,,", "-i", file]).map(drop)
    }
}
