//! Which bytes may stand where (RFC 9110, section 5; RFC 9112, sections 3 and 5), and which fields a trailer may not have.

/// One entry for each byte.
pub type Table = [bool; 256];

macro_rules! table {
    ($of:pat) => {{
        let mut table = [false; 256];
        let mut byte = 0;
        while byte < 256 {
            table[byte] = matches!(byte as u8, $of);
            byte += 1;
        }
        table
    }};
}

/// `tchar`: methods and names of fields.
pub static TOKEN: Table = table!(
    b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
        | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z'
);
/// The request target: visible ASCII.
pub static TARGET: Table = table!(b'!'..=b'~');
/// `field-vchar`, space and tab.
pub static VALUE: Table = table!(b'\t' | b' '..=b'~' | 0x80..=0xff);

/// How many bytes at the front are in the table.
pub fn span(bytes: &[u8], table: &Table) -> usize {
    bytes.iter().position(|&byte| !table[usize::from(byte)]).unwrap_or(bytes.len())
}

/// Fields that say how a message is framed, where it goes, who sends it or what it is (RFC 9110, section 6.5.1):
/// whoever merges trailers into the head would believe them. `name` is in lower case.
pub fn forbidden_in_trailer(name: &[u8]) -> bool {
    matches!(
        name,
        b"transfer-encoding"
            | b"content-length"
            | b"host"
            | b"connection"
            | b"upgrade"
            | b"keep-alive"
            | b"trailer"
            | b"te"
            | b"expect"
            | b"max-forwards"
            | b"cache-control"
            | b"range"
            | b"authorization"
            | b"proxy-authorization"
            | b"cookie"
            | b"content-type"
            | b"content-encoding"
            | b"content-range"
            | b"forwarded"
    ) || name.starts_with(b"x-forwarded-")
}
