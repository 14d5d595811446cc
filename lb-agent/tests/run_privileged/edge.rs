//! An edge with a client before it and a server behind it.
//!
//! ```text
//! client c0 10.1.0.2 -- 10.1.0.1 front0 edge back0 10.2.0.1 -- 10.2.0.2, .3 s0 server
//! ```
//! The VIP is 10.1.0.10: on the clients' link, so it has to be an address of the host.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::TcpListener,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use lb_agent::{
    bpf::{PinDir, pins},
    run::status::Status,
};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::network::{Netns, text, wait_for, wait_until};

pub const AGENT: &str = env!("CARGO_BIN_EXE_lb-agent");
pub const ADMIN: &str = "127.0.0.1:9900";
pub const VIP: &str = "10.1.0.10:80";

pub struct Edge {
    pub name: String,
    pub netns: Netns,
    pub client: Netns,
    pub server: Netns,
    pub directory: PathBuf,
    agent: Option<Child>,
    /// The agent's binary, or a copy of it.
    binary: String,
    logs: u32,
}

impl Edge {
    /// Everything but the agent.
    pub fn new() -> Self {
        pins::mount_bpffs().expect("the tests need a bpffs");
        let (netns, client, server) = (Netns::new(), Netns::new(), Netns::new());
        netns.link("front0", &client, "c0");
        netns.link("back0", &server, "s0");
        netns.ip("addr add 10.1.0.1/24 dev front0");
        netns.ip("addr add 10.2.0.1/24 dev back0");
        client.ip("addr add 10.1.0.2/24 dev c0");
        server.ip("addr add 10.2.0.2/24 dev s0");
        server.ip("addr add 10.2.0.3/24 dev s0");
        let name = netns.name.clone();
        let directory = std::env::temp_dir().join(&name);
        fs::create_dir_all(&directory).unwrap();
        Self {
            name,
            netns,
            client,
            server,
            directory,
            agent: None,
            binary: AGENT.to_owned(),
            logs: 0,
        }
    }

    /// A configuration with these lines in the service, and these backends.
    pub fn config(&self, service: &str, backends: &[(&str, &str)]) -> String {
        let mut config = format!(
            r#"
[edge]
name = "{}"
interfaces = ["front0", "back0"]
xdp = "native"
source_addresses = ["10.2.0.1"]
hash_seed = "test"
admin = "{ADMIN}"
tables = {{ flows_ipv4 = 4096, flows_ipv6 = 1024, handshakes = 1024, services = 4, backends = 8 }}
[[service]]
name = "chat"
listen = ["{VIP}"]
health = {{ kind = "tcp", interval = "100ms", timeout = "100ms", rise = 1, fall = 2 }}
{service}
"#,
            self.name
        );
        for (name, address) in backends {
            config += &format!("[[service.backend]]\nname = \"{name}\"\naddress = \"{address}\"\n");
        }
        config
    }

    pub fn config_file(&self) -> PathBuf {
        self.directory.join("edge.toml")
    }

    /// Saves the configuration as editors do.
    pub fn save(&self, config: &str) {
        let new = self.directory.join("edge.toml.new");
        fs::write(&new, config).unwrap();
        fs::rename(new, self.config_file()).unwrap();
    }

    /// A command of the agent's binary, in the edge's namespace.
    pub fn command(&self, arguments: &str) -> Command {
        self.wrapped(&self.binary, arguments)
    }

    /// The next agent is another file, as after an upgrade.
    pub fn upgrade(&mut self) {
        let copy = self.directory.join(format!("lb-agent-{}", self.logs));
        fs::copy(AGENT, &copy).unwrap();
        self.binary = copy.to_str().unwrap().to_owned();
    }

    /// Another program in the edge's network namespace, and in that one only: pins must last.
    pub fn wrapped(&self, program: &str, arguments: &str) -> Command {
        command_in(&self.netns, program, arguments)
    }

    /// Runs a command of the agent's binary to its end.
    pub fn output(&self, arguments: &str) -> Output {
        self.command(arguments).output().unwrap()
    }

    pub fn run_arguments(&self) -> String {
        format!("run --config {} --log-level debug", self.config_file().display())
    }

    /// Starts the agent, without waiting for anything.
    pub fn spawn(&mut self) {
        assert!(self.agent.is_none(), "one agent at a time");
        self.logs += 1;
        let log = fs::File::create(self.log_file()).unwrap();
        let child = self.command(&self.run_arguments()).stdout(Stdio::null()).stderr(log).spawn();
        self.agent = Some(child.unwrap());
    }

    /// Starts the agent and waits until it is ready.
    pub fn start(&mut self, config: &str) {
        self.save(config);
        self.spawn();
        wait_until("the edge is ready", || {
            let ended = self.agent.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "the agent has ended: {}", self.log());
            self.is_healthy()
        });
    }

    pub fn is_healthy(&self) -> bool {
        self.netns.http(ADMIN, "/healthz").is_some_and(|(status, _)| status.contains(" 200 "))
    }

    pub fn status(&self) -> Status {
        let (head, body) = self.netns.http(ADMIN, "/v1/status").expect("the agent answers");
        assert!(head.contains(" 200 "), "{head}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = self.agent.as_ref().expect("an agent runs").id();
        kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
    }

    /// Waits until the agent has ended.
    pub fn wait(&mut self) -> ExitStatus {
        let mut child = self.agent.take().expect("an agent runs");
        wait_for("the agent ends", || child.try_wait().unwrap())
    }

    pub fn pid(&self) -> u32 {
        self.agent.as_ref().expect("an agent runs").id()
    }

    fn log_file(&self) -> PathBuf {
        self.directory.join(format!("log-{}", self.logs))
    }

    /// What the newest agent has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    pub fn wait_for_log(&self, part: &str) {
        let end = std::time::Instant::now() + crate::network::PATIENCE;
        while !self.log().contains(part) {
            assert!(std::time::Instant::now() < end, "{part:?} is not logged:\n{}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn pins(&self) -> PinDir {
        PinDir::of_edge(&self.name)
    }

    /// Addresses of an interface of the edge.
    pub fn addresses(&self, device: &str) -> String {
        self.netns.ip(&format!("-o addr show dev {device}"))
    }

    /// Whether XDP is attached to an interface of the edge.
    pub fn has_xdp(&self, device: &str) -> bool {
        self.netns.ip(&format!("link show dev {device}")).contains("xdp")
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
        if thread::panicking() {
            eprintln!("the agent's log:\n{}", self.log());
        }
        let output = self.output(&format!("unload --edge {}", self.name));
        let _ = fs::remove_dir_all(&self.directory);
        assert!(output.status.success() || thread::panicking(), "{}", text(&output));
    }
}

/// A program in a network namespace, and only there: pins must last.
pub fn command_in(netns: &Netns, program: &str, arguments: &str) -> Command {
    let mut command = Command::new(program);
    command.args(arguments.split_whitespace()).stdin(Stdio::null()).env_remove("RUST_LOG");
    let file = netns.file();
    // SAFETY: setns is a system call without effects on memory, which is all that happens between fork and exec.
    unsafe {
        command.pre_exec(move || Ok(setns(&file, CloneFlags::CLONE_NEWNET)?));
    }
    command
}

/// A server that sends back what it gets, behind its name.
pub struct Echo {
    stop: Arc<AtomicBool>,
    /// Errors of connections that ended with one.
    pub errors: Arc<Mutex<Vec<ErrorKind>>>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    pub fn start(netns: &Netns, address: &str, name: &'static str) -> Self {
        let listener = netns.run(|| TcpListener::bind(address)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (stop, errors) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<Vec<_>>>::default());
        let (stopped, errors_of) = (Arc::clone(&stop), Arc::clone(&errors));
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((mut stream, _)) => {
                        let errors = Arc::clone(&errors_of);
                        stream.set_nonblocking(false).unwrap();
                        thread::spawn(move || {
                            let mut buffer = [0; 1_024];
                            loop {
                                match stream.read(&mut buffer) {
                                    Ok(0) => return,
                                    Ok(n) => {
                                        let answer = [name.as_bytes(), &buffer[..n]].concat();
                                        let _ = stream.write_all(&answer);
                                    }
                                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                                    Err(error) => {
                                        errors.lock().unwrap().push(error.kind());
                                        return;
                                    }
                                }
                            }
                        });
                    }
                    Err(_) => thread::sleep(Duration::from_millis(10)),
                }
            }
        });
        Self { stop, errors, thread: Some(thread) }
    }

    /// Takes no more connections; those that it has go on.
    pub fn close(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Sends a word and returns the answer.
pub fn say(stream: &mut std::net::TcpStream, word: &str) -> std::io::Result<String> {
    stream.write_all(word.as_bytes())?;
    let mut buffer = [0; 1_024];
    loop {
        return match stream.read(&mut buffer) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => Ok(String::from_utf8_lossy(&buffer[..n]).into_owned()),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => Err(error),
        };
    }
}
