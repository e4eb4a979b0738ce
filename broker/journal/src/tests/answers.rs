//! Questions to the journal: who gets an answer, and what is said of what is just being done.

use super::super::ledger::{self, Question};
use super::super::reader::{self, Request};
use super::super::state::Standing;
use super::rig::Rig;
use super::{A, batch_of};
use restante_actors::journal::{Lane, Read, Settle};
use std::sync::mpsc::channel;
use tokio::sync::oneshot;

fn read_all() -> Read {
    let (lane, after, through) = (Lane::Open, 0, u64::MAX);
    Read { peer: A, lane, after, through, bytes_max: 1 << 20, messages_max: 1_000 }
}

/// Both threads, each with a question and then told to end; says how often they read or open a file, and
/// whether the questions got answers. Without `waiting` nobody waits for these any more.
fn ask(rig: &Rig, waiting: bool) -> (u64, [bool; 2]) {
    let shared = &rig.engine.shared;
    let number = rig.lane(A).bodies.into_keys().next().expect("one is open");
    let before = rig.disk.turns();
    let (requests, requested) = channel();
    let (page, paged) = oneshot::channel();
    requests.send(Request::Next(read_all(), page)).expect("it is there");
    requests.send(Request::Close).expect("it is there");
    let (questions, asked) = channel();
    let (life, told) = oneshot::channel();
    questions.send(Question::Lookup(number, life)).expect("it is there");
    questions.send(Question::Close).expect("it is there");
    let waits = waiting.then_some((paged, told));
    reader::run(shared, &requested);
    ledger::run(shared, &asked);
    drop((requested, asked));
    let answered =
        waits.map(|(paged, told)| [paged.blocking_recv().is_ok(), told.blocking_recv().is_ok()]);
    (rig.disk.turns() - before, answered.unwrap_or_default())
}

#[test]
fn nothing_is_read_for_those_that_wait_no_more_or_of_a_journal_that_closes() {
    let rig = Rig::with_history(false);
    let (turns, answered) = ask(&rig, true);
    assert!(turns > 0 && answered == [true, true], "{turns} {answered:?}");
    assert_eq!(ask(&rig, false), (0, [false, false]), "they are gone");
    rig.engine.shared.end_answers();
    assert_eq!(ask(&rig, true), (0, [false, false]), "it is being closed");
}

/// Between the change of the state and the record's place in the queue: a crash would bring it back.
#[test]
fn a_message_whose_ack_is_on_its_way_to_the_queue_has_not_ended() {
    let mut rig = Rig::new();
    let batch = batch_of(1, &[A.0], &[b"\0x"]);
    let (_, number) = rig.engine.shared.append(batch).expect("room");
    rig.write();
    let shared = &rig.engine.shared;
    let queue = shared.intake.lock();
    let life = std::thread::scope(|scope| {
        scope.spawn(|| shared.settle(Settle::acked(A, 5, number, vec![number])));
        while shared.state.lock().standing(A, number) == Standing::Open {
            std::thread::yield_now();
        }
        let life = shared.lookup(number);
        drop(queue);
        life
    });
    assert_eq!(life.expect("it is there").receivers, [(A, None)]);
}
