//! Names within HTTP: of headers, cookies, protocols and parameters.

use super::reader::Field;

/// Reads a token (RFC 9110, section 5.6.2) of at most 128 bytes. `what` is what it names: `a header`.
pub(super) fn token<'a>(field: &Field<'a>, what: &str, example: &str) -> Option<&'a str> {
    let text = field.string(example)?;
    if (1..=128).contains(&text.len()) && text.bytes().all(is_token_byte) {
        return Some(text);
    }
    field.refuse(
        format!("is not the name of {what}"),
        format!("write 1 to 128 letters, digits and !#$%&'*+-.^_`|~, e.g. {example}"),
    );
    None
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Reads the name of a parameter of a query, of at most 128 bytes, which looks the same encoded and decoded.
pub(super) fn parameter(field: &Field<'_>, example: &str) -> Option<String> {
    let text = field.string(example)?;
    let encoded = |byte: u8| !byte.is_ascii_graphic() || b"&=#%+;\"<>".contains(&byte);
    if text.is_empty() || text.len() > 128 || text.bytes().any(encoded) {
        field.refuse(
            "is not the name of a parameter",
            format!("write 1 to 128 visible ASCII characters without &=#%+;\"<>, e.g. {example}"),
        );
        return None;
    }
    Some(text.to_owned())
}
