//! `backup` and `restore`: a copy of a running node's journal, and a data directory made from it.

use super::node::{Target, block_on};
use super::output::{Output, note, print};
use super::{Exit, Failure};
use restante_client::RequestError;
use restante_journal::backup::{RestoreError, restore};
use restante_journal::offline::check::check;
use restante_protocol::control::{Reply, Request};
use restante_protocol::time::WallMillis;
use std::path::{Path, PathBuf};

/// Take a consistent copy of a running node's journal
///
/// The node writes it, to a directory of its own machine, and goes on meanwhile. Everything that was
/// confirmed before is in it. --timeout does not bound it.
#[derive(clap::Args)]
pub(super) struct BackupArgs {
    /// Where to: a directory that is empty or does not exist yet
    dir: PathBuf,
}

/// Lay a data directory out from a backup
///
/// Everything is checked first. `serve --data-dir DATA_DIR` then starts from it, in an epoch that the
/// node the backup was taken of cannot have reached. Never run both: each would deliver what the other
/// does not know to be acked.
#[derive(clap::Args)]
pub(super) struct RestoreArgs {
    /// What `restante backup` wrote
    backup: PathBuf,
    /// The data directory to make; it must be empty or not exist yet
    data_dir: PathBuf,
}

pub(super) fn take(args: &BackupArgs, target: &Target, output: Output) -> Result<(), Failure> {
    let dir = std::path::absolute(&args.dir).map_err(|error| {
        Failure::new(Exit::Usage, format_args!("{}: {error}", args.dir.display()))
    })?;
    let dir = dir.into_os_string().into_string().map_err(|dir| {
        Failure::new(Exit::Usage, format_args!("{}: expected UTF-8", dir.display()))
    })?;
    block_on(async {
        let client = target.connect_patiently().await?;
        let Reply::Backup(done) = client.request(Request::Backup { dir: dir.clone() }).await?
        else {
            return Err(RequestError::WrongReply.into());
        };
        if output.json {
            return print(&Output::json_line(&serde_json::json!({
                "dir": dir, "files": done.files, "bytes": done.bytes, "next": done.next,
            }))?);
        }
        print(&format!(
            "{} files, {} bytes: every record below {}\n",
            done.files, done.bytes, done.next
        ))
    })
}

pub(super) fn lay_out(args: &RestoreArgs, output: Output) -> Result<(), Failure> {
    let restored = restore(&args.backup, &args.data_dir)?;
    let taken = WallMillis(restored.taken_ms);
    if output.json {
        print(&Output::json_line(&serde_json::json!({
            "data_dir": args.data_dir, "files": restored.files, "bytes": restored.bytes,
            "next": restored.next, "epoch": restored.epoch, "taken": taken,
        }))?)?;
    } else {
        let (files, next, epoch) = (restored.files, restored.next, restored.epoch);
        print(&format!(
            "{files} files of {taken}: every record below {next}; starts in epoch {} or later\n",
            epoch + 1
        ))?;
    }
    tell_damage(&args.data_dir)
}

/// A backup of a damaged journal is complete and still damaged.
fn tell_damage(data_dir: &Path) -> Result<(), Failure> {
    match check(data_dir)?.problems.len() {
        0 => Ok(()),
        n => {
            note(&format!("{n} problems were in the journal already when it was copied"));
            Err(Failure::new(Exit::Failed, "see `restante journal check --data-dir`"))
        }
    }
}

impl From<RestoreError> for Failure {
    fn from(error: RestoreError) -> Failure {
        let exit = match error {
            RestoreError::NotEmpty { .. }
            | RestoreError::Unfinished { .. }
            | RestoreError::Newer { .. } => Exit::DataDirectory,
            RestoreError::NoBackup { .. } => Exit::NotFound,
            RestoreError::Damaged { .. } | RestoreError::Io { .. } => Exit::Failed,
        };
        Failure::new(exit, error)
    }
}
