//! What a process uses, as the kernel tells it (`/proc`, Linux).

use super::super::{Exit, Failure};
use std::time::Duration;

/// Processor time since a process began, its threads together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cpu {
    pub(super) user: Duration,
    pub(super) system: Duration,
}

impl Cpu {
    pub(super) fn of(pid: u32) -> Result<Cpu, Failure> {
        let stat = read(pid, "stat")?;
        let ticks = rustix::param::clock_ticks_per_second();
        cpu(&stat, ticks).ok_or_else(|| unreadable(pid, "stat"))
    }

    pub(super) fn total(self) -> Duration {
        self.user + self.system
    }

    pub(super) fn since(self, earlier: Cpu) -> Cpu {
        Cpu {
            user: self.user.saturating_sub(earlier.user),
            system: self.system.saturating_sub(earlier.system),
        }
    }
}

/// Memory of a process that is in RAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) now_bytes: u64,
    pub(super) peak_bytes: u64,
}

impl Memory {
    pub(super) fn of(pid: u32) -> Result<Memory, Failure> {
        memory(&read(pid, "status")?).ok_or_else(|| unreadable(pid, "status"))
    }
}

fn read(pid: u32, file: &str) -> Result<String, Failure> {
    std::fs::read_to_string(format!("/proc/{pid}/{file}")).map_err(|_| unreadable(pid, file))
}

fn unreadable(pid: u32, file: &str) -> Failure {
    let what = format!("/proc/{pid}/{file} cannot be read; expected the pid of a running node");
    Failure::new(Exit::Usage, what)
}

fn cpu(stat: &str, ticks_per_second: u64) -> Option<Cpu> {
    // The second field is the program's name in parentheses, which may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut time = || {
        let ticks: u64 = fields.next()?.parse().ok()?;
        Some(Duration::from_secs_f64(ticks as f64 / ticks_per_second as f64))
    };
    Some(Cpu { user: time()?, system: time()? })
}

fn memory(status: &str) -> Option<Memory> {
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib * 1024)
    };
    Some(Memory { now_bytes: kib("VmRSS:")?, peak_bytes: kib("VmHWM:")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_program_name_does_not_shift_the_fields() {
        let stat = "7 (a) R 1 (b)) S 1 7 7 0 -1 4194560 1 2 3 4 250 50 9 9 20 0 1 0 5 6 7";
        let half = Duration::from_millis(500);
        assert_eq!(cpu(stat, 100), Some(Cpu { user: 5 * half, system: half }));
        assert_eq!(cpu("", 100), None);
    }

    #[test]
    fn memory_is_read_in_bytes() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        let expected = Memory { now_bytes: 1 << 20, peak_bytes: 2 << 20 };
        assert_eq!(memory(status), Some(expected));
        assert_eq!(memory("VmRSS: 1 kB\n"), None);
    }

    #[test]
    fn this_process_can_be_measured() {
        let pid = std::process::id();
        assert!(Memory::of(pid).unwrap().now_bytes > 0);
        assert!(Cpu::of(pid).is_ok());
        assert!(Cpu::of(u32::MAX).is_err());
    }
}
