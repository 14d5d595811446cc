//! The text of the metrics, read as strictly as its grammar is: the text format of Prometheus 0.0.4.

use std::collections::{BTreeMap, BTreeSet};

/// A family of metrics as it is read.
#[derive(Debug, Default)]
pub struct Family {
    pub kind: String,
    pub help: String,
    /// Names of the labels in any of its samples, but for a histogram's `le`.
    pub labels: BTreeSet<String>,
    /// By name and labels as they are written.
    pub samples: BTreeMap<String, f64>,
}

/// All families by name; the first thing that is wrong with the text.
pub fn parse(text: &str) -> Result<BTreeMap<String, Family>, String> {
    let mut families = BTreeMap::<String, Family>::new();
    let mut current = String::new();
    if !text.ends_with('\n') {
        return Err("the last line is not ended".to_owned());
    }
    for line in text.lines() {
        let wrong = |what: &str| Err(format!("{what}: {line}"));
        if let Some(help) = line.strip_prefix("# HELP ") {
            let Some((name, help)) = help.split_once(' ') else { return wrong("no help text") };
            let family = Family { help: help.to_owned(), ..Family::default() };
            if families.insert(name.to_owned(), family).is_some() {
                return wrong("a family comes twice");
            }
            current = name.to_owned();
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let Some((name, kind)) = kind.split_once(' ') else { return wrong("no type") };
            let family = families.get_mut(name).filter(|it| it.kind.is_empty() && name == current);
            let Some(family) = family else { return wrong("a type without help, or twice") };
            if !["counter", "gauge", "histogram"].contains(&kind) {
                return wrong("an unknown type");
            }
            family.kind = kind.to_owned();
        } else if line.starts_with('#') || line.is_empty() {
            return wrong("neither a sample, HELP nor TYPE");
        } else {
            let (series, value) = line.rsplit_once(' ').ok_or(format!("no value: {line}"))?;
            let Ok(value) = value.parse::<f64>() else { return wrong("not a number") };
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let labels = self::labels(labels).map_err(|error| format!("{error}: {line}"))?;
            let family = families.get_mut(&current).filter(|it| !it.kind.is_empty());
            let Some(family) = family else { return wrong("a sample before its type") };
            let suffix = name.strip_prefix(&current);
            let fits = match family.kind.as_str() {
                "histogram" => [Some("_bucket"), Some("_sum"), Some("_count")].contains(&suffix),
                _ => suffix == Some(""),
            };
            if !fits {
                return wrong("a sample of another family");
            }
            if family.kind != "gauge" && value < 0.0 {
                return wrong("a negative count");
            }
            let names = labels.iter().filter(|name| suffix != Some("_bucket") || *name != "le");
            family.labels.extend(names.cloned());
            if family.samples.insert(series.to_owned(), value).is_some() {
                return wrong("a series comes twice");
            }
        }
    }
    Ok(families)
}

/// Names of the labels; `text` begins behind the brace.
fn labels(text: &str) -> Result<Vec<String>, String> {
    let mut names = Vec::new();
    let mut rest = text;
    while rest != "}" {
        let (name, value) = rest.split_once("=\"").ok_or("no value of a label")?;
        let fits = name.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'_');
        if name.is_empty() || !fits || names.contains(&name.to_owned()) {
            return Err(format!("not a label, or twice: {name}"));
        }
        names.push(name.to_owned());
        let mut letters = value.char_indices();
        let end = loop {
            match letters.next() {
                Some((at, '"')) => break at,
                Some((_, '\\')) => match letters.next() {
                    Some((_, '\\' | '"' | 'n')) => {}
                    _ => return Err("an unknown escape".to_owned()),
                },
                Some(_) => {}
                None => return Err("a value is not ended".to_owned()),
            }
        };
        rest = &value[end + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    Ok(names)
}

#[test]
fn what_is_not_in_the_grammar_is_refused() {
    let good = "# HELP a b.\n# TYPE a counter\na{x=\"1\\\"\"} 1.0\na{x=\"2\"} 2\n";
    let families = parse(good).unwrap();
    assert_eq!((families["a"].samples.len(), families["a"].labels.len()), (2, 1));
    for (change, to) in [
        ("# HELP a b.\n", ""),
        ("# TYPE a counter\n", ""),
        ("a{x=\"2\"} 2\n", "a{x=\"2\"} 2"),
        ("a{x=\"2\"} 2", "a{x=\"2\"} two"),
        ("a{x=\"2\"} 2", "a{x=\"2\"} -2"),
        ("a{x=\"2\"} 2", "a{x=\"1\\\"\"} 2"),
        ("a{x=\"2\"} 2", "b{x=\"2\"} 2"),
        ("a{x=\"2\"} 2", "a_total{x=\"2\"} 2"),
        ("a{x=\"2\"}", "a{x=2}"),
        ("a{x=\"2\"}", "a{x=\"\\2\"}"),
        ("counter", "count"),
    ] {
        assert!(parse(&good.replace(change, to)).is_err(), "{change:?} as {to:?}");
    }
}
