//! Files of a newer version: looked for before anything else, because whoever does not understand one file
//! does not know what the others mean to it.

use super::super::error::OpenError;
use super::super::format::{FILE_HEADER_BYTES, HeaderError, newer_version};
use super::super::storage::{Disk, is_missing, is_shortage};

/// Refuses a directory with a file of a newer version in it. Only reads; what cannot be read is left to
/// whoever needs it.
pub(crate) fn refuse_newer(disk: &dyn Disk) -> Result<(), OpenError> {
    for dir in ["", "segments", "history"] {
        let names = match disk.list(dir) {
            Ok(names) => names,
            Err(error) if is_missing(&error) => continue,
            Err(error) => return Err(OpenError::io(&disk.describe(dir), error)),
        };
        for name in names {
            let path = if dir.is_empty() { name } else { format!("{dir}/{name}") };
            let mut bytes = Vec::with_capacity(FILE_HEADER_BYTES);
            let read =
                disk.open(&path).and_then(|file| file.read_at(0, FILE_HEADER_BYTES, &mut bytes));
            match read {
                Ok(_) => {}
                Err(error) if is_shortage(&error) => {
                    return Err(OpenError::io(&disk.describe(&path), error));
                }
                Err(_) => continue,
            }
            if let Some(version) = newer_version(&bytes) {
                return Err(HeaderError::Newer(version).for_file(&disk.describe(&path)));
            }
        }
    }
    Ok(())
}
