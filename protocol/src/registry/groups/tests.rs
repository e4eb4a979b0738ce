//! Groups in, members out; and the same after a restart.

use super::super::PEERS_MAX_DEFAULT;
use super::*;
use crate::admin::{AdminCommand, PeerPatch, Waiting};
use crate::time::WallMillis;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn names(texts: &[&str]) -> Vec<Name> {
    texts.iter().map(|text| name(text)).collect()
}

fn add_peer(text: &str) -> AdminCommand {
    let url = "attach:".parse().unwrap();
    AdminCommand::PeerAdd { name: name(text), url, settings: PeerPatch::default() }
}

fn add(group: &str, members: &[&str]) -> AdminCommand {
    AdminCommand::GroupAdd { name: name(group), members: names(members) }
}

fn set(group: &str, add: &[&str], remove: &[&str]) -> AdminCommand {
    let (add, remove) = (names(add), names(remove));
    AdminCommand::GroupSet { name: name(group), if_version: None, add, remove }
}

fn remove(group: &str) -> AdminCommand {
    AdminCommand::GroupRemove { name: name(group), if_version: None }
}

fn remove_peer(peer: &str) -> AdminCommand {
    let waiting = Some(Waiting::Park);
    AdminCommand::PeerRemove { name: name(peer), if_version: None, waiting }
}

fn carry_out(registry: &mut Registry, command: &AdminCommand) -> AdminDone {
    let event = registry.check(command, WallMillis(17), "an operator", |_| 1).unwrap();
    let done = registry.apply(&event).unwrap();
    let restored = Registry::restore(&registry.snapshot().unwrap(), PEERS_MAX_DEFAULT).unwrap();
    assert_eq!(restored, *registry, "the same after a restart");
    done
}

fn refused(registry: &Registry, command: &AdminCommand) -> Code {
    registry.check(command, WallMillis(17), "an operator", |_| 1).unwrap_err().code
}

fn with(peers: &[&str]) -> Registry {
    let mut registry = Registry::default();
    for text in peers {
        carry_out(&mut registry, &add_peer(text));
    }
    registry
}

fn members(registry: &Registry, group: &str) -> (u64, Vec<u32>) {
    let group = registry.group_named(group).unwrap();
    (group.version, group.members.iter().map(|id| id.0).collect())
}

#[test]
fn a_group_is_changed_by_versions_and_never_has_an_id_of_a_peer() {
    let mut registry = with(&["a", "b", "c"]);
    let done = carry_out(&mut registry, &add("all", &["c", "a", "c"]));
    let id = PeerId(PeerId::LAST_PEER.0 + 1);
    assert_eq!((done.id, done.version), (id, 1));
    assert!(id.is_group() && !PeerId::LAST_PEER.is_group() && !PeerId(u32::MAX).is_group());
    assert_eq!(members(&registry, "all"), (1, vec![1, 3]));
    carry_out(&mut registry, &set("all", &["b", "a"], &["c"]));
    assert_eq!(members(&registry, "all"), (2, vec![1, 2]));
    assert_eq!(registry.label(id), "all");
    carry_out(&mut registry, &remove("all"));
    assert_eq!(registry.group_named("all"), None);
    assert_eq!(registry.groups_of(PeerId(1)).count(), 0);
    assert_eq!(carry_out(&mut registry, &add("all", &[])).id.0, id.0 + 1, "no id is given twice");
    assert_eq!(members(&registry, "all"), (1, vec![]));
}

#[test]
fn a_removed_peer_leaves_its_groups_and_its_namesake_is_not_in_them() {
    let mut registry = with(&["a", "b"]);
    carry_out(&mut registry, &add("one", &["a", "b"]));
    carry_out(&mut registry, &add("two", &["a"]));
    carry_out(&mut registry, &add("three", &["b"]));
    assert_eq!(registry.groups_of(PeerId(1)).count(), 2);
    carry_out(&mut registry, &remove_peer("a"));
    carry_out(&mut registry, &add_peer("a"));
    assert_eq!(members(&registry, "one"), (2, vec![2]));
    assert_eq!(members(&registry, "two"), (2, vec![]));
    assert_eq!(members(&registry, "three"), (1, vec![2]));
    carry_out(&mut registry, &set("one", &["a"], &[]));
    assert_eq!(members(&registry, "one"), (3, vec![2, 3]));
}

#[test]
fn what_cannot_be_is_refused_by_name_and_changes_nothing() {
    let mut registry = with(&["a", "b"]);
    carry_out(&mut registry, &add("g", &["a"]));
    let before = registry.clone();
    for (command, code) in [
        (add("a", &[]), Code::NameTaken),
        (add("g", &[]), Code::NameTaken),
        (add_peer("g"), Code::NameTaken),
        (add("h", &["nobody"]), Code::NotFound),
        (add("h", &["g"]), Code::IsGroup),
        (set("g", &["g"], &[]), Code::IsGroup),
        (set("g", &[], &["b"]), Code::NotFound),
        (set("g", &["a"], &["a"]), Code::BadSetting),
        (set("h", &[], &[]), Code::NotFound),
        (remove("a"), Code::NotFound),
        (remove_peer("g"), Code::IsGroup),
        (AdminCommand::GroupRemove { name: name("g"), if_version: Some(2) }, Code::VersionConflict),
    ] {
        assert_eq!(refused(&registry, &command), code, "{command:?}");
    }
    assert_eq!(registry, before);
}

#[test]
fn a_command_that_names_too_many_is_refused_before_they_are_looked_at() {
    let mut registry = with(&["a"]);
    carry_out(&mut registry, &add("g", &["a"]));
    let (many, others) = (["a"; GROUP_MEMBERS_MAX + 1], ["b"; GROUP_MEMBERS_MAX + 1]);
    for command in [add("h", &many), set("g", &many, &others), set("g", &[], &many)] {
        assert_eq!(refused(&registry, &command), Code::TooLarge, "{command:?}");
    }
    // Named twice is in it once.
    carry_out(&mut registry, &add("h", &many[1..]));
    assert_eq!(members(&registry, "h"), (1, vec![1]));
}

#[test]
fn groups_and_their_members_are_bounded() {
    let mut registry = Registry::default();
    let all: Vec<String> = (0..=GROUP_MEMBERS_MAX).map(|number| format!("p{number}")).collect();
    let apply = |registry: &mut Registry, command: &AdminCommand| {
        let event = registry.check(command, WallMillis(17), "an operator", |_| 1)?;
        Ok::<_, Refusal>(registry.apply(&event).unwrap())
    };
    for text in &all {
        apply(&mut registry, &add_peer(text)).unwrap();
    }
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    assert_eq!(refused(&registry, &add("large", &all)), Code::TooLarge);
    let full = MEMBERSHIPS_MAX / GROUP_MEMBERS_MAX;
    for number in 0..full {
        apply(&mut registry, &add(&format!("g{number}"), &all[1..])).unwrap();
    }
    assert_eq!(refused(&registry, &add("more", &all[..1])), Code::LimitReached);
    assert_eq!(refused(&registry, &set("g0", &all[..1], &[])), Code::TooLarge);
    apply(&mut registry, &set("g0", &all[..1], &all[1..2])).unwrap();
    for number in full..GROUPS_MAX {
        apply(&mut registry, &add(&format!("g{number}"), &[])).unwrap();
    }
    assert_eq!(refused(&registry, &add("more", &[])), Code::LimitReached);
}

#[test]
fn an_event_that_does_not_follow_changes_nothing() {
    let mut registry = with(&["a"]);
    carry_out(&mut registry, &add("g", &["a"]));
    let group = registry.group_named("g").unwrap().clone();
    let named =
        |text: &str| Group { name: name(text), id: PeerId(group.id.0 + 1), ..group.clone() };
    for event in [
        AdminEvent::GroupAdded(Group { name: name("h"), ..group.clone() }),
        AdminEvent::GroupAdded(named("g")),
        AdminEvent::GroupAdded(named("a")),
        AdminEvent::GroupAdded(Group { members: vec![PeerId(9)], ..named("h") }),
        AdminEvent::GroupChanged(group.clone()),
        AdminEvent::GroupChanged(Group { version: 2, members: vec![PeerId(9)], ..group.clone() }),
        AdminEvent::GroupRemoved { id: PeerId(group.id.0 + 1), version: 2 },
    ] {
        let before = registry.clone();
        assert!(matches!(registry.apply(&event), Err(StateError::OutOfOrder { .. })), "{event:?}");
        assert_eq!(registry, before);
    }
}
