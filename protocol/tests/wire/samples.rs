//! One example of everything that is said, by name. Names are those of `vectors/frames.txt`.

use crate::classes;
use bytes::BytesMut;
use core::num::NonZeroU64;
use restante_protocol::admin::{
    AdminCommand, AdminDone, ClassChoice, Order, PeerPatch, PeerSettings, PeerUrl, Waiting,
};
use restante_protocol::codec::{put_control, put_frame};
use restante_protocol::control::{
    AttachAs, AttachResult, Control, Credit, GroupPage, Hello, NodeLife, PeerPage, Reply, Request,
    WatchEvent, Welcome,
};
use restante_protocol::frame::{
    Ack, AckValue, Confirm, Deliver, Frame, Grant, Nack, Publish, Refuse, ReplyKind, TagRange,
};
use restante_protocol::id::{MessageId, NodeTag, PeerId, ProducerId};
use restante_protocol::job::JobStatus;
use restante_protocol::message::{Body, Delay, encode_headers};
use restante_protocol::name::Name;
use restante_protocol::refusal::{Code, Refusal};
use restante_protocol::shaper::{RatePatch, RatesPatch};
use restante_protocol::status::{
    BackupDone, Blocked, GroupInfo, GroupStatus, Health, MessageState, MessageStatus, NodeStatus,
    Outlook, PeerInfo, PeerStatus, Quota, ReceiverStatus, Stall, Taking,
};
use restante_protocol::stored::{Filter, Lane, MessagePage, Parking, StoredMessage};
use restante_protocol::time::WallMillis;
use smallvec::smallvec;

/// A frame by name, as bytes.
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

/// Everything, in the order of the file.
pub(crate) fn all() -> Vec<Sample> {
    let mut samples = hot();
    samples.extend(controls().into_iter().map(|(name, control)| {
        let mut out = BytesMut::new();
        put_control(&mut out, &control).unwrap();
        Sample { name: name.to_owned(), bytes: out.to_vec() }
    }));
    samples
}

pub(crate) fn id(number: u64) -> MessageId {
    MessageId::new(1_764_000_000_000, NodeTag(0xa11c), 0, number)
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn body(body: &Body<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    body.encode(&mut out);
    out
}

pub(crate) fn plain(payload: &[u8]) -> Vec<u8> {
    body(&Body { payload, ..Body::default() })
}

fn rich() -> Vec<u8> {
    let headers = encode_headers(&[("type".to_owned(), "order".to_owned())]);
    let (key, headers) = (Some(&b"customer-7"[..]), Some(&headers[..]));
    body(&Body { key, headers, reply: true, payload: b"{}", ..Body::default() })
}

fn mortal() -> Vec<u8> {
    body(&Body { ttl_ms: NonZeroU64::new(60_000), payload: b"news", ..Body::default() })
}

fn delayed() -> Vec<u8> {
    let (ttl_ms, delay) = (NonZeroU64::new(3_600_000), NonZeroU64::new(60_000).map(Delay::For));
    body(&Body { ttl_ms, delay, payload: b"later", ..Body::default() })
}

fn dated() -> Vec<u8> {
    let delay = NonZeroU64::new(1_764_000_060_000).map(Delay::Until);
    body(&Body { delay, payload: b"at nine", ..Body::default() })
}

fn handed_over() -> Vec<u8> {
    body(&Body { original_id: Some(id(3)), payload: b"again", ..Body::default() })
}

fn hot() -> Vec<Sample> {
    let (hello, world, rich, handed_over) =
        (plain(b"hello"), plain(b"world"), rich(), handed_over());
    let (mortal, delayed, dated) = (mortal(), delayed(), dated());
    let publish =
        |flags, sequence, aliases, body| Frame::Publish(Publish { flags, sequence, aliases, body });
    let deliver = |redelivered, attempt, slot, tag, number, body| {
        let id = id(number);
        Frame::Deliver(Deliver { redelivered, attempt, slot, tag, epoch: 4, id, body })
    };
    let frames: Vec<(&str, Frame<'_>)> = vec![
        ("publish-1", publish(0, 1, &[0, 0, 0, 0], &hello)),
        ("publish-2", publish(0, 2, &[0, 0, 0, 0], &world)),
        ("publish-key-headers-call", publish(1, 3, &[0, 0, 0, 0, 0, 0, 1, 0], &rich)),
        ("publish-ttl-delay", publish(0, 5, &[0, 0, 0, 0], &delayed)),
        ("publish-deliver-at", publish(0, 6, &[0, 0, 0, 0], &dated)),
        ("publish-ttl", publish(0, 4, &[0, 0, 0, 0], &mortal)),
        ("confirm-1-2", Frame::Confirm(Confirm { first_sequence: 1, count: 2, first_id: id(42) })),
        (
            "refuse-part",
            Frame::Refuse(Refuse {
                sequence: 3,
                id: Some(id(44)),
                code: Code::PeerQuota,
                receivers: smallvec![(256, Code::PeerQuota)],
                members: vec![],
                detail: "receiver alias 256: 10 messages wait for it, its quota is 10".to_owned(),
            }),
        ),
        (
            "refuse-members",
            Frame::Refuse(Refuse {
                sequence: 5,
                id: Some(id(45)),
                code: Code::PeerQuota,
                receivers: smallvec![],
                members: vec![(7, Code::PeerQuota, name("shop-17"))],
                detail: "shop-17: 10 messages wait for it, its quota is 10; 1 must go first"
                    .to_owned(),
            }),
        ),
        (
            "refuse-whole",
            Frame::Refuse(Refuse {
                sequence: 4,
                id: None,
                code: Code::DiskFull,
                receivers: smallvec![],
                members: vec![],
                detail: "the disk is past its high-water mark".to_owned(),
            }),
        ),
        ("deliver-1", deliver(false, 1, 0, 1, 42, &hello)),
        ("deliver-2", deliver(false, 1, 0, 2, 43, &world)),
        ("deliver-again", deliver(true, 2, 7, 3, 43, &rich)),
        ("deliver-ttl", deliver(false, 1, 0, 3, 45, &mortal)),
        ("deliver-handed-over", deliver(false, 1, 7, 4, 51, &handed_over)),
        ("ack-1-2", Frame::Ack(Ack { slot: 0, ranges: smallvec![TagRange { first: 1, last: 2 }] })),
        (
            "ack-holes",
            Frame::Ack(Ack {
                slot: 7,
                ranges: smallvec![
                    TagRange { first: 1, last: 4 },
                    TagRange { first: 6, last: 6 },
                    TagRange { first: 9, last: 300 },
                ],
            }),
        ),
        ("ack-value", Frame::AckValue(AckValue { slot: 7, tag: 3, value: b"42" })),
        (
            "nack-transient",
            Frame::Nack(Nack {
                slot: 7,
                tag: 5,
                permanent: false,
                retry_after_ms: 1_500,
                reason: "busy",
            }),
        ),
        (
            "nack-permanent",
            Frame::Nack(Nack {
                slot: 7,
                tag: 8,
                permanent: true,
                retry_after_ms: 0,
                reason: "no such customer",
            }),
        ),
        ("reply-acked", reply(ReplyKind::Acked, b"42")),
        ("reply-refused", reply(ReplyKind::Refused, b"no such customer")),
        ("reply-ended", reply(ReplyKind::Ended, b"parked")),
        ("heartbeat", Frame::Heartbeat),
        ("grant", Frame::Grant(Grant { slot: 7, messages: 500 })),
    ];
    let encode = |(name, frame): (&str, Frame<'_>)| {
        let mut out = BytesMut::new();
        put_frame(&mut out, &frame).unwrap();
        Sample { name: name.to_owned(), bytes: out.to_vec() }
    };
    frames.into_iter().map(encode).collect()
}

fn reply(kind: ReplyKind, value: &[u8]) -> Frame<'_> {
    Frame::Reply(restante_protocol::frame::Reply { sequence: 3, kind, value })
}

/// Every control frame, every request, every reply and every event, by name.
pub(crate) fn controls() -> Vec<(&'static str, Control)> {
    let mut controls = conversation();
    let requests = requests().into_iter().chain(classes::requests()).zip(1..);
    controls.extend(requests.map(|((name, request), id)| (name, Control::Request { id, request })));
    let replies = replies().into_iter().chain(classes::replies()).zip(1..);
    controls.extend(
        replies.map(|((name, reply), id)| (name, Control::Response { id, result: Ok(reply) })),
    );
    let refusal = Refusal::new(Code::NameTaken, "a peer 'orders' exists, at attach:");
    controls.push(("response-refused", Control::Response { id: 3, result: Err(refusal) }));
    let events = events().into_iter();
    controls.extend(events.map(|(name, event)| (name, Control::Event { watch: 11, event })));
    controls
}

fn conversation() -> Vec<(&'static str, Control)> {
    let credit = Credit { messages: 8_192, bytes: 8 * 1024 * 1024 };
    let hello = Hello {
        version_min: 1,
        version_max: 1,
        agent: "example/1.0".to_owned(),
        producer: Some(ProducerId(0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f)),
        unused_from: None,
        deliver_as: None,
        node: None,
        login: None,
    };
    let welcome = Welcome {
        version: 1,
        agent: "restante/0.1.0".to_owned(),
        epoch: 4,
        producer_epoch: 1,
        next_sequence: 1,
        credit,
        payload_bytes_max: 1_048_576,
        heartbeat_ms: 10_000,
        silence_ms_max: 30_000,
        grant: None,
    };
    let deliver_as = Some(name("orders"));
    let node = Some(NodeLife { tag: NodeTag(0xbeef), epoch: 4 });
    let agent = "restante/0.1.0".to_owned();
    let dials = Hello { agent, producer: None, deliver_as, node, ..hello.clone() };
    let dialled = Welcome {
        agent: "example/1.0".to_owned(),
        epoch: 0,
        producer_epoch: 0,
        next_sequence: 0,
        credit: Credit::default(),
        grant: Some(100),
        ..welcome.clone()
    };
    vec![
        ("hello", Control::Hello(hello.clone())),
        ("hello-again", Control::Hello(Hello { unused_from: Some(3), ..hello })),
        ("hello-to-receiver", Control::Hello(dials)),
        ("welcome", Control::Welcome(welcome)),
        ("welcome-of-receiver", Control::Welcome(dialled)),
        ("alias", Control::Alias { alias: 0, name: name("orders") }),
        ("credit", Control::Credit(credit)),
        (
            "detached",
            Control::Detached { slot: 0, reason: Refusal::new(Code::NotFound, "peer removed") },
        ),
        ("cancel-call", Control::CancelCall { sequence: 7 }),
        ("goodbye", Control::Goodbye(Refusal::new(Code::ShuttingDown, "the node is stopping"))),
    ]
}

fn requests() -> Vec<(&'static str, Request)> {
    let orders = || name("orders");
    let patch = PeerPatch {
        window_messages: Some(100),
        order: Some(Order::Strict),
        retry_schedule_ms: Some(vec![1_000, 60_000]),
        ..PeerPatch::default()
    };
    let everything = PeerPatch {
        window_messages: Some(1),
        window_messages_min: Some(0),
        window_bytes: Some(65_536),
        ack_timeout_ms: Some(100),
        backoff_ms_min: Some(10),
        backoff_ms_max: Some(100),
        retry_schedule_ms: Some(vec![]),
        order: Some(Order::None),
        quota_messages: Some(1 << 20),
        quota_bytes: Some(1 << 40),
        rates: Some(Box::new(RatesPatch {
            messages: RatePatch { rate: Some(10), ceil: Some(100), burst: Some(20) },
            bytes: RatePatch { rate: Some(0), ceil: Some(1 << 20), burst: Some(0) },
        })),
        class: Some(ClassChoice::Of(name("bulk"))),
    };
    let tcp: PeerUrl = "tcp://[::1]:7000".parse().unwrap();
    let remove =
        |waiting| AdminCommand::PeerRemove { name: orders(), if_version: Some(5), waiting };
    let attach = |slot, text, grant| AttachAs { slot, name: name(text), grant };
    vec![
        ("request-attach", Request::Attach { receivers: vec![attach(0, "orders", None)] }),
        (
            "request-attach-two",
            Request::Attach { receivers: vec![attach(1, "a", Some(10)), attach(2, "b", Some(0))] },
        ),
        ("request-detach", Request::Detach { slot: 1 }),
        ("request-flush", Request::Flush),
        (
            "request-peer-add",
            Request::Admin(AdminCommand::PeerAdd {
                name: orders(),
                url: tcp.clone(),
                settings: patch,
            }),
        ),
        (
            "request-peer-set",
            Request::Admin(AdminCommand::PeerSet {
                name: orders(),
                if_version: Some(1),
                url: Some(PeerUrl::Attach),
                settings: everything,
            }),
        ),
        (
            "request-peer-pause",
            Request::Admin(AdminCommand::PeerPause { name: orders(), if_version: None }),
        ),
        (
            "request-peer-drain",
            Request::Admin(AdminCommand::PeerDrain { name: orders(), if_version: Some(2) }),
        ),
        (
            "request-peer-resume",
            Request::Admin(AdminCommand::PeerResume { name: orders(), if_version: None }),
        ),
        ("request-peer-remove", Request::Admin(remove(None))),
        ("request-peer-remove-park", Request::Admin(remove(Some(Waiting::Park)))),
        ("request-peer-remove-purge", Request::Admin(remove(Some(Waiting::Purge)))),
        (
            "request-peer-remove-hand-to",
            Request::Admin(remove(Some(Waiting::HandTo(name("returns"))))),
        ),
        ("request-peers", Request::Peers { after: None }),
        ("request-peers-after", Request::Peers { after: Some(PeerId(256)) }),
        ("request-peer", Request::Peer { name: "orders#1".to_owned() }),
        ("request-node", Request::Node),
        ("request-message", Request::Message { id: id(42) }),
        ("request-job", Request::Job { peer: "orders".to_owned() }),
        (
            "request-peer-replay",
            Request::Admin(AdminCommand::PeerReplay {
                name: "orders#1".to_owned(),
                if_version: Some(5),
                to: Some(name("returns")),
                filter: filter(),
                rate: Some(50),
            }),
        ),
        (
            "request-peer-purge",
            Request::Admin(AdminCommand::PeerPurge {
                name: "orders".to_owned(),
                if_version: None,
                filter: Filter::default(),
            }),
        ),
        (
            "request-peer-cancel",
            Request::Admin(AdminCommand::PeerCancel { name: "orders".to_owned() }),
        ),
        (
            "request-group-add",
            Request::Admin(AdminCommand::GroupAdd {
                name: name("shops"),
                members: vec![name("shop-17"), name("shop-18")],
            }),
        ),
        (
            "request-group-set",
            Request::Admin(AdminCommand::GroupSet {
                name: name("shops"),
                if_version: Some(1),
                add: vec![name("shop-19")],
                remove: vec![name("shop-17")],
            }),
        ),
        (
            "request-group-remove",
            Request::Admin(AdminCommand::GroupRemove { name: name("shops"), if_version: None }),
        ),
        ("request-groups", Request::Groups { after: None }),
        ("request-groups-after", Request::Groups { after: Some(name("shops")) }),
        ("request-group", Request::Group { name: name("shops") }),
        ("request-payload", Request::Payload { id: id(42) }),
        (
            "request-stored",
            Request::Stored {
                peer: "orders".to_owned(),
                lane: Lane::Waiting,
                filter: Filter::default(),
                after: 0,
                bodies: false,
            },
        ),
        (
            "request-stored-parked",
            Request::Stored {
                peer: "orders#1".to_owned(),
                lane: Lane::Parked,
                filter: filter(),
                after: 256,
                bodies: true,
            },
        ),
        ("request-watch", Request::Watch { after: None }),
        ("request-watch-after", Request::Watch { after: Some(17) }),
        ("request-unwatch", Request::Unwatch { watch: 11 }),
        ("request-log-filter", Request::LogFilter { filter: "info,restante=debug".to_owned() }),
        ("request-backup", Request::Backup { dir: "/var/backups/restante".to_owned() }),
    ]
}

fn replies() -> Vec<(&'static str, Reply)> {
    let attached = |slot, created, refusal| AttachResult { slot, first_tag: 1, created, refusal };
    let taken = Refusal::new(Code::AlreadyAttached, "b is being served by another connection");
    let quota = Quota { messages: 1_000, bytes: 0 };
    let outlook = Some(Outlook {
        came_per_minute: 600,
        went_per_minute: 60,
        drained: None,
        full: Some(WallMillis(1_764_003_600_000)),
    });
    let settings = PeerSettings::default();
    let info = PeerInfo { status: peer(), settings, quota, restarts: 0, outlook };
    let shops = GroupStatus { name: name("shops"), version: 2, members: 2 };
    vec![
        ("response-attached", Reply::Attached(vec![attached(0, false, None)])),
        (
            "response-attached-two",
            Reply::Attached(vec![attached(1, true, None), attached(2, false, Some(taken))]),
        ),
        ("response-done", Reply::Done),
        (
            "response-admin",
            Reply::Admin(AdminDone { id: PeerId(1), version: 2, messages: 0, job: None }),
        ),
        ("response-peers", Reply::Peers(PeerPage { peers: vec![peer()], more: true })),
        ("response-peer", Reply::Peer(Box::new(info))),
        ("response-groups", Reply::Groups(GroupPage { groups: vec![shops.clone()], more: true })),
        (
            "response-group",
            Reply::Group(Box::new(GroupInfo {
                name: shops.name,
                version: shops.version,
                members: vec![name("shop-18"), name("shop-19")],
            })),
        ),
        ("response-node", Reply::Node(node())),
        ("response-message", Reply::Message(message())),
        ("response-payload", Reply::Payload(plain(b"hello"))),
        (
            "response-stored",
            Reply::Stored(MessagePage { messages: stored(), through: 300, more: true }),
        ),
        (
            "response-admin-job",
            Reply::Admin(AdminDone { id: PeerId(1), version: 2, messages: 0, job: Some(7) }),
        ),
        ("response-job", Reply::Job(Some(Box::new(job())))),
        ("response-job-none", Reply::Job(None)),
        ("response-watching", Reply::Watching),
        ("response-backup", Reply::Backup(BackupDone { files: 7, bytes: 70_000, next: 43 })),
    ]
}

fn filter() -> Filter {
    Filter {
        since: Some(WallMillis(1_764_000_000_000)),
        until: Some(WallMillis(1_764_086_400_000)),
        reason: Some("no such".to_owned()),
        key: Some(b"customer-7".to_vec()),
    }
}

fn job() -> JobStatus {
    JobStatus {
        job: 7,
        peer: "orders#1".to_owned(),
        to: Some("returns".to_owned()),
        rate: Some(50),
        filter: filter().to_string(),
        by: "restante-cli/0.1.0 127.0.0.1:50000".to_owned(),
        began: WallMillis(1_764_000_000_000),
        messages: 1_200,
        ended: Some(WallMillis(1_764_000_024_000)),
        why: "cancelled by restante-cli/0.1.0 127.0.0.1:50001".to_owned(),
    }
}

fn stored() -> Vec<StoredMessage> {
    let parked = Parking {
        at: Some(WallMillis(1_764_000_001_000)),
        attempts: 6,
        reason: "no such customer".to_owned(),
    };
    let accepted = WallMillis(1_764_000_000_000);
    let key = Some(b"customer-7".to_vec());
    let plain =
        StoredMessage { id: id(42), accepted, bytes: 5, key: None, parked: None, body: None };
    let (parked, body) = (Some(parked), Some(rich()));
    vec![StoredMessage { bytes: 2, key, parked, body, ..plain.clone() }, plain]
}

fn events() -> Vec<(&'static str, WatchEvent)> {
    vec![
        ("event-snapshot", WatchEvent::Snapshot { version: 17, peers: vec![peer()], more: false }),
        ("event-changed", WatchEvent::Changed { version: 18, peer: peer() }),
        ("event-removed", WatchEvent::Removed { version: 19, name: name("orders") }),
        ("event-gap", WatchEvent::Gap { after: 17 }),
    ]
}

fn peer() -> PeerStatus {
    PeerStatus {
        id: PeerId(1),
        name: "orders".to_owned(),
        url: PeerUrl::Tcp { host: "example.org".to_owned(), port: 7000 },
        version: 2,
        health: Health::Unreachable,
        since: WallMillis(1_764_000_000_000),
        why: "connection refused".to_owned(),
        waiting: 3,
        waiting_bytes: 300,
        unacked: 0,
        parked: 1,
        delayed: 2,
        acked: 1_000,
        next_attempt: Some(WallMillis(1_764_000_060_000)),
        oldest: Some(WallMillis(1_763_999_990_000)),
        stall: Some(Stall::Link),
        taking: Taking::Draining,
    }
}

fn blocked() -> Blocked {
    Blocked {
        by: Stall::Keys,
        behind: Some(id(41)),
        until: Some(WallMillis(1_764_000_060_000)),
        why: "busy".to_owned(),
    }
}

fn node() -> NodeStatus {
    NodeStatus {
        version: "0.1.0".to_owned(),
        epoch: 4,
        started: WallMillis(1_764_000_000_000),
        peers: 1,
        connections: 2,
        confirmed: 10,
        acked: 9,
        waiting: 1,
        delayed: 3,
        journal_bytes: 67_108_864,
        accepting: Err(Refusal::new(Code::DiskFull, "100 bytes are free, 200 are needed")),
    }
}

fn message() -> MessageStatus {
    let at = WallMillis(1_764_000_001_000);
    let states = [
        MessageState::Queued,
        MessageState::Delayed { until: at },
        MessageState::InFlight { since: at },
        MessageState::Retrying { next_attempt: at, reason: "busy".to_owned() },
        MessageState::Acked { at, value: Some(b"42".to_vec()) },
        MessageState::Acked { at, value: None },
        MessageState::Parked { at, reason: "no such customer".to_owned() },
        MessageState::Expired { at },
        MessageState::Purged { at, by: Some("restante-cli/0.1.0 127.0.0.1:50312".to_owned()) },
        MessageState::Replayed { at },
        MessageState::Moved { at, to: "returns".to_owned() },
        MessageState::Done,
    ];
    let receiver = |(place, state)| ReceiverStatus {
        receiver: format!("r{place}"),
        state,
        attempts: 1,
        blocked: (place == 0).then(blocked),
        expires: (place == 0).then_some(WallMillis(1_764_000_060_000)),
    };
    MessageStatus {
        id: id(42),
        accepted: WallMillis(1_764_000_000_000),
        bytes: Some(6),
        receivers: states.into_iter().enumerate().map(receiver).collect(),
    }
}
