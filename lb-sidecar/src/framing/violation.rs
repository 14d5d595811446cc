//! What is wrong with a request, under a stable label, and the status that says so.

use std::{error::Error, fmt};

macro_rules! violations {
    ($($(#[$doc:meta])* $name:ident $label:literal $status:literal $text:literal,)*) => {
        /// See the module.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Violation { $($(#[$doc])* $name,)* }

        impl Violation {
            pub const ALL: &[Violation] = &[$(Violation::$name,)*];

            /// The name in logs and counters; it never changes.
            pub const fn label(self) -> &'static str {
                match self { $(Violation::$name => $label,)* }
            }

            /// The status of the answer.
            pub const fn status(self) -> u16 {
                match self { $(Violation::$name => $status,)* }
            }

            /// What the client is told.
            pub const fn text(self) -> &'static str {
                match self { $(Violation::$name => $text,)* }
            }
        }
    };
}

violations! {
    /// TLS to a plain port, for one.
    NotHttp "not_http" 400 "what came is not HTTP",
    LeadingSpace "leading_space" 400 "white space before the request line",
    BadMethod "bad_method" 400 "the method is not a token of at most 32 characters",
    BadTarget "bad_target" 400 "the target has characters that no URI has",
    BadVersion "bad_version" 400 "the request line does not end in an HTTP version",
    UnknownVersion "unknown_version" 505 "the HTTP version is neither 1.0 nor 1.1",
    BareLf "bare_lf" 400 "a line ends in LF without CR",
    BareCr "bare_cr" 400 "a CR is not followed by LF",
    ObsFold "obs_fold" 400 "a field is continued on a second line, or a line begins with white space",
    EmptyName "empty_name" 400 "a field has no name",
    BadName "bad_name" 400 "a field's name has characters that no name has",
    SpaceBeforeColon "space_before_colon" 400 "white space between a field's name and the colon",
    BadValue "bad_value" 400 "a field's value has control characters",
    TargetTooLong "target_too_long" 414 "the request line is too long",
    HeadTooLarge "head_too_large" 431 "the head is too large",
    TooManyFields "too_many_fields" 431 "the head has too many fields",
    BadContentLength "bad_content_length" 400 "Content-Length is not a number of bytes",
    RepeatedContentLength "repeated_content_length" 400 "Content-Length is there more than once",
    LengthAndEncoding "length_and_encoding" 400 "Content-Length beside Transfer-Encoding",
    EncodingInHttp10 "encoding_in_http_1_0" 400 "HTTP/1.0 has no Transfer-Encoding",
    BadEncoding "bad_encoding" 400 "Transfer-Encoding is something else than just chunked",
    UnknownEncoding "unknown_encoding" 501 "the only Transfer-Encoding known here is chunked",
    BadChunkSize "bad_chunk_size" 400 "a chunk's size is not a hexadecimal number",
    ChunkExtension "chunk_extension" 400 "a chunk has extensions",
    BadChunkEnd "bad_chunk_end" 400 "a chunk's data is not followed by CRLF",
    ForbiddenTrailer "forbidden_trailer" 400 "a trailer has a field that belongs into the head",
    TrailerTooLarge "trailer_too_large" 431 "the trailer is too large",
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl Error for Violation {}
