//! Scripts for the life of an attachment.

use super::*;
use crate::intake::Intake;
use restante_protocol::codec::{Limits, Next, next_frame, put_deliver};
use restante_protocol::frame::Frame;
use restante_protocol::id::{MessageId, NodeTag};
use std::sync::atomic::AtomicU32;
use std::time::Duration;

struct Bench {
    intake: Arc<Intake>,
    slots: Slots,
    now: Instant,
    retry: Reconnect,
}

impl Bench {
    fn new() -> Bench {
        let retry = Reconnect::default();
        let bell = Arc::new(Doorbell::default());
        let epochs = Arc::new(Epochs::default());
        let slots = Slots::new(retry, epochs.clone());
        // Attachments point to an intake; the tests drive the core beside it.
        let intake = Arc::new(Intake::new(bell, retry, epochs));
        Bench { intake, slots, now: Instant::now(), retry }
    }

    fn open(&mut self, name: &str, grant: Option<u64>) -> Arc<Attachment> {
        let intake = self.intake.clone();
        let name = name.parse().unwrap();
        let attachment = |slot| {
            let (generation, reader) = (AtomicU32::new(DETACHED), Arc::new(Doorbell::default()));
            Arc::new(Attachment { intake, slot, name, generation, created: false.into(), reader })
        };
        self.slots.open(grant, attachment).unwrap()
    }

    /// Opens and answers the attach.
    fn attached(&mut self, name: &str, grant: Option<u64>) -> Arc<Attachment> {
        let attachment = self.open(name, grant);
        self.asks();
        self.accept(attachment.slot);
        attachment
    }

    /// What is asked for: `attach NAME@SLOT+GRANT` or `detach SLOT`.
    fn asks(&mut self) -> Vec<String> {
        let mut asks = Vec::new();
        self.slots.poll_ask(self.now, &mut asks);
        asks.into_iter()
            .flat_map(|ask| match ask {
                Ask::Detach { slot } => vec![format!("detach {slot}")],
                Ask::Attach(receivers) => receivers
                    .into_iter()
                    .map(|to| {
                        let grant = to.grant.map_or(String::new(), |grant| format!("+{grant}"));
                        format!("attach {}@{}{grant}", to.name, to.slot)
                    })
                    .collect(),
            })
            .collect()
    }

    fn accept(&mut self, slot: u32) {
        let result = AttachResult { slot, first_tag: 1, created: false, refusal: None };
        self.slots.handle_attached(result, self.now, 0.5);
    }

    fn decline(&mut self, slot: u32, code: Code) {
        let refusal = Some(Refusal::new(code, "no"));
        let result = AttachResult { slot, first_tag: 0, created: false, refusal };
        self.slots.handle_attached(result, self.now, 0.5);
    }

    fn deliver(&mut self, slot: u32, tag: u64) -> Result<(), Violation> {
        self.deliver_of_epoch(slot, tag, 1)
    }

    /// Deliveries (slot, tag, body) as one read.
    fn chunk(&self, deliveries: &[(u32, u64, &[u8])]) -> Bytes {
        let mut out = BytesMut::new();
        for (slot, tag, body) in deliveries {
            let (slot, tag, id) = (*slot, *tag, MessageId::new(1, NodeTag(1), 0, *tag));
            let (redelivered, attempt, epoch) = (false, 1, 1);
            put_deliver(&mut out, &Deliver { redelivered, attempt, slot, tag, epoch, id, body });
        }
        out.freeze()
    }

    fn deliver_chunk(&mut self, chunk: &Bytes) {
        let mut at = 0;
        while let Next::Frame { frame: Frame::Deliver(deliver), consumed } =
            next_frame(&chunk[at..], &Limits::default()).unwrap()
        {
            self.slots.handle_deliver(&deliver, chunk).unwrap();
            at += consumed;
        }
    }

    fn deliver_of_epoch(&mut self, slot: u32, tag: u64, epoch: u32) -> Result<(), Violation> {
        let id = MessageId::new(1, NodeTag(1), 0, tag);
        let mut out = BytesMut::new();
        let deliver =
            Deliver { redelivered: false, attempt: 1, slot, tag, epoch, id, body: &[0, b'x'] };
        put_deliver(&mut out, &deliver);
        let chunk = out.freeze();
        match next_frame(&chunk, &Limits::default()).unwrap() {
            Next::Frame { frame: Frame::Deliver(deliver), .. } => {
                self.slots.handle_deliver(&deliver, &chunk)
            }
            other => panic!("not a delivery: {other:?}"),
        }
    }

    /// Whose slot it is.
    fn of(&self, slot: u32) -> Option<Arc<Attachment>> {
        self.slots.slots.get(slot as usize).map(|slot| slot.attachment.clone())
    }

    fn leave(&mut self, slot: u32) {
        let attachment = self.of(slot).unwrap();
        self.slots.leave(&attachment);
    }

    fn grant(&mut self, slot: u32, more: u64) {
        let attachment = self.of(slot).unwrap();
        self.slots.grant(&attachment, more);
    }

    /// Tags that are taken, or what is learnt instead.
    fn take(&mut self, slot: u32, untaken: u64) -> Result<Vec<u64>, String> {
        let mut items = VecDeque::new();
        let Some(attachment) = self.of(slot) else { return Err("over".to_owned()) };
        match self.slots.take(&attachment, 64, untaken, &mut items) {
            Taken::Items => Ok(items.into_iter().map(|item| item.tag).collect()),
            Taken::Nothing => Ok(Vec::new()),
            Taken::Trouble(error) => Err(error.to_string()),
            Taken::Over => Err("over".to_owned()),
        }
    }

    /// What the node is told: `ack SLOT 1-3`, `grant SLOT 7`, `value`, `nack`.
    fn told(&mut self) -> Vec<String> {
        let mut out = BytesMut::new();
        self.slots.transmit(&mut out);
        let mut told = Vec::new();
        let mut at = 0;
        while at < out.len() {
            let Next::Frame { frame, consumed } =
                next_frame(&out[at..], &Limits::default()).unwrap()
            else {
                panic!("half a frame");
            };
            at += consumed;
            match frame {
                Frame::Ack(ack) => {
                    let ranges = ack.ranges.iter().map(|r| format!(" {}-{}", r.first, r.last));
                    told.push(format!("ack {}{}", ack.slot, ranges.collect::<String>()));
                }
                Frame::Grant(grant) => {
                    told.push(format!("grant {} {}", grant.slot, grant.messages))
                }
                Frame::AckValue(ack) => told.push(format!("value {} {}", ack.slot, ack.tag)),
                other => panic!("unexpected {other:?}"),
            }
        }
        told
    }

    fn ack(&mut self, attachment: &Attachment, generation: u32, tag: u64) -> bool {
        self.slots.ack(attachment, generation, tag)
    }
}

fn generation(attachment: &Attachment) -> u32 {
    attachment.generation.load(Ordering::Acquire)
}

const NOTHING: [&str; 0] = [];

#[test]
fn deliveries_are_taken_in_order_and_acks_told_as_ranges() {
    let mut b = Bench::new();
    let a = b.open("a", None);
    assert_eq!(b.asks(), ["attach a@0"]);
    assert_eq!(b.asks(), NOTHING, "asked once");
    b.accept(0);
    for tag in 1..=5 {
        b.deliver(0, tag).unwrap();
    }
    assert_eq!(b.take(0, 0).unwrap(), [1, 2, 3, 4, 5]);
    for tag in [2, 1, 5, 4] {
        assert!(b.ack(&a, generation(&a), tag));
    }
    assert_eq!(b.told(), ["ack 0 1-2 4-5"]);
    assert_eq!(b.told(), NOTHING);
}

#[test]
fn deliveries_may_overtake_the_answer_to_the_attach() {
    let mut b = Bench::new();
    let a = b.open("a", None);
    b.asks();
    b.deliver(0, 1).unwrap();
    b.accept(0);
    b.deliver(0, 2).unwrap();
    assert_eq!(b.take(0, 0).unwrap(), [1, 2]);
    assert!(b.ack(&a, generation(&a), 1));
    assert_eq!(b.told(), ["ack 0 1-1"]);
}

#[test]
fn a_lost_connection_voids_buffered_deliveries_and_late_acks() {
    let mut b = Bench::new();
    let a = b.attached("a", None);
    b.deliver(0, 1).unwrap();
    b.deliver(0, 2).unwrap();
    let old = generation(&a);
    assert!(b.ack(&a, old, 1));
    b.slots.handle_disconnect();
    assert!(b.slots.flushes.lost, "an ack was given that no flush has covered");
    assert_eq!(b.take(0, 0).unwrap(), [] as [u64; 0], "they will be delivered again");
    assert!(!b.ack(&a, old, 2));
    assert_eq!(b.asks(), ["attach a@0"]);
    b.accept(0);
    assert_eq!(b.told(), NOTHING, "acks of the old attachment are not told to the new one");
    b.deliver(0, 1).unwrap();
    assert!(!b.ack(&a, old, 1), "tags begin again; the old delivery is another");
    assert!(b.ack(&a, generation(&a), 1));
    assert_eq!(b.told(), ["ack 0 1-1"]);
}

#[test]
fn grants_count_what_the_reader_has_taken_over_all_attachments() {
    let mut b = Bench::new();
    let a = b.open("a", Some(10));
    assert_eq!(b.asks(), ["attach a@0+10"]);
    b.accept(0);
    assert_eq!(b.told(), NOTHING, "the attach has told it");
    for tag in 1..=4 {
        b.deliver(0, tag).unwrap();
    }
    assert_eq!(b.take(0, 0).unwrap().len(), 4);
    b.grant(0, 5);
    assert_eq!(b.told(), ["grant 0 15"]);
    b.slots.handle_disconnect();
    // One of the four had not been handed out.
    assert_eq!(b.take(0, 1).unwrap(), [] as [u64; 0]);
    assert_eq!(b.asks(), ["attach a@0+12"]);
    b.grant(0, 1);
    assert_eq!(b.told(), NOTHING, "not before the node knows the slot");
    b.accept(0);
    assert_eq!(b.told(), ["grant 0 13"]);
    drop(a);
}

#[test]
fn what_was_not_handed_out_is_granted_again_even_after_the_attach() {
    let mut b = Bench::new();
    b.attached("a", Some(2));
    b.deliver(0, 1).unwrap();
    b.deliver(0, 2).unwrap();
    assert_eq!(b.take(0, 0).unwrap(), [1, 2]);
    b.slots.handle_disconnect();
    assert_eq!(b.asks(), ["attach a@0+0"]);
    b.accept(0);
    assert_eq!(b.told(), NOTHING);
    assert_eq!(b.take(0, 2).unwrap(), [] as [u64; 0]);
    assert_eq!(b.told(), ["grant 0 2"]);
}

#[test]
fn the_first_attach_is_refused_to_its_caller_and_the_slot_is_free_again() {
    let mut b = Bench::new();
    let a = b.open("a", None);
    b.asks();
    assert!(b.slots.poll_attached(&a).is_none());
    b.decline(0, Code::UnknownReceiver);
    let outcome = b.slots.poll_attached(&a);
    assert!(matches!(outcome, Some(Err(AttachError::Refused { .. }))), "{outcome:?}");
    assert_eq!(b.open("b", None).slot, 0);
    assert_eq!(b.asks(), ["attach b@0"]);
}

#[test]
fn a_detached_slot_says_so_once_and_is_attached_again_with_backoff() {
    let mut b = Bench::new();
    let a = b.attached("a", None);
    b.deliver(0, 1).unwrap();
    let reason = Refusal::new(Code::ShuttingDown, "the peer moves");
    b.slots.handle_detached(0, reason, b.now, 1.0).unwrap();
    assert!(b.take(0, 0).unwrap_err().contains("the peer moves"));
    assert_eq!(b.take(0, 0).unwrap(), [] as [u64; 0], "its deliveries went back to the queue");
    assert_eq!(b.asks(), NOTHING);
    assert_eq!(b.slots.next_deadline(), Some(b.now + b.retry.wait_min));
    b.now += b.retry.wait_min;
    assert_eq!(b.asks(), ["attach a@0"]);
    b.decline(0, Code::NotFound);
    assert!(b.take(0, 0).is_err());
    b.now += Duration::from_secs(60);
    assert_eq!(b.asks(), ["attach a@0"]);
    b.decline(0, Code::NotFound);
    assert_eq!(b.take(0, 0).unwrap(), [] as [u64; 0], "the same reason is not told twice");
    b.now += Duration::from_secs(60);
    b.asks();
    b.accept(0);
    b.deliver(0, 1).unwrap();
    assert_eq!(b.take(0, 0).unwrap(), [1]);
    drop(a);
}

#[test]
fn acks_that_crossed_a_detach_are_not_claimed_by_a_flush() {
    let mut b = Bench::new();
    let (a, other) = (b.attached("a", None), b.attached("b", None));
    for (attachment, slot) in [(&a, 0), (&other, 1)] {
        b.deliver(slot, 1).unwrap();
        assert!(b.ack(attachment, generation(attachment), 1));
    }
    // The flush that covers what `a` has given.
    b.slots.flushes.known = 1;
    let gone = || Refusal::new(Code::NotFound, "removed");
    b.slots.handle_detached(0, gone(), b.now, 0.5).unwrap();
    assert!(!b.slots.flushes.lost, "what it gave was recorded before");
    b.slots.handle_detached(1, gone(), b.now, 0.5).unwrap();
    assert!(b.slots.flushes.lost);
}

#[test]
fn a_detach_before_the_answer_to_the_attach_refuses_it() {
    let mut b = Bench::new();
    let first = b.open("a", None);
    b.asks();
    let gone = || Refusal::new(Code::NotFound, "removed");
    b.slots.handle_detached(0, gone(), b.now, 0.5).unwrap();
    let outcome = b.slots.poll_attached(&first);
    assert!(matches!(outcome, Some(Err(AttachError::Refused { .. }))), "{outcome:?}");

    let again = b.attached("a", None);
    b.slots.handle_disconnect();
    b.asks();
    b.slots.handle_detached(again.slot, gone(), b.now, 0.5).unwrap();
    assert!(b.take(again.slot, 0).unwrap_err().contains("removed"));
    b.now += Duration::from_secs(60);
    assert_eq!(b.asks(), ["attach a@0"], "tried again as after any refusal");
    b.leave(again.slot);
    b.slots.handle_detached(again.slot, gone(), b.now, 0.5).unwrap();
    b.decline(again.slot, Code::NotFound);
    assert_eq!(b.take(again.slot, 0).unwrap_err(), "over");
}

#[test]
fn our_own_lost_connection_may_still_be_attached_for_a_while() {
    let mut b = Bench::new();
    let a = b.attached("a", None);
    b.slots.handle_disconnect();
    for _ in 0..ALREADY_ATTACHED_QUIETLY {
        assert_eq!(b.asks(), ["attach a@0"]);
        b.decline(0, Code::AlreadyAttached);
        assert_eq!(b.take(0, 0).unwrap(), [] as [u64; 0]);
        b.now += Duration::from_secs(60);
    }
    b.asks();
    b.decline(0, Code::AlreadyAttached);
    assert!(b.take(0, 0).is_err(), "then somebody else is");
    drop(a);
}

#[test]
fn leaving_tells_acks_and_tolerates_what_is_on_its_way() {
    let mut b = Bench::new();
    let a = b.attached("a", None);
    b.deliver(0, 1).unwrap();
    assert_eq!(b.take(0, 0).unwrap(), [1]);
    assert!(b.ack(&a, generation(&a), 1));
    b.leave(0);
    assert_eq!(b.asks(), ["detach 0"]);
    assert_eq!(b.told(), ["ack 0 1-1"]);
    b.deliver(0, 2).unwrap();
    b.slots.handle_detached(0, Refusal::new(Code::NotFound, "removed"), b.now, 0.5).unwrap();
    assert_eq!(b.open("b", None).slot, 1, "the slot is not free before the node has answered");
    b.slots.handle_left(0);
    assert!(matches!(b.deliver(0, 3), Err(Violation::OutOfTurn(_))));
    assert!(!b.ack(&a, generation(&a), 1));
}

#[test]
fn leaving_while_the_attach_is_under_way_detaches_once_it_is_answered() {
    let mut b = Bench::new();
    let a = b.open("a", None);
    b.asks();
    b.leave(a.slot);
    assert_eq!(b.asks(), NOTHING);
    b.deliver(0, 1).unwrap();
    b.accept(0);
    assert_eq!(b.asks(), ["detach 0"]);
    b.slots.handle_left(0);
    let other = b.open("b", None);
    b.asks();
    b.leave(other.slot);
    b.decline(other.slot, Code::NotFound);
    assert_eq!(b.asks(), NOTHING);
    assert_eq!(b.take(other.slot, 0).unwrap_err(), "over");
}

#[test]
fn a_refused_detach_is_asked_again_and_the_slot_stays_taken_until_then() {
    let mut b = Bench::new();
    b.attached("a", None);
    b.leave(0);
    assert_eq!(b.asks(), ["detach 0"]);
    b.slots.handle_not_left(0, b.now, 0.5);
    assert_eq!(b.asks(), NOTHING, "not at once");
    b.deliver(0, 1).unwrap();
    assert_eq!(b.open("b", None).slot, 1);
    b.now = b.slots.next_deadline().unwrap();
    assert_eq!(b.asks(), ["detach 0", "attach b@1"]);
    b.slots.handle_left(0);
    assert_eq!(b.open("c", None).slot, 0);
}

#[test]
fn a_new_owner_of_a_slot_is_not_acked_for_by_an_old_delivery() {
    let mut b = Bench::new();
    let a = b.attached("a", None);
    b.deliver(0, 1).unwrap();
    let old = generation(&a);
    b.leave(0);
    b.asks();
    b.slots.handle_left(0);
    let other = b.attached("b", None);
    assert_eq!(other.slot, a.slot);
    b.deliver(0, 1).unwrap();
    assert!(!b.ack(&a, old, 1));
    assert_eq!(b.told(), NOTHING);
}

#[test]
fn the_owner_of_a_refused_slot_leaves_its_next_owner_alone() {
    let mut b = Bench::new();
    let refused = b.open("a", None);
    b.asks();
    b.decline(0, Code::NotFound);
    assert!(matches!(b.slots.poll_attached(&refused), Some(Err(_))));
    let next = b.attached("b", Some(1));
    assert_eq!(next.slot, refused.slot);
    b.deliver(0, 1).unwrap();
    let mut items = VecDeque::new();
    assert!(matches!(b.slots.take(&refused, 64, 0, &mut items), Taken::Over));
    assert!(b.slots.poll_attached(&refused).is_none());
    b.slots.grant(&refused, 5);
    b.slots.leave(&refused);
    assert_eq!((b.asks(), b.told()), (Vec::new(), Vec::new()), "nothing was asked for");
    assert_eq!(b.take(0, 0).unwrap(), [1]);
}

#[test]
fn a_node_that_breaks_the_rules_is_named() {
    let mut b = Bench::new();
    b.attached("a", None);
    b.deliver(0, 5).unwrap();
    assert_eq!(b.deliver(0, 5), Err(Violation::BadTag { slot: 0, tag: 5, last: 5 }));
    assert_eq!(b.deliver(0, 4), Err(Violation::BadTag { slot: 0, tag: 4, last: 5 }));
    assert!(matches!(b.deliver(9, 1), Err(Violation::OutOfTurn(_))));
}

#[test]
fn what_comes_again_to_a_reader_that_stands_still_is_dropped_past_the_bound() {
    let mut b = Bench::new();
    let most = QUEUE_MESSAGES_MAX as u64;
    b.attached("a", Some(most + 2));
    for tag in 1..=most + 2 {
        b.deliver(0, tag).unwrap();
    }
    assert_eq!(b.told(), [format!("grant 0 {}", most + 4)], "two did not reach the reader");
    let mut tags = Vec::new();
    while tags.len() < QUEUE_MESSAGES_MAX {
        tags.extend(b.take(0, 0).unwrap());
    }
    assert_eq!(tags.last(), Some(&most));
    b.deliver(0, most + 3).unwrap();
    assert_eq!(b.take(0, 0).unwrap(), [most + 3]);
    b.slots.handle_disconnect();
    assert_eq!(b.asks(), ["attach a@0+1"]);
}

#[test]
fn small_bodies_that_nobody_takes_do_not_pin_what_came_between_them() {
    let mut b = Bench::new();
    b.attached("slow", None);
    b.attached("quick", None);
    let large = vec![0; 60_000];
    let mut weak = Vec::new();
    for tag in 1..=2_000 {
        let chunk = b.chunk(&[(0, tag, &b"small"[..]), (1, tag, &large)]);
        b.deliver_chunk(&chunk);
        assert_eq!(b.take(1, 0).unwrap(), [tag]);
        weak.push(chunk);
    }
    // What the queue holds of a chunk makes it shared.
    let pinned = weak.into_iter().filter(|chunk| !chunk.is_unique()).count();
    assert!((1..=20).contains(&pinned), "{pinned} chunks of 60 KB wait for 2,000 small bodies");
    assert_eq!(b.take(0, 0).unwrap().len(), 64);
}

#[test]
fn bodies_that_fill_their_chunks_are_not_copied() {
    let mut b = Bench::new();
    b.attached("a", None);
    let body = [0; 200];
    let mut chunks = Vec::new();
    for chunk in 0..200 {
        let tags = chunk * 100 + 1..=chunk * 100 + 100;
        let chunk = b.chunk(&tags.map(|tag| (0, tag, &body[..])).collect::<Vec<_>>());
        b.deliver_chunk(&chunk);
        chunks.push(chunk);
    }
    assert!(chunks.iter().all(|chunk| !chunk.is_unique()), "each is still held by its bodies");
    while !b.take(0, 0).unwrap().is_empty() {}
    assert!(chunks.iter().all(Bytes::is_unique));
    assert_eq!(b.slots.slots[0].pinned_bytes, 0);
}

#[test]
fn a_stale_owner_of_the_journal_is_not_listened_to() {
    let mut b = Bench::new();
    b.attached("a", None);
    b.deliver_of_epoch(0, 1, 7).unwrap();
    b.deliver_of_epoch(0, 2, 6).unwrap();
    b.deliver_of_epoch(0, 3, 7).unwrap();
    assert_eq!(b.take(0, 0).unwrap(), [1, 3]);
}

#[test]
fn the_end_is_told_once_after_what_was_buffered_is_void() {
    let mut b = Bench::new();
    let a = b.attached("a", None);
    b.deliver(0, 1).unwrap();
    b.slots.end(EndReason::Closed);
    assert_eq!(b.take(0, 0).unwrap_err(), EndReason::Closed.to_string());
    assert_eq!(b.take(0, 0).unwrap_err(), "over");
    assert!(!b.slots.ack(&a, generation(&a), 1));
    b.leave(0);
    let intake = b.intake.clone();
    let reader = Arc::new(Doorbell::default());
    let make = |slot| {
        let generation = AtomicU32::new(DETACHED);
        Arc::new(Attachment {
            intake,
            slot,
            name: "z".parse().unwrap(),
            generation,
            created: false.into(),
            reader,
        })
    };
    assert!(matches!(b.slots.open(None, make), Err(AttachError::Ended(EndReason::Closed))));
}
