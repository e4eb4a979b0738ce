//! What a configuration comes to on this machine: the bounds of the actors and of the journal.
//!
//! What is not set is drawn from the disk that holds the journal, and on a small disk the sizes that suit a
//! large one are cut down.

use crate::config::Config;
use restante_actors::Limits;
use restante_journal::Options;
use restante_protocol::shaper::{Rate, Rates};
use restante_protocol::status::Quota;
use rustix::fs::statvfs;
use std::path::Path;

/// What the actors are told by a configuration.
pub(super) fn limits(config: &Config) -> Limits {
    let share = |whole: u64| whole / 100 * u64::from(config.peer_share_percent);
    // Where only the disk limits the node, that is what there is to share.
    let bytes = match config.journal_bytes_max {
        0 => disk_bytes(&config.data_dir).unwrap_or(0),
        max => max,
    };
    let messages = match config.messages_max {
        0 => 0,
        max => share(max).max(1),
    };
    Limits {
        messages_max: config.messages_max,
        peer_share: Quota { messages, bytes: share(bytes) },
        ingress_bytes_max: size(config.journal_append_bytes_max),
        peers_max: config.peers_max as usize,
        producers_max: config.producers_max as usize,
        delayed_max: config.delayed_max as usize,
        peer_defaults: config.peer_defaults.clone(),
        rates: Rates {
            messages: ceil(config.messages_per_second),
            bytes: ceil(config.bytes_per_second),
        },
        ..Limits::default()
    }
}

/// A limit in one unit; 0: none.
fn ceil(per_second: u64) -> Rate {
    Rate { ceil: per_second, ..Rate::default() }
}

/// What the journal is told by a configuration.
pub(crate) fn options(config: &Config) -> Options {
    let bytes_max = if config.journal_bytes_max == 0 { u64::MAX } else { config.journal_bytes_max };
    let bytes_resume = match config.journal_bytes_resume {
        0 => bytes_max / 10 * 9,
        resume => resume,
    };
    // On a small disk the sizes that suit a large one would leave nothing for messages.
    let disk = disk_bytes(&config.data_dir).unwrap_or(u64::MAX);
    let smallest = (4 * config.payload_bytes_max).next_power_of_two();
    let segment = (disk / 64).max(smallest) / PAGE * PAGE;
    Options {
        segment_bytes: config.journal_segment_bytes.min(segment),
        append_bytes_max: size(config.journal_append_bytes_max),
        bytes_max,
        bytes_resume,
        disk_free_bytes_min: config.disk_free_bytes_min.min(disk / 32),
        disk_free_bytes_resume: config.disk_free_bytes_resume.min(disk / 16),
        history_bytes_max: config.ledger_bytes_max.min(disk / 16),
        history_ms_max: config.ledger_ms_max,
        ..Options::default()
    }
}

/// Sizes of files are multiples of this.
const PAGE: u64 = 4_096;

/// Bytes of the file system that holds a directory, which need not be there yet.
fn disk_bytes(dir: &Path) -> Option<u64> {
    let mut at = dir.ancestors().map(|at| if at == Path::new("") { Path::new(".") } else { at });
    at.find_map(|at| statvfs(at).ok()).map(|disk| disk.f_blocks.saturating_mul(disk.f_frsize))
}

/// The bounds of the configuration fit every machine that can run a node.
fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
