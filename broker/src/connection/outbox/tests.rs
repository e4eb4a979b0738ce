use super::*;
use restante_protocol::codec::{Limits, Next, next_frame};
use restante_protocol::control::WatchEvent;
use restante_protocol::frame::Frame;
use restante_protocol::id::MessageId;
use std::sync::atomic::AtomicUsize;

const LIMITS: Limits = Limits::with_payload(1024 * 1024);

/// What the connection would write now, one line a frame.
fn written(outbox: &Outbox) -> Vec<String> {
    let mut buffer = BytesMut::new();
    outbox.take(&mut buffer);
    outbox.wrote(buffer.len());
    let (mut lines, mut at) = (Vec::new(), 0);
    while at < buffer.len() {
        let Ok(Next::Frame { frame, consumed }) = next_frame(&buffer[at..], &LIMITS) else {
            panic!("not whole frames");
        };
        at += consumed;
        lines.push(match frame {
            Frame::Confirm(c) => {
                format!("confirm {}+{} {}", c.first_sequence, c.count, c.first_id.0)
            }
            Frame::Refuse(r) => format!("refuse {}", r.sequence),
            Frame::Deliver(d) => format!("deliver {} {} {}", d.slot, d.tag, d.body.len()),
            Frame::Reply(r) => format!("reply {} {}", r.sequence, r.value.len()),
            Frame::Heartbeat => "heartbeat".to_owned(),
            Frame::Control(body) => match codec::parse_control(body).unwrap() {
                Control::Detached { slot, .. } => format!("detached {slot}"),
                other => format!("{other:?}"),
            },
            other => format!("{other:?}"),
        });
    }
    lines
}

fn confirm(first_sequence: u64, count: u32, first_id: u128) -> Confirm {
    Confirm { first_sequence, count, first_id: MessageId(first_id) }
}

fn refusal(sequence: u64) -> Refuse {
    let (code, receivers) = (Code::NoReceiver, Default::default());
    let members = Vec::new();
    Refuse { sequence, id: None, code, receivers, members, detail: String::new() }
}

/// Hands a link deliveries of these lengths, under tags from 1 on.
fn transmit(link: &OutboxLink, bytes: &[usize]) {
    let zeroes = vec![0; bytes.iter().copied().max().unwrap_or(0)];
    let deliveries = (1..).zip(bytes).map(|(tag, bytes)| {
        let (id, body) = (MessageId(1), &zeroes[..*bytes]);
        Outgoing { tag, attempt: 1, redelivered: false, id, body }
    });
    link.transmit(&mut { deliveries });
}

struct Wakes(AtomicUsize);

impl std::task::Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

#[test]
fn runs_that_continue_each_other_become_one_confirm() {
    let outbox = Outbox::new(1, 7);
    outbox.confirm(confirm(1, 2, 100), 10);
    outbox.confirm(confirm(3, 1, 102), 10);
    outbox.confirm(confirm(4, 1, 200), 10);
    outbox.confirm(confirm(6, 1, 201), 10);
    assert_eq!(written(&outbox), ["confirm 1+3 100", "confirm 4+1 200", "confirm 6+1 201"]);
    assert!(written(&outbox).is_empty());
}

#[test]
fn outcomes_keep_their_order_and_give_credit_back() {
    let outbox = Outbox::new(1, 7);
    outbox.confirm(confirm(1, 2, 100), 30);
    outbox.refuse(&refusal(3), 12);
    outbox.confirm(confirm(4, 1, 102), 15);
    outbox.reply(1, ReplyKind::Acked, b"yes");
    let news = outbox.listen(Waker::noop());
    assert_eq!(news.told, (4, 57));
    assert_eq!(outbox.listen(Waker::noop()).told, (0, 0), "told once");
    let lines = ["confirm 1+2 100", "refuse 3", "confirm 4+1 102", "reply 1 3"];
    assert_eq!(written(&outbox), lines);
}

#[test]
fn whoever_speaks_first_wakes_the_connection_once() {
    let wakes = Arc::new(Wakes(AtomicUsize::new(0)));
    let outbox = Outbox::new(1, 7);
    outbox.listen(&Waker::from(Arc::clone(&wakes)));
    outbox.confirm(confirm(1, 1, 1), 1);
    outbox.heartbeat();
    transmit(&OutboxLink::dialled(&outbox, 1), &[10]);
    assert_eq!(wakes.0.load(Relaxed), 1);
    outbox.listen(&Waker::from(Arc::clone(&wakes)));
    outbox.end(Refusal::new(Code::ShuttingDown, ""));
    assert_eq!(wakes.0.load(Relaxed), 2);
}

#[test]
fn deliveries_stop_at_the_bound_and_go_on_at_half_of_it() {
    let outbox = Outbox::new(1, 7);
    let link = OutboxLink::dialled(&outbox, 9);
    assert_eq!(link.room(), DELIVERY_BYTES_MAX);
    transmit(&link, &[DELIVERY_BYTES_MAX - 100, 1000]);
    assert_eq!((link.room(), link.room()), (0, 0), "the last one was taken all the same");

    let mut buffer = BytesMut::new();
    assert!(outbox.take(&mut buffer));
    let half = buffer.len() / 2 - 1000;
    assert!(outbox.wrote(half).is_empty());
    assert_eq!(outbox.wrote(2000), [Congested { slot: 0, number: 9 }], "named once");
    assert!(outbox.wrote(buffer.len() - half - 2000).is_empty());
    assert_eq!(link.room(), DELIVERY_BYTES_MAX);
}

#[test]
fn links_that_found_no_room_take_turns() {
    let outbox = Outbox::new(1, 7);
    let links: Vec<_> =
        (0..3).map(|slot| OutboxLink::attached(&outbox, slot, slot.into())).collect();
    links.iter().for_each(|link| assert!(!link.open()));
    let mut firsts = Vec::new();
    let mut order = vec![0, 1, 2];
    for _ in 0..3 {
        transmit(&links[order[0]], &[DELIVERY_BYTES_MAX]);
        for slot in &order {
            assert_eq!(links[*slot].room(), 0);
        }
        let mut buffer = BytesMut::new();
        outbox.take(&mut buffer);
        order = outbox.wrote(buffer.len()).iter().map(|link| link.slot as usize).collect();
        assert_eq!(order.len(), 3);
        firsts.push(order[0]);
        links.iter().for_each(|link| link.note_writable());
    }
    assert_eq!(firsts, [1, 2, 0]);
}

#[test]
fn nothing_is_delivered_before_the_receiver_knows_that_it_is_attached() {
    let outbox = Outbox::new(1, 7);
    let link = OutboxLink::attached(&outbox, 4, 9);
    assert_eq!(link.room(), 0);
    assert!(link.open(), "the peer waits to hear of room");
    assert!(link.room() > 0);
    let quiet = OutboxLink::attached(&outbox, 5, 10);
    assert!(!quiet.open(), "nobody asked");
}

#[test]
fn a_link_closed_by_its_peer_takes_nothing_more() {
    let outbox = Outbox::new(1, 7);
    let link = OutboxLink::attached(&outbox, 4, 9);
    link.open();
    link.close(&Refusal::new(Code::NotFound, "removed"));
    link.close(&Refusal::new(Code::NotFound, "removed twice"));
    transmit(&link, &[10]);
    assert_eq!(link.room(), 0);
    assert_eq!(written(&outbox), ["detached 4"]);
    let news = outbox.listen(Waker::noop());
    assert_eq!(news.closed, [Congested { slot: 4, number: 9 }]);
    assert!(news.end.is_none(), "the connection's other links live on");
}

#[test]
fn closing_a_dialled_link_ends_its_connection() {
    let outbox = Outbox::new(1, 7);
    OutboxLink::dialled(&outbox, 9).close(&Refusal::new(Code::TimedOut, "late"));
    assert_eq!(outbox.listen(Waker::noop()).end.map(|why| why.code), Some(Code::TimedOut));
}

#[test]
fn a_reader_that_does_not_read_is_given_up_at_a_bound() {
    let outbox = Outbox::new(1, 7);
    let value = vec![0; RETURN_BYTES_MAX];
    let mut said = 0;
    while outbox.listen(Waker::noop()).end.is_none() {
        outbox.reply(1, ReplyKind::Acked, &value);
        said += value.len();
        assert!(said < 2 * SAID_BYTES_MAX, "never given up");
        // What was taken and not written counts too.
        if said == 10 * value.len() {
            outbox.take(&mut BytesMut::new());
        }
    }
    assert!(said > SAID_BYTES_MAX - 2 * value.len());
}

#[test]
fn deliveries_do_not_count_as_answers() {
    let outbox = Outbox::new(1, 7);
    let link = OutboxLink::dialled(&outbox, 9);
    transmit(&link, &[2 * SAID_BYTES_MAX]);
    outbox.heartbeat();
    assert!(outbox.listen(Waker::noop()).end.is_none());
}

#[test]
fn nothing_is_kept_for_a_connection_that_is_gone() {
    let outbox = Outbox::new(1, 7);
    let link = OutboxLink::dialled(&outbox, 9);
    outbox.close();
    assert!(ProducerLink::is_closed(&*outbox));
    outbox.confirm(confirm(1, 1, 1), 1);
    outbox.refuse(&refusal(2), 1);
    transmit(&link, &[10]);
    assert_eq!(link.room(), 0);
    assert!(written(&outbox).is_empty());
}

#[test]
fn a_stopping_node_waits_for_what_is_out_and_sends_nothing_new() {
    let outbox = Outbox::new(1, 7);
    let link = OutboxLink::dialled(&outbox, 9);
    transmit(&link, &[10, 10]);
    outbox.hold_deliveries();
    assert_eq!(link.room(), 0);
    assert!(outbox.is_busy());
    written(&outbox);
    assert!(outbox.is_busy(), "written, not answered");
    outbox.note_settled(1);
    assert!(outbox.is_busy());
    outbox.note_settled(u64::MAX);
    assert!(!outbox.is_busy());
}

#[test]
fn a_stopping_node_does_not_wait_for_a_watch_that_has_stalled() {
    let outbox = Outbox::new(1, 7);
    let event = Control::Event {
        watch: 1,
        event: WatchEvent::Removed { version: 2, name: "a".parse().unwrap() },
    };
    assert!(outbox.say_event(&event));
    outbox.heartbeat();
    assert!(!outbox.is_busy());
    outbox.confirm(confirm(1, 1, 100), 10);
    assert!(outbox.is_busy(), "a run that may still grow");
    assert!(outbox.say_event(&event));
    assert!(outbox.is_busy(), "a confirm between events");
    let mut buffer = BytesMut::new();
    outbox.take(&mut buffer);
    assert!(outbox.is_busy());
    let behind = {
        let mut event_bytes = BytesMut::new();
        codec::put_control(&mut event_bytes, &event).unwrap();
        event_bytes.len()
    };
    outbox.wrote(buffer.len() - behind - 1);
    assert!(outbox.is_busy(), "the confirm's last byte waits");
    outbox.wrote(1);
    assert!(!outbox.is_busy(), "only an event waits");
}
