//! How many files the process may have open: connections, and the journal's.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit that is in force to the one that it may be raised to. The usual 1024 is there for
/// programs that hand file numbers to `select`, which nothing here does.
pub(crate) fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        // Where it is not allowed the node has what it has been given.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    }
}
