//! Scripts for questions, answers and watches.

use super::*;
use restante_protocol::codec::{Limits, Next, next_frame, parse_control};
use restante_protocol::frame::Frame;
use restante_protocol::refusal::Code;
use std::task::Waker;

fn desk() -> Desk {
    Desk::new(Arc::new(Doorbell::default()))
}

/// What is written now.
fn asked(desk: &Desk) -> Vec<(u64, Request)> {
    let mut out = BytesMut::new();
    desk.transmit(&mut out);
    let mut asked = Vec::new();
    let mut at = 0;
    while at < out.len() {
        let Next::Frame { frame: Frame::Control(body), consumed } =
            next_frame(&out[at..], &Limits::default()).unwrap()
        else {
            panic!("not a control frame");
        };
        at += consumed;
        match parse_control(body).unwrap() {
            Control::Request { id, request } => asked.push((id, request)),
            other => panic!("not a request: {other:?}"),
        }
    }
    asked
}

fn answer(desk: &Desk, id: u64, result: Result<Reply, Refusal>) -> Option<Answered> {
    desk.handle_response(id, result, &mut Wakes::default()).unwrap()
}

fn removed(version: u64) -> WatchEvent {
    WatchEvent::Removed { version, name: "a".parse().unwrap() }
}

fn event(desk: &Desk, key: usize) -> Poll<Option<Result<WatchEvent, WatchError>>> {
    desk.poll_event(key, &mut Context::from_waker(Waker::noop()))
}

/// The version of the event that is there.
fn version(desk: &Desk, key: usize) -> Option<u64> {
    match event(desk, key) {
        Poll::Ready(Some(Ok(WatchEvent::Removed { version, .. }))) => Some(version),
        Poll::Ready(Some(Ok(WatchEvent::Snapshot { version, .. }))) => Some(version),
        Poll::Pending => None,
        other => panic!("unexpected {other:?}"),
    }
}

#[test]
fn each_question_gets_its_own_answer() {
    let desk = desk();
    let mut node = desk.ask(Request::Node).unwrap();
    let mut peers = desk.ask(Request::Peers { after: None }).unwrap();
    let questions = asked(&desk);
    assert_eq!(questions, [(0, Request::Node), (1, Request::Peers { after: None })]);
    answer(&desk, 1, Ok(Reply::Peers(Default::default())));
    answer(&desk, 0, Err(Refusal::new(Code::NotAllowed, "")));
    assert!(matches!(peers.try_recv(), Ok(Ok(Reply::Peers(_)))));
    assert!(matches!(node.try_recv(), Ok(Err(RequestError::Refused(_)))));
}

#[test]
fn an_answer_to_what_was_not_asked_is_a_violation() {
    let desk = desk();
    let _answer = desk.ask(Request::Node).unwrap();
    let early = desk.handle_response(0, Ok(Reply::Done), &mut Wakes::default());
    assert!(matches!(early, Err(Violation::OutOfTurn(_))), "it has not been written yet");
    asked(&desk);
    answer(&desk, 0, Ok(Reply::Done));
    assert!(desk.handle_response(0, Ok(Reply::Done), &mut Wakes::default()).is_err());
}

#[test]
fn after_a_reconnect_readers_are_asked_again_and_changes_are_not() {
    let desk = desk();
    let mut node = desk.ask(Request::Node).unwrap();
    let mut change = desk.ask(Request::LogFilter { filter: "info".to_owned() }).unwrap();
    let mut flush = desk.ask(Request::Flush).unwrap();
    let given_up = desk.ask(Request::Peers { after: None }).unwrap();
    asked(&desk);
    let mut unwritten = desk.ask(Request::LogFilter { filter: "debug".to_owned() }).unwrap();
    let mut unwritten_flush = desk.ask(Request::Flush).unwrap();
    drop(given_up);
    desk.handle_disconnect();
    assert!(matches!(change.try_recv(), Ok(Err(RequestError::Disconnected))));
    assert!(matches!(flush.try_recv(), Ok(Err(RequestError::Disconnected))));
    assert!(
        matches!(unwritten_flush.try_recv(), Ok(Err(RequestError::Disconnected))),
        "it speaks of acks on the lost connection"
    );
    let again: Vec<_> = asked(&desk).into_iter().map(|(_, request)| request).collect();
    assert_eq!(again, [Request::Node, Request::LogFilter { filter: "debug".to_owned() }]);
    assert!(node.try_recv().is_err() && unwritten.try_recv().is_err());
}

#[test]
fn the_bound_has_its_error() {
    let desk = desk();
    let answers: Vec<_> = (0..WAITING_MAX).map(|_| desk.ask(Request::Node).unwrap()).collect();
    assert!(matches!(desk.ask(Request::Node), Err(RequestError::TooMany { .. })));
    let long = "x".repeat(CONTROL_BYTES_MAX);
    drop(answers);
    let desk = self::desk();
    let outcome = desk.ask(Request::LogFilter { filter: long });
    assert!(matches!(outcome, Err(RequestError::TooLarge { .. })));
}

#[test]
fn a_long_outage_does_not_fill_up_with_questions_that_were_given_up() {
    let desk = desk();
    let sent = desk.ask(Request::Node).unwrap();
    assert_eq!(asked(&desk).len(), 1);
    drop(sent);
    let kept = desk.ask(Request::Peers { after: None }).unwrap();
    for _ in 0..3 * WAITING_MAX {
        drop(desk.ask(Request::Node).unwrap());
    }
    // Its answer is still to come.
    answer(&desk, 0, Ok(Reply::Done));
    assert_eq!(asked(&desk), [(1, Request::Peers { after: None })]);
    drop(kept);
}

#[test]
fn a_watch_resumes_after_what_it_has_and_knows_repeats() {
    let desk = desk();
    let key = desk.watch(None).unwrap();
    let questions = asked(&desk);
    assert_eq!(questions, [(0, Request::Watch { after: None })]);
    answer(&desk, 0, Ok(Reply::Watching));
    let mut wakes = Wakes::default();
    desk.handle_event(
        0,
        WatchEvent::Snapshot { version: 4, peers: Vec::new(), more: false },
        &mut wakes,
    );
    desk.handle_event(0, removed(5), &mut wakes);
    assert_eq!(version(&desk, key), Some(4));
    desk.handle_disconnect();
    let questions = asked(&desk);
    assert_eq!(questions, [(1, Request::Watch { after: Some(5) })]);
    desk.handle_event(0, removed(99), &mut wakes);
    desk.handle_event(1, removed(5), &mut wakes);
    desk.handle_event(1, removed(6), &mut wakes);
    assert_eq!(version(&desk, key), Some(5));
    assert_eq!(version(&desk, key), Some(6));
    assert_eq!(version(&desk, key), None);
    desk.handle_event(
        1,
        WatchEvent::Snapshot { version: 2, peers: Vec::new(), more: false },
        &mut wakes,
    );
    assert_eq!(version(&desk, key), Some(2), "a node that began anew counts anew");
    desk.unwatch(key);
    let questions = asked(&desk);
    assert_eq!(questions, [(2, Request::Unwatch { watch: 1 })]);
}

#[test]
fn half_a_snapshot_is_asked_for_again() {
    let desk = desk();
    desk.watch(Some(3)).unwrap();
    asked(&desk);
    let mut wakes = Wakes::default();
    let part = |more| WatchEvent::Snapshot { version: 7, peers: Vec::new(), more };
    desk.handle_event(0, WatchEvent::Gap { after: 3 }, &mut wakes);
    desk.handle_event(0, part(true), &mut wakes);
    desk.handle_disconnect();
    assert_eq!(asked(&desk), [(1, Request::Watch { after: Some(3) })]);
    desk.handle_event(1, part(true), &mut wakes);
    desk.handle_event(1, part(false), &mut wakes);
    desk.handle_disconnect();
    assert_eq!(asked(&desk), [(2, Request::Watch { after: Some(7) })]);
}

#[test]
fn a_slow_watcher_costs_bounded_memory_and_misses_nothing() {
    let desk = desk();
    let key = desk.watch(Some(0)).unwrap();
    asked(&desk);
    let mut wakes = Wakes::default();
    let many = EVENTS_MAX as u64 + 10;
    for version in 1..=many {
        desk.handle_event(0, removed(version), &mut wakes);
    }
    assert_eq!(asked(&desk), [(1, Request::Unwatch { watch: 0 })]);
    for expected in 1..=EVENTS_MAX as u64 {
        assert_eq!(version(&desk, key), Some(expected));
    }
    assert_eq!(version(&desk, key), None);
    let resumed = Request::Watch { after: Some(EVENTS_MAX as u64) };
    assert_eq!(asked(&desk), [(2, resumed)]);
    desk.handle_event(2, removed(EVENTS_MAX as u64 + 1), &mut wakes);
    assert_eq!(version(&desk, key), Some(EVENTS_MAX as u64 + 1));
}

#[test]
fn the_end_reaches_everybody_once() {
    let desk = desk();
    let mut node = desk.ask(Request::Node).unwrap();
    let key = desk.watch(None).unwrap();
    desk.end(&EndReason::Closed, &mut Wakes::default());
    assert!(matches!(node.try_recv(), Ok(Err(RequestError::Ended(EndReason::Closed)))));
    assert!(matches!(event(&desk, key), Poll::Ready(Some(Err(WatchError::Ended(_))))));
    assert!(matches!(event(&desk, key), Poll::Ready(None)));
    assert!(matches!(desk.ask(Request::Node), Err(RequestError::Ended(_))));
}

#[test]
fn no_more_is_under_way_than_a_node_takes_and_the_rest_follows() {
    let desk = desk();
    let mut answers: Vec<_> =
        (0..2 * REQUESTS_MAX).map(|_| desk.ask(Request::Node).unwrap()).collect();
    desk.ask_attach(Request::Detach { slot: 1 });
    let first = asked(&desk);
    assert_eq!(first.len(), REQUESTS_MAX);
    assert_eq!(asked(&desk), [], "the node has its hands full");
    answer(&desk, first[7].0, Ok(Reply::Done));
    answer(&desk, first[3].0, Err(Refusal::new(Code::Internal, "")));
    assert_eq!(asked(&desk).len(), 2, "each answer makes room, whatever it is");
    // Those whose asker has gone are not asked any more.
    answers.drain(REQUESTS_MAX + 2..);
    first.iter().filter(|(id, _)| ![3, 7].contains(id)).for_each(|(id, _)| {
        answer(&desk, *id, Ok(Reply::Done));
    });
    let last: Vec<_> = asked(&desk).into_iter().map(|(_, request)| request).collect();
    assert_eq!(last, [Request::Detach { slot: 1 }]);
    desk.handle_disconnect();
    assert_eq!(asked(&desk).len(), 2, "what was under way is so no more");
}

#[test]
fn a_refused_detach_is_told_apart_from_one_of_what_is_not_attached() {
    let desk = desk();
    for (result, still_there) in [
        (Ok(Reply::Done), false),
        (Err(Refusal::new(Code::NotFound, "")), false),
        (Err(Refusal::new(Code::Overloaded, "")), true),
        (Err(Refusal::new(Code::OutOfTurn, "")), true),
    ] {
        desk.ask_attach(Request::Detach { slot: 9 });
        let id = asked(&desk)[0].0;
        let Some(Answered::Detach { slot: 9, refused }) = answer(&desk, id, result) else {
            panic!("it is the driver's")
        };
        assert_eq!(refused, still_there);
    }
}
