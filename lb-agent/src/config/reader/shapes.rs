//! Values that may be written in more than one shape, and tables whose keys are the operator's own.

use toml_edit::{Item, TableLike, Value};

use super::{Field, Node, Place, Reader, Section, joined, placed};

impl<'a> Field<'a> {
    /// The elements of an array, or the value itself.
    pub fn one_or_more(self, most: usize, example: &str) -> Option<Vec<Self>> {
        if !self.is_array() {
            return Some(vec![self]);
        }
        let elements = self.elements(most, example)?;
        if elements.is_empty() {
            self.refuse("is empty", format!("write e.g. {example}, or leave it out"));
            return None;
        }
        Some(elements)
    }

    fn as_table(&self) -> Option<&'a dyn TableLike> {
        match self.node {
            Node::Table(table) => Some(table),
            Node::Value(Value::InlineTable(table)) => Some(table),
            _ => None,
        }
    }

    /// The keys and values of a table whose keys are not known here, in the order of the file.
    pub fn pairs(&self, most: usize, example: &str) -> Option<Vec<(&'a str, Self)>> {
        let Some(table) = self.as_table() else {
            self.refuse_type("a table", example);
            return None;
        };
        if table.len() > most {
            self.refuse(format!("has {} keys", table.len()), format!("write at most {most}"));
            return None;
        }
        if table.is_empty() {
            self.refuse("is empty", format!("write e.g. {} = {example}", self.key));
            return None;
        }
        let pair = |(key, item): (&'a str, &'a Item)| {
            let node = Node::of(item)?;
            let thing = joined(&self.place.thing, key);
            let place = Place { thing, ..self.place.clone() };
            let place = placed(self.problems, place, node);
            Some((key, Self { problems: self.problems, node, key: self.key, place }))
        };
        Some(table.iter().filter_map(pair).collect())
    }
}

impl<'a> Reader<'a> {
    /// The tables behind a key, of which there may also be one alone: `key = { … }`.
    pub fn table_or_tables(&self, key: &'static str, section: &'static Section) -> Vec<Reader<'a>> {
        match self.field(key) {
            None => Vec::new(),
            Some(field) if field.as_table().is_some() => {
                self.table(key, section).into_iter().collect()
            }
            Some(_) => {
                let readers = self.tables(key, section).1.into_iter().enumerate();
                let named = |(n, reader): (usize, Reader<'a>)| {
                    reader.named_by(&self.place, key, n + 1, &["name"])
                };
                readers.map(named).collect()
            }
        }
    }
}
