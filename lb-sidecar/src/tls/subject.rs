//! A certificate's subject as text: RFC 4514, section 2. Two names never read the same unless they are.

use x509_parser::{
    asn1_rs::{Any, BmpString, Class, Tag, ToDer as _},
    certificate::X509Certificate,
    prelude::FromDer as _,
    x509::{AttributeTypeAndValue, RelativeDistinguishedName, X509Name},
};

/// The longest text that is told of, in bytes. What is cut off would be somebody else's.
const MOST_BYTES: usize = 4_096;

/// The types that have a short name (RFC 4514, section 3).
const SHORT: [(&str, &str); 9] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.6", "C"),
    ("2.5.4.9", "STREET"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("0.9.2342.19200300.100.1.1", "UID"),
];

/// As in `CN=alice,O=Example`, in printable ASCII. None: the certificate cannot be read, or the text would be too long.
pub fn subject(certificate: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    text(certificate.subject()).filter(|it| it.len() <= MOST_BYTES)
}

/// The last part of the certificate's sequence comes first.
fn text(name: &X509Name<'_>) -> Option<String> {
    let names: Vec<_> = name.iter_rdn().map(relative).collect::<Option<_>>()?;
    Some(names.into_iter().rev().collect::<Vec<_>>().join(","))
}

fn relative(name: &RelativeDistinguishedName<'_>) -> Option<String> {
    let attributes: Vec<_> = name.iter().map(attribute).collect::<Option<_>>()?;
    Some(attributes.join("+"))
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> Option<String> {
    let (oid, value) = (attribute.attr_type().to_id_string(), attribute.attr_value());
    let short = SHORT.iter().find(|(known, _)| *known == oid).map(|(_, short)| *short);
    match short.zip(string(value)) {
        Some((short, value)) => Some(format!("{short}={}", escaped(&value))),
        None => {
            let hex = value.to_der_vec().ok()?.into_iter().map(|byte| format!("{byte:02X}"));
            Some(format!("{}=#{}", short.unwrap_or(&oid), hex.collect::<String>()))
        }
    }
}

/// What a value says, if its type leaves no doubt.
fn string(value: &Any<'_>) -> Option<String> {
    if value.header.class() != Class::Universal || value.header.constructed() {
        return None;
    }
    match value.tag() {
        Tag::Utf8String
        | Tag::PrintableString
        | Tag::NumericString
        | Tag::Ia5String
        | Tag::VisibleString => String::from_utf8(value.data.to_vec()).ok(),
        Tag::BmpString => Some(BmpString::try_from(value.clone()).ok()?.string()),
        _ => None,
    }
}

/// RFC 4514, section 2.4. `=` and all that is not printable ASCII is escaped, too. Spaces at the ends are in hexadecimal:
/// a header loses those that it ends with.
fn escaped(value: &str) -> String {
    let (mut text, last) = (String::with_capacity(value.len()), value.len().saturating_sub(1));
    for (at, byte) in value.bytes().enumerate() {
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' | b'=' => {
                text.extend(['\\', byte.into()]);
            }
            b'#' if at == 0 => text.push_str("\\#"),
            b' ' if at > 0 && at < last => text.push(' '),
            byte if byte.is_ascii_graphic() => text.push(byte.into()),
            byte => text += &format!("\\{byte:02X}"),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use x509_parser::asn1_rs::Oid;

    use super::*;

    const CN: &[u64] = &[2, 5, 4, 3];
    const OU: &[u64] = &[2, 5, 4, 11];

    fn of<'a>(oid: &[u64], tag: Tag, value: &'a [u8]) -> AttributeTypeAndValue<'a> {
        AttributeTypeAndValue::new(Oid::from(oid).unwrap(), Any::from_tag_and_data(tag, value))
    }

    fn told(name: &[&[AttributeTypeAndValue<'_>]]) -> String {
        let names = name.iter().map(|it| RelativeDistinguishedName::new(it.to_vec()));
        text(&names.collect()).unwrap()
    }

    fn common(value: &str) -> String {
        told(&[&[of(CN, Tag::Utf8String, value.as_bytes())]])
    }

    #[test]
    fn one_attribute_never_reads_like_two() {
        let utf8 = |oid, value: &'static str| of(oid, Tag::Utf8String, value.as_bytes());
        let (bob, admins) = (|| utf8(CN, "bob"), || utf8(OU, "Admins"));
        assert_eq!(told(&[&[admins()], &[bob()]]), "CN=bob,OU=Admins");
        assert_eq!(told(&[&[bob(), admins()]]), "CN=bob+OU=Admins");
        assert_eq!(common("bob,OU=Admins"), r"CN=bob\,OU\=Admins");
        assert_eq!(common("bob+OU=Admins"), r"CN=bob\+OU\=Admins");
        assert_eq!(told(&[]), "");
    }

    #[test]
    fn what_has_a_meaning_is_escaped() {
        for (value, expected) in [
            ("alice", "alice"),
            ("Sue, Grabbit and Runn", r"Sue\, Grabbit and Runn"),
            (r#"a"b\c<d>e;f"#, r#"a\"b\\c\<d\>e\;f"#),
            ("#1 a#b", r"\#1 a#b"),
            (" a  b ", r"\20a  b\20"),
            (" ", r"\20"),
            ("", ""),
            ("ad\u{200b}min", r"ad\E2\80\8Bmin"),
            ("Before\rAfter\0", r"Before\0DAfter\00"),
            ("Lučić", r"Lu\C4\8Di\C4\87"),
        ] {
            assert_eq!(common(value), format!("CN={expected}"), "{value:?}");
        }
    }

    #[test]
    fn what_is_not_known_is_in_hexadecimal() {
        let email = &[1, 2, 840, 113_549, 1, 9, 1];
        let told = |oid: &[u64], tag, value| told(&[&[of(oid, tag, value)]]);
        assert_eq!(told(email, Tag::Ia5String, b"a@b"), "1.2.840.113549.1.9.1=#1603614062");
        assert_eq!(told(CN, Tag::Utf8String, b"\xff"), "CN=#0C01FF");
        assert_eq!(told(CN, Tag::T61String, b"bob"), "CN=#1403626F62");
        assert_eq!(told(CN, Tag::BmpString, b"\0b\0o\0b"), "CN=bob");
        let other =
            Any::from_tag_and_data(Tag::Utf8String, b"bob").with_class(Class::ContextSpecific);
        assert_eq!(string(&other), None);
    }

    proptest! {
        /// Whoever reads it by the RFC finds the value in it, and nothing but that.
        #[test]
        fn what_is_escaped_can_be_read_back(value: String) {
            let text = escaped(&value);
            prop_assert!(text.bytes().all(|it| it == b' ' || it.is_ascii_graphic()));
            prop_assert_eq!(text.trim(), &text);
            let (mut read, mut rest) = (Vec::new(), text.as_bytes());
            while let [byte, after @ ..] = rest {
                (read, rest) = match (byte, after) {
                    (b'\\', [high, low, after @ ..]) if high.is_ascii_hexdigit() => {
                        let hex = [*high, *low];
                        let hex = std::str::from_utf8(&hex).unwrap();
                        ([read, vec![u8::from_str_radix(hex, 16).unwrap()]].concat(), after)
                    }
                    (b'\\', [escaped, after @ ..]) => ([read, vec![*escaped]].concat(), after),
                    (byte, after) => {
                        prop_assert!(!b",+\"\\<>;=".contains(byte));
                        ([read, vec![*byte]].concat(), after)
                    }
                };
            }
            prop_assert_eq!(String::from_utf8(read).unwrap(), value);
        }
    }
}
