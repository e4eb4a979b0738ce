//! One receiver, in one process after another.

use super::super::Failure;
use super::super::child::{Kept, this_program};
use super::super::{Exit, child};
use super::inbox::Inbox;
use super::lines::Lines;
use restante_protocol::admin::PeerUrl;
use restante_protocol::name::Name;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a listening receiver may take to say where.
const LISTENING_MAX: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(10);

/// How a receiver and the node come together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// It attaches to the node.
    Attaches,
    /// The node dials it here.
    Dialled(String),
}

pub(super) struct Receiver {
    pub(super) name: Name,
    pub(super) reach: Reach,
    pub(super) inbox: Inbox,
    scratch: PathBuf,
    lives: u32,
    process: Option<Kept>,
}

impl Receiver {
    pub(super) fn new(name: Name, reach: Reach, lines: &Lines, scratch: &Path) -> Receiver {
        let (inbox, scratch) = (Inbox::new(lines), scratch.to_owned());
        Receiver { name, reach, inbox, scratch, lives: 0, process: None }
    }

    /// Starts a process for it; for one that is dialled, awaits where it listens.
    pub(super) async fn start(&mut self, server: &str) -> Result<(), Failure> {
        self.lives += 1;
        let file = |end: &str| self.scratch.join(format!("{}.{}.{end}", self.name, self.lives));
        let (out, err) = (file("out"), file("err"));
        let create = |path: &Path| {
            let failed = |error| Failure::new(Exit::Failed, format_args!("{error}"));
            File::create(path).map_err(failed)
        };
        let mut command = this_program()?;
        command.args(["sub", self.name.as_str(), "--json", "--server", server]);
        if let Reach::Dialled(addr) = &self.reach {
            command.args(["--listen", addr]);
        }
        command.stdout(create(&out)?).stderr(create(&err)?);
        self.process = Some(Kept::start(&mut command)?);
        self.inbox.add(out);
        if let Reach::Dialled(addr) = &mut self.reach {
            *addr = listening(&err).await?;
        }
        Ok(())
    }

    /// Ends its process without warning.
    pub(super) fn kill(&mut self) {
        self.process = None;
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.as_ref().map_or(0, child::Kept::pid)
    }

    /// Where the node finds it.
    pub(super) fn url(&self) -> Result<PeerUrl, Failure> {
        let Reach::Dialled(addr) = &self.reach else { return Ok(PeerUrl::Attach) };
        let odd = |error| Failure::new(Exit::Failed, format_args!("tcp://{addr}: {error}"));
        format!("tcp://{addr}").parse().map_err(odd)
    }

    /// Whether it has ended by itself.
    pub(super) fn ended(&mut self) -> bool {
        self.process.as_mut().is_some_and(Kept::ended)
    }
}

/// The address in `sub --listen`'s word that it listens.
async fn listening(stderr: &Path) -> Result<String, Failure> {
    let deadline = Instant::now() + LISTENING_MAX;
    loop {
        let said = fs::read_to_string(stderr).unwrap_or_default();
        if let Some((_, rest)) = said.split_once("listening on ")
            && let Some((addr, _)) = rest.split_once(' ')
        {
            return Ok(addr.to_owned());
        }
        if Instant::now() > deadline {
            let what = format!("a receiver does not listen: {}", said.trim());
            return Err(Failure::new(Exit::TimedOut, what));
        }
        tokio::time::sleep(LOOK).await;
    }
}
