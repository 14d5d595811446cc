//! `lb-agent top`: a running edge on the terminal, as it changes.

mod rates;
mod screen;

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use clap::Args;
use lb_agent::run::status::Status;
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
};

use super::client::{Client, Where};
use rates::{Look, Model};

/// The shortest time between two looks.
const SHORTEST: f64 = 0.2;

#[derive(Args)]
pub struct Arguments {
    /// Configuration file of the edge; not needed where one edge runs
    #[arg(long, value_name = "FILE", conflicts_with = "socket")]
    config: Option<PathBuf>,
    /// Unix socket of its agent
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    interval: f64,
}

pub fn top(arguments: &Arguments) -> Result<()> {
    ensure!(
        io::stdout().is_terminal(),
        "standard output is not a terminal: use `lb-agent status`, or `lb-agent backends --json`"
    );
    let Arguments { config, socket, interval } = arguments;
    ensure!(
        (SHORTEST..=3_600.0).contains(interval),
        "--interval {interval}: write {SHORTEST} to 3600"
    );
    let at = Where { config: config.clone(), socket: socket.clone(), json: false };
    let client = Client::new(&at)?;
    // What fails does so before the screen is another.
    let mut model = Model::new(look(&client)?);
    let mut terminal = ratatui::init();
    let result = show(&mut terminal, &client, &mut model, Duration::from_secs_f64(*interval));
    ratatui::restore();
    result
}

fn look(client: &Client) -> Result<Look> {
    let status: Status = client.get("/v1/status")?;
    Ok(Look { at: Instant::now(), status })
}

fn show(
    terminal: &mut DefaultTerminal,
    client: &Client,
    model: &mut Model,
    interval: Duration,
) -> Result<()> {
    let mut next = Instant::now() + interval;
    loop {
        terminal.draw(|frame| screen::draw(frame, model))?;
        if event::poll(next.saturating_duration_since(Instant::now()))? {
            if let Event::Key(key) = event::read()?
                && press(model, key)
            {
                return Ok(());
            }
        } else {
            match look(client) {
                Ok(look) => model.take(look),
                // An agent that is restarted comes back.
                Err(error) => model.problem = Some(format!("{error:#}")),
            }
            next = Instant::now() + interval;
        }
    }
}

/// Whether it was the last one.
fn press(model: &mut Model, key: KeyEvent) -> bool {
    if key.kind != KeyEventKind::Press {
        return false;
    }
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Char('c') if control => return true,
        KeyCode::Char('q') | KeyCode::Esc => return true,
        KeyCode::Char('s') => model.order = model.order.next(),
        KeyCode::Char('j') | KeyCode::Down => model.scroll = model.scroll.saturating_add(1),
        KeyCode::Char('k') | KeyCode::Up => model.scroll = model.scroll.saturating_sub(1),
        KeyCode::Home => model.scroll = 0,
        _ => {}
    }
    false
}

#[cfg(test)]
mod tests;
