//! What can be observed: of a peer, of a message, of the node. One type serves admin answers, the
//! watch, the logs and the tests.

use crate::admin::{PeerSettings, PeerUrl};
use crate::id::{MessageId, PeerId};
use crate::name::Name;
use crate::shaper::Rates;
use crate::time::WallMillis;
use serde::{Deserialize, Serialize};

/// The verdict on a peer, drawn from ack progress, not from the socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Connected; acks come in time.
    Up,
    /// Connected; acks are late.
    Slow,
    /// Connected; it refuses messages.
    Refusing,
    /// No link to it, or one that is lost again and again.
    #[default]
    Unreachable,
    /// Late several times in a row: reported as failed and redialled.
    Failed,
    /// An operator holds it.
    Paused,
    /// Its actor crashes; the supervisor holds it for a while.
    Crashing,
}

impl Health {
    /// The stable word, as in logs and JSON.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Health::Up => "up",
            Health::Slow => "slow",
            Health::Refusing => "refusing",
            Health::Unreachable => "unreachable",
            Health::Failed => "failed",
            Health::Paused => "paused",
            Health::Crashing => "crashing",
        }
    }
}

/// The one thing that keeps a message from being sent, or done, now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stall {
    /// An operator holds the peer.
    Paused,
    /// Its actor crashes, and the supervisor holds it for a while.
    Crashing,
    /// There is no link.
    Link,
    /// As much is in flight as the receiver granted.
    Grant,
    /// The window is full, in messages or bytes.
    Window,
    /// After an outage, or where answers came late, the window is still opening.
    Ramp,
    /// A message under suspicion is tried alone.
    Suspect,
    /// Its rate, that of its class or that of the node is used up for now.
    Rate,
    /// Bodies are being read from the journal.
    Journal,
    /// An earlier message of its key has to go first; at
    /// [`SKIPPED_MAX`](crate::delivery::SKIPPED_MAX) such messages the peer looks no further.
    Keys,
    /// It was refused and waits for its next try; at
    /// [`REFUSED_MAX`](crate::delivery::REFUSED_MAX) such messages nothing new is sent.
    Refusals,
    /// It has been sent, and the receiver has not acked it.
    Ack,
}

impl Stall {
    /// The stable word, as in logs and JSON.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Stall::Paused => "paused",
            Stall::Crashing => "crashing",
            Stall::Link => "link",
            Stall::Grant => "grant",
            Stall::Window => "window",
            Stall::Ramp => "ramp",
            Stall::Suspect => "suspect",
            Stall::Rate => "rate",
            Stall::Journal => "journal",
            Stall::Keys => "keys",
            Stall::Refusals => "refusals",
            Stall::Ack => "ack",
        }
    }
}

/// What a backup came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupDone {
    /// Files in it.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Every message whose number is below this is in it.
    pub next: u64,
}

/// A peer at a glance. It may trail the truth by up to a second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its durable identity.
    pub id: PeerId,
    /// Its name; `name#id` once removed.
    pub name: String,
    /// Where it is reached.
    pub url: PeerUrl,
    /// Version of its record.
    pub version: u64,
    /// The verdict.
    pub health: Health,
    /// When the verdict was reached.
    pub since: WallMillis,
    /// Why, one line; empty when up.
    pub why: String,
    /// Messages accepted and not yet done, in flight included.
    pub waiting: u64,
    /// Their bytes.
    pub waiting_bytes: u64,
    /// Of those, in flight.
    pub unacked: u64,
    /// Parked messages.
    pub parked: u64,
    /// Messages accepted for it that wait for their time: in its queue later.
    pub delayed: u64,
    /// Messages acked since the node started.
    pub acked: u64,
    /// When the next connection attempt is due, if one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt: Option<WallMillis>,
    /// When the oldest waiting message was accepted, if one waits and it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest: Option<WallMillis>,
    /// What keeps the next message from being sent, if one waits that is not in flight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stall: Option<Stall>,
    /// Whether it is given new messages.
    #[serde(default, skip_serializing_if = "Taking::is_open")]
    pub taking: Taking,
}

/// Whether a peer is given new messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Taking {
    /// It is.
    #[default]
    Open,
    /// An operator drains it: it is given none, and some wait still, in its queue or for their time.
    Draining,
    /// It is drained: it is given none, and none waits. Parked ones stay.
    Drained,
}

impl Taking {
    /// Whether it is given new messages.
    #[must_use]
    pub fn is_open(&self) -> bool {
        *self == Taking::Open
    }

    /// The stable word, as in logs and JSON.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Taking::Open => "open",
            Taking::Draining => "draining",
            Taking::Drained => "drained",
        }
    }
}

/// What a peer may take of the node: its own quotas, or the node's share for one peer where it has
/// none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// Most messages waiting or parked; 0: no limit.
    pub messages: u64,
    /// Most bytes waiting or parked; 0: no limit.
    pub bytes: u64,
}

/// A peer with its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerInfo {
    /// How it is.
    pub status: PeerStatus,
    /// How it is served.
    pub settings: PeerSettings,
    /// What it may take.
    pub quota: Quota,
    /// How often its actor has been rebuilt since the node started.
    pub restarts: u64,
    /// Where its queue is going, if something is in it and has been for a moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlook: Option<Outlook>,
}

/// Where a peer's queue is going if it goes on as in the last minutes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outlook {
    /// Messages that come a minute.
    pub came_per_minute: u64,
    /// Messages that go a minute: delivered, parked or expired.
    pub went_per_minute: u64,
    /// When nothing waits any more, if more go than come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drained: Option<WallMillis>,
    /// When its quota is used up, if more come than go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full: Option<WallMillis>,
}

/// A group at a glance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// Its name.
    pub name: Name,
    /// Its version.
    pub version: u64,
    /// How many peers are in it.
    pub members: u32,
}

/// A group with its members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupInfo {
    /// Its name.
    pub name: Name,
    /// Its version.
    pub version: u64,
    /// The peers in it, in the order they were added to the node.
    pub members: Vec<Name>,
}

/// A class at a glance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassStatus {
    /// Its name.
    pub name: Name,
    /// Its version.
    pub version: u64,
    /// How many peers are in it.
    pub peers: u64,
    /// How fast messages to its peers may go, all together.
    pub rates: Rates,
}

/// The node at a glance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Software version.
    pub version: String,
    /// The journal's epoch: how often it has been opened.
    pub epoch: u32,
    /// When this process became ready.
    pub started: WallMillis,
    /// Peers.
    pub peers: u64,
    /// Open connections.
    pub connections: u64,
    /// Messages confirmed since the start.
    pub confirmed: u64,
    /// Deliveries acked since the start.
    pub acked: u64,
    /// Messages waiting for some receiver, counted per receiver.
    pub waiting: u64,
    /// Delayed messages that wait for their time, each counted once.
    pub delayed: u64,
    /// Bytes on disk.
    pub journal_bytes: u64,
    /// Whether publishes are accepted, and if not why.
    pub accepting: Result<(), crate::refusal::Refusal>,
}

impl MessageState {
    /// Whether the receiver is still to get the message by itself.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        matches!(
            self,
            MessageState::Delayed { .. }
                | MessageState::Queued
                | MessageState::InFlight { .. }
                | MessageState::Retrying { .. }
        )
    }
}

/// The life of one message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MessageStatus {
    /// Its id.
    pub id: MessageId,
    /// When it was accepted.
    pub accepted: WallMillis,
    /// Bytes of its body, if it is still stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// One entry per receiver, in the order of the publish.
    pub receivers: Vec<ReceiverStatus>,
}

/// What has become of a message for one receiver.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReceiverStatus {
    /// Name of the receiver; `name#id` once removed.
    pub receiver: String,
    /// Where the message is.
    pub state: MessageState,
    /// How often it was sent; a lower bound after a restart.
    pub attempts: u32,
    /// What it waits for, as long as it is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocked: Option<Blocked>,
    /// When its time to live ends, if it has one, as long as it is open: by the wall clock as it stood
    /// when the message was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<WallMillis>,
}

/// What a message waits for on its way to one receiver: the one thing without which it would go on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Blocked {
    /// What.
    pub by: Stall,
    /// The message that has to go first, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behind: Option<MessageId>,
    /// When something happens by itself: the next connection attempt, the next try, the end of the
    /// ack timeout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<WallMillis>,
    /// What the receiver or the operator said; empty if there is nothing to say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
}

/// Where a message is on its way to one receiver.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MessageState {
    /// Accepted, and in nobody's queue before its time.
    Delayed {
        /// When that is: of one delayed for a time by the wall clock as it stood when it was accepted.
        until: WallMillis,
    },
    /// Accepted, waiting to be sent.
    Queued,
    /// Sent, not yet acked.
    InFlight {
        /// When it was last sent.
        since: WallMillis,
    },
    /// Refused or late, waiting for its next try.
    Retrying {
        /// When it is due.
        next_attempt: WallMillis,
        /// The last reason.
        reason: String,
    },
    /// Done.
    Acked {
        /// When the ack was recorded.
        at: WallMillis,
        /// What the receiver returned, if anything and if kept.
        #[serde(default, skip_serializing_if = "Option::is_none", with = "serde_bytes")]
        value: Option<Vec<u8>>,
    },
    /// Set aside for an operator.
    Parked {
        /// When.
        at: WallMillis,
        /// Why.
        reason: String,
    },
    /// Its time to live ended.
    Expired {
        /// When.
        at: WallMillis,
    },
    /// Deleted by an operator.
    Purged {
        /// When.
        at: WallMillis,
        /// Who did it, or removed its receiver, as the log names them; absent once that is forgotten.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<String>,
    },
    /// Was parked, and went to the end of the queue again: its life goes on in a later entry of the
    /// same receiver.
    Replayed {
        /// When.
        at: WallMillis,
    },
    /// Handed to another peer.
    Moved {
        /// When.
        at: WallMillis,
        /// To whom.
        to: String,
    },
    /// It ended in one of these ways; the record of which and when is no longer kept.
    Done,
}
