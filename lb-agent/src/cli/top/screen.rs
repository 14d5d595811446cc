//! Draws a [`Model`].

use ratatui::{
    Frame,
    layout::{Constraint, Layout},
    style::{Color, Modifier, Style},
    text::Line,
    widgets::{Block, Borders, Cell, Paragraph, Row, Table},
};

use super::rates::{self, Model};

/// Lines of events at the bottom, with their frame.
const EVENT_LINES: u16 = 7;
/// The most lines of services.
const MOST_SERVICES: u16 = 10;

pub fn draw(frame: &mut Frame<'_>, model: &Model) {
    let status = &model.now.status;
    let services = u16::try_from(status.services.len()).unwrap_or(MOST_SERVICES);
    let services = services.min(MOST_SERVICES) + 3;
    let parts = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(services),
        Constraint::Min(5),
        Constraint::Length(EVENT_LINES),
        Constraint::Length(1),
    ])
    .split(frame.area());
    frame.render_widget(head(model), parts[0]);
    frame.render_widget(services_table(model), parts[1]);
    frame.render_widget(backends_table(model), parts[2]);
    let events: Vec<_> = model.events.iter().map(|it| Line::raw(it.as_str())).collect();
    frame.render_widget(Paragraph::new(events).block(titled("events")), parts[3]);
    frame.render_widget(foot(model), parts[4]);
}

fn head(model: &Model) -> Line<'_> {
    let status = &model.now.status;
    let state = match (status.ready, &status.draining) {
        (false, _) => "starting",
        (true, Some(_)) => "draining",
        (true, None) => "ready",
    };
    let connections: u64 = model.rows.iter().map(|row| row.connections).sum();
    let new: f64 = model.rows.iter().map(|row| row.new).sum();
    let bytes: f64 = model.rows.iter().map(|row| row.bytes).sum();
    let text = format!(
        "edge {}: {state}, up for {} s, {connections} connections, {new:.1} new/s, {}/s",
        status.edge,
        status.uptime_seconds,
        size(bytes)
    );
    Line::styled(text, Style::new().add_modifier(Modifier::BOLD))
}

fn foot(model: &Model) -> Line<'_> {
    match &model.problem {
        Some(problem) => Line::styled(problem.as_str(), Style::new().fg(Color::Red)),
        None => Line::raw(format!(
            "q quit   s sort by {}   up, down scroll",
            model.order.next().label()
        )),
    }
}

fn services_table(model: &Model) -> Table<'_> {
    let rows = model.now.status.services.iter().map(|service| {
        let up = service.backends.iter().filter(|it| it.effective_weight > 0).count();
        let connections: u64 = service.backends.iter().map(|it| it.connections).sum();
        let (state, style) = match (service.fail_open, service.turned_away) {
            (true, _) => ("failing open", bad()),
            (_, true) => ("clients are turned away", bad()),
            _ => ("ok", Style::new()),
        };
        Row::new([
            Cell::from(service.name.as_str()),
            Cell::from(service.forward.as_deref().unwrap_or(&service.mode)),
            Cell::from(format!("{up}/{}", service.backends.len())),
            Cell::from(service.connections.unwrap_or(connections).to_string()),
            Cell::from(service.relayed.map_or_else(String::new, |it| it.to_string())),
            Cell::from(service.spliced.map_or_else(String::new, |it| it.to_string())),
            Cell::from(state).style(style),
        ])
    });
    let widths = [
        Constraint::Fill(2),
        Constraint::Length(6),
        Constraint::Length(9),
        Constraint::Length(12),
        Constraint::Length(9),
        Constraint::Length(9),
        Constraint::Fill(2),
    ];
    let heads = ["service", "mode", "backends", "connections", "relayed", "spliced", "state"];
    Table::new(rows, widths).header(header(heads)).block(titled("services"))
}

fn backends_table(model: &Model) -> Table<'_> {
    let sorted = model.sorted();
    // The last one stays in sight.
    let scroll = model.scroll.min(sorted.len().saturating_sub(1));
    let rows: Vec<_> = sorted.into_iter().skip(scroll).map(backend_row).collect();
    let widths = [
        Constraint::Fill(2),
        Constraint::Fill(2),
        Constraint::Length(9),
        Constraint::Length(6),
        Constraint::Length(12),
        Constraint::Length(9),
        Constraint::Length(11),
        Constraint::Fill(3),
    ];
    let heads =
        ["service", "backend", "state", "weight", "connections", "new/s", "bytes/s", "last error"];
    let title = format!("backends, by {}", model.order.label());
    Table::new(rows, widths).header(header(heads)).block(titled(title))
}

fn backend_row(row: &rates::Row) -> Row<'_> {
    let style = match row.state.as_str() {
        "up" => Style::new(),
        "draining" | "unknown" => Style::new().fg(Color::Yellow),
        _ => bad(),
    };
    Row::new([
        Cell::from(row.service.as_str()),
        Cell::from(row.backend.as_str()),
        Cell::from(row.state.as_str()).style(style),
        Cell::from(row.weight.to_string()),
        Cell::from(row.connections.to_string()),
        Cell::from(format!("{:.1}", row.new)),
        Cell::from(size(row.bytes)),
        Cell::from(row.error.as_str()),
    ])
}

fn bad() -> Style {
    Style::new().fg(Color::Red).add_modifier(Modifier::BOLD)
}

fn header<const N: usize>(heads: [&str; N]) -> Row<'_> {
    Row::new(heads).style(Style::new().add_modifier(Modifier::BOLD))
}

fn titled<'a>(title: impl Into<Line<'a>>) -> Block<'a> {
    Block::new().borders(Borders::TOP).title(title)
}

fn size(bytes: f64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes, 0);
    while value >= 1_024.0 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1_024.0, unit + 1);
    }
    format!("{value:.1} {}", UNITS[unit])
}
