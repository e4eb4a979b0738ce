//! Commands in, peers out; and the same peers after a restart.

use super::*;
use crate::admin::{Order, bounds};
use crate::stored::Filter;

const NOW: WallMillis = WallMillis(17);
const BY: &str = "an operator";

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn add(text: &str) -> AdminCommand {
    let url = "tcp://localhost:7000".parse().unwrap();
    AdminCommand::PeerAdd { name: name(text), url, settings: PeerPatch::default() }
}

fn remove(text: &str, waiting: Option<Waiting>) -> AdminCommand {
    AdminCommand::PeerRemove { name: name(text), if_version: None, waiting }
}

fn set(text: &str, settings: PeerPatch) -> AdminCommand {
    AdminCommand::PeerSet { name: name(text), if_version: None, url: None, settings }
}

fn carry_out(registry: &mut Registry, command: &AdminCommand) -> AdminDone {
    carry_out_with(registry, command, 0)
}

/// While so many messages wait for its peer.
fn carry_out_with(registry: &mut Registry, command: &AdminCommand, waiting: u64) -> AdminDone {
    let event = registry.check(command, NOW, BY, |_| waiting).unwrap();
    registry.apply(&event).unwrap()
}

fn refused(registry: &Registry, command: &AdminCommand) -> Code {
    registry.check(command, NOW, BY, |_| 5).unwrap_err().code
}

fn with(names: &[&str]) -> Registry {
    let mut registry = Registry::default();
    for text in names {
        carry_out(&mut registry, &add(text));
    }
    registry
}

#[test]
fn every_change_is_a_version_and_survives_a_restart() {
    let mut registry = with(&["a"]);
    let commands = [
        set("a", PeerPatch { window_messages: Some(7), ..PeerPatch::default() }),
        AdminCommand::PeerPause { name: name("a"), if_version: Some(2) },
        AdminCommand::PeerResume { name: name("a"), if_version: Some(3) },
        AdminCommand::PeerPause { name: name("a"), if_version: None },
        AdminCommand::PeerSet {
            name: name("a"),
            if_version: Some(5),
            url: Some(PeerUrl::Attach),
            settings: PeerPatch { order: Some(Order::Strict), ..PeerPatch::default() },
        },
    ];
    for (command, version) in commands.iter().zip(2..) {
        let done = carry_out(&mut registry, command);
        assert_eq!(done, AdminDone { id: PeerId(1), version, messages: 0, job: None });
    }
    let peer = registry.named("a").unwrap();
    assert_eq!((peer.settings.window_messages, peer.settings.order), (7, Order::Strict));
    assert_eq!((&peer.url, peer.paused), (&PeerUrl::Attach, true));
    let restored = Registry::restore(&registry.snapshot().unwrap(), PEERS_MAX_DEFAULT);
    assert_eq!(restored, Ok(registry));
}

#[test]
fn replayed_events_give_the_same_registry_as_a_snapshot() {
    let mut registry = Registry::default();
    let mut replayed = Registry::default();
    let commands = [add("a"), add("b"), remove("a", Some(Waiting::HandTo(name("b")))), add("a")];
    for command in &commands {
        let event = registry.check(command, NOW, BY, |_| 3).unwrap();
        registry.apply(&event).unwrap();
        replayed.apply(&event).unwrap();
    }
    assert_eq!(replayed, registry);
    let event = AdminEvent::DispositionDone { id: PeerId(1) };
    registry.apply(&event).unwrap();
    assert_ne!(replayed, registry);
}

#[test]
fn a_peer_added_again_is_a_new_peer() {
    let mut registry = with(&["a"]);
    carry_out(&mut registry, &remove("a", None));
    assert_eq!(registry.named("a"), None);
    assert_eq!(carry_out(&mut registry, &add("a")).id, PeerId(2));
    let Some(Found::Removed(old)) = registry.find("a#1") else { panic!("a#1 is remembered") };
    assert_eq!((old.peer.id, old.peer.version, old.label()), (PeerId(1), 2, "a#1".to_owned()));
    assert!(matches!(registry.find("a"), Some(Found::Present(peer)) if peer.id == PeerId(2)));
    assert_eq!(registry.find("b#1"), None);
    assert_eq!(registry.find("a#2"), None);
    assert_eq!(registry.find("a#x"), None);
}

#[test]
fn an_id_is_not_given_again_after_its_peer_is_forgotten_and_the_node_restarted() {
    let mut registry = with(&["a"]);
    carry_out(&mut registry, &remove("a", None));
    registry.apply(&AdminEvent::PeerForgotten { id: PeerId(1) }).unwrap();
    assert_eq!(registry.label(PeerId(1)), "#1");
    let mut registry = Registry::restore(&registry.snapshot().unwrap(), 10).unwrap();
    assert_eq!(carry_out(&mut registry, &add("a")).id, PeerId(2));
}

#[test]
fn who_is_still_to_get_anothers_messages_is_not_at_rest() {
    let mut registry = with(&["a", "b", "c"]);
    let at_rest = |registry: &Registry, after| registry.at_rest(PeerId(after), 9);
    assert_eq!(at_rest(&registry, 0), []);
    let hand =
        registry.check(&remove("a", Some(Waiting::HandTo(name("b")))), NOW, BY, |_| 5).unwrap();
    registry.apply(&hand).unwrap();
    carry_out(&mut registry, &remove("b", None));
    carry_out(&mut registry, &remove("c", None));
    assert_eq!(at_rest(&registry, 0), [PeerId(3)], "b is awaited, a is not done");
    registry.apply(&AdminEvent::DispositionDone { id: PeerId(1) }).unwrap();
    assert_eq!(at_rest(&registry, 0), [PeerId(1), PeerId(2), PeerId(3)]);
    assert_eq!(at_rest(&registry, 2), [PeerId(3)]);
    assert_eq!(registry.at_rest(PeerId(0), 1), [PeerId(1)]);
}

#[test]
fn removing_a_peer_with_messages_waiting_needs_a_word_about_them() {
    let registry = with(&["a", "b"]);
    let refusal = registry.check(&remove("a", None), NOW, BY, |_| 5).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "messages_waiting: 5 messages wait for peer 'a'; say --park, --purge or --hand-to NAME"
    );
    for (wish, disposition) in [
        (Waiting::Park, Disposition::Park),
        (Waiting::Purge, Disposition::Purge { done: false }),
        (Waiting::HandTo(name("b")), Disposition::HandTo { to: PeerId(2), done: false }),
    ] {
        let event = registry.check(&remove("a", Some(wish)), NOW, BY, |_| 5).unwrap();
        assert_eq!(
            event,
            AdminEvent::PeerRemoved {
                id: PeerId(1),
                version: 2,
                disposition,
                at: NOW,
                by: BY.to_owned()
            }
        );
    }
    assert_eq!(
        refused(&registry, &remove("a", Some(Waiting::HandTo(name("a"))))),
        Code::BadSetting
    );
    assert_eq!(refused(&registry, &remove("a", Some(Waiting::HandTo(name("c"))))), Code::NotFound);
}

#[test]
fn what_was_begun_is_found_again_until_it_is_marked_done() {
    let mut registry = with(&["a", "b", "c"]);
    for (text, wish) in [("a", Waiting::Purge), ("b", Waiting::HandTo(name("c")))] {
        let event = registry.check(&remove(text, Some(wish)), NOW, BY, |_| 5).unwrap();
        registry.apply(&event).unwrap();
    }
    let mut registry = Registry::restore(&registry.snapshot().unwrap(), 10).unwrap();
    let labels =
        |registry: &Registry| registry.unfinished().map(Removed::label).collect::<Vec<_>>();
    assert_eq!(labels(&registry), ["a#1", "b#2"]);
    registry.apply(&AdminEvent::DispositionDone { id: PeerId(1) }).unwrap();
    assert_eq!(labels(&registry), ["b#2"]);
    registry.apply(&AdminEvent::DispositionDone { id: PeerId(2) }).unwrap();
    assert!(labels(&registry).is_empty());
}

#[test]
fn messages_on_their_way_to_a_peer_that_goes_too_share_its_fate() {
    let mut registry = with(&["a", "b", "c"]);
    let go = |registry: &mut Registry, text: &str, wish: Waiting| {
        let event = registry.check(&remove(text, Some(wish)), NOW, BY, |_| 5).unwrap();
        registry.apply(&event).unwrap();
    };
    assert_eq!(registry.destination(PeerId(1)), None);
    go(&mut registry, "a", Waiting::HandTo(name("b")));
    assert_eq!(registry.destination(PeerId(1)), Some(Destination::Peer(PeerId(2))));
    go(&mut registry, "b", Waiting::HandTo(name("c")));
    assert_eq!(registry.destination(PeerId(1)), Some(Destination::Peer(PeerId(3))));
    go(&mut registry, "c", Waiting::Purge);
    assert_eq!(registry.destination(PeerId(1)), Some(Destination::Purge));
    registry.apply(&AdminEvent::PeerForgotten { id: PeerId(3) }).unwrap();
    assert_eq!(registry.destination(PeerId(1)), Some(Destination::Park));
}

#[test]
fn what_was_left_when_the_heir_was_removed_is_parked_since_then() {
    let mut registry = with(&["a", "b"]);
    let go = |registry: &mut Registry, text: &str, now, wish: Waiting| {
        let event = registry.check(&remove(text, Some(wish)), WallMillis(now), BY, |_| 5).unwrap();
        registry.apply(&event).unwrap();
    };
    go(&mut registry, "a", 20, Waiting::HandTo(name("b")));
    assert_eq!(registry.parked_since(PeerId(1)), None);
    go(&mut registry, "b", 30, Waiting::Park);
    assert_eq!(registry.parked_since(PeerId(2)), Some(WallMillis(30)));
    assert_eq!(registry.parked_since(PeerId(1)), None, "not before the router has seen it");
    registry.apply(&AdminEvent::DispositionDone { id: PeerId(1) }).unwrap();
    assert_eq!(registry.parked_since(PeerId(1)), Some(WallMillis(30)));
    assert_eq!(registry.parked_since(PeerId(9)), None);
}

#[test]
fn a_draining_peer_is_so_until_it_is_resumed_and_is_given_nothing() {
    let mut registry = with(&["a", "b"]);
    carry_out(&mut registry, &AdminCommand::PeerDrain { name: name("a"), if_version: Some(1) });
    carry_out(&mut registry, &AdminCommand::PeerPause { name: name("a"), if_version: Some(2) });
    let restored = Registry::restore(&registry.snapshot().unwrap(), PEERS_MAX_DEFAULT).unwrap();
    let peer = restored.named("a").unwrap();
    assert_eq!((peer.draining, peer.paused, peer.version), (true, true, 3));
    assert_eq!(refused(&registry, &remove("b", Some(Waiting::HandTo(name("a"))))), Code::Draining);
    let replay = |whose: &str, to: Option<&str>| AdminCommand::PeerReplay {
        name: whose.to_owned(),
        if_version: None,
        to: to.map(name),
        filter: Filter::default(),
        rate: None,
    };
    assert_eq!(refused(&registry, &replay("a", None)), Code::Draining);
    assert_eq!(refused(&registry, &replay("b", Some("a"))), Code::Draining);
    carry_out(&mut registry, &AdminCommand::PeerResume { name: name("a"), if_version: None });
    let peer = registry.named("a").unwrap();
    assert_eq!((peer.draining, peer.paused), (false, false));
    assert!(registry.check(&replay("a", None), NOW, BY, |_| 0).is_ok());
}

#[test]
fn what_is_not_so_is_refused_by_name() {
    let registry = with(&["a"]);
    assert_eq!(refused(&registry, &add("a")), Code::NameTaken);
    assert_eq!(refused(&registry, &set("b", PeerPatch::default())), Code::NotFound);
    let stale = AdminCommand::PeerPause { name: name("a"), if_version: Some(2) };
    let refusal = registry.check(&stale, NOW, BY, |_| 0).unwrap_err();
    assert_eq!(refusal.code, Code::VersionConflict);
    assert_eq!(refusal.detail, "peer 'a' is at version 1, expected 2");
    let built = AdminCommand::PeerAdd {
        name: name("b"),
        url: PeerUrl::Tcp { host: "a b\n".to_owned(), port: 1 },
        settings: PeerPatch::default(),
    };
    assert_eq!(refused(&registry, &built), Code::BadUrl);
}

#[test]
fn no_more_peers_than_the_limit_are_there_or_remembered() {
    let mut registry = Registry::new(1);
    carry_out(&mut registry, &add("a"));
    assert_eq!(refused(&registry, &add("b")), Code::LimitReached);
    carry_out(&mut registry, &remove("a", None));
    carry_out(&mut registry, &add("b"));
    assert_eq!(refused(&registry, &remove("b", Some(Waiting::Park))), Code::LimitReached);
    registry.apply(&AdminEvent::PeerForgotten { id: PeerId(1) }).unwrap();
    carry_out(&mut registry, &remove("b", None));
}

#[test]
fn a_setting_out_of_bounds_names_value_bounds_and_unit() {
    let registry = with(&["a"]);
    let bad =
        |settings: PeerPatch| registry.check(&set("a", settings), NOW, BY, |_| 0).unwrap_err();
    let none = PeerPatch::default;
    let refusal = bad(PeerPatch { window_messages: Some(0), ..none() });
    assert_eq!(refusal.code, Code::BadSetting);
    assert_eq!(refusal.detail, "window_messages is 0, expected 1 to 65536 messages");
    for (settings, detail) in [
        (
            PeerPatch { window_bytes: Some(1), ..none() },
            "window_bytes is 1, expected 65536 to 268435456 bytes",
        ),
        (
            PeerPatch { ack_timeout_ms: Some(u64::MAX), ..none() },
            "ack_timeout_ms is 18446744073709551615, expected 100 to 3600000 ms",
        ),
        (
            PeerPatch { backoff_ms_min: Some(9), ..none() },
            "backoff_ms_min is 9, expected 10 to 3600000 ms",
        ),
        (
            PeerPatch { backoff_ms_max: Some(86_400_001), ..none() },
            "backoff_ms_max is 86400001, expected 100 to 86400000 ms",
        ),
        (
            PeerPatch { backoff_ms_max: Some(200), ..none() },
            "backoff_ms_min is 250 ms, expected at most backoff_ms_max, which is 200 ms",
        ),
        (
            PeerPatch { retry_schedule_ms: Some(vec![1; 33]), ..none() },
            "the number of entries in retry_schedule_ms is 33, expected 0 to 32 entries",
        ),
        (
            PeerPatch { retry_schedule_ms: Some(vec![604_800_001]), ..none() },
            "an entry of retry_schedule_ms is 604800001, expected 0 to 604800000 ms",
        ),
        (
            PeerPatch { quota_bytes: Some(u64::MAX), ..none() },
            "quota_bytes is 18446744073709551615, expected 0 to 1152921504606846976 bytes",
        ),
    ] {
        assert_eq!(bad(settings).detail, detail);
    }
    assert_eq!(PeerSettings::default().check(), Ok(()));
    let widest = PeerPatch {
        window_messages: Some(*bounds::WINDOW_MESSAGES.end()),
        window_bytes: Some(*bounds::WINDOW_BYTES.end()),
        retry_schedule_ms: Some(vec![*bounds::RETRY_MS.end(); *bounds::RETRIES.end()]),
        ..none()
    };
    assert!(registry.check(&set("a", widest), NOW, BY, |_| 0).is_ok());
}

#[test]
fn a_new_peer_has_the_defaults_of_its_day_for_good() {
    let mut registry = with(&["a"]);
    let ours = PeerSettings { ack_timeout_ms: 5_000, ..PeerSettings::default() };
    registry.set_defaults(ours).unwrap();
    carry_out(&mut registry, &add("b"));
    let timeout = |registry: &Registry, text| registry.named(text).unwrap().settings.ack_timeout_ms;
    let restored = Registry::restore(&registry.snapshot().unwrap(), 10).unwrap();
    assert_eq!((timeout(&restored, "a"), timeout(&restored, "b")), (30_000, 5_000));
    let bad = PeerSettings { ack_timeout_ms: 5, ..PeerSettings::default() };
    assert_eq!(registry.set_defaults(bad).unwrap_err().code, Code::BadSetting);
}

#[test]
fn events_that_do_not_follow_change_nothing() {
    let mut registry = with(&["a"]);
    let before = registry.clone();
    let peer = registry.named("a").unwrap().clone();
    for event in [
        AdminEvent::PeerAdded(peer.clone()),
        AdminEvent::PeerAdded(Peer { id: PeerId(2), ..peer.clone() }),
        AdminEvent::PeerChanged(peer.clone()),
        AdminEvent::PeerChanged(Peer { name: name("b"), version: 9, ..peer }),
        AdminEvent::PeerRemoved {
            id: PeerId(2),
            version: 1,
            disposition: Disposition::Park,
            at: NOW,
            by: BY.to_owned(),
        },
        AdminEvent::DispositionDone { id: PeerId(1) },
        AdminEvent::PeerForgotten { id: PeerId(1) },
    ] {
        assert!(matches!(registry.apply(&event), Err(StateError::OutOfOrder { .. })), "{event:?}");
        assert_eq!(registry, before);
    }
}

#[test]
fn bytes_that_are_no_snapshot_are_refused() {
    let bytes = with(&["a", "b"]).snapshot().unwrap();
    for end in 0..bytes.len() {
        assert!(Registry::restore(&bytes[..end], 10).is_err());
    }
}

fn replay(text: &str, to: Option<&str>, rate: Option<u32>) -> AdminCommand {
    let (to, filter) = (to.map(name), Filter::default());
    AdminCommand::PeerReplay { name: text.to_owned(), if_version: None, to, filter, rate }
}

fn purge(text: &str, if_version: Option<u64>, key: Option<Vec<u8>>) -> AdminCommand {
    let filter = Filter { key, ..Filter::default() };
    AdminCommand::PeerPurge { name: text.to_owned(), if_version, filter }
}

#[test]
fn a_peer_has_one_job_at_a_time_which_survives_a_restart() {
    let mut registry = with(&["a", "b"]);
    assert_eq!(carry_out(&mut registry, &replay("a", None, Some(50))).job, Some(1));
    assert_eq!(refused(&registry, &replay("a", Some("b"), None)), Code::JobUnderWay);
    assert_eq!(refused(&registry, &purge("a", None, None)), Code::JobUnderWay);
    assert_eq!(carry_out(&mut registry, &purge("b", None, None)).job, Some(2));
    let copies = Some(Copies { first: 90, accepted_ms: 17, originals: vec![3, 5, 8] });
    registry.apply(&AdminEvent::JobNoted { number: 1, messages: 7, copies }).unwrap();

    let restored = Registry::restore(&registry.snapshot().unwrap(), PEERS_MAX_DEFAULT).unwrap();
    assert_eq!(restored, registry);
    let job = restored.job_of(PeerId(1)).unwrap();
    assert_eq!((job.number, job.messages, job.to()), (1, 7, Some(PeerId(1))));
    let copies = job.copies.as_ref().unwrap();
    assert_eq!([3, 4, 8].map(|number| copies.of(number)), [Some(90), None, Some(92)]);

    let cancel = AdminCommand::PeerCancel { name: "a".to_owned() };
    assert_eq!(carry_out(&mut registry, &cancel).job, Some(1));
    assert_eq!(refused(&registry, &cancel), Code::NotFound);
    // Its number is not given again.
    assert_eq!(carry_out(&mut registry, &replay("a", Some("b"), None)).job, Some(3));
    assert!(registry.apply(&AdminEvent::JobEnded { number: 1, messages: 0 }).is_err());
}

#[test]
fn whatever_a_job_chooses_by_survives_a_restart() {
    for chosen in 0..16u8 {
        let has = |bit: u8| chosen & bit != 0;
        let filter = Filter {
            since: has(1).then_some(WallMillis(11)),
            until: has(2).then_some(WallMillis(12)),
            reason: has(4).then(|| "busy".to_owned()),
            key: has(8).then(|| b"k".to_vec()),
        };
        let mut registry = with(&["a"]);
        let purge = AdminCommand::PeerPurge { name: "a".to_owned(), if_version: None, filter };
        carry_out(&mut registry, &purge);
        let bytes = registry.snapshot().unwrap();
        assert_eq!(Registry::restore(&bytes, PEERS_MAX_DEFAULT).unwrap(), registry);
    }
}

#[test]
fn a_job_that_cannot_be_is_refused() {
    let mut registry = with(&["a", "b", "c"]);
    for rate in [0, 1_000_001] {
        assert_eq!(refused(&registry, &replay("a", None, Some(rate))), Code::BadSetting);
    }
    assert_eq!(refused(&registry, &replay("x", None, None)), Code::NotFound);
    assert_eq!(refused(&registry, &replay("a", Some("x"), None)), Code::NotFound);
    assert_eq!(refused(&registry, &purge("a", None, Some(vec![0; 256]))), Code::TooLarge);
    assert_eq!(refused(&registry, &purge("a", Some(2), None)), Code::VersionConflict);
    carry_out(&mut registry, &remove("a", Some(Waiting::Park)));
    carry_out_with(&mut registry, &remove("b", Some(Waiting::Purge)), 5);
    assert_eq!(refused(&registry, &replay("a#1", None, None)), Code::NoReceiver);
    assert_eq!(refused(&registry, &replay("b#2", Some("c"), None)), Code::JobUnderWay);
    assert!(registry.check(&replay("a#1", Some("c"), None), NOW, BY, |_| 0).is_ok());
}

#[test]
fn what_a_hand_over_cut_short_has_left_can_be_replayed_and_purged() {
    let mut registry = with(&["a", "b", "c"]);
    carry_out_with(&mut registry, &remove("a", Some(Waiting::HandTo(name("b")))), 5);
    assert_eq!(refused(&registry, &purge("a#1", None, None)), Code::JobUnderWay);
    carry_out(&mut registry, &remove("b", Some(Waiting::Park)));
    registry.apply(&AdminEvent::DispositionDone { id: PeerId(1) }).unwrap();
    assert!(registry.parked_since(PeerId(1)).is_some(), "what is left counts as parked");
    assert!(registry.check(&purge("a#1", None, None), NOW, BY, |_| 0).is_ok());
    assert!(registry.check(&replay("a#1", Some("c"), None), NOW, BY, |_| 0).is_ok());
}

#[test]
fn a_job_ends_with_either_of_its_peers_and_keeps_them_known_until_then() {
    let mut registry = with(&["a", "b"]);
    carry_out(&mut registry, &remove("a", Some(Waiting::Park)));
    assert_eq!(registry.at_rest(PeerId::NONE, 9), [PeerId(1)]);
    carry_out(&mut registry, &replay("a#1", Some("b"), None));
    assert_eq!(registry.at_rest(PeerId::NONE, 9), []);
    assert_eq!(registry.jobs_about(PeerId(2)).count(), 1);
    carry_out(&mut registry, &remove("b", None));
    assert_eq!(registry.jobs().count(), 0);
    assert_eq!(registry.at_rest(PeerId::NONE, 9), [PeerId(1), PeerId(2)]);
}
