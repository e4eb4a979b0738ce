//! What a node remembers beside its messages: its peers, its producers, and which delayed messages went
//! last.
//!
//! Every change is an event in an admin record of the journal. It is applied when it is appended, so
//! that a checkpoint taken at any moment holds exactly what stands before it in the log, and answered
//! once it is on disk. At boot, first or not:
//!
//! ```text
//! checkpoint ─restore─► NodeState ◄─apply_bytes─ admin records ◄─then replay_run─ published runs
//! ```
//!
//! Events and checkpoints begin with a format byte; what a later release wrote is refused by name.

use crate::admin::AdminDone;
use crate::job::Copies;
use crate::producers::{Opened, PRODUCERS_MAX_DEFAULT, ProducerOpened, Producers};
use crate::registry::{AdminEvent, PEERS_MAX_DEFAULT, Registry};
use serde::{Deserialize, Serialize};

/// The format of events and checkpoints written by this release.
pub const STATE_FORMAT: u8 = 1;

/// A change of a node's state, as journaled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StateEvent {
    /// Of its peers.
    Admin(AdminEvent),
    /// Of its producers.
    Producer(ProducerOpened),
    /// Of the delayed messages whose time has come: what stands behind it in its batch are copies of
    /// them, for their receivers.
    Released(Copies),
}

impl StateEvent {
    /// The body of the admin record.
    ///
    /// # Errors
    /// Never in practice: an event is made of what MessagePack can hold.
    pub fn encode(&self) -> Result<Vec<u8>, StateError> {
        let mut out = vec![STATE_FORMAT];
        rmp_serde::encode::write_named(&mut out, self).map_err(StateError::unwritable)?;
        Ok(out)
    }

    /// Reads what [`StateEvent::encode`] wrote.
    ///
    /// # Errors
    /// The bytes are of a later format, or no event.
    pub fn parse(bytes: &[u8]) -> Result<StateEvent, StateError> {
        rmp_serde::from_slice(body_of_this_format(bytes)?).map_err(StateError::unreadable)
    }
}

/// What came of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Of one about peers.
    Admin(AdminDone),
    /// Of one about producers.
    Producer(Opened),
    /// Of one about delayed messages.
    Released,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct NodeState {
    /// The peers.
    pub registry: Registry,
    /// The producers.
    pub producers: Producers,
    /// The last delayed messages that were copied into queues. Those that came before have been settled.
    pub released: Option<Copies>,
}

/// How much a node remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateLimits {
    /// Most peers.
    pub peers_max: usize,
    /// Most producers.
    pub producers_max: usize,
}

impl Default for StateLimits {
    fn default() -> StateLimits {
        StateLimits { peers_max: PEERS_MAX_DEFAULT, producers_max: PRODUCERS_MAX_DEFAULT }
    }
}

impl NodeState {
    /// The state of a node that has never run.
    #[must_use]
    pub fn new(limits: StateLimits) -> NodeState {
        let registry = Registry::new(limits.peers_max);
        let producers = Producers::new(limits.producers_max);
        NodeState { registry, producers, released: None }
    }

    /// Carries an event out.
    ///
    /// # Errors
    /// The event does not follow from this state; nothing has changed.
    pub fn apply(&mut self, event: &StateEvent) -> Result<Applied, StateError> {
        match event {
            StateEvent::Admin(event) => self.registry.apply(event).map(Applied::Admin),
            StateEvent::Producer(event) => self.producers.apply(event).map(Applied::Producer),
            StateEvent::Released(copies) => {
                self.released = Some(copies.clone());
                Ok(Applied::Released)
            }
        }
    }

    /// Carries the event of an admin record out, at boot.
    ///
    /// # Errors
    /// The bytes are no event of this state; nothing has changed.
    pub fn apply_bytes(&mut self, bytes: &[u8]) -> Result<Applied, StateError> {
        self.apply(&StateEvent::parse(bytes)?)
    }

    /// Everything a restart needs: `u8 format | u32 length | registry | u32 length | released |
    /// producers`.
    ///
    /// # Errors
    /// Never in practice: see [`Registry::snapshot`].
    pub fn snapshot(&self) -> Result<Vec<u8>, StateError> {
        let registry = self.registry.snapshot()?;
        let released = rmp_serde::to_vec_named(&self.released).map_err(StateError::unwritable)?;
        let mut out = vec![STATE_FORMAT];
        for (what, part) in [("the registry", registry), ("what was released", released)] {
            let length = u32::try_from(part.len())
                .map_err(|_| StateError::Unwritable(format!("{what} is over 4 GiB")))?;
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(&part);
        }
        self.producers.snapshot(&mut out);
        Ok(out)
    }

    /// The state as it was when [`NodeState::snapshot`] was taken.
    ///
    /// # Errors
    /// The bytes are of a later format, or no snapshot.
    pub fn restore(bytes: &[u8], limits: StateLimits) -> Result<NodeState, StateError> {
        let body = body_of_this_format(bytes)?;
        let (registry, body) = take_part(body)?;
        let (released, producers) = take_part(body)?;
        Ok(NodeState {
            registry: Registry::restore(registry, limits.peers_max)?,
            producers: Producers::restore(producers, limits.producers_max)?,
            released: rmp_serde::from_slice(released).map_err(StateError::unreadable)?,
        })
    }
}

/// A part of a checkpoint that has its length in front, and what follows it.
fn take_part(bytes: &[u8]) -> Result<(&[u8], &[u8]), StateError> {
    let cut = || StateError::Unreadable("the checkpoint is cut short".to_owned());
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(cut)?;
    rest.split_at_checked(u32::from_be_bytes(*length) as usize).ok_or_else(cut)
}

fn body_of_this_format(bytes: &[u8]) -> Result<&[u8], StateError> {
    match bytes.split_first() {
        Some((&STATE_FORMAT, body)) => Ok(body),
        Some((&format, _)) if format > STATE_FORMAT => Err(StateError::Newer { format }),
        _ => Err(StateError::Unreadable("it does not begin with a format".to_owned())),
    }
}

/// Why stored state cannot be taken. Nothing has changed when one of these is returned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Written by a later release.
    #[error(
        "the state is of format {format}, this release reads up to {STATE_FORMAT}; start the release that wrote it"
    )]
    Newer {
        /// What was found.
        format: u8,
    },
    /// Not what was written.
    #[error("the state cannot be read: {0}")]
    Unreadable(String),
    /// Cannot be written.
    #[error("the state cannot be written: {0}")]
    Unwritable(String),
    /// An event that does not follow from the state before it.
    #[error("an event about {what} #{id} does not follow from the state before it")]
    OutOfOrder {
        /// What the event is about.
        what: &'static str,
        /// Which.
        id: u32,
    },
}

impl StateError {
    pub(crate) fn unreadable(error: rmp_serde::decode::Error) -> StateError {
        StateError::Unreadable(error.to_string())
    }

    pub(crate) fn unwritable(error: rmp_serde::encode::Error) -> StateError {
        StateError::Unwritable(error.to_string())
    }
}

#[cfg(test)]
mod tests;
