//! Says what the lab does, with the time since its start.

use std::time::Instant;

pub(super) struct Narrator {
    start: Instant,
}

impl Narrator {
    pub(super) fn new() -> Self {
        Self { start: Instant::now() }
    }

    pub(super) fn say(&self, text: &str) {
        println!("[{:5.1} s] {text}", self.start.elapsed().as_secs_f64());
    }
}
