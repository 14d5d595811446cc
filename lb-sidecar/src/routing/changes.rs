//! Changes of headers.

use hyper::{
    HeaderMap,
    header::{HeaderName, HeaderValue},
};

use crate::settings::HeaderChanges;

/// Ready for use. What is no name or value is left out: whoever sends the settings has checked them.
pub struct Changes {
    remove: Vec<HeaderName>,
    set: Vec<(HeaderName, HeaderValue)>,
    add: Vec<(HeaderName, HeaderValue)>,
}

impl Changes {
    pub fn new(changes: &HeaderChanges) -> Self {
        let fields = |fields: &[(String, String)]| {
            let read = fields.iter().map(|(name, value)| (name.parse(), value.parse()));
            read.filter_map(|(name, value)| name.ok().zip(value.ok())).collect()
        };
        Self {
            remove: changes.remove.iter().filter_map(|name| name.parse().ok()).collect(),
            set: fields(&changes.set),
            add: fields(&changes.add),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }

    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
    }
}
