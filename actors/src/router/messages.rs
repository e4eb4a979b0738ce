//! What is said to the router.

use crate::link::SharedProducer;
use actix::Message;
use bytes::Bytes;
use restante_protocol::admin::{AdminCommand, AdminDone, PeerSettings, PeerUrl};
use restante_protocol::control::GroupPage;
use restante_protocol::frame::ReplyKind;
use restante_protocol::id::{MessageNumber, PeerId, ProducerId};
use restante_protocol::job::JobStatus;
#[cfg(doc)]
use restante_protocol::limits::{GROUP_PAGE_MAX, PEER_PAGE_MAX};
use restante_protocol::name::Name;
use restante_protocol::refusal::Refusal;
use restante_protocol::status::{ClassStatus, GroupInfo, Taking};
use restante_protocol::time::WallMillis;

/// All publishes of one read of a connection.
#[derive(Message)]
#[rtype(result = "()")]
pub struct PublishBatch {
    /// Where the outcomes go.
    pub from: SharedProducer,
    /// On whose behalf, as [`OpenProducer`] answered.
    pub producer: ProducerSession,
    /// The bytes the frames stand in.
    pub chunk: Bytes,
    /// The publishes, in the order they came.
    pub items: Vec<PublishItem>,
    /// The receivers of all items, one after the other.
    pub receivers: Vec<Receiver>,
}

/// One publish of a batch.
pub struct PublishItem {
    /// The producer's sequence.
    pub sequence: u64,
    /// See [`restante_protocol::frame::publish_flags`].
    pub flags: u8,
    /// How many of the batch's receivers are this item's; they follow those of the item before.
    pub receivers: u16,
    /// Where the body starts in the chunk.
    pub body_at: u32,
    /// Bytes of the body. The connection has checked that it parses.
    pub body_len: u32,
    /// Bytes of the whole frame, for the credit.
    pub frame_len: u32,
    /// Already refused by the connection (too large, malformed body, over credit): the router only
    /// records the outcome under the sequence.
    pub refusal: Option<Box<Refusal>>,
}

/// One receiver of a publish.
#[derive(Clone, Copy, Debug)]
pub struct Receiver {
    /// The connection's alias, for refusals.
    pub alias: u32,
    /// What it stands for, perhaps a group; [`PeerId::NONE`] when nothing has the name.
    pub peer: PeerId,
}

/// Who publishes, interned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerSession {
    /// The producer's interned number.
    pub index: u32,
    /// The epoch its hello was given.
    pub epoch: u32,
}

/// A connection introduces its producer identity. Durable before it is answered; an older
/// connection of the same identity is superseded.
#[derive(Message)]
#[rtype(result = "Result<OpenedProducer, Refusal>")]
pub struct OpenProducer {
    /// The identity.
    pub id: ProducerId,
    /// See [`restante_protocol::control::Hello::unused_from`].
    pub unused_from: Option<u64>,
    /// The connection.
    pub from: SharedProducer,
}

/// The answer to [`OpenProducer`].
#[derive(Clone, Copy, Debug)]
pub struct OpenedProducer {
    /// What its publishes carry.
    pub session: ProducerSession,
    /// The lowest sequence not yet decided.
    pub next_sequence: u64,
}

/// A change an operator asks for; journaled before it is answered.
#[derive(Message)]
#[rtype(result = "Result<AdminDone, Refusal>")]
pub struct Administer {
    /// The change.
    pub command: AdminCommand,
    /// Who asks, for the log.
    pub by: String,
}

/// A message whose producer awaits an answer has ended.
#[derive(Message)]
#[rtype(result = "()")]
pub struct CallEnded {
    /// Which message.
    pub number: MessageNumber,
    /// How.
    pub kind: ReplyKind,
    /// The value or reason.
    pub value: Bytes,
}

/// These messages, ascending, have expired, calls or not: who awaits an answer to one gets none.
#[derive(Message)]
#[rtype(result = "()")]
pub struct CallsExpired(pub Vec<MessageNumber>);

/// Nobody awaits the answer to this call any more.
#[derive(Message)]
#[rtype(result = "()")]
pub struct CancelCall {
    /// Who called.
    pub from: SharedProducer,
    /// The sequence of the publish.
    pub sequence: u64,
}

/// Answered when everything settled before it is on disk.
#[derive(Message)]
#[rtype(result = "Result<(), Refusal>")]
pub struct FlushSettles;

/// A peer's record, for admin answers.
#[derive(Clone, Debug)]
pub struct PeerRecordView {
    /// Its identity.
    pub id: PeerId,
    /// Its name, `name#id` once removed.
    pub name: String,
    /// Where it is reached.
    pub url: PeerUrl,
    /// How it is served.
    pub settings: PeerSettings,
    /// Its version.
    pub version: u64,
    /// Whether an operator holds it.
    pub paused: bool,
    /// Whether it is given new messages.
    pub taking: Taking,
    /// Delayed messages accepted for it.
    pub delayed: u64,
    /// Whether it has been removed.
    pub removed: bool,
    /// When what waited for it was parked, where it lies, by its removal.
    pub parked_at: Option<WallMillis>,
    /// Who removed it.
    pub removed_by: Option<String>,
}

/// Asks for the record of one peer, by name or `name#id`.
#[derive(Message)]
#[rtype(result = "Option<PeerRecordView>")]
pub struct FindPeer(pub String);

/// Asks for the records of the peers above this id, in order, at most [`PEER_PAGE_MAX`]: however many
/// peers there are, the router is asked for few at a time.
#[derive(Message)]
#[rtype(result = "Vec<PeerRecordView>")]
pub struct PeerRecords {
    /// See above.
    pub after: PeerId,
}

/// Asks for one group, by name.
#[derive(Message)]
#[rtype(result = "Option<GroupInfo>")]
pub struct FindGroup(pub Name);

/// Asks for all classes, by name.
#[derive(Message)]
#[rtype(result = "Vec<ClassStatus>")]
pub struct AllClasses;

/// Asks for the groups behind this name, in order, at most [`GROUP_PAGE_MAX`].
#[derive(Message)]
#[rtype(result = "GroupPage")]
pub struct GroupsBehind(pub Option<Name>);

/// Asks for the job under way for a peer, or the last one that ended.
#[derive(Message)]
#[rtype(result = "Option<JobStatus>")]
pub struct FindJob(pub PeerId);

/// What to call these peers, present or removed, in the order asked.
#[derive(Message)]
#[rtype(result = "Vec<String>")]
pub struct PeerLabels(pub Vec<PeerId>);

/// Answered once everything that was said to the router before it has been dealt with.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Barrier;

/// Takes no more publishes; answered when everything accepted before is decided.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Drain;
