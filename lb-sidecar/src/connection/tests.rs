use super::serve;
use crate::{http2, stream::Stream};

fn size_of<A, B, C, D, E, F>(_: impl Fn(A, B, C, D, E) -> F) -> usize {
    std::mem::size_of::<F>()
}

fn size_of_three<A, B, C, F>(_: impl Fn(A, B, C) -> F) -> usize {
    std::mem::size_of::<F>()
}

/// Each connection has that much from its first moment to its last, also where all of it is but for a moment.
#[test]
fn what_a_connection_needs_for_a_moment_is_not_kept_for_all_its_life() {
    for (what, size, most) in [
        ("any", size_of(serve), 4 << 10),
        ("HTTP/2", size_of_three(http2::serve::<http2::Ahead<Stream>>), 5 << 10),
    ] {
        assert!(size <= most, "{what}: {size} bytes");
    }
}
