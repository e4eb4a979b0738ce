//! What a process holds of the machine, as Linux tells it.

use std::fs;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Open descriptors of anything but files on disk, which a journal opens and closes as it needs.
    pub sockets: usize,
    /// Threads.
    pub threads: usize,
    /// Resident memory, KiB.
    pub resident_kib: u64,
}

impl Usage {
    /// Of a running process.
    ///
    /// # Panics
    /// When there is no such process.
    #[must_use]
    pub fn of(pid: u32) -> Usage {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("a running process");
        // One that is closed between the two looks is not open.
        let targets = open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        let sockets = targets.filter(|target| !target.is_absolute()).count();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a running process");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|rest| rest.split_whitespace().next());
            number.and_then(|number| number.parse().ok()).expect("a number in /proc")
        };
        let threads = usize::try_from(field("Threads:")).expect("few threads");
        Usage { sockets, threads, resident_kib: field("VmRSS:") }
    }
}
