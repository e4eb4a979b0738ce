use super::*;
use bytes::BytesMut;
use restante_protocol::codec::{put_control, put_frame, put_message};
use restante_protocol::control::{Credit as Granted, Request};
use restante_protocol::message::Body;

const SESSION: ProducerSession = ProducerSession { index: 3, epoch: 1 };

struct Bench {
    intake: Intake,
    slots: Slots,
    directory: Directory,
    bytes: BytesMut,
}

impl Bench {
    fn new(producer: Option<ProducerSession>) -> Bench {
        let granted = Granted { messages: 100, bytes: 1_000_000 };
        Bench {
            intake: Intake::new(Limits::with_payload(1_000), producer, Credit::new(granted)),
            slots: Slots::default(),
            directory: Directory::default(),
            bytes: BytesMut::new(),
        }
    }

    fn publish(&mut self, sequence: u64, aliases: &[u32], payload: &[u8]) -> &mut Bench {
        let body = Body { payload, ..Body::default() };
        put_message(&mut self.bytes, 0, sequence, aliases, &body);
        self
    }

    fn control(&mut self, control: &Control) -> &mut Bench {
        put_control(&mut self.bytes, control).unwrap();
        self
    }

    fn pass(&mut self) -> Result<Pass, Refusal> {
        self.intake.pass(&self.bytes, &mut self.slots, &self.directory)
    }

    fn batch(&mut self) -> Option<PublishBatch> {
        let pass = self.pass().unwrap();
        let chunk = self.bytes.split_to(pass.consumed).freeze();
        self.intake.take_batch(chunk, || super::super::outbox::Outbox::new(1, 1))
    }
}

/// What the router is told, one line a publish.
fn lines(batch: &PublishBatch) -> Vec<String> {
    let mut receivers = batch.receivers.iter();
    let describe = |item: &PublishItem| match &item.refusal {
        Some(refusal) => format!("{} {}", item.sequence, refusal.code),
        None => {
            let to: Vec<_> = receivers
                .by_ref()
                .take(item.receivers.into())
                .map(|receiver| format!("{}={}", receiver.alias, receiver.peer.0))
                .collect();
            let body = &batch.chunk[item.body_at as usize..][..item.body_len as usize];
            let payload = Body::parse(body).unwrap().payload;
            format!("{} {} {}", item.sequence, to.join(","), String::from_utf8_lossy(payload))
        }
    };
    batch.items.iter().map(describe).collect()
}

#[test]
fn one_read_is_one_batch() {
    let mut bench = Bench::new(Some(SESSION));
    bench.intake.aliases.declare(1, "a".parse().unwrap(), Some(PeerId(11)));
    bench.intake.aliases.declare(2, "b".parse().unwrap(), Some(PeerId(12)));
    put_frame(&mut bench.bytes, &Frame::Heartbeat).unwrap();
    bench.publish(5, &[1, 2], b"one").publish(6, &[2], b"two");
    put_frame(&mut bench.bytes, &Frame::Heartbeat).unwrap();
    bench.publish(7, &[1], b"");
    let batch = bench.batch().unwrap();
    assert_eq!(lines(&batch), ["5 1=11,2=12 one", "6 2=12 two", "7 1=11 "]);
    assert_eq!(batch.producer, SESSION);
    assert!(bench.batch().is_none(), "each publish once");
}

#[test]
fn what_is_wrong_with_one_publish_is_its_own() {
    let mut bench = Bench::new(Some(SESSION));
    bench.intake.aliases.declare(1, "a".parse().unwrap(), Some(PeerId(11)));
    bench.publish(5, &[1], b"one").publish(6, &[1], &[0; 40_000]).publish(7, &[], b"x");
    bench.publish(8, &[1], &[0; 1_001]).publish(9, &[1], b"two");
    let batch = bench.batch().unwrap();
    let expected = ["5 1=11 one", "6 too_large", "7 no_receiver", "8 too_large", "9 1=11 two"];
    assert_eq!(lines(&batch), expected);
}

#[test]
fn an_oversized_publish_is_skipped_not_collected() {
    let mut bench = Bench::new(Some(SESSION));
    bench.publish(6, &[1], &[0; 40_000]);
    let whole = bench.bytes.len();
    bench.bytes.truncate(100);
    let pass = bench.pass().unwrap();
    assert_eq!((pass.consumed, pass.skip), (100, whole - 100));
    let batch = bench.intake.take_batch(Bytes::from_static(b"kept"), || unreachable());
    assert!(batch.unwrap().chunk.is_empty(), "nobody needs the bytes");
}

fn unreachable() -> SharedProducer {
    super::super::outbox::Outbox::new(1, 1)
}

#[test]
fn a_cut_at_any_byte_changes_nothing() {
    let mut whole = Bench::new(Some(SESSION));
    whole.publish(5, &[1], b"one").publish(6, &[9], b"two").publish(7, &[1], &[0; 40_000]);
    whole.control(&Control::Request { id: 1, request: Request::Flush });
    whole.publish(8, &[1], b"three");
    let all = whole.bytes.clone().freeze();
    let expected = lines(&whole.batch().unwrap());
    for cut in 1..all.len() {
        let mut bench = Bench::new(Some(SESSION));
        let (mut found, mut skip) = (Vec::new(), 0);
        for piece in [&all[..cut], &all[cut..]] {
            bench.bytes.extend_from_slice(&piece[skip.min(piece.len())..]);
            let pass = bench.pass().unwrap();
            skip = pass.skip;
            let chunk = bench.bytes.split_to(pass.consumed).freeze();
            let batch = bench.intake.take_batch(chunk, unreachable);
            found.extend(batch.iter().flat_map(lines));
        }
        assert_eq!(found, expected, "cut at {cut}");
        assert_eq!(bench.intake.controls.len(), 1);
        assert!(bench.bytes.is_empty());
    }
}

#[test]
fn aliases_are_bound_in_the_order_of_the_publishes() {
    let mut bench = Bench::new(Some(SESSION));
    bench.publish(1, &[4], b"before");
    bench.control(&Control::Alias { alias: 4, name: "nobody".parse().unwrap() });
    bench.publish(2, &[4], b"after");
    let batch = bench.batch().unwrap();
    let peers: Vec<_> = batch.receivers.iter().map(|receiver| receiver.peer).collect();
    assert_eq!(peers, [super::super::aliases::UNDECLARED, PeerId::NONE]);
}

#[test]
fn beyond_the_credit_a_publish_is_refused_and_keeps_its_sequence() {
    let mut bench = Bench::new(Some(SESSION));
    bench.intake.aliases.declare(1, "a".parse().unwrap(), Some(PeerId(11)));
    for sequence in 1..=102 {
        bench.publish(sequence, &[1], b"x");
    }
    let batch = bench.batch().unwrap();
    assert_eq!(lines(&batch)[99..], ["100 1=11 x", "101 over_credit", "102 over_credit"]);
    let bytes = batch.items.iter().map(|item| u64::from(item.frame_len)).sum();
    bench.intake.credit.give_back(102, bytes);
    bench.publish(103, &[1], b"x");
    assert_eq!(lines(&bench.batch().unwrap()), ["103 1=11 x"]);
}

#[test]
fn who_has_no_identity_is_told_for_each_sequence() {
    let mut bench = Bench::new(None);
    bench.publish(1, &[1], b"x").publish(2, &[1], &[0; 40_000]);
    assert!(bench.batch().is_none());
    assert_eq!(bench.intake.unwelcome, [1, 2]);
}

#[test]
fn frames_a_node_sends_are_not_for_it() {
    let mut bench = Bench::new(Some(SESSION));
    bench.publish(1, &[1], b"x");
    let reply = restante_protocol::frame::Reply {
        sequence: 1,
        kind: restante_protocol::frame::ReplyKind::Acked,
        value: b"",
    };
    put_frame(&mut bench.bytes, &Frame::Reply(reply)).unwrap();
    assert_eq!(bench.pass().map(|_| ()).unwrap_err().code, Code::OutOfTurn);
    let batch = bench.intake.take_batch(bench.bytes.clone().freeze(), unreachable);
    assert_eq!(batch.unwrap().items.len(), 1, "what came before it stands");
}

#[test]
fn nonsense_is_named() {
    let mut bench = Bench::new(Some(SESSION));
    bench.bytes.extend_from_slice(b"GET / HTTP/1.1\r\n\r\n");
    assert_eq!(bench.pass().map(|_| ()).unwrap_err().code, Code::Unsupported);
}
