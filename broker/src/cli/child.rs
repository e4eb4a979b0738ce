//! A node as a child process, for commands that bring their own.

use super::{Exit, Failure};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a node may take to begin, and how often it is looked for.
const READY_MAX: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(10);
/// Most of a failed node's log that is shown, in bytes from its end.
const LOG_SHOWN: usize = 2_000;

/// A directory of its own that is removed with everything in it.
#[derive(Debug)]
pub(super) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// A new directory in `parent`.
    pub(super) fn new(parent: &Path, purpose: &str) -> Result<Scratch, Failure> {
        let path = parent.join(format!("restante-{purpose}-{:08x}", rand::random::<u32>()));
        match fs::create_dir(&path) {
            Ok(()) => Ok(Scratch { path }),
            Err(error) => {
                let what = format!("cannot create {}: {error}", path.display());
                Err(Failure::new(Exit::DataDirectory, what))
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            super::output::note(&format!("{} is left behind: {error}", self.path.display()));
        }
    }
}

/// A process that does not outlive its owner: dropped is killed, without warning.
#[derive(Debug)]
pub(super) struct Kept(Child);

impl Kept {
    /// Starts this very program with other arguments.
    pub(super) fn start(command: &mut Command) -> Result<Kept, Failure> {
        let failed = |error| Failure::new(Exit::Failed, format_args!("cannot start: {error}"));
        command.stdin(Stdio::null()).spawn().map(Kept).map_err(failed)
    }

    pub(super) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Ends it without warning, as a power cut would. Returns when it is gone.
    pub(super) fn kill(&mut self) {
        // Both fail only when it has gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Whether it has ended by itself.
    pub(super) fn ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.kill();
    }
}

/// This very program.
pub(super) fn this_program() -> Result<Command, Failure> {
    let path = std::env::current_exe().map_err(|error| {
        Failure::new(Exit::Failed, format_args!("cannot find this program: {error}"))
    })?;
    let mut command = Command::new(path);
    // What is meant for the command that starts it is not meant for the node.
    let ours = std::env::vars_os().map(|(name, _)| name);
    for name in ours.filter(|name| name.to_string_lossy().starts_with("RESTANTE_")) {
        command.env_remove(name);
    }
    Ok(command)
}

/// A running node on a data directory in a [`Scratch`].
#[derive(Debug)]
pub(super) struct NodeProcess {
    process: Kept,
    /// Where it listens.
    pub(super) addr: String,
}

impl NodeProcess {
    /// Starts a node on `scratch` and awaits that it is ready. `tcp`: where it listens; `settings`: as
    /// `serve --set` takes them.
    pub(super) async fn start(
        scratch: &Path,
        tcp: &str,
        settings: &[String],
    ) -> Result<NodeProcess, Failure> {
        let (addr_file, log) = (scratch.join("addr.json"), scratch.join("node.log"));
        // That of a node before this one.
        let _ = fs::remove_file(&addr_file);
        let failed = |error| Failure::new(Exit::DataDirectory, format_args!("{error}"));
        let stderr = File::options().create(true).append(true).open(&log).map_err(failed)?;
        let mut command = this_program()?;
        command.args(["serve", "--tcp", tcp, "--log-format", "human", "--data-dir"]);
        command.arg(scratch.join("data")).arg("--addr-file").arg(&addr_file);
        command.args(settings.iter().flat_map(|setting| ["--set", setting]));
        let mut process = Kept::start(command.stdout(Stdio::null()).stderr(stderr))?;
        let deadline = Instant::now() + READY_MAX;
        loop {
            if let Some(addr) = fs::read(&addr_file).ok().and_then(|file| bound_addr(&file)) {
                return Ok(NodeProcess { process, addr });
            }
            if process.ended() || Instant::now() > deadline {
                let said = fs::read_to_string(&log).unwrap_or_default();
                let from = said.floor_char_boundary(said.len().saturating_sub(LOG_SHOWN));
                let what = format!("the node does not begin; its log ends: {}", &said[from..]);
                return Err(Failure::new(Exit::Failed, what));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// See [`Kept::kill`].
    pub(super) fn kill(&mut self) {
        self.process.kill();
    }
}

fn bound_addr(file: &[u8]) -> Option<String> {
    let bound: serde_json::Value = serde_json::from_slice(file).ok()?;
    bound.get("tcp")?.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scratch_directory_goes_with_its_content() {
        let parent = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(parent.path(), "test").unwrap();
        let path = scratch.path().to_owned();
        fs::write(path.join("file"), "x").unwrap();
        drop(scratch);
        assert!(!path.exists());
        let missing = parent.path().join("missing");
        assert_eq!(Scratch::new(&missing, "test").unwrap_err().exit, Exit::DataDirectory);
    }

    #[test]
    fn the_address_file_says_where_the_node_is() {
        let addr = bound_addr(br#"{"tcp":"127.0.0.1:4711","pid":7}"#);
        assert_eq!(addr.as_deref(), Some("127.0.0.1:4711"));
        assert_eq!(bound_addr(b"{"), None);
    }

    #[test]
    fn a_kept_process_does_not_outlive_its_owner() {
        let mut kept = Kept::start(Command::new("sleep").arg("600")).unwrap();
        assert!(!kept.ended());
        let proc = PathBuf::from(format!("/proc/{}", kept.pid()));
        assert!(proc.exists());
        drop(kept);
        assert!(!proc.exists());
    }
}
