//! Tells the supervisor how it goes: `sd_notify(3)` and the watchdog of `sd_watchdog_enabled(3)`. Without one, nothing.

use std::{
    env,
    ffi::OsString,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};

/// Where the supervisor listens, if there is one.
#[derive(Debug, Default)]
pub struct Notify {
    to: Option<(UnixDatagram, SocketAddr)>,
    /// How often it must hear from us.
    pub watchdog: Option<Duration>,
}

impl Notify {
    /// As the environment of this process says.
    #[must_use]
    pub fn of_environment() -> Self {
        let number = |name| env::var(name).ok()?.parse::<u64>().ok();
        // Of another process: not for us.
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|micros| ours && *micros > 0);
        Self::new(env::var_os("NOTIFY_SOCKET"), watchdog.map(Duration::from_micros))
    }

    fn new(socket: Option<OsString>, watchdog: Option<Duration>) -> Self {
        let to = socket.and_then(|path| {
            let bytes = path.as_bytes();
            let address = match bytes.strip_prefix(b"@") {
                Some(name) => SocketAddr::from_abstract_name(name),
                None => SocketAddr::from_pathname(&path),
            };
            Some((UnixDatagram::unbound().ok()?, address.ok()?))
        });
        let watchdog = watchdog.filter(|_| to.is_some());
        Self { to, watchdog }
    }

    /// Clients may come.
    pub fn ready(&self, status: &str) {
        self.say(&format!("READY=1\nSTATUS={status}"));
    }

    /// The file is read anew; [`Notify::ready`] says when that is over.
    pub fn reloading(&self) {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
        self.say(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.as_micros()));
    }

    pub fn stopping(&self) {
        self.say("STOPPING=1");
    }

    /// Whoever says it is not stuck.
    pub fn alive(&self) {
        self.say("WATCHDOG=1");
    }

    /// A supervisor that does not hear is not our trouble.
    fn say(&self, text: &str) {
        if let Some((socket, address)) = &self.to {
            let _ = socket.send_to_addr(text.as_bytes(), address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_arrives_by_path_and_by_abstract_name() {
        let path = env::temp_dir().join(format!("sluice-notify-{}", std::process::id()));
        let abstract_name = format!("sluice-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&abstract_name).unwrap();
        for (socket, name) in [
            (UnixDatagram::bind(&path).unwrap(), path.clone().into_os_string()),
            (UnixDatagram::bind_addr(&address).unwrap(), format!("@{abstract_name}").into()),
        ] {
            let notify = Notify::new(Some(name), Some(Duration::from_secs(1)));
            assert_eq!(notify.watchdog, Some(Duration::from_secs(1)));
            let mut buffer = [0; 200];
            let mut heard = || {
                let length = socket.recv(&mut buffer).unwrap();
                String::from_utf8_lossy(&buffer[..length]).into_owned()
            };
            notify.reloading();
            assert!(heard().starts_with("RELOADING=1\nMONOTONIC_USEC="));
            notify.ready("2 services");
            assert_eq!(heard(), "READY=1\nSTATUS=2 services");
            notify.alive();
            assert_eq!(heard(), "WATCHDOG=1");
            notify.stopping();
            assert_eq!(heard(), "STOPPING=1");
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn without_a_supervisor_nothing_is_said() {
        let notify = Notify::new(None, Some(Duration::from_secs(1)));
        assert_eq!(notify.watchdog, None);
        notify.alive();
    }
}
