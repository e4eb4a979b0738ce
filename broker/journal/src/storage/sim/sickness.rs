//! Reads and openings of a simulated disk that fail: for a time, or for good.

use std::io;
use std::ops::Range;

/// What fails.
#[derive(Clone, Debug)]
pub(super) enum Sickness {
    /// Reads that touch these bytes of a file.
    Bytes { path: String, bytes: Range<u64>, times: u64 },
    /// Opening a file.
    Opening { path: String, times: u64 },
    /// Whatever is read or opened at these turns, counted from the first there was.
    Turns(Range<u64>),
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Sicknesses {
    all: Vec<Sickness>,
    /// Reads and openings so far.
    pub(super) turns: u64,
}

impl Sicknesses {
    pub(super) fn add(&mut self, sickness: Sickness) {
        self.all.push(sickness);
    }

    pub(super) fn heal(&mut self) {
        self.all.clear();
    }

    /// A file is read.
    pub(super) fn read<'a>(
        &mut self,
        path: impl Fn() -> &'a str,
        asked: Range<u64>,
    ) -> io::Result<()> {
        let touches = |bytes: &Range<u64>| bytes.start < asked.end && asked.start < bytes.end;
        let fails = self.turn(|sickness| match sickness {
            Sickness::Bytes { path: sick, bytes, times } if touches(bytes) && sick == path() => {
                Some(times)
            }
            _ => None,
        });
        if fails { Err(io_error()) } else { Ok(()) }
    }

    /// A file is opened.
    pub(super) fn open(&mut self, path: &str) -> io::Result<()> {
        let fails = self.turn(|sickness| match sickness {
            Sickness::Opening { path: sick, times } if sick == path => Some(times),
            _ => None,
        });
        if fails { Err(too_many_files()) } else { Ok(()) }
    }

    fn turn(&mut self, concerned: impl Fn(&mut Sickness) -> Option<&mut u64>) -> bool {
        self.turns += 1;
        let turns = self.turns;
        self.all.iter_mut().any(|sickness| {
            if let Sickness::Turns(range) = sickness {
                return range.contains(&turns);
            }
            let Some(times) = concerned(sickness).filter(|times| **times > 0) else { return false };
            *times -= 1;
            true
        })
    }
}

/// What Linux says of a sector that cannot be read.
fn io_error() -> io::Error {
    io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())
}

/// What it says to a process that has as many files open as it may.
pub(super) fn too_many_files() -> io::Error {
    io::Error::from_raw_os_error(rustix::io::Errno::MFILE.raw_os_error())
}
