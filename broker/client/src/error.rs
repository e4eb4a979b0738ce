//! Everything that can go wrong, and what it means for messages: each error says what has happened
//! to the state on the node and what the caller may do.

use crate::delivery::Delivery;
use restante_protocol::id::ProducerId;
use restante_protocol::name::{Name, NameError};
use restante_protocol::refusal::{Code, Refusal};
use std::sync::Arc;
use std::time::Duration;

/// Why no conversation with a node came about. Nothing was published or received.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address could not be resolved or reached.
    #[error("cannot connect to {addr}: {source}")]
    Io {
        /// As given to the builder.
        addr: String,
        /// What the system said.
        source: Arc<std::io::Error>,
    },
    /// Resolving, connecting and greeting took longer than the connect timeout.
    #[error("no welcome from {addr} within {timeout:?}")]
    TimedOut {
        /// As given to the builder.
        addr: String,
        /// The connect timeout.
        timeout: Duration,
    },
    /// The node declined.
    #[error("{addr} declined: {refusal}")]
    Refused {
        /// As given to the builder.
        addr: String,
        /// Its reason.
        refusal: Refusal,
    },
    /// What answered does not speak this protocol.
    #[error("{addr} does not speak this protocol: {violation}")]
    Protocol {
        /// As given to the builder.
        addr: String,
        /// What was wrong with its answer.
        violation: Violation,
    },
    /// An option of the builder is out of its bounds.
    #[error("option {option}: {expected}")]
    BadOption {
        /// Which.
        option: &'static str,
        /// What is allowed.
        expected: &'static str,
    },
}

/// What the other side sent that it may not send. The connection is closed; a client reconnects and
/// sends what is unconfirmed again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Bytes that are not a frame.
    #[error("not a frame: {0}")]
    Frame(String),
    /// A frame that does not belong here.
    #[error("unexpected {0}")]
    OutOfTurn(&'static str),
    /// A confirm, refusal or reply for a publish that was not sent.
    #[error("an outcome for sequence {sequence}, which was not sent")]
    UnknownSequence {
        /// The sequence.
        sequence: u64,
    },
    /// A delivery whose tag does not ascend.
    #[error("a delivery with tag {tag} after {last} on slot {slot}")]
    BadTag {
        /// The attachment.
        slot: u32,
        /// The tag.
        tag: u64,
        /// The highest tag before it.
        last: u64,
    },
    /// The other side says that this one broke the protocol.
    #[error("the other side complained: {0}")]
    Goodbye(Refusal),
    /// No protocol version is spoken by both sides.
    #[error("protocol version {0} is not spoken here")]
    Version(u16),
}

/// Why a client came to its end. It does not reconnect after that.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EndReason {
    /// The program closed it.
    #[error("the client was closed")]
    Closed,
    /// The task behind the client is gone: the runtime it was connected on was shut down, or it
    /// panicked.
    #[error("the client's task was ended from outside")]
    Stopped,
    /// The connection was lost and the reconnect policy allows no attempt.
    #[error("the connection was lost and the policy is not to reconnect")]
    Lost,
    /// The reconnect policy gave up.
    #[error("gave up after {attempts} attempts to reconnect; the last: {last}")]
    GaveUp {
        /// How many attempts failed in a row.
        attempts: u32,
        /// Why the last one failed.
        last: ConnectError,
    },
    /// The node ended the conversation for a reason that a new connection would not mend.
    #[error("the node ended the conversation: {0}")]
    Refused(Refusal),
    /// A newer connection speaks for the same producer identity.
    #[error(
        "another connection speaks for producer {0} now; use one identity per running producer"
    )]
    Superseded(ProducerId),
    /// The node has decided sequences that this client never sent: someone else uses its identity.
    #[error(
        "the node knows sequences up to {decided} of producer {producer}, this client sent up to {sent}: the identity is used by someone else"
    )]
    IdentityShared {
        /// The identity.
        producer: ProducerId,
        /// The node's next undecided sequence.
        decided: u64,
        /// The client's own next sequence.
        sent: u64,
    },
    /// The node broke the protocol several times in a row.
    #[error("the node broke the protocol on {connections} connections in a row: {violation}")]
    Protocol {
        /// How many.
        connections: u32,
        /// The last violation.
        violation: Violation,
    },
}

/// Why a publish was not, or perhaps not, accepted.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PublishError {
    /// The buffer of unconfirmed publishes is full (`try_publish` only). Nothing was sent and no
    /// sequence was used; try again when confirms have made room.
    #[error("the buffer of unconfirmed publishes is full; await room or publish less")]
    Full,
    /// No receiver was named. Nothing was sent.
    #[error("a publish names at least one receiver")]
    NoReceiver,
    /// Too many receivers were named. Nothing was sent.
    #[error("a publish names at most {max} receivers, this one names {count}")]
    TooManyReceivers {
        /// How many were named.
        count: usize,
        /// How many may be.
        max: usize,
    },
    /// The publishes that wait for their outcomes name as many different receivers as a connection
    /// can. Nothing was sent; try again when confirms have come.
    #[error("at most 65536 different receivers can be named by unconfirmed publishes")]
    TooManyNames,
    /// A receiver's name is not a name. Nothing was sent.
    #[error("receiver {name:?}: {source}")]
    BadName {
        /// As given.
        name: String,
        /// What is wrong with it.
        source: NameError,
    },
    /// The payload is larger than the node takes. Nothing was sent.
    #[error("the payload has {bytes} bytes, the node takes at most {max}")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// The node's limit.
        max: u64,
    },
    /// The ordering key has no bytes or more than 255. Nothing was sent.
    #[error("an ordering key has 1 to 255 bytes, this one has {bytes}")]
    BadKey {
        /// Its length.
        bytes: usize,
    },
    /// A time to live that is none or too long. Nothing was sent.
    #[error("a time to live has 1 ms to 365 days, this one has {ms} ms")]
    BadTtl {
        /// Its length, in milliseconds.
        ms: u64,
    },
    /// A delay that is none or too long. Nothing was sent.
    #[error("a delay has 1 ms to 365 days, this one has {ms} ms")]
    BadDelay {
        /// Its length, in milliseconds.
        ms: u64,
    },
    /// A time of delivery that no clock shows. Nothing was sent.
    #[error("a time of delivery has 1 ms since 1970 to the year 10889, this one has {ms} ms")]
    BadDeliverAt {
        /// The time, in milliseconds since the Unix epoch; 0 for one before.
        ms: u64,
    },
    /// A header's name is empty or has a control character. Nothing was sent.
    #[error("a header's name has at least one character and no control characters, not {name:?}")]
    BadHeader {
        /// As given, or its beginning.
        name: String,
    },
    /// The headers are too long. Nothing was sent.
    #[error("the headers have {bytes} bytes encoded, at most {max} are allowed")]
    HeadersTooLarge {
        /// Their encoded length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The client was built to receive only. Nothing was sent.
    #[error("this client was built without a producer identity and cannot publish")]
    NotAProducer,
    /// The route was made by another client. Nothing was sent.
    #[error("the route belongs to another client")]
    ForeignRoute,
    /// The client is draining. Nothing was sent.
    #[error("the client is draining and takes no more publishes")]
    Draining,
    /// The client has ended. Nothing was sent.
    #[error("nothing was sent: {0}")]
    NotSent(EndReason),
    /// The node accepted the message for nobody. The sequence is used up; publish anew if the reason
    /// has passed.
    #[error("refused by the node: {0}")]
    Refused(Box<Refused>),
    /// The node no longer remembers what became of this publish. It may or may not have been
    /// accepted; look for it at its receivers before publishing it anew.
    #[error(
        "the node no longer remembers the outcome of sequence {sequence}: it may or may not have been accepted"
    )]
    OutcomeUnknown {
        /// The sequence.
        sequence: u64,
    },
    /// The client ended before the outcome was known. The publish may or may not have been accepted;
    /// published anew it may be stored twice, so look for it at its receivers first.
    #[error("{reason}; sequence {sequence} of this producer may or may not have been accepted")]
    Ended {
        /// The sequence.
        sequence: u64,
        /// Why the client ended.
        reason: EndReason,
    },
    /// The outcome did not come in the time the caller gave. The publish goes on: it may be accepted
    /// later, and the client keeps sending it after reconnects.
    #[error("no outcome within {timeout:?}; the publish goes on and may still be accepted")]
    TimedOut {
        /// The time given.
        timeout: Duration,
    },
    /// The receipt has given its outcome before and was polled again.
    #[error("the receipt has given its outcome already")]
    OutcomeTaken,
}

/// A publish that was accepted for nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}{}{detail}; {}", if .detail.is_empty() { "" } else { ": " }, .code.remedy())]
pub struct Refused {
    /// The overall reason.
    pub code: Code,
    /// Which receivers refused, and why; empty if the reason lies elsewhere.
    pub receivers: Vec<(Name, Code)>,
    /// One line for people.
    pub detail: String,
}

/// Why there is no answer to a request.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RequestError {
    /// The node said no. Nothing has changed, unless the refusal says so.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No answer came within the request timeout. A change that was asked for may or may not have
    /// been made: look before repeating it, or repeat it with `if_version`.
    #[error("no answer within {timeout:?}; a change may or may not have been made")]
    TimedOut {
        /// The request timeout.
        timeout: Duration,
    },
    /// The connection was lost between question and answer. A change that was asked for may or may
    /// not have been made; of a flush: a connection or an attachment was lost since the last one, acks
    /// given before it may not have been recorded, and their messages will be delivered again.
    #[error("the connection was lost before the answer; a change may or may not have been made")]
    Disconnected,
    /// Too many requests of this client wait for their answers. Nothing was asked.
    #[error("{max} requests of this client wait for answers already")]
    TooMany {
        /// The bound.
        max: usize,
    },
    /// The request does not fit into a control frame. Nothing was asked.
    #[error("the request has {bytes} bytes encoded, at most {max} are allowed")]
    TooLarge {
        /// Its encoded length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The node answered something that is no answer to this request.
    #[error("the node's answer does not belong to the question")]
    WrongReply,
    /// The client has ended. Nothing was asked, or the answer was lost.
    #[error(transparent)]
    Ended(EndReason),
}

/// Why a receiver could not be attached. Nothing is delivered to it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AttachError {
    /// The name is not a name.
    #[error("receiver {name:?}: {source}")]
    BadName {
        /// As given.
        name: String,
        /// What is wrong with it.
        source: NameError,
    },
    /// The node said no.
    #[error("cannot attach as {name}: {refusal}")]
    Refused {
        /// The receiver.
        name: Name,
        /// Why.
        refusal: Refusal,
    },
    /// As many attachments as one connection can have.
    #[error("one connection attaches as at most {max} receivers")]
    TooMany {
        /// The bound.
        max: u32,
    },
    /// No answer came within the request timeout; the attachment is given up.
    #[error("no answer to the attach as {name} within {timeout:?}")]
    TimedOut {
        /// The receiver.
        name: Name,
        /// The request timeout.
        timeout: Duration,
    },
    /// The client has ended.
    #[error(transparent)]
    Ended(EndReason),
}

/// What a receiver is told between deliveries. No message is lost by any of these: what was not
/// acked is delivered again.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The node ended the attachment. The client attaches again by itself, with backoff, for as long
    /// as the subscription lives.
    #[error("{name} was detached by the node: {refusal}")]
    Detached {
        /// The receiver.
        name: Name,
        /// Why.
        refusal: Refusal,
    },
    /// The client has ended; no more deliveries follow.
    #[error(transparent)]
    Ended(EndReason),
}

/// A return value that is too long. Nothing was sent; the delivery can still be settled.
#[derive(Debug, thiserror::Error)]
#[error("the return value has {bytes} bytes, at most {max} are allowed")]
pub struct ValueTooLarge {
    /// Its length.
    pub bytes: usize,
    /// The limit.
    pub max: usize,
    /// What was to be acked.
    pub delivery: Box<Delivery>,
}

/// Why a call brought no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// The message was not accepted, or perhaps not.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The receiver refused the message for good; it is parked.
    #[error("the receiver refused: {reason}")]
    Refused {
        /// Its reason.
        reason: String,
    },
    /// The message ended without an answer: parked, purged or expired.
    #[error("the message ended without an answer: {how}")]
    Unanswered {
        /// How it ended.
        how: String,
    },
    /// No answer came in time. The message, if accepted, stays with the node and is delivered as any
    /// other; only its answer has nobody to go to.
    #[error(
        "no answer within {timeout:?}; the message is delivered all the same if it was accepted"
    )]
    TimedOut {
        /// The time given.
        timeout: Duration,
    },
    /// A call is to one receiver. Nothing was sent.
    #[error("a call names one receiver, this one names {count}")]
    NotOne {
        /// How many were named.
        count: usize,
    },
    /// Too many calls of this client wait for their answers. Nothing was sent.
    #[error("{max} calls of this client wait for answers already")]
    TooMany {
        /// The bound.
        max: usize,
    },
    /// The client has ended. The message, if accepted, is delivered all the same.
    #[error(transparent)]
    Ended(EndReason),
}

/// Why a watch came to its end.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WatchError {
    /// The node said no.
    #[error("the node declined the watch: {0}")]
    Refused(Refusal),
    /// The client has ended.
    #[error(transparent)]
    Ended(EndReason),
}

/// Why not everything could be brought to its end before the client was closed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DrainError {
    /// Publishes were still unconfirmed when the time was over. They may or may not have been
    /// accepted.
    #[error("{unconfirmed} publishes were still unconfirmed after {timeout:?}")]
    TimedOut {
        /// How many.
        unconfirmed: usize,
        /// The time given.
        timeout: Duration,
    },
    /// Confirmed all publishes, but acks may not have been recorded; their messages may be delivered
    /// again.
    #[error("acks may not have been recorded: {0}")]
    Acks(RequestError),
    /// The client had ended before.
    #[error(transparent)]
    Ended(EndReason),
}

/// Why a listener could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address cannot be listened on.
    #[error("cannot listen on {addr}: {source}")]
    Io {
        /// As given.
        addr: String,
        /// What the system said.
        source: std::io::Error,
    },
}
