//! Reads the tables of a TOML document and collects every problem instead of stopping at the first.
//!
//! A value that cannot be used is reported once and then stands as absent or as its default, so that
//! reading goes on; the result is thrown away in the end if anything was reported.

mod shapes;

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::sync::OnceLock;
use std::time::Duration;

use toml_edit::{ArrayOfTables, Item, Table, TableLike, Value};

use super::duration;
use super::error::{Place, Problems, shorten};
use super::nearest::nearest;
use super::share::Share;

/// A kind of table and the keys that it may hold: what the reference documents.
pub(super) struct Section {
    /// The header as it is written: `[[service]]`.
    pub heading: &'static str,
    pub keys: &'static [&'static str],
}

/// What stands behind a key or in an array.
#[derive(Clone, Copy)]
enum Node<'a> {
    Value(&'a Value),
    Table(&'a Table),
    Tables(&'a ArrayOfTables),
}

impl<'a> Node<'a> {
    fn of(item: &'a Item) -> Option<Self> {
        match item {
            Item::None => None,
            Item::Value(value) => Some(Self::Value(value)),
            Item::Table(table) => Some(Self::Table(table)),
            Item::ArrayOfTables(tables) => Some(Self::Tables(tables)),
        }
    }

    fn span(self) -> Option<std::ops::Range<usize>> {
        match self {
            Self::Value(value) => value.span(),
            Self::Table(table) => table.span(),
            Self::Tables(tables) => tables.span(),
        }
    }

    fn type_name(self) -> &'static str {
        match self {
            Self::Value(Value::String(_)) => "a string",
            Self::Value(Value::Integer(_)) => "an integer",
            Self::Value(Value::Float(_)) => "a float",
            Self::Value(Value::Boolean(_)) => "true or false",
            Self::Value(Value::Datetime(_)) => "a date",
            Self::Value(Value::Array(_)) => "an array",
            Self::Value(Value::InlineTable(_)) | Self::Table(_) => "a table",
            Self::Tables(_) => "an array of tables",
        }
    }
}

/// A value and where it stands.
pub(super) struct Field<'a> {
    problems: &'a Problems<'a>,
    node: Node<'a>,
    key: &'static str,
    /// Line, name and text of the value.
    pub place: Place,
}

impl<'a> Field<'a> {
    /// The key.
    pub fn key(&self) -> &'static str {
        self.key
    }

    /// Reports that the value cannot be used: `is not …`, `write …`.
    pub fn refuse(&self, what: impl Into<String>, remedy: impl Into<String>) {
        self.problems.error(&self.place, what, remedy);
    }

    fn refuse_type(&self, wanted: &str, example: impl Display) {
        let what = format!("is {}, not {wanted}", self.node.type_name());
        self.refuse(what, format!("write e.g. {} = {example}", self.key));
    }

    /// The string, if it is one.
    pub fn string(&self, example: &str) -> Option<&'a str> {
        match self.node {
            Node::Value(Value::String(text)) => Some(text.value()),
            _ => {
                self.refuse_type("a string", example);
                None
            }
        }
    }

    /// The integer, if it is one and in range.
    pub fn integer(&self, range: &RangeInclusive<u32>, example: impl Display) -> Option<u32> {
        let Node::Value(Value::Integer(number)) = self.node else {
            self.refuse_type("an integer", example);
            return None;
        };
        let number = u32::try_from(*number.value()).ok().filter(|number| range.contains(number));
        if number.is_none() {
            self.refuse("is out of range", format!("write {} to {}", range.start(), range.end()));
        }
        number
    }

    /// The elements, if it is an array of at most `most` of them.
    pub fn elements(&self, most: usize, example: &str) -> Option<Vec<Field<'a>>> {
        let Node::Value(Value::Array(array)) = self.node else {
            self.refuse_type("an array", example);
            return None;
        };
        if array.len() > most {
            self.refuse(format!("has {} elements", array.len()), format!("write at most {most}"));
            return None;
        }
        Some(array.iter().map(|value| self.element(Node::Value(value))).collect())
    }

    /// Whether the value is an array (of values, not of tables).
    pub fn is_array(&self) -> bool {
        matches!(self.node, Node::Value(Value::Array(_)))
    }

    /// Whether the value is a string.
    pub fn is_string(&self) -> bool {
        matches!(self.node, Node::Value(Value::String(_)))
    }

    /// Whether the value is an integer.
    pub fn is_integer(&self) -> bool {
        matches!(self.node, Node::Value(Value::Integer(_)))
    }

    /// The number from 0 to 1, if it is one.
    pub fn share(&self, example: &str) -> Option<Share> {
        let number = match self.node {
            Node::Value(Value::Float(number)) => *number.value(),
            Node::Value(Value::Integer(number)) => match *number.value() {
                0 => 0.0,
                1 => 1.0,
                _ => f64::NAN,
            },
            _ => {
                self.refuse_type("a number", example);
                return None;
            }
        };
        let share = Share::new(number);
        if share.is_none() {
            self.refuse("is out of range", "write 0 to 1");
        }
        share
    }

    /// The duration, if it is one and in range.
    pub fn duration(
        &self,
        range: &RangeInclusive<Duration>,
        example: Duration,
    ) -> Option<Duration> {
        let example = format!("{:?}", duration::format(example));
        let Node::Value(Value::String(text)) = self.node else {
            self.refuse_type("a duration", example);
            return None;
        };
        match duration::parse(text.value()) {
            Ok(duration) if range.contains(&duration) => return Some(duration),
            Ok(_) => {
                let (least, most) =
                    (duration::format(*range.start()), duration::format(*range.end()));
                self.refuse("is out of range", format!("write {least:?} to {most:?}"));
            }
            Err(what) => {
                self.refuse(what, format!("write a number and ms, s, m, h or d, e.g. {example}"));
            }
        }
        None
    }

    fn element(&self, node: Node<'a>) -> Field<'a> {
        let place = self.place.clone();
        Field {
            problems: self.problems,
            node,
            key: self.key,
            place: placed(self.problems, place, node),
        }
    }
}

/// Moves `place` to the node, if the parser knows where that is.
fn placed(problems: &Problems<'_>, mut place: Place, node: Node<'_>) -> Place {
    let Some(span) = node.span() else {
        return place;
    };
    place.line = problems.line_at(span.start);
    place.value = match node {
        Node::Value(_) if !place.secret => problems.snippet(span),
        _ => String::new(),
    };
    place
}

/// One table of the document.
#[derive(Clone)]
pub(super) struct Reader<'a> {
    problems: &'a Problems<'a>,
    table: &'a dyn TableLike,
    section: &'static Section,
    /// Line and name of the table.
    pub place: Place,
}

impl<'a> Reader<'a> {
    /// The document itself.
    pub fn root(problems: &'a Problems<'a>, table: &'a Table, section: &'static Section) -> Self {
        let (thing, value) = (String::new(), String::new());
        let place = Place { line: 1, thing, value, secret: false };
        let root = Self { problems, table, section, place };
        root.refuse_unknown_keys();
        root
    }

    /// Gives a table out of several the name that messages use: `service "chat"`, after the first of
    /// `keys` that holds a string, else `service 1`.
    pub fn named_by(mut self, outer: &Place, kind: &str, position: usize, keys: &[&str]) -> Self {
        let name = keys.iter().find_map(|key| self.table.get(key).and_then(Item::as_str));
        let name = name.map_or_else(|| position.to_string(), |name| format!("{:?}", shorten(name)));
        self.place.thing = joined(&outer.thing, &format!("{kind} {name}"));
        self.refuse_unknown_keys();
        self
    }

    fn refuse_unknown_keys(&self) {
        for (key, _) in self.table.iter().filter(|(key, _)| !self.section.keys.contains(key)) {
            let place = Place {
                line: self.line_of_key(key),
                thing: joined(&self.place.thing, "key"),
                value: format!("{:?}", shorten(key)),
                secret: false,
            };
            let homes = super::SECTIONS.iter().filter(|section| section.keys.contains(&key));
            let homes: Vec<String> = homes.map(|section| section.heading.to_owned()).collect();
            let remedy = if let Some(near) = nearest(key, self.section.keys) {
                format!("did you mean {near:?}?")
            } else if homes.is_empty() {
                format!("known here are {}", self.section.keys.join(", "))
            } else {
                format!("it belongs in {}", alternatives(&homes))
            };
            self.problems.error(&place, "is not known", remedy);
        }
    }

    fn line_of_key(&self, key: &str) -> usize {
        let span = self.table.key(key).and_then(toml_edit::Key::span);
        span.map_or(self.place.line, |span| self.problems.line_at(span.start))
    }

    /// The value of a key, if it is there.
    pub fn field(&self, key: &'static str) -> Option<Field<'a>> {
        debug_assert!(self.section.keys.contains(&key), "{key} is missing in the section's keys");
        let node = self.table.get(key).and_then(Node::of)?;
        let place = Place {
            line: self.line_of_key(key),
            thing: joined(&self.place.thing, key),
            value: String::new(),
            secret: self.place.secret || super::SECRETS.contains(&key),
        };
        Some(Field {
            problems: self.problems,
            node,
            key,
            place: placed(self.problems, place, node),
        })
    }

    /// The value of a key that must be there.
    pub fn required(&self, key: &'static str, example: &str) -> Option<Field<'a>> {
        let field = self.field(key);
        if field.is_none() {
            self.refuse(key, "is missing", format!("add e.g. {key} = {example}"));
        }
        field
    }

    /// Reports a problem with a key that is not there, on the table's own line.
    pub fn refuse(&self, key: &str, what: impl Into<String>, remedy: impl Into<String>) {
        let thing = joined(&self.place.thing, key);
        self.problems.error(&Place { thing, ..self.place.clone() }, what, remedy);
    }

    /// An integer in `range`.
    pub fn integer(&self, key: &'static str, range: RangeInclusive<u32>, default: u32) -> u32 {
        self.field(key).and_then(|field| field.integer(&range, default)).unwrap_or(default)
    }

    /// `true` or `false`.
    pub fn flag(&self, key: &'static str, default: bool) -> bool {
        let Some(field) = self.field(key) else {
            return default;
        };
        match field.node {
            Node::Value(Value::Boolean(flag)) => *flag.value(),
            _ => {
                field.refuse_type("true or false", default);
                default
            }
        }
    }

    /// A duration in `range`.
    pub fn duration(
        &self,
        key: &'static str,
        range: RangeInclusive<Duration>,
        default: Duration,
    ) -> Duration {
        self.field(key).and_then(|field| field.duration(&range, default)).unwrap_or(default)
    }

    /// One word out of a fixed set; the first is the default.
    pub fn choice<T: Copy>(&self, key: &'static str, choices: &[(&'static str, T)]) -> T {
        self.field(key).and_then(|field| field.choice(choices)).unwrap_or(choices[0].1)
    }

    /// The table behind a key, if it is there.
    pub fn table(&self, key: &'static str, section: &'static Section) -> Option<Reader<'a>> {
        let field = self.field(key)?;
        let table: &dyn TableLike = match field.node {
            Node::Table(table) => table,
            Node::Value(Value::InlineTable(table)) => table,
            _ => {
                let what = format!("is {}, not a table", field.node.type_name());
                field.refuse(what, format!("write {}", section.heading));
                return None;
            }
        };
        let place = Place { value: String::new(), ..field.place };
        let reader = Reader { problems: self.problems, table, section, place };
        reader.refuse_unknown_keys();
        Some(reader)
    }

    /// Like [`table`](Self::table); an absent one reads as empty, and what it must hold as missing.
    pub fn table_or_empty(&self, key: &'static str, section: &'static Section) -> Reader<'a> {
        self.table(key, section).unwrap_or_else(|| {
            let place = Place { thing: joined(&self.place.thing, key), ..self.place.clone() };
            Reader { problems: self.problems, table: empty(), section, place }
        })
    }

    /// The tables behind a key: `[[key]]` or an array of inline tables; none if the key is absent.
    /// Their number and those of them that are tables.
    pub fn tables(&self, key: &'static str, section: &'static Section) -> (usize, Vec<Reader<'a>>) {
        let Some(field) = self.field(key) else {
            return (0, Vec::new());
        };
        let place = |node| Place { value: String::new(), ..field.element(node).place };
        let reader =
            |node, table| Reader { problems: self.problems, table, section, place: place(node) };
        let remedy = format!("write {}", section.heading);
        match field.node {
            Node::Tables(tables) => {
                let readers =
                    tables.iter().map(|table| reader(Node::Table(table), table as &dyn TableLike));
                (tables.len(), readers.collect())
            }
            Node::Value(Value::Array(array)) => {
                let readers = array.iter().filter_map(|value| {
                    let node = Node::Value(value);
                    if let Value::InlineTable(table) = value {
                        return Some(reader(node, table as &dyn TableLike));
                    }
                    let what = format!("is {}, not a table", node.type_name());
                    field.element(node).refuse(what, remedy.clone());
                    None
                });
                (array.len(), readers.collect())
            }
            node => {
                field.refuse(format!("is {}, not an array of tables", node.type_name()), remedy);
                (1, Vec::new())
            }
        }
    }
}

impl Field<'_> {
    /// One word out of a fixed set.
    pub fn choice<T: Copy>(&self, choices: &[(&'static str, T)]) -> Option<T> {
        let text = self.string(&format!("{:?}", choices[0].0))?;
        let chosen = choices.iter().find(|(word, _)| *word == text).map(|(_, choice)| *choice);
        if chosen.is_none() {
            let words: Vec<String> = choices.iter().map(|(word, _)| format!("{word:?}")).collect();
            self.refuse("is not a choice here", format!("write {}", alternatives(&words)));
        }
        chosen
    }
}

fn empty() -> &'static Table {
    static EMPTY: OnceLock<Table> = OnceLock::new();
    EMPTY.get_or_init(Table::new)
}

/// `a`, `a or b`, `a, b or c`.
pub(super) fn alternatives(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [only] => only.clone(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
    }
}

fn joined(outer: &str, inner: &str) -> String {
    if outer.is_empty() { inner.to_owned() } else { format!("{outer}: {inner}") }
}
