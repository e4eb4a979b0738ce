//! Checking a backup, and laying a data directory out from it.

use super::super::format::{FILE_HEADER_BYTES, FileHeader, FileKind};
use super::{BACKUP_FORMAT, Copy, Entry, MANIFEST, Manifest, sum_file, sync_dir};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

/// How far the epoch of a restored journal lies above that of the backup: more than the node the
/// backup is of can have been started since, so that receivers can tell the two apart.
const EPOCH_LEAP: u32 = 1 << 14;
/// Largest manifest that is read.
const MANIFEST_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// What was laid out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When the backup was taken, milliseconds since the Unix epoch.
    pub taken_ms: u64,
    /// One past the last record in it.
    pub next: u64,
    /// Every epoch of the restored journal is above this.
    pub epoch: u32,
}

/// Why a backup was not restored. Nothing is where the data directory should be.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// There is no manifest, or it cannot be understood: the backup was not finished, or is none.
    #[error("{path}: {detail}; expected a directory that `restante backup` has finished")]
    NoBackup {
        /// The manifest.
        path: String,
        /// What was found.
        detail: String,
    },
    /// Written by a newer version of this program.
    #[error(
        "{path} has backup format {format}, this program knows up to {BACKUP_FORMAT}; restore it with the version that took it, or a newer one"
    )]
    Newer {
        /// The manifest.
        path: String,
        /// Its format.
        format: u32,
    },
    /// A file is not as the manifest says.
    #[error("{path} is damaged ({detail}); use another backup")]
    Damaged {
        /// The file.
        path: String,
        /// What was found.
        detail: String,
    },
    /// The target is there and is not empty.
    #[error("{path} is not empty; a backup is restored into a directory that does not exist yet")]
    NotEmpty {
        /// The target.
        path: String,
    },
    /// A restore that was cut short has left this behind, or one is under way.
    #[error(
        "{path} is what an earlier restore has not finished, unless one is running now; nothing needs it: remove it and restore again"
    )]
    Unfinished {
        /// The directory.
        path: String,
    },
    /// What the system said.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Checks all of `backup`, then lays it out as the data directory `target`: complete, or not at all.
///
/// # Errors
/// See [`RestoreError`].
pub fn restore(backup: &Path, target: &Path) -> Result<Restored, RestoreError> {
    let manifest = read_manifest(backup)?;
    let io = |path: &Path| {
        let path = path.display().to_string();
        move |source| RestoreError::Io { path, source }
    };
    match fs::read_dir(target).map(|mut entries| entries.next().is_none()) {
        Ok(true) => {}
        Ok(false) => {
            return Err(RestoreError::NotEmpty { path: target.display().to_string() });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io(target)(error)),
    }
    for entry in &manifest.files {
        check_entry(backup, entry)?;
    }
    let unfinished = beside(target);
    fs::create_dir(&unfinished).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            RestoreError::Unfinished { path: unfinished.display().to_string() }
        }
        _ => io(&unfinished)(error),
    })?;
    let laid_out = lay_out(backup, &unfinished, &manifest).and_then(|epoch| {
        fs::rename(&unfinished, target).map_err(|error| (target.to_owned(), error))?;
        Ok(epoch)
    });
    let epoch = laid_out.map_err(|(path, source)| {
        // What made it fail is told; what is left if this fails too is told by the next restore.
        let _ = fs::remove_dir_all(&unfinished);
        RestoreError::Io { path: path.display().to_string(), source }
    })?;
    let parent = target.parent().filter(|parent| *parent != Path::new(""));
    sync_dir(parent.unwrap_or(Path::new("."))).map_err(io(target))?;
    let bytes = manifest.files.iter().map(|file| file.bytes).sum();
    let (files, taken_ms, next) = (manifest.files.len() as u64, manifest.taken_ms, manifest.next);
    Ok(Restored { files, bytes, taken_ms, next, epoch })
}

fn read_manifest(backup: &Path) -> Result<Manifest, RestoreError> {
    #[derive(serde::Deserialize)]
    struct Format {
        restante_backup: u32,
    }
    let path = backup.join(MANIFEST);
    let shown = path.display().to_string();
    let none = |detail: String| RestoreError::NoBackup { path: shown.clone(), detail };
    let mut text = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(MANIFEST_BYTES_MAX).read_to_end(&mut text))
        .map_err(|error| none(error.to_string()))?;
    // The format first: a newer one may say other things.
    let Format { restante_backup: format } =
        serde_json::from_slice(&text).map_err(|error| none(error.to_string()))?;
    if format > BACKUP_FORMAT {
        return Err(RestoreError::Newer { path: shown, format });
    }
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|error| none(error.to_string()))?;
    if Manifest::crc_of(&manifest.files) != manifest.crc64 {
        let detail = "it does not match its checksum".to_owned();
        return Err(RestoreError::Damaged { path: shown, detail });
    }
    Ok(manifest)
}

fn check_entry(backup: &Path, entry: &Entry) -> Result<(), RestoreError> {
    let path = backup.join(&entry.path);
    let damaged =
        |detail: String| RestoreError::Damaged { path: path.display().to_string(), detail };
    let inside =
        Path::new(&entry.path).components().all(|part| matches!(part, Component::Normal(_)));
    if !inside {
        return Err(damaged("it does not lie in the backup".to_owned()));
    }
    match sum_file(&path) {
        Ok((bytes, _)) if bytes != entry.bytes => {
            Err(damaged(format!("it has {bytes} bytes, {} were written", entry.bytes)))
        }
        Ok((_, crc64)) if crc64 != entry.crc64 => {
            Err(damaged("it does not match its checksum".to_owned()))
        }
        Ok(_) => Ok(()),
        Err(error) => Err(damaged(error.to_string())),
    }
}

/// A name beside the target's, for what is not complete yet.
fn beside(target: &Path) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(".restoring");
    target.with_file_name(name)
}

fn lay_out(backup: &Path, to: &Path, manifest: &Manifest) -> Result<u32, (PathBuf, io::Error)> {
    for name in ["segments", "history", "quarantine"] {
        let dir = to.join(name);
        fs::create_dir(&dir).map_err(|error| (dir, error))?;
    }
    let mut epoch = manifest.epoch;
    for entry in &manifest.files {
        let (from, path) = (backup.join(&entry.path), to.join(&entry.path));
        let copied = match &entry.path[..] {
            "lock" => leap(&from, &path, manifest.epoch).map(|leapt| epoch = leapt),
            _ => copy(&from, &path, entry),
        };
        copied.map_err(|error| (path, error))?;
    }
    for dir in [to.join("segments"), to.join("history"), to.join("quarantine"), to.to_owned()] {
        sync_dir(&dir).map_err(|error| (dir, error))?;
    }
    Ok(epoch)
}

fn copy(from: &Path, to: &Path, entry: &Entry) -> io::Result<()> {
    let mut copy = Copy::create(to)?;
    let mut file = File::open(from)?;
    let mut chunk = vec![0; super::CHUNK_BYTES];
    loop {
        match file.read(&mut chunk)? {
            0 => break,
            read => copy.push(&chunk[..read])?,
        }
    }
    match copy.finish(&entry.path)? == *entry {
        true => Ok(()),
        false => Err(io::Error::other("it changed while it was restored")),
    }
}

/// Copies the lock file with an epoch that its node cannot have reached.
fn leap(from: &Path, to: &Path, epoch: u32) -> io::Result<u32> {
    let mut bytes = [0; FILE_HEADER_BYTES];
    File::open(from)?.read_exact(&mut bytes)?;
    let header = FileHeader::parse(FileKind::Lock, &bytes)
        .map_err(|_| io::Error::other("it is no lock file of this version"))?;
    let epoch = header.epoch.max(epoch).saturating_add(EPOCH_LEAP);
    let mut file = File::options().write(true).create_new(true).open(to)?;
    file.write_all(&FileHeader { epoch, ..header }.encode())?;
    file.sync_all()?;
    Ok(epoch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use restante_protocol::id::NodeTag;

    /// A backup of these files with nothing in them, but for the lock.
    fn backup(dir: &Path, paths: &[&str]) {
        let header = FileHeader {
            kind: FileKind::Lock,
            epoch: 3,
            node: NodeTag(7),
            id: 0,
            created_ms: 5,
            seed: 1,
        };
        let files: Vec<Entry> = ["lock"]
            .iter()
            .chain(paths)
            .map(|path| {
                let file = dir.join(path);
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                let lock = header.encode();
                fs::write(&file, if *path == "lock" { &lock[..] } else { b"" }).unwrap();
                let (bytes, crc64) = sum_file(&file).unwrap();
                Entry { path: (*path).to_owned(), bytes, crc64 }
            })
            .collect();
        let crc64 = Manifest::crc_of(&files);
        let (restante_backup, node, epoch, taken_ms, next) = (BACKUP_FORMAT, 7, 3, 6, 9);
        let manifest = Manifest { restante_backup, node, epoch, taken_ms, next, files, crc64 };
        fs::write(dir.join(MANIFEST), serde_json::to_vec(&manifest).unwrap()).unwrap();
    }

    #[test]
    fn a_restore_that_fails_leaves_nothing_and_one_that_was_cut_short_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (backup_dir, target) = (dir.path().join("backup"), dir.path().join("data"));
        let beside = dir.path().join("data.restoring");
        // No such directory is laid out.
        backup(&backup_dir, &["elsewhere/file"]);
        for _ in 0..2 {
            let failed = restore(&backup_dir, &target).unwrap_err();
            assert!(matches!(&failed, RestoreError::Io { .. }), "{failed}");
            assert!(!beside.exists() && !target.exists());
        }
        backup(&backup_dir, &["history/file"]);
        fs::create_dir(&beside).unwrap();
        let failed = restore(&backup_dir, &target).unwrap_err();
        assert!(matches!(&failed, RestoreError::Unfinished { .. }), "{failed}");
        assert!(failed.to_string().contains("data.restoring"), "{failed}");
        assert!(beside.exists(), "it may be another's that is running");
        fs::remove_dir(&beside).unwrap();
        let restored = restore(&backup_dir, &target).unwrap();
        assert_eq!((restored.files, restored.next), (2, 9));
        assert!(target.join("history/file").exists() && !beside.exists());
    }
}
