//! The one list of reasons for which a node says no. The number goes over the wire, the word into
//! logs and JSON; neither ever changes its meaning.

use crate::limits::REASON_BYTES_MAX;
use core::fmt;
use serde::{Deserialize, Serialize};

macro_rules! refusals {
    ($( $(#[$doc:meta])* $variant:ident = $code:literal, $word:literal, $remedy:literal; )*) => {
        /// Why something was refused. Nothing refused has changed any state, unless its text says so.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        #[repr(u16)]
        pub enum Code { $( $(#[$doc])* $variant = $code, )* }

        impl Code {
            /// Every code, in numeric order.
            pub const ALL: &[Code] = &[ $( Code::$variant, )* ];

            /// The stable word of this code.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $( Code::$variant => $word, )* }
            }

            /// What the person or program that was refused can do.
            #[must_use]
            pub const fn remedy(self) -> &'static str {
                match self { $( Code::$variant => $remedy, )* }
            }

            /// The code with this number, if there is one.
            #[must_use]
            pub const fn from_number(number: u16) -> Option<Code> {
                match number { $( $code => Some(Code::$variant), )* _ => None }
            }
        }
    };
}

refusals! {
    /// The frame or its fields are not what the protocol says. In a goodbye the connection is closed
    /// after it; in a refuse frame only that publish was not taken.
    Malformed = 1, "malformed", "send frames as PROTOCOL.md describes them";
    /// A length is over its limit.
    TooLarge = 2, "too_large", "send less, or raise the limit in the node's configuration";
    /// No protocol version is spoken by both sides.
    VersionMismatch = 3, "version_mismatch", "use a client whose versions overlap the node's";
    /// The frame is valid but not at this point of the conversation.
    OutOfTurn = 4, "out_of_turn", "say hello first and answer what was asked";
    /// A flag or option this node does not know.
    Unsupported = 5, "unsupported", "leave the option out, or use a node that has it";
    /// The side took longer than the documented time.
    TimedOut = 6, "timed_out", "try again; look at the node's log if it persists";
    /// No peer has this name.
    UnknownReceiver = 10, "unknown_receiver", "add the peer first: restante peer add NAME URL";
    /// The alias was never declared on this connection, or its peer or group has been removed since.
    StaleAlias = 11, "stale_alias", "declare the alias again";
    /// A publish that names no receiver, or a group without members.
    NoReceiver = 12, "no_receiver", "name at least one receiver, or a group that has members";
    /// More unconfirmed messages or bytes than the credit granted.
    OverCredit = 13, "over_credit", "wait for confirms before publishing more";
    /// The peer's own share of messages or bytes is used up.
    PeerQuota = 14, "peer_quota", "drain or raise the peer's quota";
    /// The node's disk is past its high-water mark.
    DiskFull = 15, "disk_full", "free disk space; the node accepts again by itself";
    /// The journal met an I/O error and confirms nothing until it has been reopened.
    JournalPoisoned = 16, "journal_poisoned", "look at the node's log and its disk";
    /// Another process owns this journal now.
    Fenced = 17, "fenced", "talk to the node that owns it";
    /// The outcome of this sequence number is no longer remembered.
    OutcomeEvicted = 18, "outcome_evicted", "look the message up by its id, or publish it anew under a new sequence";
    /// All-or-nothing was asked for and one of the other receivers refused.
    AllOrNothing = 19, "all_or_nothing", "see the other receivers' reasons";
    /// A newer connection speaks for this producer identity.
    ProducerSuperseded = 20, "producer_superseded", "use one identity per running producer";
    /// The node is stopping.
    ShuttingDown = 21, "shutting_down", "connect again in a moment";
    /// The node has as much to do as it may hold in memory.
    Overloaded = 22, "overloaded", "wait and try again";
    /// The sequence number is not above the ones before it.
    BadSequence = 23, "bad_sequence", "number publishes upwards from the hello's next sequence";
    /// The node's own quota of bytes or messages is used up.
    NodeQuota = 24, "node_quota", "drain some peers, or raise journal_bytes_max or messages_max; the node accepts again by itself";
    /// A name that names may not be.
    BadName = 30, "bad_name", "use letters, digits and . _ - @ : +, at most 128 bytes";
    /// An address of a receiver that cannot be understood.
    BadUrl = 31, "bad_url", "use tcp://HOST:PORT or attach:";
    /// A setting outside its bounds.
    BadSetting = 32, "bad_setting", "see restante peer add --help for the bounds";
    /// A peer or a group of this name exists, or a class for a class.
    NameTaken = 33, "name_taken", "choose another name, or change what has it: restante peer set, group set or class set";
    /// The version given is not the present one of the peer, group or class.
    VersionConflict = 34, "version_conflict", "read it again and repeat the change";
    /// The peer has messages waiting and the command does not say what becomes of them.
    MessagesWaiting = 35, "messages_waiting", "say --park, --purge or --hand-to NAME";
    /// Nothing of this name or id.
    NotFound = 36, "not_found", "check the name or id";
    /// The record was kept as long as the node was told to, and is gone.
    AgedOut = 37, "aged_out", "raise the ledger's retention for the future";
    /// Another connection is attached as this receiver.
    AlreadyAttached = 38, "already_attached", "detach the other receiver first, or let it go";
    /// The peer is not of the kind this needs.
    WrongKind = 39, "wrong_kind", "attach only to peers whose URL is attach:";
    /// The node has as many of these as its configuration allows.
    LimitReached = 40, "limit_reached", "raise the limit in the node's configuration";
    /// An operator holds the peer; its messages wait.
    Paused = 41, "paused", "resume it: restante peer resume NAME";
    /// Something is being done to the messages of this peer already.
    JobUnderWay = 42, "job_under_way", "wait for it to end, or end it: restante peer cancel NAME";
    /// What was stored is damaged on the node's disk.
    Damaged = 43, "damaged", "see journal_damaged in the node's log, and look at its disk";
    /// A group was named where only peers may be.
    IsGroup = 44, "is_group", "name the group's members: restante group info NAME";
    /// The peer takes nothing new until an operator says so; what waits for it is delivered.
    Draining = 45, "draining", "publish to another peer, or resume it: restante peer resume NAME";
    /// The class still has peers.
    ClassInUse = 46, "class_in_use", "put its peers into another class first: restante peer set NAME --class";
    /// As many delayed messages wait for their time as the node takes.
    DelayedQuota = 47, "delayed_quota", "wait until some have come due, or raise delayed_max";
    /// The principal may not do this.
    NotAllowed = 50, "not_allowed", "log in with a key that has the role";
    /// A defect in the node; the message is safe, the answer is not to be had.
    Internal = 99, "internal", "look at the node's log and report it";
}

impl Code {
    /// The number that goes over the wire.
    #[must_use]
    pub const fn number(self) -> u16 {
        self as u16
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A refusal as people and programs read it: what was wrong, what was expected; the remedy is the code's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{code}: {detail}; {}", .code.remedy())]
pub struct Refusal {
    /// The stable reason.
    pub code: Code,
    /// What was wrong here and what was expected, one line. From the other side it is taken up to
    /// [`REASON_BYTES_MAX`]: it is kept, logged and told on.
    #[serde(deserialize_with = "cut_detail")]
    pub detail: String,
}

impl Refusal {
    /// A refusal with its detail.
    pub fn new(code: Code, detail: impl Into<String>) -> Refusal {
        Refusal { code, detail: detail.into() }
    }
}

/// An error for a deserializer that keeps its code: serde carries nothing but text, so the code's word
/// stands in front. [`code_of`] finds it again.
pub(crate) fn named<E: serde::de::Error>(code: Code, error: &dyn fmt::Display) -> E {
    E::custom(format_args!("{code}: {error}"))
}

/// The code that [`named`] put in front of an error's text.
pub(crate) fn code_of(text: &str) -> Option<Code> {
    let (word, _) = text.split_once(": ")?;
    Code::ALL.iter().copied().find(|code| code.word() == word)
}

fn cut_detail<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let mut detail = String::deserialize(deserializer)?;
    if detail.len() > REASON_BYTES_MAX {
        detail = cut_reason(&detail).to_owned();
    }
    Ok(detail)
}

/// A reason or detail cut to [`REASON_BYTES_MAX`] at a character's boundary.
#[must_use]
pub fn cut_reason(text: &str) -> &str {
    &text[..text.floor_char_boundary(REASON_BYTES_MAX)]
}
