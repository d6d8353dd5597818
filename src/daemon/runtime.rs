//! The runtime that serves requests.

use std::{
    io,
    num::{NonZeroU8, NonZeroUsize},
};

use tokio::runtime::{Builder, Runtime};

/// A runtime with this number of threads, by default one per core.
///
/// A single thread avoids the cost of sharing work and needs less CPU time per certificate; several threads keep
/// latencies low when a core is busy (docs/PERFORMANCE.md).
///
/// # Errors
/// If the system provides no thread, or no file descriptor for events.
pub fn start(threads: Option<NonZeroU8>) -> io::Result<Runtime> {
    let threads = threads
        .map(NonZeroUsize::from)
        .or_else(|| std::thread::available_parallelism().ok())
        .map_or(1, NonZeroUsize::get);
    if threads > 1 {
        Builder::new_multi_thread().worker_threads(threads).thread_name("daemon").enable_all().build()
    } else {
        Builder::new_current_thread().enable_all().build()
    }
}
