//! What the peers of a journal are called: from its checkpoint and the changes behind it.

use super::super::format::Seed;
use super::super::shared::Shared;
use super::super::survey::survey;
use super::Offline;
use restante_protocol::id::PeerId;
use restante_protocol::record::RecordKind;
use restante_protocol::registry::Found;
use restante_protocol::state::{NodeState, StateLimits};
use std::path::Path;

/// See the module.
#[derive(Debug, Default)]
pub struct Names {
    state: NodeState,
}

impl Names {
    /// The names in `dir`, as far as they can be read. What cannot is called by its number.
    #[must_use]
    pub fn of(dir: &Path) -> Names {
        Offline::read_only(dir).map_or_else(|_| Names::default(), |offline| Names::read(&offline))
    }

    fn read(offline: &Offline) -> Names {
        let limits = StateLimits::default();
        let (position, state) = match offline.newest_checkpoint() {
            Some((snapshot, state)) => (snapshot.position, NodeState::restore(&state, limits).ok()),
            None => (1, None),
        };
        let mut state = state.unwrap_or_else(|| NodeState::new(limits));
        let ids = offline.ids("segments", "seg").map_or_else(|_| Vec::new(), |(ids, _)| ids);
        for id in ids {
            let Ok(file) = offline.disk.open(&Shared::segment_path(id)) else { continue };
            // What does not follow from what is known names nobody, and nothing can be done about it.
            let _ = survey(&file, Seed::new(offline.seed, id), None, None, |passed| {
                let admin = passed.header.kind == RecordKind::Admin as u8;
                if admin && passed.header.number >= position {
                    let _ = state.apply_bytes(passed.body);
                }
            });
        }
        Names { state }
    }

    /// What a peer is called: `name`, `name#id` of one that was removed, `#id` of one not known, `#delayed`
    /// of the node itself.
    #[must_use]
    pub fn label(&self, peer: PeerId) -> String {
        self.state.registry.label(peer)
    }

    /// The peer that is called so.
    #[must_use]
    pub fn find(&self, label: &str) -> Option<PeerId> {
        match label.strip_prefix('#') {
            Some("delayed") => Some(PeerId::DELAYED),
            Some(id) => id.parse().ok().map(PeerId),
            None => Some(match self.state.registry.find(label)? {
                Found::Present(peer) => peer.id,
                Found::Removed(removed) => removed.peer.id,
            }),
        }
    }
}
