//! Every value there is: one row each. The sample configuration, `config show`, the environment and
//! the checks are all drawn from these rows, so a value added here exists everywhere.

use super::setting::{Bounds, LogFilter, LogFormat, Raw, Setting, assign};
use restante_protocol::admin::{PeerSettings, bounds};
use restante_protocol::limits::{PAYLOAD_BYTES_DEFAULT, PAYLOAD_BYTES_MAX};
use restante_protocol::shaper::{RATE_BYTES, RATE_MESSAGES};
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;

/// What is known about one value.
pub struct Value {
    /// Its name in a file; in the environment `RESTANTE_`, then this in capitals with `_` for `.`.
    pub key: &'static str,
    /// What it means, from its documentation.
    pub doc: &'static [&'static str],
    /// What it counts; empty for texts.
    pub unit: &'static str,
    pub(super) bounds: Bounds,
    pub(super) set: fn(&mut Config, &Raw<'_>, Bounds) -> Result<(), String>,
    pub(super) get: fn(&Config) -> String,
}

impl Value {
    /// The environment variable that sets it.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("RESTANTE_{}", self.key.replace('.', "_").to_uppercase())
    }

    /// The value in a configuration, as it stands in a file.
    #[must_use]
    pub fn of(&self, config: &Config) -> String {
        (self.get)(config)
    }

    /// Unit and bounds for people: `bytes, 1 KiB to 16 MiB`; empty when there is nothing to say.
    #[must_use]
    pub fn range(&self) -> String {
        let shown = |value| if self.unit == "bytes" { size(value) } else { value.to_string() };
        match self.bounds {
            Some((low, high)) => format!("{}, {} to {}", self.unit, shown(low), shown(high)),
            None => self.unit.to_owned(),
        }
    }
}

/// In the largest binary unit that divides it.
fn size(bytes: u64) -> String {
    let units = [(60, "EiB"), (50, "PiB"), (40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let fits = units.iter().find(|(bits, _)| bytes > 0 && bytes.trailing_zeros() >= *bits);
    fits.map_or_else(|| bytes.to_string(), |(bits, unit)| format!("{} {unit}", bytes >> bits))
}

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

/// The bounds of a peer's settings are the protocol's: an operator's command is held against the same.
const fn within(bounds: &RangeInclusive<u64>) -> Bounds {
    Some((*bounds.start(), *bounds.end()))
}

macro_rules! row {
    ($key:expr, [$($doc:literal)+], $unit:literal, $bounds:expr, $($path:ident).+) => {
        Value {
            key: $key,
            doc: &[$($doc),+],
            unit: $unit,
            bounds: $bounds,
            set: |config, raw, bounds| assign(&mut config.$($path).+, raw, bounds),
            get: |config| config.$($path).+.write(),
        }
    };
}

macro_rules! values {
    (
        node { $( $(#[doc = $doc:literal])+ $name:ident: $kind:ty = $default:expr, $unit:literal, $bounds:expr; )* }
        peer_defaults { $( $(#[doc = $pdoc:literal])+ $pname:ident, $punit:literal, $pbounds:expr; )* }
    ) => {
        /// What a node runs with. Made by [`super::Sources::load`], or by [`Config::default`] and
        /// changed by hand in a program that starts its own node.
        #[derive(Clone, Debug, PartialEq)]
        pub struct Config {
            $( $(#[doc = $doc])+ pub $name: $kind, )*
            /// How a peer is served whose `peer add` does not say otherwise.
            pub peer_defaults: PeerSettings,
        }

        impl Default for Config {
            fn default() -> Config {
                Config { $( $name: $default, )* peer_defaults: PeerSettings::default() }
            }
        }

        /// Every value, in the order of the sample configuration.
        pub static VALUES: &[Value] = &[
            $( row!(stringify!($name), [$($doc)+], $unit, $bounds, $name), )*
            $( row!(concat!("peer_defaults.", stringify!($pname)), [$($pdoc)+], $punit, $pbounds, peer_defaults.$pname), )*
        ];
    };
}

values! {
    node {
        /// The directory that holds the journal. Created when missing; one node at a time owns it.
        data_dir: PathBuf = PathBuf::from("./restante-data"), "", None;
        /// Where producers and receivers connect. Port 0 takes a free one.
        tcp: SocketAddr = SocketAddr::from((Ipv4Addr::LOCALHOST, 7700)), "", None;
        /// A file that receives {"tcp":"ADDRESS:PORT","pid":n} once the node is ready. Empty: none.
        addr_file: Option<PathBuf> = None, "", None;
        /// Listen on addresses that other machines can reach although there is no login and no TLS.
        allow_open_listener: bool = false, "", None;

        /// How log lines look: human, json, or auto (human on a terminal).
        log_format: LogFormat = LogFormat::Auto, "", None;
        /// Which log lines are written: a level, or levels by module like "info,restante=debug".
        log_filter: LogFilter = LogFilter::default(), "", None;

        /// A side of a connection that has sent nothing for this long sends a heartbeat.
        heartbeat_ms: u64 = 10_000, "milliseconds", Some((100, 60_000));
        /// A connection that has been silent for this long is closed.
        silence_ms_max: u64 = 30_000, "milliseconds", Some((200, 600_000));
        /// How long a new connection may take to say hello.
        hello_ms_max: u64 = 5_000, "milliseconds", Some((100, 60_000));
        /// Largest payload of a message.
        payload_bytes_max: u64 = PAYLOAD_BYTES_DEFAULT as u64, "bytes", Some((KIB, PAYLOAD_BYTES_MAX as u64));
        /// Messages a producer may have unconfirmed on one connection.
        credit_messages: u32 = 8_192, "messages", Some((1, 1_000_000));
        /// Bytes a producer may have unconfirmed on one connection.
        credit_bytes: u64 = 8 * MIB, "bytes", Some((128 * KIB, GIB));
        /// Connections the node accepts; one more is refused by name.
        connections_max: u32 = 10_000, "connections", Some((1, 1_000_000));
        /// Peers the node keeps; one more is refused by name.
        peers_max: u32 = 100_000, "peers", Some((1, 1_000_000));
        /// Producer identities the node remembers. One more displaces the least recently used, connected ones last.
        producers_max: u32 = 65_536, "producers", Some((16, 1_000_000));
        /// Delayed messages that may wait for their time, at some 80 bytes of memory each; one more is refused as delayed_quota. 0: none may be delayed.
        delayed_max: u32 = 100_000, "messages", Some((0, 1_000_000));
        /// Connection attempts to peers under way at once.
        dials_max: u32 = 64, "attempts", Some((1, 4_096));
        /// Connection attempts to peers that may begin within a second, in lots of a tenth of that. One more waits.
        dials_per_second: u32 = 1_000, "attempts per second", Some((1, 100_000));
        /// Most deliveries a second to all peers together. 0: no limit.
        messages_per_second: u64 = 0, "messages per second", within(&RATE_MESSAGES);
        /// Most bytes a second of deliveries to all peers together. 0: no limit.
        bytes_per_second: u64 = 0, "bytes per second", within(&RATE_BYTES);
        /// How long one connection attempt to a peer may take, its hello included.
        dial_ms_max: u64 = 5_000, "milliseconds", Some((100, 60_000));

        /// Size of a journal segment, but at most a 64th of the disk. Space comes back by whole segments.
        journal_segment_bytes: u64 = 64 * MIB, "bytes", Some((256 * KIB, GIB));
        /// Bytes accepted and not yet on disk; beyond it publishes are refused as overloaded.
        journal_append_bytes_max: u64 = 64 * MIB, "bytes", Some((256 * KIB, GIB));
        /// Publishes are refused while the journal is larger than this. 0: only the disk limits it.
        journal_bytes_max: u64 = 0, "bytes", Some((0, 1 << 60));
        /// Publishes are taken again once the journal is smaller than this. 0: nine tenths of the maximum.
        journal_bytes_resume: u64 = 0, "bytes", Some((0, 1 << 60));
        /// Publishes are refused while the disk has fewer bytes free than this, or than a 32nd of it if that is less.
        disk_free_bytes_min: u64 = 256 * MIB, "bytes", Some((0, 1 << 60));
        /// Publishes are taken again once the disk has this many bytes free, or a 16th of it if that is less.
        disk_free_bytes_resume: u64 = 512 * MIB, "bytes", Some((0, 1 << 60));
        /// Publishes are refused while more messages than this wait or are parked, counted per receiver. 0: no limit.
        messages_max: u64 = 0, "messages", Some((0, 1 << 48));
        /// What one peer may take of the node's quotas, unless it has quotas of its own.
        peer_share_percent: u32 = 80, "percent", Some((1, 100));
        /// What is kept about messages that are done, for message get and trace; at most a 16th of the disk.
        ledger_bytes_max: u64 = 256 * MIB, "bytes", Some((MIB, 1 << 50));
        /// How long it is kept, counted from when the log it stood in was given back.
        ledger_ms_max: u64 = 7 * 24 * 60 * 60_000, "milliseconds", Some((60_000, 10 * 365 * 24 * 60 * 60_000));

        /// How long a stopping node waits for deliveries in flight before it closes the connections.
        shutdown_ms_max: u64 = 10_000, "milliseconds", Some((0, 10 * 60_000));
    }
    peer_defaults {
        /// Most messages in flight to a peer.
        window_messages, "messages", Some((*bounds::WINDOW_MESSAGES.start() as u64, *bounds::WINDOW_MESSAGES.end() as u64));
        /// How few messages may be in flight to a peer whose answers come late: each late round halves the window down to this. 0: it stays.
        window_messages_min, "messages", Some((0, *bounds::WINDOW_MESSAGES_MIN.end() as u64));
        /// Most bytes in flight to a peer; a message larger than this travels alone.
        window_bytes, "bytes", within(&bounds::WINDOW_BYTES);
        /// How long an ack may take before the message is sent again.
        ack_timeout_ms, "milliseconds", within(&bounds::ACK_TIMEOUT_MS);
        /// First wait after a failed connection; it doubles with each further one.
        backoff_ms_min, "milliseconds", within(&bounds::BACKOFF_MS_MIN);
        /// Longest wait between connection attempts.
        backoff_ms_max, "milliseconds", within(&bounds::BACKOFF_MS_MAX);
        /// Waits after the first, second, … refusal of a message; after the last it is parked. At most 32.
        retry_schedule_ms, "milliseconds each", within(&bounds::RETRY_MS);
        /// What is promised about order: sent, strict or none.
        order, "", None;
        /// Most messages waiting or parked for a peer; one more is refused. 0: peer_share_percent of messages_max.
        quota_messages, "messages", within(&bounds::QUOTA_MESSAGES);
        /// Most bytes waiting or parked for a peer; one more message is refused. 0: peer_share_percent of journal_bytes_max, or of the disk.
        quota_bytes, "bytes", within(&bounds::QUOTA_BYTES);
    }
}
