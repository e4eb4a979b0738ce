//! Building an index again from its segment, when its file turns out to be damaged while the journal
//! is open. The keeper then writes it anew.

use super::format::Seed;
use super::index::SegmentIndex;
use super::shared::Shared;
use super::state::Place;
use super::storage::DiskFile;
use super::survey::survey;
use restante_actors::events;
use restante_protocol::id::MessageNumber;
use std::io;
use std::sync::Arc;

/// Reads a sealed segment through, and returns its index.
pub(super) fn build_index(
    file: &Arc<dyn DiskFile>,
    seed: Seed,
    first: MessageNumber,
    data_end: u64,
) -> io::Result<SegmentIndex> {
    Ok(survey(file, seed, Some(first), Some(data_end), |_| {})?.index)
}

impl Shared {
    /// Replaces the index of a segment, whose file is damaged as `why` says.
    pub(super) fn rebuild_index(&self, id: u64, why: &str) -> io::Result<()> {
        let sealed = {
            let state = self.state.lock();
            let segment = state.segments.iter().find(|segment| segment.id == id);
            segment
                .filter(|segment| matches!(segment.index, Place::File))
                .map(|segment| (segment.first, segment.data_end))
        };
        // Given back in the meantime, or built already.
        let Some((first, data_end)) = sealed else { return Ok(()) };
        let file = self.segment_file(id)?;
        let index = build_index(&file, Seed::new(self.seed, id), first, data_end)?;
        let path = Shared::index_path(id);
        events::journal_finding(&format!("{path} is built again from its segment: {why}"));
        self.forget_index(id);
        let mut state = self.state.lock();
        if let Some(segment) = state.segments.iter_mut().find(|segment| segment.id == id) {
            segment.index = Place::Sealed(Arc::new(index));
        }
        drop(state);
        self.wake_keeper();
        Ok(())
    }
}
