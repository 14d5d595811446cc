//! A chat backend as a process of its own, which can be killed.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use tests::chat::{ChatServer, EchoServer, ServerConfig};
use tests::interrupt::Graceful;
use tests::netns::NsHandle;

/// A WebSocket chat backend that checks what it gets (or, with --tcp, a plain echo server).
#[derive(Parser)]
struct Arguments {
    /// What it calls itself
    #[arg(long, default_value = "chat")]
    name: String,
    /// Where it listens; may be given more than once
    #[arg(long, required = true)]
    listen: Vec<SocketAddr>,
    /// The network namespace in which it listens
    #[arg(long)]
    netns: Option<String>,
    /// Milliseconds between pushes of its own stream to every session
    #[arg(long)]
    push_interval: Option<u64>,
    /// The length of such a push
    #[arg(long, default_value_t = 256)]
    push_bytes: usize,
    /// Echo plain TCP instead of WebSocket messages
    #[arg(long)]
    tcp: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let graceful = Graceful::new();
    let namespace = arguments.netns.as_deref().map(NsHandle::open).transpose()?;
    let name = &arguments.name;
    let report = |addresses: &[SocketAddr]| {
        for address in addresses {
            println!("{name}: listening on {address}");
        }
    };
    if arguments.tcp {
        let server = EchoServer::start(namespace.as_ref(), name, &arguments.listen)?;
        report(server.addresses());
        let _ = graceful.wait(None);
        return Ok(());
    }
    let push = arguments.push_interval.map(|ms| (Duration::from_millis(ms), arguments.push_bytes));
    let config = ServerConfig { push, ..ServerConfig::new(name, arguments.listen) };
    let server = ChatServer::start(namespace.as_ref(), config)?;
    report(server.addresses());
    let _ = graceful.wait(None);
    let stats = server.stats();
    server.stop();
    println!("{}", serde_json::to_string(&stats)?);
    Ok(())
}
