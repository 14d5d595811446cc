//! Conditions on headers and parameters of the query.

use hyper::{HeaderMap, header::HeaderValue};
use regex::bytes::Regex;

use super::{path::decoded_parameter, pattern};
use crate::settings::{FieldRule, ValueRule};

/// One condition.
pub struct Field {
    name: String,
    value: Value,
}

enum Value {
    Any,
    Exact(String),
    Regex(Regex),
    /// Of a pattern that no check has seen.
    Never,
}

impl Field {
    pub fn new(rule: &FieldRule) -> Self {
        let value = match &rule.value {
            ValueRule::Any => Value::Any,
            ValueRule::Exact(value) => Value::Exact(value.clone()),
            ValueRule::Regex(text) => pattern::compile(text).map_or(Value::Never, Value::Regex),
        };
        Self { name: rule.name.clone(), value }
    }

    pub fn in_headers(&self, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(self.name.as_str()).iter().map(HeaderValue::as_bytes);
        values.any(|value| self.value.is(value))
    }

    pub fn in_query(&self, query: &str) -> bool {
        let mut pairs = query.split('&').filter(|pair| !pair.is_empty());
        pairs.any(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            *decoded_parameter(name) == *self.name.as_bytes()
                && self.value.is(&decoded_parameter(value))
        })
    }
}

impl Value {
    fn is(&self, value: &[u8]) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(wanted) => value == wanted.as_bytes(),
            Self::Regex(regex) => regex.is_match(value),
            Self::Never => false,
        }
    }
}
