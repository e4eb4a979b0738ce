//! The generator against a node that is a mirror, honest or not: what it counts is what happened.

use super::report::Report;
use super::*;
use bytes::{Buf, BytesMut};
use clap::Parser;
use restante_protocol::admin::{AdminCommand, AdminDone, PeerUrl};
use restante_protocol::codec::{
    Limits, Next, next_frame, parse_control, put_confirm, put_control, put_deliver,
};
use restante_protocol::control::{AttachResult, Control, Credit, Hello, Reply, Request, Welcome};
use restante_protocol::frame::{Confirm, Deliver, Frame, TagRange};
use restante_protocol::id::{MessageId, PeerId};
use restante_protocol::limits::PROTOCOL_VERSION;
use restante_protocol::name::Name;
use restante_protocol::refusal::{Code, Refusal};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::{LocalSet, spawn_local};

/// What the mirror does to the hundredth delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trick {
    None,
    Drop,
    Repeat,
    Spoil,
}

/// A node that keeps nothing: it confirms at once and delivers at once.
struct Mirror {
    trick: Trick,
    deliveries: u64,
    attached: HashMap<Name, Attached>,
}

struct Attached {
    slot: u32,
    tag: u64,
    acked: u64,
    out: UnboundedSender<BytesMut>,
}

type Shared = Rc<RefCell<Mirror>>;

impl Mirror {
    async fn serve(shared: Shared, listener: TcpListener) {
        while let Ok((stream, _)) = listener.accept().await {
            let (out, said) = unbounded_channel();
            spawn_local(Conversation::new(shared.clone(), out).run(stream, said));
        }
    }

    fn deliver(&mut self, name: &Name, body: &[u8]) {
        self.deliveries += 1;
        let trick = if self.deliveries == 100 { self.trick } else { Trick::None };
        let attached = self.attached.get_mut(name).expect("attached");
        let mut body = body.to_vec();
        if trick == Trick::Spoil {
            *body.last_mut().unwrap() ^= 1;
        }
        let times = match trick {
            Trick::Drop => 0,
            Trick::Repeat => 2,
            Trick::None | Trick::Spoil => 1,
        };
        for time in 0..times {
            attached.tag += 1;
            let deliver = Deliver {
                redelivered: time > 0,
                attempt: 1,
                slot: attached.slot,
                tag: attached.tag,
                epoch: 1,
                id: MessageId(1),
                body: &body,
            };
            let mut out = BytesMut::new();
            put_deliver(&mut out, &deliver);
            let _ = attached.out.send(out);
        }
    }
}

/// One connection to the mirror.
struct Conversation {
    shared: Shared,
    out: UnboundedSender<BytesMut>,
    aliases: HashMap<u32, Name>,
    /// By slot.
    names: HashMap<u32, Name>,
}

impl Conversation {
    fn new(shared: Shared, out: UnboundedSender<BytesMut>) -> Conversation {
        Conversation { shared, out, aliases: HashMap::new(), names: HashMap::new() }
    }

    async fn run(mut self, stream: TcpStream, mut said: UnboundedReceiver<BytesMut>) {
        let (mut reader, mut writer) = stream.into_split();
        spawn_local(async move {
            while let Some(bytes) = said.recv().await {
                if writer.write_all(&bytes).await.is_err() {
                    break;
                }
            }
        });
        let mut buffer = BytesMut::new();
        while reader.read_buf(&mut buffer).await.is_ok_and(|read| read > 0) {
            while let Next::Frame { frame, consumed } =
                next_frame(&buffer, &Limits::default()).expect("frames")
            {
                self.hear(&frame);
                buffer.advance(consumed);
            }
        }
    }

    fn hear(&mut self, frame: &Frame<'_>) {
        match frame {
            Frame::Control(body) => self.hear_control(parse_control(body).expect("control")),
            Frame::Publish(publish) => {
                for alias in publish.receivers() {
                    self.shared.borrow_mut().deliver(&self.aliases[&alias], publish.body);
                }
                let first_sequence = publish.sequence;
                let mut out = BytesMut::new();
                put_confirm(
                    &mut out,
                    &Confirm { first_sequence, count: 1, first_id: MessageId(1) },
                );
                let _ = self.out.send(out);
            }
            Frame::Ack(ack) => {
                let mut mirror = self.shared.borrow_mut();
                let attached = mirror.attached.get_mut(&self.names[&ack.slot]).expect("attached");
                for TagRange { first, last } in &ack.ranges {
                    assert_eq!(*first, attached.acked + 1, "acks follow each other");
                    attached.acked = *last;
                }
            }
            frame => assert_eq!(*frame, Frame::Heartbeat),
        }
    }

    fn hear_control(&mut self, control: Control) {
        match control {
            Control::Hello(_) => self.say(&Control::Welcome(Welcome {
                version: PROTOCOL_VERSION,
                agent: "mirror".to_owned(),
                epoch: 1,
                producer_epoch: 1,
                next_sequence: 7,
                credit: Credit { messages: 500, bytes: 1 << 20 },
                payload_bytes_max: 1 << 20,
                heartbeat_ms: 10,
                silence_ms_max: 10_000,
                grant: None,
            })),
            Control::Alias { alias, name } => drop(self.aliases.insert(alias, name)),
            Control::Request { id, request } => {
                let result = self.answer(request);
                self.say(&Control::Response { id, result });
            }
            Control::Welcome(_) => {}
            control => panic!("{control:?}"),
        }
    }

    fn answer(&mut self, request: Request) -> Result<Reply, Refusal> {
        match request {
            Request::Admin(AdminCommand::PeerAdd { name, url, .. }) => {
                if let PeerUrl::Tcp { port, .. } = url {
                    spawn_local(dial(self.shared.clone(), name, port));
                }
            }
            Request::Admin(AdminCommand::PeerRemove { name, .. }) => {
                let known = self.shared.borrow_mut().attached.remove(&name);
                known.ok_or_else(|| Refusal::new(Code::NotFound, ""))?;
            }
            Request::Attach { receivers } => {
                let results = receivers.into_iter().map(|receiver| {
                    self.attach(receiver.slot, receiver.name);
                    AttachResult {
                        slot: receiver.slot,
                        first_tag: 1,
                        created: false,
                        refusal: None,
                    }
                });
                return Ok(Reply::Attached(results.collect()));
            }
            Request::Flush => {
                let mirror = self.shared.borrow();
                for name in self.names.values() {
                    let attached = &mirror.attached[name];
                    assert_eq!(attached.acked, attached.tag, "everything is acked before a flush");
                }
            }
            request => panic!("{request:?}"),
        }
        Ok(Reply::Admin(AdminDone { id: PeerId(1), version: 1, messages: 0, job: None }))
    }

    fn attach(&mut self, slot: u32, name: Name) {
        let attached = Attached { slot, tag: 0, acked: 0, out: self.out.clone() };
        self.shared.borrow_mut().attached.insert(name.clone(), attached);
        self.names.insert(slot, name);
    }

    fn say(&self, control: &Control) {
        let mut out = BytesMut::new();
        put_control(&mut out, control).expect("a small frame");
        let _ = self.out.send(out);
    }
}

async fn dial(shared: Shared, name: Name, port: u16) {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("a listener");
    let (out, said) = unbounded_channel();
    let mut conversation = Conversation::new(shared, out);
    conversation.say(&Control::Hello(Hello {
        version_min: PROTOCOL_VERSION,
        version_max: PROTOCOL_VERSION,
        agent: "mirror".to_owned(),
        producer: None,
        unused_from: None,
        deliver_as: Some(name.clone()),
        node: None,
        login: None,
    }));
    conversation.attach(0, name);
    conversation.run(stream, said).await;
}

#[derive(Parser)]
struct Words {
    #[command(flatten)]
    load: Load,
}

/// A run of a second against a mirror.
async fn run(words: &str, trick: Trick) -> Report {
    let words = format!("bench --warmup 0 --seconds 1 {words}");
    let load = Words::try_parse_from(words.split_ascii_whitespace())
        .unwrap_or_else(|e| panic!("{e}"))
        .load;
    let mirror = Mirror { trick, deliveries: 0, attached: HashMap::new() };
    let mirror = Rc::new(RefCell::new(mirror));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = listener.local_addr().unwrap().to_string();
    let set = LocalSet::new();
    let measured = set.run_until(async {
        spawn_local(Mirror::serve(mirror.clone(), listener));
        load::run(&load, &server, None).await
    });
    let measured = measured.await.unwrap_or_else(|failure| panic!("{failure}"));
    assert!(mirror.borrow().attached.is_empty(), "its peers are removed");
    Report::new(&load, &measured)
}

/// The report as its readers see it.
fn read(report: &Report) -> serde_json::Value {
    serde_json::to_value(report).unwrap()
}

#[tokio::test]
async fn a_closed_loop_counts_every_delivery_once() {
    for words in [
        "--receivers 3 --producers 2 --outstanding 50",
        "--receivers 5 --producers 2 --fanout 3 --receivers-per-connection 2 --size 16",
        "--receivers 2 --producers 1 --dialled --size 100000",
    ] {
        let report = run(words, Trick::None).await;
        report.verdict().unwrap();
        let report = read(&report);
        let fanout = report["load"]["fanout"].as_u64().unwrap();
        let confirmed = report["confirmed"].as_u64().unwrap();
        assert!(confirmed > 10, "{words}: {report}");
        assert_eq!(report["delivered"].as_u64().unwrap(), confirmed * fanout, "{words}");
        assert_eq!((&report["lost"], &report["duplicates"]), (&0.into(), &0.into()), "{words}");
    }
}

#[tokio::test]
async fn an_open_loop_publishes_what_its_schedule_says() {
    let report = run("--receivers 2 --producers 3 --rate 5000", Trick::None).await;
    report.verdict().unwrap();
    let report = read(&report);
    let messages = |latency: &str| report[latency]["messages"].clone();
    assert_eq!([&report["published"], &report["delivered"]], [5_000, 5_000]);
    assert_eq!([messages("confirm_us"), messages("deliver_us")], [5_000, 5_000]);
}

#[tokio::test]
async fn what_the_node_does_wrong_is_found() {
    let words = "--receivers 2 --producers 1 --outstanding 10 --drain 1";
    let lost = run(words, Trick::Drop).await;
    assert_eq!(read(&lost)["lost"], 1);
    assert_eq!(lost.verdict().unwrap_err().exit, Exit::Failed);
    let repeated = run(words, Trick::Repeat).await;
    repeated.verdict().unwrap();
    let repeated = read(&repeated);
    assert_eq!((&repeated["duplicates"], &repeated["flagged"]), (&1.into(), &1.into()));
    let spoiled = run(words, Trick::Spoil).await;
    assert_eq!((&read(&spoiled)["foreign"], &read(&spoiled)["lost"]), (&1.into(), &1.into()));
    assert_eq!(spoiled.verdict().unwrap_err().exit, Exit::Failed);
}
