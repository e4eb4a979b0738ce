//! A node remembers what it journaled, and reads nothing it does not understand.

use super::*;
use crate::admin::{AdminCommand, PeerPatch, PeerUrl};
use crate::id::ProducerId;
use crate::producers::Run;
use crate::time::WallMillis;

fn events(state: &mut NodeState) -> Vec<Vec<u8>> {
    let command = AdminCommand::PeerAdd {
        name: "a".parse().unwrap(),
        url: PeerUrl::Attach,
        settings: PeerPatch::default(),
    };
    let added = StateEvent::Admin(
        state.registry.check(&command, WallMillis(1), "an operator", |_| 0).unwrap(),
    );
    state.apply(&added).unwrap();
    let opened =
        StateEvent::Producer(state.producers.open(ProducerId(9), None, |_| false).unwrap());
    state.apply(&opened).unwrap();
    vec![added.encode().unwrap(), opened.encode().unwrap()]
}

fn release(state: &mut NodeState, original: u64) -> Vec<u8> {
    let copies = Copies { first: original + 10, accepted_ms: 7, originals: vec![original] };
    let event = StateEvent::Released(copies);
    assert_eq!(state.apply(&event), Ok(Applied::Released));
    event.encode().unwrap()
}

#[test]
fn a_restart_from_a_checkpoint_and_one_from_the_log_end_alike() {
    let mut state = NodeState::default();
    let mut replayed = NodeState::default();
    for event in events(&mut state) {
        replayed.apply_bytes(&event).unwrap();
    }
    for original in [3, 5] {
        replayed.apply_bytes(&release(&mut state, original)).unwrap();
    }
    let run = Run { first_sequence: 1, count: 3, first_number: 4, accepted_ms: 5 };
    state.producers.record_run(1, run);
    replayed.producers.replay_run(1, run);
    state.producers.set_durable(6);
    let restored = NodeState::restore(&state.snapshot().unwrap(), StateLimits::default()).unwrap();
    assert_eq!(restored.registry, replayed.registry);
    assert_eq!(restored.released.as_ref().and_then(|copies| copies.of(5)), Some(15));
    assert_eq!(restored.snapshot(), replayed.snapshot());
}

#[test]
fn an_event_out_of_place_is_refused_and_changes_nothing() {
    let mut state = NodeState::default();
    let events = events(&mut state);
    let before = state.snapshot();
    for event in events {
        assert!(matches!(state.apply_bytes(&event), Err(StateError::OutOfOrder { .. })));
    }
    assert_eq!(state.snapshot(), before);
}

#[test]
fn a_later_format_is_refused_by_name() {
    let mut state = NodeState::default();
    let mut event = events(&mut state).remove(0);
    event[0] = STATE_FORMAT + 1;
    assert_eq!(StateEvent::parse(&event), Err(StateError::Newer { format: 2 }));
    let mut checkpoint = state.snapshot().unwrap();
    checkpoint[0] = STATE_FORMAT + 1;
    let error = NodeState::restore(&checkpoint, StateLimits::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the state is of format 2, this release reads up to 1; start the release that wrote it"
    );
    assert!(matches!(StateEvent::parse(&[]), Err(StateError::Unreadable(_))));
    assert!(matches!(StateEvent::parse(&[0, 1]), Err(StateError::Unreadable(_))));
}

#[test]
fn no_part_of_a_checkpoint_is_a_checkpoint() {
    let mut state = NodeState::default();
    events(&mut state);
    release(&mut state, 3);
    let bytes = state.snapshot().unwrap();
    for end in 0..bytes.len() {
        assert!(NodeState::restore(&bytes[..end], StateLimits::default()).is_err());
    }
}
