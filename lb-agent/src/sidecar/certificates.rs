//! The files that TLS takes: certificates, their keys, authorities. Read and checked, so that workers get what they can
//! use, and a file that is wrong changes nothing.
//!
//! No message of this module shows anything that could be a secret.

use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use lb_sidecar::{
    settings::{self, Certificate, TicketKey},
    tls::{self, Leaf},
};

use crate::{
    bounded_file::{self, Contents, Unusable},
    config::{
        self, BackendTls, CertificateFiles, ClientAuth, Config, ConfigErrors, Problem, Tls, Warning,
    },
};

/// The key of a certificate that clients are shown.
const CERTIFICATE: &str = "tls: certificate";

/// The largest file that is read, in bytes. The system's bundles of authorities are about 200 KiB.
const MOST_BYTES: u64 = 4 << 20;

/// What the files hold, by service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Material {
    pub clients: BTreeMap<String, settings::Tls>,
    pub backends: BTreeMap<String, settings::BackendTls>,
    pub ticket_keys: Vec<TicketKey>,
    pub expiries: Vec<Expiry>,
}

/// When a certificate ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiry {
    pub service: String,
    pub certificate: PathBuf,
    /// Seconds of Unix time.
    pub not_after: i64,
    /// How long before it is warned of.
    pub early: Duration,
}

impl Expiry {
    /// What there is to warn of, `now` in seconds of Unix time.
    #[must_use]
    pub fn warning(&self, now: i64) -> Option<Warning> {
        let left = self.not_after.saturating_sub(now);
        let early = i64::try_from(self.early.as_secs()).unwrap_or(i64::MAX);
        let what = match left {
            left if left <= 0 => "has expired: clients refuse it".to_owned(),
            left if left <= early => format!("expires in {} days", left.div_euclid(86_400)),
            _ => return None,
        };
        let thing = Thing { service: &self.service, key: CERTIFICATE };
        Some(thing.problem(&self.certificate, what, "renew it"))
    }
}

/// What was found on reading.
#[derive(Debug, Default)]
pub struct Reading {
    pub material: Material,
    /// Files that this process cannot read.
    pub unreadable: Vec<Problem>,
    /// Files with the wrong contents.
    pub errors: Vec<Problem>,
    pub warnings: Vec<Warning>,
}

/// All files that a configuration names for TLS.
pub fn files(config: &Config) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for l7 in config.l7().filter_map(config::Service::l7) {
        if let Some(Tls { certificates, client_auth, .. }) = &l7.tls {
            for it in certificates {
                files.extend([it.certificate.clone(), it.key.clone()]);
                files.extend(it.ocsp.clone());
            }
            files.extend(client_auth.as_ref().map(|auth| auth.ca.clone()));
        }
        if let Some(BackendTls { ca, client, .. }) = &l7.backend_tls {
            files.extend(ca.clone());
            files.extend(client.iter().flat_map(|(chain, key)| [chain.clone(), key.clone()]));
        }
    }
    files
}

/// Reads and checks them. `now` is seconds of Unix time.
pub fn read(config: &Config, now: i64) -> Reading {
    let mut reading = Reading::default();
    for service in config.l7() {
        let Some(l7) = service.l7() else { continue };
        if let Some(tls) = &l7.tls {
            reading.clients(&service.name, tls, now);
        }
        if let Some(tls) = &l7.backend_tls {
            reading.backends(&service.name, tls);
        }
    }
    reading
}

/// The same where every file must be there.
pub fn load(config: &Config, now: i64) -> Result<(Material, Vec<Warning>), ConfigErrors> {
    let Reading { material, unreadable, mut errors, warnings } = read(config, now);
    errors.extend(unreadable);
    ConfigErrors::of(errors).map_or(Ok((material, warnings)), Err)
}

/// Where a file is named, and what for.
#[derive(Clone, Copy)]
struct Thing<'a> {
    service: &'a str,
    key: &'a str,
}

impl Thing<'_> {
    fn problem(self, file: &Path, what: String, remedy: &str) -> Problem {
        Problem {
            file: file.display().to_string(),
            line: None,
            thing: format!("service {:?}: {}", self.service, self.key),
            value: String::new(),
            what,
            remedy: remedy.to_owned(),
        }
    }
}

impl Reading {
    fn clients(&mut self, service: &str, told: &Tls, now: i64) {
        let mut certificates = Vec::new();
        for files in &told.certificates {
            certificates.extend(self.certificate(service, told, files, now));
        }
        let client_auth = told.client_auth.as_ref().map(|ClientAuth { ca, required, header }| {
            let ca = self.authorities(Thing { service, key: "tls: client_ca" }, ca);
            settings::ClientAuth { ca, required: *required, header: header.clone() }
        });
        let tls = settings::Tls {
            certificates,
            unknown_sni: told.unknown_sni,
            min_version: told.min_version,
            alpn: told.alpn.clone(),
            handshake_timeout: told.handshake_timeout,
            client_auth,
        };
        self.material.clients.insert(service.to_owned(), tls);
    }

    fn certificate(
        &mut self,
        service: &str,
        told: &Tls,
        files: &CertificateFiles,
        now: i64,
    ) -> Option<Certificate> {
        let thing = Thing { service, key: CERTIFICATE };
        let chain = self.text(thing, &files.certificate);
        let key = self.secret(Thing { service, key: "tls: key" }, &files.key);
        let ocsp = files.ocsp.as_ref().map(|file| self.ocsp(service, file));
        let (chain, key) = (chain?, key?);
        let leaf = self.matching(thing, files, &chain, &key)?;
        self.expiry(thing, told.expiry_warning, files, &leaf, now);
        let ocsp = match ocsp {
            None => None,
            Some(read) => Some(read?),
        };
        Some(Certificate { names: leaf.names, chain, key, ocsp })
    }

    fn matching(
        &mut self,
        thing: Thing<'_>,
        files: &CertificateFiles,
        chain: &str,
        key: &str,
    ) -> Option<Leaf> {
        match tls::leaf(chain, key) {
            Ok(leaf) => Some(leaf),
            Err(error) => {
                let what = format!("with the key {}: {error:#}", files.key.display());
                let remedy = "name a certificate in PEM, those that lead to its root behind it, and its own key";
                self.errors.push(thing.problem(&files.certificate, what, remedy));
                None
            }
        }
    }

    fn expiry(
        &mut self,
        thing: Thing<'_>,
        early: Duration,
        files: &CertificateFiles,
        leaf: &Leaf,
        now: i64,
    ) {
        let expiry = Expiry {
            service: thing.service.to_owned(),
            certificate: files.certificate.clone(),
            not_after: leaf.not_after,
            early,
        };
        self.warnings.extend(expiry.warning(now));
        if leaf.not_before > now {
            let what = "is not valid yet".to_owned();
            self.warnings.push(thing.problem(
                &files.certificate,
                what,
                "set the clock right, or wait",
            ));
        }
        if leaf.names.is_empty() {
            let what =
                "has no DNS name: only clients that ask for no other certificate get it".to_owned();
            self.warnings.push(thing.problem(&files.certificate, what, "use one with names"));
        }
        self.material.expiries.push(expiry);
    }

    fn ocsp(&mut self, service: &str, file: &Path) -> Option<Vec<u8>> {
        let thing = Thing { service, key: "tls: ocsp" };
        let answer = self.bytes(thing, file)?;
        if let Err(error) = tls::ocsp(&answer) {
            let remedy = "name a file that the -respout of `openssl ocsp` has written";
            self.errors.push(thing.problem(file, format!("{error:#}"), remedy));
            return None;
        }
        Some(answer)
    }

    fn backends(&mut self, service: &str, told: &BackendTls) {
        let thing = |key| Thing { service, key };
        let ca = match (&told.ca, told.verify) {
            (_, false) => String::new(),
            (Some(file), true) => self.authorities(thing("backend_tls: ca"), file),
            (None, true) => self.system(thing("backend_tls")),
        };
        let client = told.client.as_ref().and_then(|(certificate, key)| {
            let chain = self.text(thing("backend_tls: certificate"), certificate);
            let files =
                CertificateFiles { certificate: certificate.clone(), key: key.clone(), ocsp: None };
            // Both are told of, if neither can be read.
            let key = self.secret(thing("backend_tls: key"), key);
            let (chain, key) = (chain?, key?);
            self.matching(thing("backend_tls: certificate"), &files, &chain, &key)?;
            Some((chain, key))
        });
        let tls =
            settings::BackendTls { verify: told.verify, ca, server_name: told.sni.clone(), client };
        self.material.backends.insert(service.to_owned(), tls);
    }

    fn authorities(&mut self, thing: Thing<'_>, file: &Path) -> String {
        let Some(text) = self.text(thing, file) else { return String::new() };
        if let Err(error) = tls::authorities(&text) {
            let remedy = "name a file with the authorities' certificates in PEM";
            self.errors.push(thing.problem(file, format!("{error:#}"), remedy));
        }
        text
    }

    /// The system's.
    fn system(&mut self, thing: Thing<'_>) -> String {
        let found = rustls_native_certs::load_native_certs();
        if found.certs.is_empty() {
            let remedy = "install ca-certificates, or name a ca";
            let what = "finds no authorities on this system".to_owned();
            self.unreadable.push(thing.problem(Path::new("ca"), what, remedy));
        }
        tls::to_pem(found.certs.iter().map(AsRef::as_ref))
    }

    fn text(&mut self, thing: Thing<'_>, file: &Path) -> Option<String> {
        let bytes = self.bytes(thing, file)?;
        let text = String::from_utf8(bytes).ok();
        if text.is_none() {
            self.errors.push(thing.problem(file, "is not PEM".to_owned(), "name a file in PEM"));
        }
        text
    }

    fn secret(&mut self, thing: Thing<'_>, file: &Path) -> Option<String> {
        let text = self.text(thing, file)?;
        let mode = file.metadata().map_or(0, |it| it.permissions().mode()) & 0o777;
        if mode & 0o007 != 0 {
            let what = format!("has mode {mode:04o}, which lets everybody at it");
            let remedy = format!("chmod 600 {}", file.display());
            self.warnings.push(thing.problem(file, what, &remedy));
        }
        Some(text)
    }

    fn bytes(&mut self, thing: Thing<'_>, file: &Path) -> Option<Vec<u8>> {
        match bounded_file::read(file, MOST_BYTES) {
            Ok(Contents { bytes, .. }) => Some(bytes),
            Err(why @ Unusable::Unreadable(_)) => {
                let remedy = "name a file that root may read";
                self.unreadable.push(thing.problem(file, why.to_string(), remedy));
                None
            }
            Err(_) => {
                let what = format!("is no file of at most {} MiB", MOST_BYTES >> 20);
                self.errors.push(thing.problem(file, what, "name another file"));
                None
            }
        }
    }
}

#[cfg(test)]
#[path = "certificates_tests.rs"]
mod tests;
