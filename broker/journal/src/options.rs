//! What a journal is told when it is opened.

use super::error::OpenError;
use super::format::{SEGMENT_HEADER_BYTES, record_bytes};
use restante_actors::journal::Caps;
use restante_protocol::id::NodeTag;
use restante_protocol::limits::{FRAME_BYTES_MAX, PAYLOAD_BYTES_MAX};
use std::time::Duration;

/// Smallest segment, in bytes. Only tests go this low.
pub(crate) const SEGMENT_BYTES_MIN: u64 = 4 * 1024;
/// Largest segment, in bytes: offsets within it are 32 bits.
pub(crate) const SEGMENT_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// Sizes, bounds and seeds of a journal. They may differ from one opening to the next.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of a new segment.
    pub segment_bytes: u64,
    /// Most bytes appended and not yet completed.
    pub append_bytes_max: usize,
    /// Most bytes of one commit, unless a single batch is larger. Beyond a few MiB the processor no
    /// longer has at hand what it writes, and copying takes longer than a larger commit saves.
    pub commit_bytes_max: usize,
    /// How long a settle may wait for an append to ride along with.
    pub lazy_delay: Duration,
    /// Bytes of settles that are written without waiting for that.
    pub lazy_bytes_max: usize,
    /// Ask for a checkpoint after this many bytes of log.
    pub checkpoint_bytes: u64,
    /// Segments that are allocated ahead. All but one are the reserve: when one cannot be replaced,
    /// the door closes, and the others are left for what was accepted before, for settles and changes,
    /// and for the room of indexes and checkpoints.
    pub ready_segments: usize,
    /// Used segments that are kept to be written again.
    pub spare_segments_max: usize,
    /// Publishes are refused while the journal is larger than this; `u64::MAX`: only the disk limits it.
    pub bytes_max: u64,
    /// And taken again once it is smaller than this.
    pub bytes_resume: u64,
    /// Publishes are refused while the disk has fewer bytes free than this.
    pub disk_free_bytes_min: u64,
    /// And taken again once it has this many.
    pub disk_free_bytes_resume: u64,
    /// Bytes of history kept for the ledger.
    pub history_bytes_max: u64,
    /// How long it is kept after its segment went, in milliseconds.
    pub history_ms_max: u64,
    /// A backup that takes longer is given up: what it holds back must be able to go.
    pub backup_duration_max: Duration,
    /// And one that holds back more bytes of log than this, which nothing needs any more but it.
    pub backup_held_bytes_max: u64,
    /// A segment that loses an eighth of what is live of it in this time is being consumed, and not
    /// compacted: it will be done sooner than it would be copied.
    pub cooling: Duration,
    /// Bytes of index parts kept in memory.
    pub cache_bytes: usize,
    /// Makes this journal's checksums unlike those of other journals. Kept as it was when the journal
    /// was created.
    pub seed: u32,
    /// Tag of the node, if the journal is created now.
    pub node: NodeTag,
    /// Milliseconds since the Unix epoch.
    pub now_ms: fn() -> u64,
}

const MIB: u64 = 1024 * 1024;

impl Default for Options {
    fn default() -> Options {
        Options {
            segment_bytes: 64 * MIB,
            append_bytes_max: 64 * MIB as usize,
            commit_bytes_max: 3 * MIB as usize,
            lazy_delay: Duration::from_millis(100),
            lazy_bytes_max: 256 * 1024,
            checkpoint_bytes: 64 * MIB,
            ready_segments: 4,
            spare_segments_max: 2,
            bytes_max: u64::MAX,
            bytes_resume: u64::MAX,
            disk_free_bytes_min: 0,
            disk_free_bytes_resume: 0,
            history_bytes_max: 256 * MIB,
            history_ms_max: 7 * 24 * 60 * 60 * 1000,
            backup_duration_max: Duration::from_secs(6 * 60 * 60),
            backup_held_bytes_max: 16 * 1024 * MIB,
            cooling: Duration::from_millis(250),
            cache_bytes: 8 * MIB as usize,
            seed: rand::random(),
            node: NodeTag(rand::random()),
            now_ms: wall_ms,
        }
    }
}

impl Options {
    /// What callers may append under these options.
    #[must_use]
    pub(crate) fn caps(&self) -> Caps {
        let room = (self.segment_bytes - SEGMENT_HEADER_BYTES) as usize;
        let header = record_bytes(0);
        Caps {
            record_bytes_max: (room - header).min(FRAME_BYTES_MAX),
            batch_bytes_max: room.min(2 * PAYLOAD_BYTES_MAX),
            append_bytes_max: self.append_bytes_max,
        }
    }

    pub(super) fn check(&self) -> Result<(), OpenError> {
        let bad = |detail: String| Err(OpenError::BadOptions { detail });
        if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&self.segment_bytes) {
            return bad(format!(
                "a segment of {} bytes; expected {SEGMENT_BYTES_MIN} to {SEGMENT_BYTES_MAX}",
                self.segment_bytes
            ));
        }
        if self.ready_segments < 2 {
            return bad(format!("{} ready segments; expected 2 or more", self.ready_segments));
        }
        Ok(())
    }
}

fn wall_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}
