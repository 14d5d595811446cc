//! `lb-agent`: Sluice's agent. This file only starts the command line.

mod cli;

/// A worker takes and gives back some buffers of many KiB for every handshake. glibc splits and joins its memory each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    cli::main()
}
