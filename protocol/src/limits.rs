//! Every bound of the protocol in one place. A length is checked against these before anything is
//! allocated for it.

/// The protocol version spoken here; a hello names the lowest and highest a side speaks.
pub const PROTOCOL_VERSION: u16 = 1;

/// Largest frame, in bytes after the length word: the largest payload plus room for its headers.
pub const FRAME_BYTES_MAX: usize = PAYLOAD_BYTES_MAX + 128 * 1024;
/// Largest payload a node can be configured to take, in bytes.
pub const PAYLOAD_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Largest payload a node takes unless configured otherwise, in bytes.
pub const PAYLOAD_BYTES_DEFAULT: usize = 1024 * 1024;
/// Largest control frame body (MessagePack), in bytes.
pub const CONTROL_BYTES_MAX: usize = 1024 * 1024;
/// Most peers in one answer, or in one part of a snapshot: with every text as long as it may be, they
/// fit a control frame.
pub const PEER_PAGE_MAX: usize = 256;
/// Most messages in one answer about a peer's messages.
pub const MESSAGE_PAGE_MAX: usize = 256;
/// Most bytes of bodies in such an answer; a message that is longer comes without its body.
pub const PAGE_BODY_BYTES_MAX: usize = 512 * 1024;
/// Longest name of a peer, in bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// Longest ordering key, in bytes.
pub const KEY_BYTES_MAX: usize = 255;
/// Longest time to live of a message, in milliseconds: 365 days.
pub const TTL_MS_MAX: u64 = 365 * 24 * 60 * 60 * 1_000;
/// Longest delay of a message, in milliseconds: 365 days.
pub const DELAY_MS_MAX: u64 = 365 * 24 * 60 * 60 * 1_000;
/// Latest time a message can be delayed until, in milliseconds since the Unix epoch: what an id can say.
/// A node takes none that is more than [`DELAY_MS_MAX`] ahead.
pub const DELIVER_AT_MS_MAX: u64 = (1 << 48) - 1;
/// Largest encoded header map of a message, in bytes.
pub const HEADERS_BYTES_MAX: usize = 32 * 1024;
/// Most receivers one publish may name.
pub const RECEIVERS_MAX: usize = 1024;
/// Most members of a group; with them a publish has no more than [`RECEIVERS_MAX`] receivers either.
pub const GROUP_MEMBERS_MAX: usize = RECEIVERS_MAX;
/// Most groups in one answer.
pub const GROUP_PAGE_MAX: usize = 1024;
/// Most receiver aliases one connection may declare.
pub const ALIASES_MAX: u32 = 65_536;
/// Most receivers one connection may attach as.
pub const SLOTS_MAX: u32 = 16_384;
/// Most requests of one connection that are under way at a time.
pub const REQUESTS_MAX: usize = 64;
/// Most calls of one connection that await their replies.
pub const CALLS_MAX: usize = 4_096;
/// Most ranges in one ack frame.
pub const ACK_RANGES_MAX: usize = 4_096;
/// Largest return value in an ack, in bytes.
pub const RETURN_BYTES_MAX: usize = 64 * 1024;
/// Longest reason in a nack or refusal, in bytes of UTF-8.
pub const REASON_BYTES_MAX: usize = 1_024;
/// Longest agent in a hello or welcome, in bytes of printable UTF-8.
pub const AGENT_BYTES_MAX: usize = 128;
