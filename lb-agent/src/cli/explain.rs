//! `lb-agent explain`: which backend a client gets now, and why.

use anyhow::Result;
use clap::Args;
use hyper::Method;
use lb_agent::run::explain::{Explanation, Question};
use serde_json::{Value, json};

use super::client::{Client, Where};

#[derive(Args)]
pub struct Arguments {
    /// The client: its address, and its port if that is known
    client: String,
    /// Where it connects to: address and port of a listener
    vip: String,
    /// What it sends as `Cookie`, e.g. "sluice=VALUE"
    #[arg(long, value_name = "COOKIES")]
    cookie: Option<String>,
    /// Another header that it sends, e.g. "X-Room: 7"
    #[arg(long, value_name = "HEADER")]
    header: Option<String>,
    /// Path and query that it asks for
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    #[command(flatten)]
    at: Where,
}

pub fn explain(arguments: &Arguments) -> Result<()> {
    let question = Question {
        client: arguments.client.clone(),
        vip: arguments.vip.clone(),
        cookie: arguments.cookie.clone(),
        header: arguments.header.clone(),
        path: arguments.path.clone(),
    };
    let client = Client::new(&arguments.at)?;
    // What a cookie says is nobody's business, and a body is in no log.
    let answer: Value = client.change(&Method::POST, "/v1/explain", &json!(question))?;
    match arguments.at.json {
        true => println!("{}", serde_json::to_string_pretty(&answer)?),
        false => print!("{}", shown(&question, &serde_json::from_value(answer)?)),
    }
    Ok(())
}

fn shown(question: &Question, answer: &Explanation) -> String {
    let Question { client, vip, .. } = question;
    // Whether a flow decides, its step says.
    let Explanation { service, mode, steps, newcomer: _, backend } = answer;
    let mut text = format!("{client} to {vip}: service {service}, mode {mode}\n");
    for step in steps {
        text += &format!("  {:<10} {}\n", step.by, step.says);
    }
    text += &match backend {
        Some(it) => format!(
            "=> {} ({}), its probes say {}, weight {}\n",
            it.name, it.address, it.health, it.weight
        ),
        None => "=> not decided yet\n".to_owned(),
    };
    text
}
