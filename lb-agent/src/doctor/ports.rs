//! Whether the ports of listeners and of the admin API are free.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    path::Path,
};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use super::Finding;
use crate::{bpf::Lock, config::Config, sidecar::Directory};

pub struct Facts {
    own: Own,
    /// What listens where, and whether that can be.
    tried: Vec<(String, SocketAddr, State)>,
}

/// What there is of this edge already: its ports are in nobody's way.
enum Own {
    Nothing,
    /// Workers that live on without an agent, and listen for their clients.
    Workers,
    Agent,
    /// The error's text.
    Unknown(String),
}

enum State {
    Free,
    /// By workers of this edge.
    Served,
    InUse,
    /// This user may not try it.
    Forbidden,
    /// The error's text.
    Other(String),
}

/// Whose port it is: workers share one, and take addresses that the host does not have yet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Listener {
    Admin,
    Service,
}

/// Tries each port for a moment, unless an agent runs the edge. `run_dir`: where the locks of agents are.
pub fn gather(config: &Config, run_dir: &Path) -> Facts {
    let own = own(run_dir, &config.edge.name).unwrap_or_else(|it| Own::Unknown(format!("{it:#}")));
    let admin = [("admin API".to_owned(), config.edge.admin, Listener::Admin)];
    // What XDP serves nobody listens to.
    let l7 = config.l7().flat_map(|service| {
        let thing = format!("service {:?}", service.name);
        let named = move |addr: &SocketAddr| (thing.clone(), *addr, Listener::Service);
        service.listen.iter().map(named)
    });
    let all = admin.into_iter().chain(l7).filter(|_| !matches!(own, Own::Agent));
    let tried = all.map(|(thing, addr, listener)| (thing, addr, state(addr, listener, &own)));
    Facts { tried: tried.collect(), own }
}

fn own(run_dir: &Path, edge: &str) -> Result<Own> {
    let held = Lock::is_held(run_dir, edge);
    if held.with_context(|| run_dir.display().to_string())? {
        return Ok(Own::Agent);
    }
    let directory = Directory::of_edge(run_dir, edge);
    let lives = |name| directory.process(name).is_some();
    Ok(if directory.sockets()?.into_iter().any(lives) { Own::Workers } else { Own::Nothing })
}

fn state(addr: SocketAddr, listener: Listener, own: &Own) -> State {
    // That socket never listens: a client that came to it would be lost.
    let served = || matches!(own, Own::Workers) && bind(addr, listener, true).is_ok();
    match bind(addr, listener, false).and_then(|socket| socket.listen(1)) {
        Ok(()) => State::Free,
        Err(error) => match error.kind() {
            ErrorKind::AddrInUse if listener == Listener::Service && served() => State::Served,
            ErrorKind::AddrInUse => State::InUse,
            ErrorKind::PermissionDenied => State::Forbidden,
            _ => State::Other(error.to_string()),
        },
    }
}

/// `shared`: also a port that only sockets of this user have which share it, as those of workers do.
fn bind(addr: SocketAddr, listener: Listener, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    if listener == Listener::Service {
        // The address may come to the host later.
        match addr {
            SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
            SocketAddr::V6(_) => {
                socket.set_only_v6(true)?;
                socket.set_freebind_v6(true)?;
            }
        }
    }
    socket.bind(&addr.into())?;
    Ok(socket)
}

pub fn judge(facts: &Facts) -> Vec<Finding> {
    if matches!(facts.own, Own::Agent) {
        return vec![Finding::ok("ports", "an agent of this edge runs and has them")];
    }
    let judge = |(thing, addr, state): &(String, SocketAddr, State)| {
        let thing = format!("port {addr} of {thing}");
        match (state, &facts.own) {
            (State::Free, _) => Finding::ok(thing, "free"),
            (State::Served, _) => Finding::ok(thing, "the edge's own workers serve it"),
            (State::InUse, Own::Unknown(error)) => {
                let what = format!("in use; not known whether by this edge: {error}");
                Finding::warning(thing, what, "run this as root")
            }
            (State::InUse, _) => {
                let who = format!("`ss -ltnp 'sport = :{}'` shows who has it", addr.port());
                Finding::problem(thing, "in use", format!("{who}: end it, or choose another"))
            }
            (State::Forbidden, _) => {
                Finding::warning(thing, "this user may not try it", "run this as root")
            }
            (State::Other(error), _) => Finding::problem(
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
    use std::{fs, net::TcpListener, path::PathBuf};

    use super::{
        super::{
            Level,
            tests::{config, short},
        },
        *,
    };
    use crate::sidecar::directory::{Name, Record, own_executable, start_time};

    /// Where the locks are, and where they are not yet.
    fn run_dir(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("sluice-ports-{name}-{}", std::process::id()))
    }

    #[test]
    fn a_port_that_somebody_has_is_a_problem() {
        let run_dir = run_dir("taken");
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = taken.local_addr().unwrap();
        let config = config(&format!("admin = \"{addr}\""), "mode = \"l7\"");
        let findings = judge(&gather(&config, &run_dir));
        let wanted = [
            format!("problem port {addr} of admin API"),
            "ok port 203.0.113.10:9000 of service \"chat\"".to_owned(),
        ];
        assert_eq!(short(&findings), wanted);
        assert!(findings[0].remedy.as_ref().unwrap().contains("ss -ltnp"));
        assert!(!run_dir.exists(), "nothing is changed");

        let agent = Lock::acquire(&run_dir, "e").unwrap();
        assert_eq!(short(&judge(&gather(&config, &run_dir))), ["ok ports"]);
        drop((agent, taken));
        let findings = judge(&gather(&config, &run_dir));
        assert!(findings.iter().all(|it| it.what == "free") && findings.len() == 2, "{findings:?}");
        fs::remove_dir_all(run_dir).unwrap();
    }

    #[test]
    fn workers_without_an_agent_are_not_in_the_way_and_others_are() {
        let run_dir = run_dir("workers");
        let mut config = config("", "mode = \"l7\"");
        config.edge.admin = "127.0.0.1:0".parse().unwrap();
        let workers = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        workers.set_reuse_port(true).unwrap();
        workers.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        workers.listen(1).unwrap();
        let served = workers.local_addr().unwrap().as_socket().unwrap();
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        config.services[0].listen = vec![served, other.local_addr().unwrap()];
        let levels = |config: &Config| {
            let findings = judge(&gather(config, &run_dir));
            findings.iter().map(|it| (it.level, it.what.clone())).collect::<Vec<_>>()
        };
        let ok = |what: &str| (Level::Ok, what.to_owned());
        let in_use = (Level::Problem, "in use".to_owned());
        assert_eq!(levels(&config), [ok("free"), in_use.clone(), in_use.clone()]);

        // This process stands for a worker.
        let directory = Directory::of_edge(&run_dir, "e");
        let name = Name { generation: 1, index: 0 };
        let _socket = directory.bind(name).unwrap();
        let pid = std::process::id();
        let started = start_time(pid).unwrap();
        let record = Record { pid, started, executable: own_executable().unwrap() };
        directory.record(name, &record).unwrap();
        let own = ok("the edge's own workers serve it");
        assert_eq!(levels(&config), [ok("free"), own, in_use.clone()]);

        directory.record(name, &Record { started: started + 1, ..record }).unwrap();
        assert_eq!(levels(&config), [ok("free"), in_use.clone(), in_use], "they are dead");
        fs::remove_dir_all(&run_dir).unwrap();
    }

    #[test]
    fn who_may_not_look_is_told_so() {
        // Whoever may read everything cannot read this.
        let run_dir = run_dir("unreadable");
        fs::write(&run_dir, "").unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let admin = format!("admin = \"{}\"", taken.local_addr().unwrap());
        let findings = judge(&gather(&config(&admin, ""), &run_dir));
        let [Finding { level: Level::Warning, what, remedy, .. }] = &findings[..] else {
            panic!("{findings:?}");
        };
        let why = format!("not known whether by this edge: {}: Not a dir", run_dir.display());
        assert!(what.contains(&why), "{what}");
        assert_eq!(remedy.as_deref(), Some("run this as root"));
        fs::remove_file(run_dir).unwrap();
    }

    #[test]
    fn whatever_else_is_wrong_is_told() {
        let at = "192.0.2.1:1".parse().unwrap();
        let tried =
            [State::Other("no".into()), State::Forbidden].map(|it| ("x".to_owned(), at, it));
        let findings = judge(&Facts { own: Own::Nothing, tried: tried.into() });
        let all: Vec<_> = findings.iter().map(|it| (it.level, it.what.as_str())).collect();
        let wanted = [(Level::Problem, "no"), (Level::Warning, "this user may not try it")];
        assert_eq!(all, wanted);
    }
}
