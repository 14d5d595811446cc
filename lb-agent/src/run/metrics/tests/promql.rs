//! What a PromQL expression names: enough of its grammar to find metrics, labels and the values they are compared with.

/// What was found, in the order of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// A time series, with its matchers: label, whether it is a pattern, and the value.
    Series(&'a str, Vec<(&'a str, bool, &'a str)>),
    /// A label in `by (...)` and the like.
    Grouped(&'a str),
    /// A word that is neither a function, a keyword nor a number.
    Unknown(&'a str),
}

const KEYWORDS: [&str; 6] = ["and", "or", "unless", "bool", "offset", "inf"];
const GROUPINGS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];

/// `prefix`: of the metrics' names; of others only `up` is a series.
pub fn parse<'a>(text: &'a str, prefix: &str) -> Result<Vec<Found<'a>>, String> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        if first.is_ascii_alphabetic() || first == '_' {
            let (word, behind) = word(rest);
            rest = behind.trim_start();
            if word.starts_with(prefix) || word == "up" {
                let matchers;
                (matchers, rest) = match rest.strip_prefix('{') {
                    Some(inside) => self::matchers(inside)?,
                    None => (Vec::new(), rest),
                };
                found.push(Found::Series(word, matchers));
            } else if GROUPINGS.contains(&word) {
                let inside = rest.strip_prefix('(').ok_or(format!("{word} without labels"))?;
                let (labels, behind) = inside.split_once(')').ok_or("a parenthesis is open")?;
                let labels = labels.split(',').map(str::trim).filter(|it| !it.is_empty());
                found.extend(labels.map(Found::Grouped));
                rest = behind;
            } else if !rest.starts_with('(') && !is_grouped(rest) && !KEYWORDS.contains(&word) {
                found.push(Found::Unknown(word));
            }
        } else if let Some(inside) = rest.strip_prefix('[') {
            rest = inside.split_once(']').ok_or("a bracket is open")?.1;
        } else if first.is_ascii_digit() {
            // With the unit of a duration behind it.
            let end = rest.find(|it: char| !it.is_ascii_alphanumeric() && it != '.');
            rest = &rest[end.unwrap_or(rest.len())..];
        } else if "+-*/%^()=<>!,@".contains(first) {
            rest = &rest[1..];
        } else {
            return Err(format!("{first:?} is not expected before {rest:?}"));
        }
        rest = rest.trim_start();
    }
    Ok(found)
}

/// `sum by (...) (...)`: an aggregation's name is a function's, too.
fn is_grouped(rest: &str) -> bool {
    GROUPINGS.contains(&word(rest).0)
}

fn word(text: &str) -> (&str, &str) {
    let end = text.find(|it: char| !it.is_ascii_alphanumeric() && it != '_' && it != ':');
    text.split_at(end.unwrap_or(text.len()))
}

type Matchers<'a> = Vec<(&'a str, bool, &'a str)>;

/// What stands between braces, and what follows them.
fn matchers(mut rest: &str) -> Result<(Matchers<'_>, &str), String> {
    let mut matchers = Vec::new();
    loop {
        rest = rest.trim_start_matches([' ', ',', '\n']);
        if let Some(behind) = rest.strip_prefix('}') {
            return Ok((matchers, behind));
        }
        let (label, behind) = word(rest);
        let behind = behind.trim_start();
        let operator = ["=~", "!~", "!=", "="].into_iter().find(|it| behind.starts_with(it));
        let operator = operator.ok_or(format!("no operator before {behind:?}"))?;
        let value = behind[operator.len()..].trim_start().strip_prefix('"');
        let (value, behind) =
            value.and_then(|it| it.split_once('"')).ok_or(format!("{label} without a value"))?;
        matchers.push((label, operator.ends_with('~'), value));
        rest = behind;
    }
}

#[test]
fn series_labels_and_unknown_words_are_found() {
    let text = r#"sum by (service, le) (rate(x_a_bucket{service=~"$s", how!="b"}[5m])) / on (i) group_left () x_b > 0.5 and typo"#;
    let wanted = [
        Found::Grouped("service"),
        Found::Grouped("le"),
        Found::Series("x_a_bucket", vec![("service", true, "$s"), ("how", false, "b")]),
        Found::Grouped("i"),
        Found::Series("x_b", vec![]),
        Found::Unknown("typo"),
    ];
    assert_eq!(parse(text, "x_").unwrap(), wanted);
    for broken in ["x_a{b}", "x_a{b=\"", "x_a[5m", "sum by service (x_a)", "x_a ; x_b"] {
        assert!(parse(broken, "x_").is_err(), "{broken}");
    }
}
