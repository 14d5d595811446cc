//! Certificates and ticket keys of a running edge: read with each configuration and whenever their files change.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lb_sidecar::settings::{CookieKey, Settings, TicketKey};

use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::{agent::Agent, own_keys, reload::FileWatch, start::Refused};
use crate::{
    config::{Config, ConfigErrors, Warning},
    events::{Kind, News},
    sidecar::{
        certificates::{self, Expiry, Material, Reading},
        keys,
    },
};

/// Between two looks at who ends soon.
const DAY: Duration = Duration::from_secs(86_400);

/// Ticks when it is time for one of them; the first was on reading.
pub fn rounds() -> Interval {
    let mut rounds = interval_at(Instant::now() + DAY, DAY);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    rounds
}

/// Who ends soon, with the service. `now` is seconds of Unix time.
fn ending(expiries: &[Expiry], now: i64) -> impl Iterator<Item = (&str, Warning)> {
    expiries.iter().filter_map(move |it| Some((it.service.as_str(), it.warning(now)?)))
}

/// Reads what a configuration names; warnings go to the log.
pub fn material(config: &Config) -> Result<Material, Refused> {
    let refused =
        |errors: ConfigErrors| Refused(errors.iter().map(ToString::to_string).collect::<Vec<_>>());
    let (mut material, warnings) = certificates::load(config, unix()).map_err(refused)?;
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    if !material.clients.is_empty() {
        material.ticket_keys = ticket_keys(config).map_err(refused)?;
    }
    Ok(material)
}

/// Of the file, or those that this agent has made for itself.
fn ticket_keys(config: &Config) -> Result<Vec<TicketKey>, ConfigErrors> {
    let Some(path) = &config.edge.sidecar.ticket_keys else { return Ok(own_keys::now()) };
    let (keys, warnings) = keys::load(path, "can read what clients send")?;
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    Ok(keys.into_iter().map(|CookieKey { id, secret }| TicketKey { id, secret }).collect())
}

/// What `lb-agent check` can say of the files: errors, and warnings. What this user may not read is none of them.
pub fn check(config: &Config) -> (Vec<String>, Vec<String>) {
    let Reading { unreadable, errors, mut warnings, .. } = certificates::read(config, unix());
    warnings.extend(unreadable);
    let lines = |problems: Vec<crate::config::Problem>| {
        problems.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    (lines(errors), lines(warnings))
}

/// Tells workers what the files hold.
pub fn fill(settings: &mut Settings, material: &Material) {
    settings.ticket_keys.clone_from(&material.ticket_keys);
    for service in &mut settings.services {
        service.tls = material.clients.get(&service.name).cloned();
        service.backend_tls = material.backends.get(&service.name).cloned();
    }
}

/// Notices that one of the files was saved.
pub struct Watch {
    files: Vec<PathBuf>,
    watch: FileWatch,
}

impl Watch {
    pub fn watch(&mut self) -> &mut FileWatch {
        &mut self.watch
    }
}

impl Agent {
    pub(super) fn watch_certificates(&mut self) {
        let config = &self.parts.config;
        let mut files = certificates::files(config);
        files.extend(config.edge.sidecar.ticket_keys.clone().filter(|_| !files.is_empty()));
        if self.tls_watch.as_ref().is_some_and(|it| it.files == files) {
            return;
        }
        let paths: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
        let watch = (!files.is_empty()).then(|| FileWatch::of_all(&paths));
        self.tls_watch = watch.and_then(|watch| match watch {
            Ok(watch) => Some(Watch { files, watch }),
            Err(error) => {
                tracing::warn!("only SIGHUP reloads the certificates: {error:#}");
                None
            }
        });
    }

    /// Those that this agent makes for itself change without a file that does.
    pub(super) fn change_own_ticket_keys(&mut self) {
        let is_own = self.parts.config.edge.sidecar.ticket_keys.is_none();
        if is_own && !self.tls.ticket_keys.is_empty() && own_keys::are_due() {
            Arc::make_mut(&mut self.tls).ticket_keys = own_keys::now();
            self.tell_sidecar();
        }
    }

    /// Reads the files anew. Whatever is wrong with them changes nothing.
    pub(super) fn certificates_changed(&mut self) {
        match material(&self.parts.config) {
            Ok(material) => {
                self.tls_refused = None;
                if material != *self.tls {
                    tracing::info!(
                        "certificates or ticket keys have changed: new connections get them"
                    );
                    self.tls = Arc::new(material);
                    self.tell_sidecar();
                }
            }
            Err(refused) => {
                refused.0.iter().for_each(|line| tracing::error!("{line}"));
                tracing::error!("the new certificates are refused; the ones before stay in force");
                self.note(News::new(Kind::CertificatesRefused, refused.to_string()));
                self.tls_refused = Some(refused);
            }
        }
        self.show();
    }

    /// As on reading, for as long as nobody renews them.
    pub(super) fn warn_of_ends(&self) {
        for (service, warning) in ending(&self.tls.expiries, unix()) {
            tracing::warn!("{warning}");
            self.note(News::new(Kind::CertificateEnds, warning.to_string()).of(service));
        }
    }
}

fn unix() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_ends_soon_is_told_of_each_day() {
        let days = |days: u32| i64::from(days) * 86_400;
        let (begun, early) = (Instant::now(), 2 * DAY);
        let expiry = Expiry {
            service: "chat".into(),
            certificate: "/c.pem".into(),
            not_after: days(4) + 60,
            early,
        };
        let (mut rounds, mut told) = (rounds(), Vec::new());
        for _ in 0..5 {
            rounds.tick().await;
            let now = i64::try_from(begun.elapsed().as_secs()).unwrap();
            let expiries = [expiry.clone(), Expiry { not_after: days(90), ..expiry.clone() }];
            let warnings =
                ending(&expiries, now).map(|(service, it)| (now, format!("{service} {}", it.what)));
            told.extend(warnings);
        }
        let expected = [
            (3, "chat expires in 1 days"),
            (4, "chat expires in 0 days"),
            (5, "chat has expired: clients refuse it"),
        ];
        assert_eq!(told, expected.map(|(day, text)| (days(day), text.to_owned())));
    }
}
