//! The threads that serve requests.

use std::{
    io,
    num::{NonZeroU8, NonZeroUsize},
};

use tokio::runtime::{Builder, Runtime};

/// A runtime of so many threads; without a number of as many as there are cores.
///
/// One thread does without all that several need to share work, and takes less CPU time for a certificate; several keep
/// latencies low when a core is busy (docs/PERFORMANCE.md).
///
/// # Errors
/// When the system gives no thread, or no descriptor for its events.
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
