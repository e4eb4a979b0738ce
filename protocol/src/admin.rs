//! Peers as operators describe them, and the commands that change them, their groups and classes.

pub mod bounds;

use crate::id::PeerId;
use crate::name::Name;
use crate::refusal::{Code, named};
use crate::shaper::{Rates, RatesPatch};
use crate::status::Quota;
use crate::stored::Filter;
use serde::{Deserialize, Deserializer, Serialize};

/// Where a receiver is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(into = "String")]
pub enum PeerUrl {
    /// `tcp://HOST:PORT`: the node dials.
    Tcp {
        /// A host name, an IPv4 address, or an IPv6 address without its brackets.
        host: String,
        /// 1 to 65535.
        port: u16,
    },
    /// `attach:`: the receiver dials in.
    Attach,
}

/// What an operator sets per peer. Every value has a default, a unit and bounds (`admin::bounds`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PeerSettings {
    /// Most messages in flight. 1 to 65,536; default 2,048.
    pub window_messages: u32,
    /// How few messages may be in flight where answers come late: each round of late ones halves the window
    /// down to this, and answers open it again. 0 to 65,536, not above `window_messages`; default 0: the
    /// window stays as it is.
    pub window_messages_min: u32,
    /// Most bytes in flight. 64 KiB to 256 MiB; default 4 MiB.
    pub window_bytes: u64,
    /// How long an ack may take, in milliseconds. 100 ms to 1 h; default 30 s.
    pub ack_timeout_ms: u64,
    /// First wait after a failed connection, in milliseconds. 10 ms to 1 h; default 250 ms.
    pub backoff_ms_min: u64,
    /// Longest wait between connection attempts, in milliseconds. 100 ms to 24 h; default 60 s.
    pub backoff_ms_max: u64,
    /// Waits between refusals, in milliseconds; after the last the message is parked. At most 32
    /// entries of at most 7 days; default 1 s, 5 s, 1 min, 10 min, 1 h.
    pub retry_schedule_ms: Vec<u64>,
    /// What is promised about order.
    pub order: Order,
    /// Most messages waiting or parked for this peer; 0: the node's share for one peer. Default 0.
    pub quota_messages: u64,
    /// Most bytes waiting or parked for this peer; 0: the node's share for one peer. Default 0.
    pub quota_bytes: u64,
    /// How fast messages are delivered. Default: no guarantee and no limit.
    pub rates: Rates,
    /// The class it is in; its rates are those of all its peers together. Default: none.
    pub class: Option<Name>,
}

impl Default for PeerSettings {
    fn default() -> Self {
        PeerSettings {
            window_messages: 2_048,
            window_messages_min: 0,
            window_bytes: 4 * 1024 * 1024,
            ack_timeout_ms: 30_000,
            backoff_ms_min: 250,
            backoff_ms_max: 60_000,
            retry_schedule_ms: vec![1_000, 5_000, 60_000, 600_000, 3_600_000],
            order: Order::Sent,
            quota_messages: 0,
            quota_bytes: 0,
            rates: Rates::default(),
            class: None,
        }
    }
}

impl PeerSettings {
    /// What the peer may take, where `share` is the node's for one peer.
    #[must_use]
    pub fn quota(&self, share: Quota) -> Quota {
        let or = |own: u64, share: u64| if own == 0 { share } else { own };
        Quota {
            messages: or(self.quota_messages, share.messages),
            bytes: or(self.quota_bytes, share.bytes),
        }
    }

    /// The values of `new` that differ from these, as `name=value` words, for the log.
    #[must_use]
    pub fn differences(&self, new: &PeerSettings) -> Vec<String> {
        let mut words = Vec::new();
        macro_rules! compare {
            ($($field:ident),*) => {
                let PeerSettings { $($field),*, rates: _, class: _ } = new;
                $( if self.$field != *$field {
                    words.push(format!("{}={:?}", stringify!($field), $field));
                } )*
            };
        }
        compare!(
            window_messages,
            window_messages_min,
            window_bytes,
            ack_timeout_ms,
            backoff_ms_min,
            backoff_ms_max,
            retry_schedule_ms,
            order,
            quota_messages,
            quota_bytes
        );
        self.rates.differences(&new.rates, &mut words);
        if self.class != new.class {
            words.push(format!("class={}", new.class.as_ref().map_or("", Name::as_str)));
        }
        words
    }
}

/// What is promised about the order of deliveries to one peer (promise P2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// First attempts are sent in order of acceptance; a retry may follow messages already in flight.
    #[default]
    Sent,
    /// One in flight per key (messages without a key share one), so that order holds through retries.
    Strict,
    /// No promise.
    None,
}

/// A change to some of a peer's settings: what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PeerPatch {
    /// See [`PeerSettings::window_messages`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window_messages: Option<u32>,
    /// See [`PeerSettings::window_messages_min`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window_messages_min: Option<u32>,
    /// See [`PeerSettings::window_bytes`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window_bytes: Option<u64>,
    /// See [`PeerSettings::ack_timeout_ms`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ack_timeout_ms: Option<u64>,
    /// See [`PeerSettings::backoff_ms_min`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff_ms_min: Option<u64>,
    /// See [`PeerSettings::backoff_ms_max`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff_ms_max: Option<u64>,
    /// See [`PeerSettings::retry_schedule_ms`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_schedule_ms: Option<Vec<u64>>,
    /// See [`PeerSettings::order`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    /// See [`PeerSettings::quota_messages`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota_messages: Option<u64>,
    /// See [`PeerSettings::quota_bytes`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota_bytes: Option<u64>,
    /// See [`PeerSettings::rates`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rates: Option<Box<RatesPatch>>,
    /// See [`PeerSettings::class`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<ClassChoice>,
}

/// Which class a peer is to be in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClassChoice {
    /// None.
    None,
    /// This one, which has to be there.
    Of(Name),
}

/// What becomes of the messages that wait for a peer when it is removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Waiting {
    /// Keep them, addressable under `name#id`.
    Park,
    /// Delete them, with a ledger record for each.
    Purge,
    /// Append them to another peer's queue under their ids.
    HandTo(Name),
}

/// A change an operator asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdminCommand {
    /// A new peer.
    PeerAdd {
        /// Its name.
        name: Name,
        /// Where it is reached.
        url: PeerUrl,
        /// How it is served; absent values are defaults.
        #[serde(default)]
        settings: PeerPatch,
    },
    /// Change a peer.
    PeerSet {
        /// Which.
        name: Name,
        /// Only if this is its version.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        if_version: Option<u64>,
        /// A new address, if any.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        url: Option<PeerUrl>,
        /// What else changes.
        #[serde(default)]
        settings: PeerPatch,
    },
    /// Deliver nothing to a peer until it is resumed; its messages wait.
    PeerPause {
        /// Which.
        name: Name,
        /// Only if this is its version.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        if_version: Option<u64>,
    },
    /// Accept nothing new for a peer until it is resumed; what waits is delivered.
    PeerDrain {
        /// Which.
        name: Name,
        /// Only if this is its version.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        if_version: Option<u64>,
    },
    /// Deliver again, and accept again.
    PeerResume {
        /// Which.
        name: Name,
        /// Only if this is its version.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        if_version: Option<u64>,
    },
    /// Forget a peer.
    PeerRemove {
        /// Which.
        name: Name,
        /// Only if this is its version.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        if_version: Option<u64>,
        /// What becomes of waiting messages; refused if some wait and this is absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        waiting: Option<Waiting>,
    },
    /// Put parked messages at the end of a queue again, under their ids. Answered once the job is
    /// begun; it goes on by itself.
    PeerReplay {
        /// Whose: `name`, or `name#id` for a removed one.
        name: String,
        /// Only if this is its version.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        if_version: Option<u64>,
        /// Into whose queue; absent: their own peer's, which has to be there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<Name>,
        /// Only those that it lets through.
        #[serde(default, skip_serializing_if = "Filter::is_empty")]
        filter: Filter,
        /// Messages a second ([`crate::pace::RATE`]), kept by the node; absent: as fast as it can.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rate: Option<u32>,
    },
    /// Delete parked messages, with a ledger record for each. Answered once the job is begun.
    PeerPurge {
        /// Whose: `name`, or `name#id` for a removed one.
        name: String,
        /// Only if this is its version.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        if_version: Option<u64>,
        /// Only those that it lets through.
        #[serde(default, skip_serializing_if = "Filter::is_empty")]
        filter: Filter,
    },
    /// End the job that is under way for a peer. What it has done stays done.
    PeerCancel {
        /// Whose: `name`, or `name#id` for a removed one.
        name: String,
    },
    /// A new group of peers.
    GroupAdd {
        /// Its name, which no peer has.
        name: Name,
        /// Its first members, by name; a name that is given twice counts once.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        members: Vec<Name>,
    },
    /// Change the members of a group, all at once: what is published before goes to the old ones, what is
    /// published behind to the new ones.
    GroupSet {
        /// Which.
        name: Name,
        /// Only if this is its version.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        if_version: Option<u64>,
        /// Who joins; one that is in it already stays.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        add: Vec<Name>,
        /// Who leaves; refused if one is not in it.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        remove: Vec<Name>,
    },
    /// Forget a group. Its members and what waits for them stay.
    GroupRemove {
        /// Which.
        name: Name,
        /// Only if this is its version.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        if_version: Option<u64>,
    },
    /// A new class.
    ClassAdd {
        /// Its name, which no class has.
        name: Name,
        /// How fast messages to its peers may go, all together.
        #[serde(default, skip_serializing_if = "RatesPatch::is_empty")]
        rates: RatesPatch,
    },
    /// Change the rates of a class. They hold at once.
    ClassSet {
        /// Which.
        name: Name,
        /// Only if this is its version.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        if_version: Option<u64>,
        /// What changes.
        #[serde(default, skip_serializing_if = "RatesPatch::is_empty")]
        rates: RatesPatch,
    },
    /// Forget a class; refused while peers are in it.
    ClassRemove {
        /// Which.
        name: Name,
        /// Only if this is its version.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        if_version: Option<u64>,
    },
}

/// What a command is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    /// A peer.
    Peer,
    /// A group.
    Group,
    /// A class.
    Class,
}

impl AdminCommand {
    /// The peer, group or class it is about, as it was named.
    #[must_use]
    pub fn subject(&self) -> &str {
        match self {
            AdminCommand::PeerAdd { name, .. }
            | AdminCommand::PeerSet { name, .. }
            | AdminCommand::PeerPause { name, .. }
            | AdminCommand::PeerDrain { name, .. }
            | AdminCommand::PeerResume { name, .. }
            | AdminCommand::PeerRemove { name, .. }
            | AdminCommand::GroupAdd { name, .. }
            | AdminCommand::GroupSet { name, .. }
            | AdminCommand::GroupRemove { name, .. }
            | AdminCommand::ClassAdd { name, .. }
            | AdminCommand::ClassSet { name, .. }
            | AdminCommand::ClassRemove { name, .. } => name.as_str(),
            AdminCommand::PeerReplay { name, .. }
            | AdminCommand::PeerPurge { name, .. }
            | AdminCommand::PeerCancel { name } => name,
        }
    }

    /// What the name it has is of.
    #[must_use]
    pub const fn about(&self) -> About {
        match self {
            AdminCommand::PeerAdd { .. }
            | AdminCommand::PeerSet { .. }
            | AdminCommand::PeerPause { .. }
            | AdminCommand::PeerDrain { .. }
            | AdminCommand::PeerResume { .. }
            | AdminCommand::PeerRemove { .. }
            | AdminCommand::PeerReplay { .. }
            | AdminCommand::PeerPurge { .. }
            | AdminCommand::PeerCancel { .. } => About::Peer,
            AdminCommand::GroupAdd { .. }
            | AdminCommand::GroupSet { .. }
            | AdminCommand::GroupRemove { .. } => About::Group,
            AdminCommand::ClassAdd { .. }
            | AdminCommand::ClassSet { .. }
            | AdminCommand::ClassRemove { .. } => About::Class,
        }
    }
}

/// What an admin command came to. It is on disk when this is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminDone {
    /// The peer, or the group; 0 for a class.
    pub id: PeerId,
    /// Its version now.
    pub version: u64,
    /// How many waiting messages the command settled or moved.
    pub messages: u64,
    /// The job that it began or ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<u64>,
}

/// Why a text is not the address of a receiver.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerUrlError {
    /// No scheme this node delivers to.
    #[error("expected tcp://HOST:PORT or attach:, got {0:?}")]
    Scheme(String),
    /// No host or no port.
    #[error("expected tcp://HOST:PORT with a port from 1 to 65535, got {0:?}")]
    Authority(String),
}

impl std::str::FromStr for PeerUrl {
    type Err = PeerUrlError;

    fn from_str(text: &str) -> Result<PeerUrl, PeerUrlError> {
        if text == "attach:" {
            return Ok(PeerUrl::Attach);
        }
        let authority =
            text.strip_prefix("tcp://").ok_or_else(|| PeerUrlError::Scheme(text.to_owned()))?;
        let bad = || PeerUrlError::Authority(text.to_owned());
        let (host, port) = authority.rsplit_once(':').ok_or_else(bad)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(bad)?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let good = match bracketed {
            Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                !host.is_empty()
                    && host.len() <= 253
                    && host.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-')
            }
        };
        if !good {
            return Err(bad());
        }
        Ok(PeerUrl::Tcp { host: bracketed.unwrap_or(host).to_owned(), port })
    }
}

impl std::fmt::Display for PeerUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PeerUrl::Attach => f.write_str("attach:"),
            PeerUrl::Tcp { host, port } if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            PeerUrl::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
        }
    }
}

impl<'de> Deserialize<'de> for PeerUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(|error| named(Code::BadUrl, &error))
    }
}

impl From<PeerUrl> for String {
    fn from(url: PeerUrl) -> String {
        url.to_string()
    }
}
