//! Cookies in request headers (RFC 6265, section 5.4), as browsers send them and as others do.

use hyper::{HeaderMap, header::COOKIE};

/// The values of all cookies of a name, in the order of the headers. Names are compared to the byte; quotes around a
/// value are taken off.
pub fn values<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    let headers = headers.get_all(COOKIE).into_iter();
    let pairs = headers.flat_map(|value| value.as_bytes().split(|byte| *byte == b';'));
    pairs.filter_map(move |pair| {
        let equals = pair.iter().position(|byte| *byte == b'=')?;
        let (key, value) = (pair[..equals].trim_ascii(), pair[equals + 1..].trim_ascii());
        (key == name.as_bytes()).then(|| unquoted(value))
    })
}

fn unquoted(value: &[u8]) -> &[u8] {
    match value {
        [b'"', inner @ .., b'"'] => inner,
        _ => value,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(values: &[&[u8]]) -> HeaderMap {
        let values = values.iter().map(|value| (COOKIE, value.to_vec().try_into().unwrap()));
        values.collect()
    }

    fn found(lines: &[&str], name: &str) -> Vec<String> {
        let lines: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
        let text = |value: &[u8]| String::from_utf8(value.to_vec()).unwrap();
        values(&headers(&lines), name).map(text).collect()
    }

    #[test]
    fn every_cookie_of_the_name_is_found_in_order() {
        assert_eq!(found(&["a=1; sluice=x; b=2"], "sluice"), ["x"]);
        assert_eq!(found(&["sluice=x;sluice=y", "sluice=z"], "sluice"), ["x", "y", "z"]);
        assert_eq!(found(&["sluice=\"quoted\""], "sluice"), ["quoted"]);
        assert_eq!(found(&["sluice=a=b"], "sluice"), ["a=b"], "the first equals sign counts");
        assert_eq!(found(&[" sluice = x "], "sluice"), ["x"]);
        assert_eq!(found(&["sluice="], "sluice"), [""]);
    }

    #[test]
    fn other_names_and_noise_are_not() {
        for line in ["", ";", "=", "sluice", "Sluice=x", "xsluice=x", "sluicex=x", "=sluice=x"] {
            assert_eq!(found(&[line], "sluice"), Vec::<String>::new(), "{line:?}");
        }
    }

    #[test]
    fn it_is_found_behind_8_kib_of_others() {
        let others = (0..400).map(|n| format!("noise{n:04}=0123456789")).collect::<Vec<_>>();
        let line = format!("{}; sluice=x", others.join("; "));
        assert!(line.len() > 8_192);
        assert_eq!(found(&[&line], "sluice"), ["x"]);
    }

    proptest! {
        #[test]
        fn no_bytes_of_a_header_are_a_problem(lines in prop::collection::vec("[\t -~\u{80}-\u{ff}]{0,200}", 0..4)) {
            let lines: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
            prop_assert!(values(&headers(&lines), "s").count() <= 900);
        }
    }
}
