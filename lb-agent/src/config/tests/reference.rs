//! `docs/config.md` and `edge.example.toml` are held to what the parser does.

use super::*;
use std::time::Duration;

const REFERENCE: &str = include_str!("../../../../docs/config.md");
const EXAMPLE: &str = include_str!("../../../../edge.example.toml");

/// One row of a section's table.
struct Row {
    key: String,
    default: String,
    range: String,
}

fn rows(section: &Section) -> Vec<Row> {
    let title = format!("## `{}`\n", section.heading);
    let Some((_, rest)) = REFERENCE.split_once(&title) else {
        panic!("no {title:?} in the reference");
    };
    let part = rest.split("\n##").next().unwrap();
    part.lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            // Nothing stands before the first and after the last bar.
            let [_, key, _, default, range, _, _] = cells[..] else { panic!("{line}") };
            let (default, range) = (default.to_owned(), range.to_owned());
            Row { key: code(key).unwrap(), default, range }
        })
        .collect()
}

/// The text of a cell that is nothing but code.
fn code(cell: &str) -> Option<String> {
    let inner = cell.strip_prefix('`')?.strip_suffix('`')?;
    (!inner.contains('`')).then(|| inner.to_owned())
}

/// A minimal file with `line` added to a section.
fn with_line(section: &Section, line: &str) -> String {
    let key = line.split_once(' ').map_or(line, |(key, _)| key);
    let l7_only = service::L7_ONLY.contains(&key);
    let text = if l7_only { minimal_l7() } else { minimal() };
    match section.heading {
        "[edge.sidecar]" => {
            with(&text, "[[service]]", &format!("[edge.sidecar]\n{line}\n[[service]]"))
        }
        "[service.affinity]" => {
            let text = with(
                &minimal_l7(),
                "[[service]]",
                "[edge.sidecar]\ncookie_keys = \"/k\"\n[[service]]",
            );
            with(
                &text,
                "[[service.backend]]",
                &format!("[service.affinity]\nkind = \"cookie\"\n{line}\n[[service.backend]]"),
            )
        }
        "[service.zones]" => {
            let text = with(&minimal(), "[edge]\n", "[edge]\nzone = \"a\"\n");
            let text = with(&text, "[[service.backend]]\n", "[[service.backend]]\nzone = \"a\"\n");
            with(
                &text,
                "[[service.backend]]",
                &format!("[service.zones]\n{line}\n[[service.backend]]"),
            )
        }
        "[service.outlier]" => {
            // The longest time is tried down to the shortest first one.
            let base = if line.starts_with("max_ejection_time") {
                "base_ejection_time = \"1s\""
            } else {
                ""
            };
            with(
                &minimal_l7(),
                "[[service.backend]]",
                &format!("[service.outlier]\n{base}\n{line}\n[[service.backend]]"),
            )
        }
        "[service.proxy_protocol]" => {
            // Proxies are trusted only where they are listened to.
            let other = match key {
                "accept" if line.contains("off") => "",
                "accept" => "trusted = [\"10.0.0.0/8\"]\n",
                "trusted" => "accept = \"required\"\n",
                _ => "",
            };
            with(
                &minimal_l7(),
                "[[service.backend]]",
                &format!("{}\n{other}{line}\n[[service.backend]]", section.heading),
            )
        }
        "[service.http]"
        | "[service.forwarded]"
        | "[service.drain]"
        | "[service.backend_tls]"
        | "[service.passthrough]"
        | "[service.limits]" => with(
            &minimal_l7(),
            "[[service.backend]]",
            &format!("{}\n{line}\n[[service.backend]]", section.heading),
        ),
        "[service.tls]" => {
            let given =
                "certificates = [{ certificate = \"/c\", key = \"/k\" }]\nclient_ca = \"/ca\"";
            let tls = format!("[service.tls]\n{given}\n{line}\n[[service.backend]]");
            with(&minimal_l7(), "[[service.backend]]", &tls)
        }
        "[edge]" => with(&text, "[edge]\n", &format!("[edge]\n{line}\n")),
        "[edge.access]" => {
            with(&text, "[[service]]", &format!("[edge.access]\n{line}\n[[service]]"))
        }
        "[service.access]" => with(
            &text,
            "[[service.backend]]",
            &format!("[service.access]\n{line}\n[[service.backend]]"),
        ),
        "[edge.tables]" => {
            with(&text, "[[service]]", &format!("[edge.tables]\n{line}\n[[service]]"))
        }
        "[[service]]" => with(&text, "[[service]]\n", &format!("[[service]]\n{line}\n")),
        "[service.health]" => {
            // Timeouts are tried up to the longest interval, and intervals down to the shortest timeout.
            let kind = "kind = \"https\"\ninterval = \"1h\"";
            let kind = if line.starts_with("interval") {
                "kind = \"https\"\ntimeout = \"10ms\""
            } else {
                kind
            };
            with(
                &text,
                "[[service.backend]]",
                &format!("[service.health]\n{kind}\n{line}\n[[service.backend]]"),
            )
        }
        "[[service.backend]]" => {
            with(&text, "[[service.backend]]\n", &format!("[[service.backend]]\n{line}\n"))
        }
        "[[service.pool]]" => {
            let pool = format!(
                "[[service.pool]]\nname = \"p\"\n{line}\n[[service.pool.backend]]\naddress = \"10.2.0.9:9000\"\n"
            );
            format!("{}{pool}[[service.route]]\npool = \"p\"\n", minimal_l7())
        }
        "[[service.route]]" => {
            format!("{}[[service.route]]\npool = \"default\"\n{line}\n", minimal_l7())
        }
        "[service.route.redirect]" => {
            let redirect = format!("[service.route.redirect]\nscheme = \"https\"\n{line}\n");
            format!("{}[[service.route]]\n{redirect}", minimal_l7())
        }
        "[service.route.answer]" => {
            let status = if line.starts_with("status") { "" } else { "status = 200\n" };
            format!("{}[[service.route]]\n[service.route.answer]\n{status}{line}\n", minimal_l7())
        }
        other => panic!("{other}"),
    }
}

#[test]
fn every_key_is_in_the_reference_and_no_other() {
    for section in SECTIONS {
        let documented: Vec<String> = rows(section).into_iter().map(|row| row.key).collect();
        assert_eq!(documented, section.keys, "{}", section.heading);
    }
}

#[test]
fn required_keys_are_required_and_the_others_are_not() {
    let all = valid(&minimal());
    assert_eq!(all.services.len(), 1);
    for (section, required) in [
        ("[edge]", vec!["name", "interfaces", "hash_seed"]),
        ("[edge.tables]", vec![]),
        ("[edge.sidecar]", vec![]),
        ("[[service]]", vec!["name", "listen", "backend"]),
        ("[service.affinity]", vec!["kind"]),
        ("[service.http]", vec![]),
        ("[service.forwarded]", vec![]),
        ("[service.drain]", vec![]),
        ("[service.outlier]", vec![]),
        ("[service.zones]", vec![]),
        ("[service.health]", vec!["kind"]),
        ("[[service.backend]]", vec!["address"]),
        ("[[service.pool]]", vec!["name", "backend"]),
        ("[[service.route]]", vec![]),
        ("[[service.route.header]]", vec!["name"]),
        ("[[service.route.query]]", vec!["name"]),
        ("[service.route.redirect]", vec![]),
        ("[service.route.answer]", vec!["status"]),
        ("[service.route.request_headers]", vec![]),
        ("[service.route.response_headers]", vec![]),
        ("[service.tls]", vec!["certificates"]),
        ("[[service.tls.certificates]]", vec!["certificate", "key"]),
        ("[service.backend_tls]", vec![]),
        ("[service.passthrough]", vec![]),
        ("[[service.passthrough.route]]", vec!["sni"]),
    ] {
        let section = SECTIONS.iter().find(|known| known.heading == section).unwrap();
        let documented = rows(section).into_iter().filter(|row| row.default == "required");
        assert_eq!(
            documented.map(|row| row.key).collect::<Vec<_>>(),
            required,
            "{}",
            section.heading
        );
    }
}

/// Writing a documented default out changes nothing.
#[test]
fn documented_defaults_are_the_defaults() {
    let mut checked = 0;
    for section in SECTIONS {
        for row in rows(section) {
            // nat needs a source address, so that an empty list cannot be tried in the minimal file.
            let Some(default) = code(&row.default).filter(|default| default != "[]") else {
                continue;
            };
            let written = format!("{} = {default}", row.key);
            let text = with_line(section, &written);
            assert_eq!(valid(&text), valid(&with(&text, &written, "")), "{written}");
            checked += 1;
        }
    }
    assert!(checked >= 50, "{checked}");
}

/// Both ends of a documented range are accepted, and what lies beyond is refused.
#[test]
fn documented_ranges_are_the_ranges() {
    let mut checked = 0;
    for section in SECTIONS {
        for Row { key, range, .. } in rows(section) {
            let Some((low, high)) = range.split_once(" to ") else { continue };
            let (Some(low), Some(high)) = (code(low), code(high)) else { continue };
            if key == "nat_ports" {
                continue;
            }
            let high = if high == "interval" { "\"1h\"".to_owned() } else { high };
            let try_value =
                |value: &str| parse("edge.toml", &with_line(section, &format!("{key} = {value}")));
            for value in [&low, &high] {
                assert!(
                    try_value(value).is_ok(),
                    "{key} = {value}: {}",
                    try_value(value).unwrap_err()
                );
            }
            let beyond = match (low.parse::<i64>(), high.parse::<i64>()) {
                (Ok(low), Ok(high)) => [(low - 1).to_string(), (high + 1).to_string()],
                _ => {
                    let parse = |text: &str| duration::parse(text.trim_matches('"')).unwrap();
                    let write = |duration| format!("{:?}", duration::format(duration));
                    let below = parse(&low).checked_sub(Duration::from_millis(1));
                    let below = below.map_or("\"-1ms\"".to_owned(), write);
                    [below, write(parse(&high) + Duration::from_millis(1))]
                }
            };
            for value in &beyond {
                assert!(try_value(value).is_err(), "{key} = {value} is accepted");
            }
            checked += 1;
        }
    }
    assert!(checked >= 32, "{checked}");
}

#[test]
fn the_example_is_valid_without_warnings() {
    let config = valid(EXAMPLE);
    assert_eq!(config.services.len(), 5);
}

#[test]
fn the_example_shows_most_keys() {
    let left_out = ["port", "verify", "ca", "sni"];
    let tables = [
        "tables",
        "sidecar",
        "http",
        "forwarded",
        "backend",
        "route",
        "request_headers",
        "response_headers",
        "outlier",
        "zones",
        "tls",
        "backend_tls",
        "proxy_protocol",
        "limits",
        "passthrough",
    ];
    for key in SECTIONS
        .iter()
        .flat_map(|section| section.keys)
        .filter(|key| !left_out.contains(key) && !tables.contains(key))
    {
        assert!(EXAMPLE.contains(&format!("{key} = ")), "{key}");
    }
}
