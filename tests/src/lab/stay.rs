//! The lab kept up: light traffic, and how to look around.

use std::time::Duration;

use anyhow::Result;

use super::VICTIM;
use crate::chat::LoadConfig;
use crate::edge::EdgeConfig;
use crate::interrupt::Graceful;
use crate::process;
use crate::site::{CHAT, Site, WEB};

const CHATS: usize = 20;

/// Keeps the lab up with a little traffic until somebody wants it to end.
pub(super) fn stay(site: &mut Site, graceful: &Graceful) -> Result<()> {
    site.smoothen();
    if site.chat_pid(VICTIM).is_none() {
        site.revive_chat(VICTIM)?;
    }
    let config = LoadConfig { interval: Duration::from_millis(500), ..site.chats(CHATS) };
    let load = site.start(config)?;
    println!("\n{}", guide(site));
    let _ = graceful.wait(None);
    let stats = load.stop();
    println!(
        "\nMeanwhile {} messages were echoed, and {} were wrong.",
        stats.messages, stats.wrong
    );
    Ok(())
}

fn guide(site: &Site) -> String {
    let inside = |namespace: &crate::netns::NsHandle| {
        format!("nsenter --net={}", namespace.path().display())
    };
    let (edge, client) = (inside(site.lab.edge()), inside(site.lab.client(0)));
    let agent = site.edge.agent().display();
    let file = site.edge.config_path();
    let (vip, web) = (site.listeners(CHAT)[0], site.listeners(WEB)[0]);
    let chat_client = process::binary("chat-client")
        .map_or_else(|_| "chat-client".to_owned(), |path| path.display().to_string());
    let mut lines = vec![
        format!("The lab stays up with {CHATS} chats until Ctrl-C, which removes all of it."),
        format!("  the edge          {edge}"),
        format!("  the client        {client}"),
    ];
    for (index, backend) in site.lab.backends().iter().enumerate() {
        let pid = site.chat_pid(index).map_or("not running".to_owned(), |pid| format!("pid {pid}"));
        lines.push(format!("  backend {}         {}  # {pid}", index + 1, inside(backend)));
    }
    lines.extend([
        format!("  status            {edge} {agent} status --admin {}", EdgeConfig::ADMIN),
        format!("  the same as JSON  {edge} curl -s http://{}/v1/status", EdgeConfig::ADMIN),
        format!("  flows             {agent} flows --config {}", file.display()),
        format!("  a request         {client} curl -i http://{vip}/health"),
        format!("  with a cookie     {client} curl -i http://{web}/health"),
        format!("  more chats        {client} {chat_client} --target {vip} --duration 5 --brief"),
        format!("  configuration     {}  # save it, and the agent takes it over", file.display()),
    ]);
    lines.join("\n")
}
