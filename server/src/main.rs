//! The binary `flaredb`: everything is in the library, here is only the allocator and the exit code.

use std::process::ExitCode;

use clap::Parser;

/// Many threads allocate small things of different lifetimes; the system's allocator would keep and fragment memory.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match server::cli::run(server::cli::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("flaredb: {error:#}");
            ExitCode::FAILURE
        }
    }
}
