//! Values held to the schemas of an OpenAPI description, more strictly than its readers have to be: what is not
//! described is wrong.
//!
//! It knows nothing of the API, so that tests of a whole agent include this file as well.

use serde_json::Value;

/// A schema, and the description that it stands in.
#[derive(Clone, Copy)]
pub struct Schema<'a> {
    description: &'a Value,
    schema: &'a Value,
}

impl<'a> Schema<'a> {
    /// By its name.
    pub fn named(description: &'a Value, name: &str) -> Self {
        Self { description, schema: &description["components"]["schemas"][name] }
    }

    /// Of the JSON that a method of a path answers with a status; none if no such answer is described.
    pub fn of_answer(
        description: &'a Value,
        (method, path): (&str, &str),
        status: u16,
    ) -> Option<Self> {
        let answer = &description["paths"][path][method]["responses"][status.to_string()];
        let schema = answer.get("content")?.get("application/json")?.get("schema")?;
        Some(Self { description, schema })
    }

    const fn at(self, schema: &'a Value) -> Self {
        Self { schema, ..self }
    }

    /// Schemas that all have to fit: one, unless it is put together.
    fn parts(self) -> Vec<Self> {
        if let Some(reference) = self.schema["$ref"].as_str() {
            return self.at(self.description.pointer(&reference[1..]).expect(reference)).parts();
        }
        match self.schema["allOf"].as_array() {
            Some(parts) => parts.iter().flat_map(|part| self.at(part).parts()).collect(),
            None => vec![self],
        }
    }

    /// Of which one has to fit, if there are any.
    fn alternatives(self) -> impl Iterator<Item = Self> {
        self.schema["oneOf"].as_array().into_iter().flatten().map(move |it| self.at(it))
    }

    /// What is wrong with a value, with its place.
    pub fn complaints(self, place: &str, value: &Value) -> Vec<String> {
        let parts = self.parts();
        if let [only] = &parts[..]
            && only.alternatives().next().is_some()
        {
            let fits = only.alternatives().any(|it| it.complaints(place, value).is_empty());
            return if fits {
                Vec::new()
            } else {
                vec![format!("{place}: {value} is none of them")]
            };
        }
        let mut all: Vec<_> = parts.iter().flat_map(|it| it.wrong(place, value)).collect();
        for (name, value) in children(value) {
            let place = format!("{place}.{name}");
            match parts.iter().find_map(|it| it.child(&name)) {
                Some(schema) => all.extend(schema.complaints(&place, value)),
                None if parts.iter().any(|it| it.schema["additionalProperties"] == true) => {}
                None => all.push(format!("{place}: not described")),
            }
        }
        all
    }

    /// What is wrong with the value itself, whatever is in it.
    fn wrong(self, place: &str, value: &Value) -> Vec<String> {
        let types = match &self.schema["type"] {
            Value::Array(types) => types.iter().collect(),
            only => vec![only],
        };
        let mut all = Vec::new();
        if !types.iter().any(|it| it.as_str().is_some_and(|it| is_a(value, it))) {
            all.push(format!("{place}: {value} is no {}", self.schema["type"]));
        }
        if self.schema["enum"].as_array().is_some_and(|it| !it.contains(value)) {
            all.push(format!("{place}: {value} is none of {}", self.schema["enum"]));
        }
        if self.schema["minimum"].as_f64() > value.as_f64() && value.is_number() {
            all.push(format!("{place}: {value} is below {}", self.schema["minimum"]));
        }
        let required = self.schema["required"].as_array().into_iter().flatten();
        let missing = required.filter_map(Value::as_str).filter(|it| value.get(it).is_none());
        all.extend(missing.map(|it| format!("{place}.{it}: missing")));
        all
    }

    /// Of what is called so in an object, or has that place in an array.
    fn child(self, name: &str) -> Option<Self> {
        let place = name.parse::<usize>().ok();
        let tuple = place.and_then(|it| self.schema["prefixItems"].get(it));
        let of_array = place.and_then(|_| self.schema.get("items"));
        let of_map = self.schema.get("additionalProperties").filter(|it| it.is_object());
        let named = self.schema["properties"].get(name);
        named.or(of_map).or(tuple).or(of_array).map(|it| self.at(it))
    }

    /// What is described, and none of these values has.
    pub fn never_met(self, place: &str, values: &[&Value]) -> Vec<String> {
        let mut all = Vec::new();
        for part in self.parts() {
            for (name, schema) in part.schema["properties"].as_object().into_iter().flatten() {
                let place = format!("{place}.{name}");
                let met: Vec<_> = values.iter().filter_map(|it| it.get(name)).collect();
                match met.is_empty() {
                    true => all.push(place),
                    false => all.extend(part.at(schema).never_met(&place, &met)),
                }
            }
            for of_each in ["items", "additionalProperties"] {
                let Some(schema) = part.schema.get(of_each).filter(|it| it.is_object()) else {
                    continue;
                };
                let met = values.iter().flat_map(|it| children(it).map(|(_, child)| child));
                let met: Vec<_> = met.collect();
                match met.is_empty() {
                    true => all.push(format!("{place}.*")),
                    false => all.extend(part.at(schema).never_met(&format!("{place}.*"), &met)),
                }
            }
        }
        all
    }
}

fn children(value: &Value) -> Box<dyn Iterator<Item = (String, &Value)> + '_> {
    match value {
        Value::Object(of) => Box::new(of.iter().map(|(name, child)| (name.clone(), child))),
        Value::Array(of) => Box::new(of.iter().enumerate().map(|(n, it)| (n.to_string(), it))),
        _ => Box::new(std::iter::empty()),
    }
}

fn is_a(value: &Value, kind: &str) -> bool {
    match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    }
}
