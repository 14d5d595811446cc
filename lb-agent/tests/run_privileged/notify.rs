//! What the agent tells its supervisor.

use std::{os::unix::net::UnixDatagram, process::Stdio};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    edge::{AGENT, Edge},
    network::{PATIENCE, wait_for},
};

#[test]
fn a_supervisor_hears_of_the_start_of_reloads_and_of_the_end_and_that_nothing_is_stuck() {
    let edge = Edge::new();
    let path = edge.directory.join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let hear = |wanted: &str| {
        wait_for(wanted, || {
            let mut buffer = [0; 500];
            let length = socket.recv(&mut buffer).unwrap();
            String::from_utf8_lossy(&buffer[..length]).contains(wanted).then_some(())
        });
    };
    edge.save(&edge.config("", &[("b2", "10.2.0.2:9000")]));
    let (socket_path, run) = (path.display(), edge.run_arguments());
    let arguments = format!("NOTIFY_SOCKET={socket_path} WATCHDOG_USEC=400000 {AGENT} {run}");
    let mut command = edge.wrapped("env", &arguments);
    let mut agent = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let signal = |signal| kill(Pid::from_raw(agent.id().cast_signed()), signal).unwrap();
    hear("READY=1\nSTATUS=edge ");
    hear("WATCHDOG=1");
    signal(Signal::SIGHUP);
    hear("RELOADING=1\nMONOTONIC_USEC=");
    hear("READY=1");
    edge.save("[edge]");
    hear("STATUS=the changed configuration is refused");
    signal(Signal::SIGTERM);
    hear("STOPPING=1");
    assert!(agent.wait().unwrap().success());
}
