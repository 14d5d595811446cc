//! Whether the ports of listeners and of the admin API are free.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
};

use socket2::{Domain, Protocol, Socket, Type};

use super::Finding;
use crate::config::Config;

pub struct Facts {
    /// An agent of this edge runs: what is taken is its own.
    runs: bool,
    /// What listens where, and whether that can be; the error's text if it cannot.
    tried: Vec<(String, SocketAddr, Result<(), Refusal>)>,
}

pub enum Refusal {
    InUse,
    Other(String),
}

/// Tries each port for a moment, unless an agent of this edge `runs`.
pub fn gather(config: &Config, runs: bool) -> Facts {
    let admin = [("admin API".to_owned(), config.edge.admin, false)];
    // What XDP serves nobody listens to.
    let l7 = config.l7().flat_map(|service| {
        let named = |addr: &SocketAddr| (format!("service {:?}", service.name), *addr, true);
        service.listen.iter().map(named).collect::<Vec<_>>()
    });
    let all = admin.into_iter().chain(l7).filter(|_| !runs);
    let tried = all.map(|(thing, addr, free)| (thing, addr, try_one(addr, free)));
    Facts { runs, tried: tried.collect() }
}

/// `anywhere`: the address may come to the host later.
fn try_one(addr: SocketAddr, anywhere: bool) -> Result<(), Refusal> {
    let listen = || -> io::Result<()> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if anywhere {
            match addr {
                SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
                SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
            }
        }
        socket.bind(&addr.into())?;
        socket.listen(1)
    };
    listen().map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => Refusal::InUse,
        _ => Refusal::Other(error.to_string()),
    })
}

pub fn judge(facts: &Facts) -> Vec<Finding> {
    if facts.runs {
        return vec![Finding::ok("ports", "an agent of this edge runs and has them")];
    }
    let judge = |(thing, addr, result): &(String, SocketAddr, Result<(), Refusal>)| {
        let thing = format!("port {addr} of {thing}");
        match result {
            Ok(()) => Finding::ok(thing, "free"),
            Err(Refusal::InUse) => {
                let who = format!("`ss -ltnp 'sport = :{}'` shows who has it", addr.port());
                Finding::problem(thing, "in use", format!("{who}: end it, or choose another"))
            }
            Err(Refusal::Other(error)) => Finding::problem(
                thing,
                error.clone(),
                "write an address and port that this host can have",
            ),
        }
    };
    facts.tried.iter().map(judge).collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::{
        super::tests::{config, short},
        *,
    };

    #[test]
    fn a_port_that_somebody_has_is_a_problem() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = taken.local_addr().unwrap();
        let config = config(&format!("admin = \"{addr}\""), "mode = \"l7\"");
        let findings = judge(&gather(&config, false));
        let wanted = [
            format!("problem port {addr} of admin API"),
            "ok port 203.0.113.10:9000 of service \"chat\"".to_owned(),
        ];
        assert_eq!(short(&findings), wanted);
        assert!(findings[0].remedy.as_ref().unwrap().contains("ss -ltnp"));
        assert_eq!(short(&judge(&gather(&config, true))), ["ok ports"]);
        drop(taken);
        assert_eq!(short(&judge(&gather(&config, false))).len(), 2);
    }

    #[test]
    fn whatever_else_is_wrong_is_told() {
        let tried = vec![(
            "x".to_owned(),
            "192.0.2.1:1".parse().unwrap(),
            Err(Refusal::Other("no".into())),
        )];
        let findings = judge(&Facts { runs: false, tried });
        assert_eq!((findings[0].what.as_str(), findings.len()), ("no", 1));
    }
}
