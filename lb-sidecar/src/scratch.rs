//! The one buffer that a worker reads into: what is read is checked, written on or copied before anybody else reads.

use std::cell::RefCell;

/// Bytes read at once, at most.
const BYTES: usize = 64 << 10;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; BYTES].into_boxed_slice());
}

/// Lends the buffer. Not to be asked for by whoever has it.
pub fn with<T>(read: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|buffer| read(buffer))
}
