//! Control frames: everything said rarely, as named MessagePack values.
//!
//! The conversation: whoever dials says [`Hello`]; the other side answers [`Welcome`] or an error and
//! closes. After that both sides may send requests; every [`Request`] is answered by exactly one
//! [`Control::Response`] with its number.

use crate::admin::{AdminCommand, AdminDone};
use crate::id::{MessageId, MessageNumber, NodeTag, PeerId, ProducerId};
use crate::job::JobStatus;
use crate::name::Name;
use crate::refusal::Refusal;
use crate::status::{
    BackupDone, ClassStatus, GroupInfo, GroupStatus, MessageStatus, NodeStatus, PeerInfo,
    PeerStatus,
};
use crate::stored::{Filter, Lane, MessagePage};
use serde::{Deserialize, Serialize};

/// The body of a control frame. On the wire: a map of one entry, the variant's name in snake case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Control {
    /// First frame of whoever dialled.
    Hello(Hello),
    /// The answer to a hello.
    Welcome(Welcome),
    /// A name for a receiver on this connection, used by publishes from here on. Not answered: an
    /// unknown name refuses the publishes that use it.
    Alias {
        /// Chosen by the producer, below [`crate::limits::ALIASES_MAX`]; declaring it again rebinds it.
        alias: u32,
        /// The receiver.
        name: Name,
    },
    /// Producer → node: nobody awaits the answer to this call any more. Not answered; the message is
    /// delivered all the same.
    CancelCall {
        /// The sequence of the publish.
        sequence: u64,
    },
    /// Node → producer: the credit from now on.
    Credit(Credit),
    /// A question; answered by one response with the same number.
    Request {
        /// Chosen by the asker.
        id: u64,
        /// What is asked.
        request: Request,
    },
    /// The answer to a request.
    Response {
        /// The request's number.
        id: u64,
        /// What came of it.
        result: Result<Reply, Refusal>,
    },
    /// Node → receiver: this slot is no longer attached.
    Detached {
        /// The attachment.
        slot: u32,
        /// Why.
        reason: Refusal,
    },
    /// Node → watcher: what has changed.
    Event {
        /// The request number of the watch.
        watch: u64,
        /// What happened.
        event: WatchEvent,
    },
    /// Last frame before this side closes the connection.
    Goodbye(Refusal),
}

/// The dialling side introduces itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Lowest protocol version it speaks.
    pub version_min: u16,
    /// Highest protocol version it speaks.
    pub version_max: u16,
    /// What it is, for logs: `restante-cli/0.1.0`. At most 128 bytes.
    pub agent: String,
    /// Who publishes on this connection; absent for one that does not publish.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub producer: Option<ProducerId>,
    /// The lowest sequence this producer has never sent; absent if it does not know, as on its first
    /// connection. A node that has forgotten the producer then knows that from here on nothing can
    /// have been accepted before, and below it anything may have been.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unused_from: Option<u64>,
    /// A node that dials a receiver says here as which peer: slot 0 is then attached as that peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deliver_as: Option<Name>,
    /// Which node that is, so that the receiver knows whose earlier connection is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeLife>,
    /// The secret of a login, once logins exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<String>,
}

/// A node between two starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeLife {
    /// The tag that stands in the ids it gives.
    pub tag: NodeTag,
    /// Its journal's epoch.
    pub epoch: u32,
}

/// The accepting side introduces itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version spoken from here on: the highest both sides speak.
    pub version: u16,
    /// What it is, for logs.
    pub agent: String,
    /// The node's journal epoch; 0 from a receiver.
    pub epoch: u32,
    /// The epoch the node assigned to the producer's identity with this hello; 0 without one.
    pub producer_epoch: u32,
    /// The lowest sequence number not yet decided for this producer identity.
    pub next_sequence: u64,
    /// What may be unconfirmed; zero from a receiver.
    pub credit: Credit,
    /// Largest payload accepted, in bytes.
    pub payload_bytes_max: u64,
    /// A side that has sent nothing for this long sends a heartbeat, in milliseconds.
    pub heartbeat_ms: u32,
    /// A side that has been silent for this long is taken for dead, in milliseconds.
    pub silence_ms_max: u32,
    /// A receiver that was dialled limits what it takes: tags up to this one. Absent: the peer's window alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<u64>,
}

/// What a producer may have unconfirmed at any time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credit {
    /// Messages.
    pub messages: u32,
    /// Bytes of publish frames.
    pub bytes: u64,
}

/// What can be asked of a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Receive as these peers.
    Attach {
        /// One entry per receiver.
        receivers: Vec<AttachAs>,
    },
    /// Stop receiving on a slot; what is unacked there goes back to the queue.
    Detach {
        /// The attachment.
        slot: u32,
    },
    /// Answered when every ack received before it is on disk.
    Flush,
    /// Change something. Journaled before the answer.
    Admin(AdminCommand),
    /// The peers and how they are, in order of their ids, as many as an answer holds.
    Peers {
        /// Only those above this id; absent: from the first.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<PeerId>,
    },
    /// One peer. `name#id` names a removed one.
    Peer {
        /// Its name.
        name: String,
    },
    /// The groups, in order of their names, as many as an answer holds.
    Groups {
        /// Only those behind this name; absent: from the first.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<Name>,
    },
    /// One group with its members.
    Group {
        /// Its name.
        name: Name,
    },
    /// The classes, all of them.
    Classes,
    /// The node itself.
    Node,
    /// What has become of a message.
    Message {
        /// Its id.
        id: MessageId,
    },
    /// The payload and headers of a message that is still stored.
    Payload {
        /// Its id.
        id: MessageId,
    },
    /// The messages stored for a peer, in order, as many as an answer holds. Takes nothing away.
    Stored {
        /// Its name. `name#id` names a removed one.
        peer: String,
        /// Which of them.
        lane: Lane,
        /// Only those that it lets through.
        #[serde(default, skip_serializing_if = "Filter::is_empty")]
        filter: Filter,
        /// Only those above this number, [`MessagePage::through`] of the answer before; 0: from the
        /// first.
        #[serde(default)]
        after: MessageNumber,
        /// With their bodies.
        #[serde(default)]
        bodies: bool,
    },
    /// The job under way for a peer, or else the last one since the node started.
    Job {
        /// Its name. `name#id` names a removed one.
        peer: String,
    },
    /// A snapshot, then changes as events, until the connection closes or `Unwatch`.
    Watch {
        /// Resume after this version instead of starting with a snapshot.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<u64>,
    },
    /// End the watch that was asked for under this request number.
    Unwatch {
        /// The watch's request number.
        watch: u64,
    },
    /// The level filter of the node's log from now on, in `tracing` syntax.
    LogFilter {
        /// For example `info` or `restante=debug`.
        filter: String,
    },
    /// A copy of the journal into a directory of the node's machine, taken while the node runs.
    Backup {
        /// An absolute path; what is there must be empty.
        dir: String,
    },
}

/// One attachment that is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachAs {
    /// Chosen by the receiver, below [`crate::limits::SLOTS_MAX`]; names the attachment in frames.
    pub slot: u32,
    /// Which peer.
    pub name: Name,
    /// Take deliveries up to this tag only, until granted more. Absent: the peer's window alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<u64>,
}

/// How one attachment went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttachResult {
    /// The slot.
    pub slot: u32,
    /// The first delivery on this slot has this tag.
    pub first_tag: u64,
    /// Whether the peer was created by this attach (an open loopback node does that, and says so).
    pub created: bool,
    /// Why not, if not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
}

/// What a request is answered with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Done, and there is nothing to tell.
    Done,
    /// To `Attach`, in the order asked.
    Attached(Vec<AttachResult>),
    /// To `Admin`.
    Admin(AdminDone),
    /// To `Peers`.
    Peers(PeerPage),
    /// To `Peer`.
    Peer(Box<PeerInfo>),
    /// To `Groups`.
    Groups(GroupPage),
    /// To `Group`.
    Group(Box<GroupInfo>),
    /// To `Classes`: in order of their names, at most [`crate::registry::CLASSES_MAX`].
    Classes(Vec<ClassStatus>),
    /// To `Node`.
    Node(NodeStatus),
    /// To `Message`.
    Message(MessageStatus),
    /// To `Payload`: the body section, see [`crate::message::Body`].
    Payload(#[serde(with = "serde_bytes")] Vec<u8>),
    /// To `Stored`.
    Stored(MessagePage),
    /// To `Job`.
    Job(Option<Box<JobStatus>>),
    /// To `Watch`: events follow.
    Watching,
    /// To `Backup`, once it is complete and on disk.
    Backup(BackupDone),
}

/// Some of the peers, in order of their ids. At most [`crate::limits::PEER_PAGE_MAX`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PeerPage {
    /// These.
    pub peers: Vec<PeerStatus>,
    /// Whether there are others: ask again with `after` set to the id of the last.
    pub more: bool,
}

/// Some of the groups, in order of their names. At most [`crate::limits::GROUP_PAGE_MAX`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupPage {
    /// These.
    pub groups: Vec<GroupStatus>,
    /// Whether there are others: ask again with `after` set to the name of the last.
    pub more: bool,
}

/// What a watcher is told. Versions ascend by one per change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WatchEvent {
    /// Everything as of `version`, in parts. Also sent after a gap. What a part shows may be newer than
    /// the version; the changes that follow say it again.
    Snapshot {
        /// The version this is, the same in every part.
        version: u64,
        /// Some of the peers, in order of their ids.
        peers: Vec<PeerStatus>,
        /// Whether another part follows; the watcher has everything once none does.
        more: bool,
    },
    /// One peer is as it is now.
    Changed {
        /// The version of this change.
        version: u64,
        /// The peer.
        peer: PeerStatus,
    },
    /// One peer is gone.
    Removed {
        /// The version of this change.
        version: u64,
        /// Its name.
        name: Name,
    },
    /// Changes between what the watcher has and now were not kept; a snapshot follows.
    Gap {
        /// The last version the watcher had.
        after: u64,
    },
}
