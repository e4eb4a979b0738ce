//! Receivers that the node dials.

use crate::wire::{Bench, Door, welcome};
use restante_protocol::admin::{AdminCommand, PeerPatch};
use restante_protocol::control::{Control, Reply, Request};
use restante_protocol::limits::REASON_BYTES_MAX;
use restante_protocol::refusal::{Code, Refusal};

fn add(bench: &Bench, name: &str, url: &str) {
    let settings = PeerPatch { backoff_ms_min: Some(20), ..PeerPatch::default() };
    let (name, url) = (name.parse().unwrap(), url.parse().unwrap());
    let command = AdminCommand::PeerAdd { name, url, settings };
    bench.guest().ask(Request::Admin(command)).unwrap();
}

#[test]
fn a_receiver_is_dialled_and_served() {
    let (bench, door) = (Bench::new(), Door::new());
    add(&bench, "a", &door.url());
    let mut producer = bench.producer(1, &["a"]);
    producer.publish(1, &[0], b"one");
    producer.publish(2, &[0], b"two");
    producer.confirmed(2);
    let (mut receiver, hello) = door.accept();
    assert_eq!(hello.deliver_as.unwrap().as_str(), "a");
    assert_eq!(hello.producer, None);
    receiver.say(&welcome(None));
    assert_eq!(receiver.line(), "deliver 0 1 one", "first a probe");
    receiver.ack(0, 1, 1);
    assert_eq!(receiver.line(), "deliver 0 2 two");
    receiver.ack(0, 2, 2);
    assert!(receiver.ask(Request::Flush).is_ok(), "a dialled receiver may ask too");
}

#[test]
fn a_welcome_may_grant_little() {
    let (bench, door) = (Bench::new(), Door::new());
    add(&bench, "a", &door.url());
    let mut producer = bench.producer(1, &["a"]);
    (1..=3).for_each(|sequence| producer.publish(sequence, &[0], b"x"));
    producer.confirmed(3);
    let (mut receiver, _) = door.accept();
    receiver.say(&welcome(Some(1)));
    assert_eq!(receiver.line(), "deliver 0 1 x");
    receiver.ack(0, 1, 1);
    let (heard, _) = receiver.ask_amid(Request::Flush);
    assert!(heard.is_empty(), "{heard:?}");
    receiver.grant(0, 2);
    assert_eq!(receiver.line(), "deliver 0 2 x");
}

#[test]
fn a_lost_link_is_dialled_again_and_what_was_out_is_flagged() {
    let (bench, door) = (Bench::new(), Door::new());
    add(&bench, "a", &door.url());
    let mut producer = bench.producer(1, &["a"]);
    producer.publish(1, &[0], b"one");
    producer.confirmed(1);
    let (mut first, _) = door.accept();
    first.say(&welcome(None));
    assert_eq!(first.line(), "deliver 0 1 one");
    drop(first);
    let (mut second, _) = door.accept();
    second.say(&welcome(None));
    let heard = second.line();
    assert!(heard.ends_with(" one again"), "{heard}");
}

#[test]
fn whoever_answers_wrongly_is_tried_again() {
    let (bench, door) = (Bench::new(), Door::new());
    add(&bench, "a", &door.url());
    let (mut rude, _) = door.accept();
    rude.send(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    assert_eq!(rude.goodbye().code, Code::Unsupported);
    let (mut busy, _) = door.accept();
    busy.say(&Control::Goodbye(Refusal::new(Code::Overloaded, "later")));
    assert_eq!(busy.line(), "closed");
    let (mut ready, _) = door.accept();
    ready.say(&welcome(None));
    assert!(ready.ask(Request::Node).is_ok());
}

#[test]
fn a_receiver_that_says_no_welcome_is_given_up() {
    let door = Door::new();
    let bench = Bench::with(|config| config.dial_ms_max = 150);
    add(&bench, "a", &door.url());
    let (mut mute, _) = door.accept();
    assert_eq!(mute.line(), "closed");
    door.accept();
}

#[test]
fn a_dialled_receiver_publishes_elsewhere() {
    let (bench, door) = (Bench::new(), Door::new());
    add(&bench, "a", &door.url());
    let (mut receiver, _) = door.accept();
    receiver.say(&welcome(None));
    receiver.publish(1, &[0], b"x");
    assert_eq!(receiver.line(), "refuse 1 out_of_turn");
}

#[test]
fn black_holes_do_not_keep_others_waiting() {
    let bench = Bench::with(|config| {
        config.dials_max = 4;
        config.dial_ms_max = 1_000;
    });
    // They accept and never say welcome.
    let holes: Vec<_> = (0..8).map(|_| Door::new()).collect();
    for (number, hole) in holes.iter().enumerate() {
        add(&bench, &format!("hole{number}"), &hole.url());
    }
    let held: Vec<_> = holes.iter().map(Door::accept).collect();
    let door = Door::new();
    add(&bench, "a", &door.url());
    let (mut receiver, _) = door.accept();
    receiver.say(&welcome(None));
    assert!(receiver.ask(Request::Node).is_ok());
    drop(held);
}

#[test]
fn a_receivers_long_story_is_cut_before_it_is_kept() {
    let (bench, door) = (Bench::new(), Door::new());
    add(&bench, "a", &door.url());
    let (mut receiver, _) = door.accept();
    let story = Refusal::new(Code::Overloaded, "so it came that ".repeat(60_000));
    receiver.say(&welcome(None));
    receiver.say(&Control::Goodbye(story));
    // The node has heard it by the time it dials again.
    let (_again, _) = door.accept();
    let Ok(Reply::Peer(info)) = bench.guest().ask(Request::Peer { name: "a".to_owned() }) else {
        panic!("no answer")
    };
    let why = info.status.why;
    assert!(why.contains("so it came that") && why.len() < 2 * REASON_BYTES_MAX, "{}", why.len());
}
