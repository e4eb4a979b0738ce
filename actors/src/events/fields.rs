//! How values become fields, and what each field means wherever it occurs.

use restante_protocol::id::{MessageId, PeerId, ProducerId};
use restante_protocol::refusal::Code;
use restante_protocol::time::WallMillis;
use std::net::{IpAddr, SocketAddr};
use tracing::field::{DisplayValue, display};

/// A value that can stand in a log line. Only texts can hold anything from outside, and texts are
/// escaped by the log layer.
pub trait Field {
    /// What is given to `tracing`.
    type Recorded: tracing::Value;

    /// The value as it is logged.
    fn recorded(self) -> Self::Recorded;
}

macro_rules! fields {
    ($( $kind:ty => $recorded:ty, $value:ident: $how:expr; )*) => {
        $( impl Field for $kind {
            type Recorded = $recorded;
            fn recorded(self) -> $recorded {
                let $value = self;
                $how
            }
        } )*
    };
}

fields! {
    bool => bool, value: value;
    u32 => u64, value: u64::from(value);
    u64 => u64, value: value;
    Code => &'static str, value: value.word();
    PeerId => u64, value: u64::from(value.0);
    MessageId => DisplayValue<MessageId>, value: display(value);
    ProducerId => DisplayValue<ProducerId>, value: display(value);
    IpAddr => DisplayValue<IpAddr>, value: display(value);
    SocketAddr => DisplayValue<SocketAddr>, value: display(value);
    WallMillis => DisplayValue<WallMillis>, value: display(value);
}

impl<'a> Field for &'a str {
    type Recorded = &'a str;
    fn recorded(self) -> &'a str {
        self
    }
}

impl<T: Field> Field for Option<T> {
    type Recorded = Option<T::Recorded>;
    fn recorded(self) -> Option<T::Recorded> {
        self.map(T::recorded)
    }
}

/// What each field means; every field of every event is here.
pub(super) static MEANINGS: &[(&str, &str)] = &[
    ("acked", "deliveries acked since the node started"),
    ("actor", "which kind of actor"),
    (
        "address",
        "address of the other side without its port; an IPv6 network of one owner as a whole",
    ),
    ("agent", "what the other side says it is"),
    ("arbiter", "which event loop"),
    ("at_least", "whether there may be more than were counted"),
    ("attempt", "how often the message has been sent; a lower bound after a restart"),
    ("boot_ms", "milliseconds from start to ready"),
    ("by", "who asked: agent and address of the connection"),
    ("bytes", "bytes on disk"),
    ("came_per_minute", "messages that come for the peer in a minute"),
    ("changed", "what an operator changed, as key=value; of a group who came (+) and went (-)"),
    ("class", "name of a class of peers"),
    ("clean", "whether the journal had been closed in order"),
    ("code", "the stable word of a refusal; PROTOCOL.md lists them"),
    ("command", "which admin command"),
    ("commit_ms_max", "the longest write and sync of the log since the last summary"),
    ("commits", "commits put on disk since the journal was opened, one sync each"),
    ("complete", "whether all that are concerned are named"),
    ("confirmed", "messages confirmed since the node started"),
    ("connection", "number of a connection, unique in this process"),
    ("connections", "open connections"),
    ("crashes", "crashes within the last while"),
    ("data_dir", "the data directory"),
    ("delayed", "messages that wait for their time, each counted once"),
    ("dir", "the directory of a backup"),
    ("down", "peers whose health is neither up nor paused"),
    ("epoch", "how often this journal has been opened"),
    ("failures", "failed connection attempts in a row"),
    ("fate", "what became of waiting messages: park, purge or hand_to"),
    ("file", "which file, from the data directory"),
    ("files", "how many files"),
    ("filter", "the level filter of the log; of replay and purge, which messages"),
    ("finding", "what was found, and where it was put"),
    ("first", "number of the first record"),
    ("full", "when the peer's quota is used up, if it goes on so"),
    ("group", "name of a group of peers"),
    ("groups", "how many groups a removed peer was in"),
    ("health", "up, slow, refusing, unreachable, failed, paused or crashing"),
    ("in_a_row", "how often in a row without an ack between"),
    ("journal_bytes", "bytes the journal occupies on disk"),
    ("last", "number of the last record"),
    ("lines", "how many lines"),
    ("members", "how many peers are in a group"),
    ("message", "id of a message, as pub prints it"),
    ("messages", "how many messages"),
    ("more", "peers that are not well and are not listed"),
    ("next", "the number after the last record"),
    ("next_attempt", "when the next attempt is due"),
    ("of", "name of an event"),
    ("oldest", "when the oldest waiting message was accepted"),
    ("parked", "messages set aside for an operator"),
    ("paused", "peers an operator holds"),
    ("peer", "name of a peer; name#id once removed"),
    ("peer_id", "durable number of a peer, never used again"),
    ("peers", "how many peers"),
    ("pid", "process id"),
    ("producer", "identity of a producer"),
    ("rate", "messages a second, where that is limited"),
    ("reason", "why, one line"),
    ("receivers", "how many receivers are concerned"),
    ("remote", "address of the other side"),
    ("restart_ms", "milliseconds from the crash until it was rebuilt"),
    ("since", "when the present state was reached"),
    ("stalled_ms", "for how long, in milliseconds"),
    (
        "suppressed",
        "how many such events of this peer or connection were not written since the last",
    ),
    ("tag", "number of a delivery on its connection"),
    ("tcp", "the address the node listens on"),
    ("to", "name of the peer that took over"),
    ("unacked", "messages in flight"),
    ("up", "peers that are connected and ack in time"),
    ("url", "where a peer is reached"),
    ("variable", "an environment variable"),
    (
        "version",
        "of the record of a peer, group or class, counted up by each change; of node_starting, the software's",
    ),
    ("waiting", "messages accepted and not yet done, in flight included"),
    ("went_per_minute", "messages of the peer that are done with in a minute"),
];
