//! Telling others that the node is ready: a file with its addresses, and the service manager.

use super::{Addresses, NodeError};
use sd_notify::NotifyState;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// Whether the addresses can be written there, found out before anything is begun. What stands there
/// stays.
pub(super) fn check_addr_file(path: &Path) -> Result<(), NodeError> {
    let fail = |error| NodeError::AddrFile { path: path.to_owned(), error };
    if path.is_dir() {
        return Err(fail(io::ErrorKind::IsADirectory.into()));
    }
    let draft = draft_of(path).map_err(fail)?;
    fs::File::create(&draft).and_then(|_| fs::remove_file(&draft)).map_err(fail)
}

/// Writes the addresses as one line of JSON. Whoever sees the file sees all of it.
pub(super) fn write_addr_file(path: &Path, addresses: &Addresses) -> Result<(), NodeError> {
    let fail = |error| NodeError::AddrFile { path: path.to_owned(), error };
    let line = serde_json::json!({
        "tcp": addresses.tcp.to_string(),
        "pid": std::process::id(),
    });
    replace(path, format!("{line}\n").as_bytes()).map_err(fail)
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = draft_of(path)?;
    let written = fs::File::create(&draft).and_then(|mut file| file.write_all(bytes));
    let renamed = written.and_then(|()| fs::rename(&draft, path));
    if renamed.is_err() {
        // It is ours alone; what remains is reported anyway.
        let _ = fs::remove_file(&draft);
    }
    renamed
}

/// Where the file is written before it takes its place.
fn draft_of(path: &Path) -> io::Result<PathBuf> {
    let mut draft = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?.to_owned();
    draft.push(format!(".{}.new", std::process::id()));
    Ok(path.with_file_name(draft))
}

/// Tells a service manager, if one waits to hear it.
pub(super) fn ready() {
    notify(NotifyState::Ready);
}

/// The same, at the beginning of a stop.
pub(super) fn stopping() {
    notify(NotifyState::Stopping);
}

fn notify(state: NotifyState<'_>) {
    // Nobody listens, or nobody can be reached: neither is the node's concern.
    let _ = sd_notify::notify(false, &[state]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_whole_and_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("addr");
        for port in [1, 2] {
            let addresses = Addresses { tcp: ([127, 0, 0, 1], port).into() };
            write_addr_file(&path, &addresses).unwrap();
            let read: serde_json::Value =
                serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            assert_eq!(read["tcp"], format!("127.0.0.1:{port}"));
            assert_eq!(read["pid"], std::process::id());
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("missing").join("addr");
        let addresses = Addresses { tcp: ([127, 0, 0, 1], 1).into() };
        for failed in [check_addr_file(&path), write_addr_file(&path, &addresses)] {
            let error = failed.unwrap_err().to_string();
            assert!(error.contains("missing") && error.contains("--addr-file"), "{error}");
        }
        assert!(check_addr_file(dir.path()).is_err(), "a directory is no file");
        check_addr_file(&dir.path().join("addr")).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
    }
}
