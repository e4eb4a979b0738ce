//! A node as a process.

use super::Usage;
use super::wait::eventually;
use restante_client::{BufferBounds, Client, Reconnect, protocol};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// How long a node may take to become ready or to end.
const NODE_LIMIT: Duration = Duration::from_secs(30);
/// Attempts to start on a port that something else has just taken.
const BIND_ATTEMPTS: u32 = 40;
/// What of the log is shown when a test fails.
const TAIL_LINES: usize = 40;

/// The place of one test: a directory and the program under test.
pub struct Scene {
    program: &'static str,
    dir: Option<TempDir>,
    path: PathBuf,
}

impl Scene {
    /// A fresh directory under `tmp`, on the disk the build is on.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new(program: &'static str, tmp: &str, name: &str) -> Scene {
        let dir = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir_in(tmp);
        let dir = dir.expect("a temporary directory");
        let path = dir.path().to_owned();
        Scene { program, dir: Some(dir), path }
    }

    /// A path in the scene's directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A node on a data directory of the scene.
    #[must_use]
    pub fn node(&self) -> Setup {
        Setup {
            program: self.program,
            data_dir: self.path("data"),
            log: self.path("node.log"),
            addr_file: self.path("addr.json"),
            tcp: "127.0.0.1:0".to_owned(),
            args: Vec::new(),
            environment: Vec::new(),
        }
    }
}

impl Drop for Scene {
    /// What a failed test leaves behind is kept and shown.
    fn drop(&mut self) {
        let Some(dir) = self.dir.take().filter(|_| std::thread::panicking()) else { return };
        let kept = dir.keep();
        let log = fs::read_to_string(self.path.join("node.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
        eprintln!("kept {}; its log ends:\n{tail}", kept.display());
    }
}

/// How a node is to be started.
#[derive(Clone)]
pub struct Setup {
    program: &'static str,
    data_dir: PathBuf,
    log: PathBuf,
    addr_file: PathBuf,
    tcp: String,
    args: Vec<String>,
    environment: Vec<(String, String)>,
}

/// How a node that would not start ended.
#[derive(Debug)]
pub struct Refusal {
    /// Its exit code.
    pub code: Option<i32>,
    /// What it said.
    pub stderr: String,
}

impl Setup {
    /// Any setting, as `--set KEY=VALUE`.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl ToString) -> Setup {
        self.args.extend(["--set".to_owned(), format!("{key}={}", value.to_string())]);
        self
    }

    /// A variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Setup {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Another data directory.
    #[must_use]
    pub fn data_dir(mut self, path: impl Into<PathBuf>) -> Setup {
        self.data_dir = path.into();
        self
    }

    /// Another address to listen on.
    #[must_use]
    pub fn tcp(mut self, addr: impl ToString) -> Setup {
        self.tcp = addr.to_string();
        self
    }

    /// The program it runs.
    #[must_use]
    pub fn program(&self) -> &'static str {
        self.program
    }

    /// Where its journal is.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.data_dir
    }

    /// Starts the node and waits until it is ready.
    ///
    /// # Panics
    /// When it ends instead, or does not become ready in time.
    pub async fn start(self) -> Node {
        let (child, addr) = match self.launch().await {
            Ok(started) => started,
            Err(refusal) => panic!("the node did not start: {refusal:?}"),
        };
        Node { setup: self, child: Some(child), addr }
    }

    /// Starts a node that is expected to refuse.
    ///
    /// # Panics
    /// When it becomes ready.
    pub async fn refused(&self) -> Refusal {
        match self.launch().await {
            Ok((mut child, addr)) => {
                // Reaped, so that nothing is left behind; the test fails anyway.
                let _ = child.kill().and_then(|()| child.wait());
                panic!("the node started on {addr}, a refusal was expected");
            }
            Err(refusal) => refusal,
        }
    }

    async fn launch(&self) -> Result<(Child, SocketAddr), Refusal> {
        // A file of an earlier start says nothing about this one.
        let _ = fs::remove_file(&self.addr_file);
        let log = OpenOptions::new().create(true).append(true).open(&self.log).expect("a log");
        let said_from = log.metadata().expect("a log").len();
        let mut child = self.spawn(log);
        let ready = eventually("the node to be ready", NODE_LIMIT, async || {
            if let Some(status) = child.try_wait().expect("a child") {
                return Some(Err(status));
            }
            read_addr(&self.addr_file, child.id()).map(Ok)
        })
        .await;
        ready.map(|addr| (child, addr)).map_err(|status: ExitStatus| {
            let mut said = Vec::new();
            let mut log = File::open(&self.log).expect("a log");
            log.read_to_end(&mut said).expect("a log");
            let said = said.get(said_from as usize..).unwrap_or_default();
            Refusal { code: status.code(), stderr: String::from_utf8_lossy(said).into_owned() }
        })
    }

    fn spawn(&self, log: File) -> Child {
        let mut command = Command::new(self.program);
        for (name, _) in std::env::vars_os() {
            // Whoever runs the tests must not steer the node.
            if name.to_string_lossy().starts_with("RESTANTE_") {
                command.env_remove(name);
            }
        }
        command
            .arg("serve")
            .arg("--data-dir")
            .arg(&self.data_dir)
            .args(["--tcp", &self.tcp, "--log-format", "json"])
            .arg("--addr-file")
            .arg(&self.addr_file)
            .args(&self.args)
            .env_remove("RUST_BACKTRACE")
            .env("DIES_WITH_PARENT", "1")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the program runs")
    }
}

/// The address, once this process has written it.
fn read_addr(path: &Path, pid: u32) -> Option<SocketAddr> {
    let said: Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    if said["pid"].as_u64() != Some(u64::from(pid)) {
        return None;
    }
    said["tcp"].as_str()?.parse().ok()
}

/// A node that runs, or ran and will run again. Dropping it kills it.
pub struct Node {
    setup: Setup,
    child: Option<Child>,
    addr: SocketAddr,
}

impl Node {
    /// Where it listens; the same after a restart.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How it was set up.
    #[must_use]
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// Its process.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a running node").id()
    }

    /// What its process holds of the machine.
    #[must_use]
    pub fn usage(&self) -> Usage {
        Usage::of(self.pid())
    }

    /// Whether its process still runs.
    ///
    /// # Panics
    /// When it was killed or stopped by the test.
    pub fn runs(&mut self) -> bool {
        let child = self.child.as_mut().expect("a running node");
        child.try_wait().expect("a child").is_none()
    }

    /// Ends it without warning: SIGKILL.
    ///
    /// # Panics
    /// When it does not run, or had ended before.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("a running node");
        let ended = child.try_wait().expect("a child");
        assert!(ended.is_none(), "the node had ended by itself: {ended:?}");
        child.kill().expect("a signal");
        child.wait().expect("an end");
    }

    /// Tells it to end in order, and does not wait.
    ///
    /// # Panics
    /// When it does not run.
    pub fn ask_to_stop(&self) {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, Signal::TERM).expect("a signal");
    }

    /// Tells it to end in order, and waits. Its exit code.
    ///
    /// # Panics
    /// When it does not run or does not end in time.
    pub async fn stop(&mut self) -> Option<i32> {
        self.ask_to_stop();
        let mut child = self.child.take().expect("a running node");
        let ended =
            eventually("the node to stop", NODE_LIMIT, async || child.try_wait().expect("a child"));
        ended.await.code()
    }

    /// Waits for the end of one that the test has killed by its process id.
    ///
    /// # Panics
    /// When it does not run or does not end in time.
    pub async fn has_ended(&mut self) {
        let mut child = self.child.take().expect("a running node");
        eventually("its end", NODE_LIMIT, async || child.try_wait().expect("a child")).await;
    }

    /// Starts it again, on the same port and data.
    ///
    /// # Panics
    /// When it does not become ready, or still runs.
    pub async fn restart(&mut self) {
        assert!(self.child.is_none(), "kill or stop the node first");
        self.setup.tcp = self.addr.to_string();
        let mut attempt = 0;
        // While the node was down, the system may have lent its port to an outgoing connection.
        eventually("the port to be free again", NODE_LIMIT, async || {
            attempt += 1;
            match self.setup.launch().await {
                Ok((child, addr)) => {
                    assert_eq!(addr, self.addr);
                    self.child = Some(child);
                    Some(())
                }
                Err(refusal) if refusal.stderr.contains("in use") && attempt < BIND_ATTEMPTS => {
                    None
                }
                Err(refusal) => panic!("the node did not start again: {refusal:?}"),
            }
        })
        .await;
    }

    /// Changes how it starts the next time.
    pub fn change(&mut self, change: impl FnOnce(Setup) -> Setup) {
        self.setup = change(self.setup.clone());
    }

    /// A client that comes back quickly after a restart.
    ///
    /// # Panics
    /// When it cannot connect.
    pub async fn client(&self) -> Client {
        connect(self.addr).await
    }

    /// Everything it has written to its log, over all its starts.
    #[must_use]
    pub fn log(&self) -> String {
        let log = fs::read(&self.setup.log).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// The events of one name in its log.
    #[must_use]
    pub fn events(&self, name: &str) -> Vec<Value> {
        let log = self.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|event| event["event"] == name).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub(super) async fn connect(addr: SocketAddr) -> Client {
    let quickly = Reconnect {
        wait_min: Duration::from_millis(10),
        wait_max: Duration::from_millis(200),
        attempts_max: None,
    };
    let client = Client::builder(addr.to_string())
        .agent(concat!("restante-tests/", env!("CARGO_PKG_VERSION")))
        .reconnect(quickly)
        .buffer(BufferBounds { messages: 1_000, ..BufferBounds::default() })
        .wait_for_node()
        .connect();
    client.await.expect("a connection")
}

/// Adds a peer and returns its id.
///
/// # Panics
/// When the node refuses.
pub async fn add_peer(
    client: &Client,
    name: &str,
    url: &str,
    settings: protocol::admin::PeerPatch,
) -> protocol::id::PeerId {
    let command = protocol::admin::AdminCommand::PeerAdd {
        name: name.parse().expect("a name"),
        url: url.parse().expect("a URL"),
        settings,
    };
    client.admin(command).await.expect("a new peer").id
}
