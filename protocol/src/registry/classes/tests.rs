//! Classes come, have peers and go; and the same after a restart.

use super::super::PEERS_MAX_DEFAULT;
use super::*;
use crate::admin::{AdminCommand, ClassChoice, PeerPatch, Waiting};
use crate::shaper::RatePatch;
use crate::time::WallMillis;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn ceil(ceil: u64) -> RatesPatch {
    let messages = RatePatch { ceil: Some(ceil), ..RatePatch::default() };
    RatesPatch { messages, ..RatesPatch::default() }
}

fn add(class: &str) -> AdminCommand {
    AdminCommand::ClassAdd { name: name(class), rates: ceil(10) }
}

fn set(class: &str, if_version: Option<u64>, rates: RatesPatch) -> AdminCommand {
    AdminCommand::ClassSet { name: name(class), if_version, rates }
}

fn remove(class: &str) -> AdminCommand {
    AdminCommand::ClassRemove { name: name(class), if_version: None }
}

fn into(class: &str) -> PeerPatch {
    PeerPatch { class: Some(ClassChoice::Of(name(class))), ..PeerPatch::default() }
}

fn add_peer(peer: &str, settings: PeerPatch) -> AdminCommand {
    let url = "attach:".parse().unwrap();
    AdminCommand::PeerAdd { name: name(peer), url, settings }
}

fn set_peer(peer: &str, settings: PeerPatch) -> AdminCommand {
    AdminCommand::PeerSet { name: name(peer), if_version: None, url: None, settings }
}

fn carry_out(registry: &mut Registry, command: &AdminCommand) -> AdminDone {
    let event = registry.check(command, WallMillis(17), "an operator", |_| 0).unwrap();
    let done = registry.apply(&event).unwrap();
    let restored = Registry::restore(&registry.snapshot().unwrap(), PEERS_MAX_DEFAULT).unwrap();
    assert_eq!(restored, *registry, "the same after a restart");
    done
}

fn refused(registry: &Registry, command: &AdminCommand) -> Code {
    registry.check(command, WallMillis(17), "an operator", |_| 0).unwrap_err().code
}

fn peers(registry: &Registry) -> Vec<(&str, usize)> {
    registry.classes().map(|(class, peers)| (class.name.as_str(), peers)).collect()
}

#[test]
fn a_class_is_there_for_as_long_as_peers_are_in_it() {
    let mut registry = Registry::default();
    assert_eq!(refused(&registry, &add_peer("a", into("bulk"))), Code::NotFound);
    carry_out(&mut registry, &add("bulk"));
    carry_out(&mut registry, &add("fast"));
    carry_out(&mut registry, &add_peer("a", into("bulk")));
    carry_out(&mut registry, &add_peer("b", into("bulk")));
    assert_eq!(peers(&registry), [("bulk", 2), ("fast", 0)]);
    assert_eq!(refused(&registry, &remove("bulk")), Code::ClassInUse);
    // One moves, the other is in none; what says nothing of classes changes nothing.
    carry_out(&mut registry, &set_peer("a", into("fast")));
    let settings = PeerPatch { window_messages: Some(7), ..PeerPatch::default() };
    carry_out(&mut registry, &set_peer("a", settings));
    let out = PeerPatch { class: Some(ClassChoice::None), ..PeerPatch::default() };
    carry_out(&mut registry, &set_peer("b", out));
    assert_eq!(peers(&registry), [("bulk", 0), ("fast", 1)]);
    carry_out(&mut registry, &remove("bulk"));
    assert_eq!(refused(&registry, &set_peer("b", into("bulk"))), Code::NotFound);
    let waiting = Some(Waiting::Park);
    let gone = AdminCommand::PeerRemove { name: name("a"), if_version: None, waiting };
    carry_out(&mut registry, &gone);
    carry_out(&mut registry, &remove("fast"));
    assert_eq!(peers(&registry), []);
}

#[test]
fn a_change_has_a_version_and_bounds() {
    let mut registry = Registry::default();
    carry_out(&mut registry, &add("bulk"));
    assert_eq!(refused(&registry, &add("bulk")), Code::NameTaken);
    assert_eq!(refused(&registry, &set("bulk", Some(2), ceil(5))), Code::VersionConflict);
    let rate = RatePatch { rate: Some(11), ..RatePatch::default() };
    let above = RatesPatch { messages: rate, ..RatesPatch::default() };
    assert_eq!(refused(&registry, &set("bulk", None, above)), Code::BadSetting);
    assert_eq!(refused(&registry, &set("other", None, ceil(5))), Code::NotFound);
    assert_eq!(carry_out(&mut registry, &set("bulk", Some(1), ceil(5))).version, 2);
    let class = registry.class(&name("bulk")).unwrap();
    assert_eq!((class.version, class.rates.messages.ceil), (2, 5));
}

#[test]
fn as_many_as_there_may_be_have_numbers_of_their_own_and_those_are_given_again() {
    let mut registry = Registry::default();
    let class = |number: usize| format!("c{number:03}");
    for number in 0..CLASSES_MAX {
        let event = registry.check(&add(&class(number)), WallMillis(17), "me", |_| 0).unwrap();
        registry.apply(&event).unwrap();
    }
    assert_eq!(refused(&registry, &add("one-more")), Code::LimitReached);
    carry_out(&mut registry, &remove(&class(7)));
    carry_out(&mut registry, &add("another"));
    let mut ids: Vec<u16> = registry.classes().map(|(class, _)| class.id.0).collect();
    ids.sort_unstable();
    assert!(ids.into_iter().eq(1..=CLASSES_MAX as u16));
}

#[test]
fn what_does_not_follow_is_not_applied() {
    let mut registry = Registry::default();
    let event = registry.check(&add("bulk"), WallMillis(17), "me", |_| 0).unwrap();
    registry.apply(&event).unwrap();
    assert!(registry.apply(&event).is_err(), "it is there");
    let removal = registry.check(&remove("bulk"), WallMillis(17), "me", |_| 0).unwrap();
    let peer = registry.check(&add_peer("a", into("bulk")), WallMillis(17), "me", |_| 0).unwrap();
    let mut without = registry.clone();
    without.apply(&removal).unwrap();
    let before = without.clone();
    assert!(without.apply(&peer).is_err(), "its class is gone");
    assert_eq!(without, before);
    registry.apply(&peer).unwrap();
    let before = registry.clone();
    assert!(registry.apply(&removal).is_err(), "a peer is in it");
    assert_eq!(registry, before);
}
