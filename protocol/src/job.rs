//! Jobs: something that is done to a peer's stored messages one after the other, by the node itself.

use crate::id::{MessageNumber, PeerId};
use crate::stored::Filter;
use crate::time::WallMillis;
use serde::{Deserialize, Serialize};

/// What a job does with the messages it comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Parked messages go to the end of a queue, under their ids.
    Replay {
        /// Whose queue: their own peer's, or another's.
        to: PeerId,
        /// Messages a second; absent: as fast as they can be read and written.
        rate: Option<u32>,
    },
    /// Parked messages are deleted, with a ledger record for each.
    Purge,
}

/// A job as it is journaled: when it begins, with every page, and when it ends. A restart goes on with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Ascends by one from job to job.
    pub number: u64,
    /// Whose messages. Of one peer there is at most one job.
    pub peer: PeerId,
    /// What is done.
    pub work: Work,
    /// To which.
    pub filter: Filter,
    /// Only messages up to this number: what was stored when it began.
    pub through: MessageNumber,
    /// Who asked for it: agent and address.
    pub by: String,
    /// When it began.
    pub at: WallMillis,
    /// How many messages it has done, those of `copies` included.
    pub messages: u64,
    /// Of a replay: the last page that was copied.
    pub copies: Option<Copies>,
}

/// Messages and the copies of them that a replay, or the end of their delay, has appended. They are
/// journaled ahead of the copies, in one batch: after a crash those whose copies are there are only to be
/// settled, and none goes twice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copies {
    /// Number of the first copy; the others follow.
    pub first: MessageNumber,
    /// When the copies were accepted, which with their number makes their ids.
    pub accepted_ms: u64,
    /// What they are copies of, in the order of the copies: ascending in a replay.
    pub originals: Vec<MessageNumber>,
}

impl Copies {
    /// The number of the copy of this message, if it is among them.
    #[must_use]
    pub fn of(&self, original: MessageNumber) -> Option<MessageNumber> {
        let place = self.originals.iter().position(|number| *number == original)?;
        Some(self.first + place as u64)
    }
}

impl Job {
    /// Who is to get the messages, if somebody is.
    #[must_use]
    pub const fn to(&self) -> Option<PeerId> {
        match self.work {
            Work::Replay { to, .. } => Some(to),
            Work::Purge => None,
        }
    }

    /// Messages a second, if that is limited.
    #[must_use]
    pub const fn rate(&self) -> Option<u32> {
        match self.work {
            Work::Replay { rate, .. } => rate,
            Work::Purge => None,
        }
    }
}

/// How a job stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStatus {
    /// Its number.
    pub job: u64,
    /// Whose messages.
    pub peer: String,
    /// Whose queue they go to; absent for a purge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Messages a second, if that is limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u32>,
    /// Which messages, as in the log.
    pub filter: String,
    /// Who asked for it.
    pub by: String,
    /// When it began.
    pub began: WallMillis,
    /// How many it has done.
    pub messages: u64,
    /// When it ended, if it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<WallMillis>,
    /// What it waits for, or why it ended before its end; empty when all is well.
    pub why: String,
}
