//! Control frames: everything there and back, and nothing that harms.

use crate::samples::controls;
use bytes::BytesMut;
use restante_protocol::codec::{
    FrameError, Limits, Next, next_frame, parse_control, put_control, request_number,
};
use restante_protocol::control::{Control, GroupPage, PeerPage, Reply, Request};
use restante_protocol::frame::{Frame, HEADER_BYTES};
use restante_protocol::id::{MessageId, PeerId};
use restante_protocol::limits::{
    ALIASES_MAX, CONTROL_BYTES_MAX, GROUP_MEMBERS_MAX, GROUP_PAGE_MAX, KEY_BYTES_MAX,
    MESSAGE_PAGE_MAX, NAME_BYTES_MAX, PAGE_BODY_BYTES_MAX, PEER_PAGE_MAX, REASON_BYTES_MAX,
};
use restante_protocol::name::Name;
use restante_protocol::refusal::{Code, Refusal};
use restante_protocol::registry::CLASSES_MAX;
use restante_protocol::shaper::{Rate, Rates};
use restante_protocol::status::{
    ClassStatus, GroupInfo, GroupStatus, Health, PeerStatus, Stall, Taking,
};
use restante_protocol::stored::{MessagePage, Parking, StoredMessage};
use restante_protocol::time::WallMillis;

/// A control frame's body.
fn body(control: &Control) -> Vec<u8> {
    let mut out = BytesMut::new();
    put_control(&mut out, control).unwrap();
    out[HEADER_BYTES..].to_vec()
}

/// MessagePack in short: a map of one entry.
fn map(name: &str, value: &[u8]) -> Vec<u8> {
    [&[0x81, 0xa0 | name.len() as u8], name.as_bytes(), value].concat()
}

fn text(text: &str) -> Vec<u8> {
    [&[0xd9, text.len() as u8], text.as_bytes()].concat()
}

fn code_of(body: &[u8]) -> Code {
    parse_control(body).unwrap_err().refusal().code
}

#[test]
fn a_page_of_peers_fits_a_frame_however_long_its_texts() {
    let url = format!("tcp://{}:65535", "h".repeat(200)).parse().unwrap();
    let peer = PeerStatus {
        id: PeerId(u32::MAX),
        name: format!("{}#{}", "n".repeat(NAME_BYTES_MAX), u32::MAX),
        url,
        version: u64::MAX,
        health: Health::Unreachable,
        since: WallMillis(u64::MAX),
        // What led to it stands around the other side's own reason.
        why: "w".repeat(2 * REASON_BYTES_MAX),
        waiting: u64::MAX,
        waiting_bytes: u64::MAX,
        unacked: u64::MAX,
        parked: u64::MAX,
        delayed: u64::MAX,
        acked: u64::MAX,
        next_attempt: Some(WallMillis(u64::MAX)),
        oldest: Some(WallMillis(u64::MAX)),
        stall: Some(Stall::Refusals),
        taking: Taking::Draining,
    };
    let page = PeerPage { peers: vec![peer; PEER_PAGE_MAX], more: true };
    let answer = Control::Response { id: u64::MAX, result: Ok(Reply::Peers(page)) };
    assert!(body(&answer).len() < CONTROL_BYTES_MAX);
}

#[test]
fn a_page_of_groups_and_a_whole_group_fit_a_frame_however_long_their_names() {
    let name: Name = "n".repeat(NAME_BYTES_MAX).parse().unwrap();
    let group = GroupStatus { name: name.clone(), version: u64::MAX, members: u32::MAX };
    let page = GroupPage { groups: vec![group; GROUP_PAGE_MAX], more: true };
    let members = vec![name.clone(); GROUP_MEMBERS_MAX];
    let info = Box::new(GroupInfo { name, version: u64::MAX, members });
    for reply in [Reply::Groups(page), Reply::Group(info)] {
        let answer = Control::Response { id: u64::MAX, result: Ok(reply) };
        assert!(body(&answer).len() < CONTROL_BYTES_MAX);
    }
}

#[test]
fn all_classes_there_may_be_fit_a_frame_however_long_their_names() {
    let most = Rate { rate: u64::MAX, ceil: u64::MAX, burst: u64::MAX };
    let class = ClassStatus {
        name: "n".repeat(NAME_BYTES_MAX).parse().unwrap(),
        version: u64::MAX,
        peers: u64::MAX,
        rates: Rates { messages: most, bytes: most },
    };
    let all = Ok(Reply::Classes(vec![class; CLASSES_MAX]));
    assert!(body(&Control::Response { id: u64::MAX, result: all }).len() < CONTROL_BYTES_MAX);
}

#[test]
fn a_page_of_messages_fits_a_frame_however_long_its_texts() {
    let long = |bytes| StoredMessage {
        id: MessageId(u128::MAX),
        accepted: WallMillis(u64::MAX),
        bytes: u64::MAX,
        key: Some(vec![0xff; KEY_BYTES_MAX]),
        parked: Some(Parking {
            at: Some(WallMillis(u64::MAX)),
            attempts: u32::MAX,
            reason: "r".repeat(REASON_BYTES_MAX),
        }),
        body: Some(vec![0; bytes]),
    };
    let messages = vec![long(PAGE_BODY_BYTES_MAX / MESSAGE_PAGE_MAX); MESSAGE_PAGE_MAX];
    let page = MessagePage { messages, through: u64::MAX, more: true };
    let answer = Control::Response { id: u64::MAX, result: Ok(Reply::Stored(page)) };
    assert!(body(&answer).len() < CONTROL_BYTES_MAX);
}

#[test]
fn a_detail_is_taken_up_to_its_limit() {
    let long = Refusal::new(Code::Overloaded, "ä".repeat(100_000));
    let Ok(Control::Goodbye(taken)) = parse_control(&body(&Control::Goodbye(long))) else {
        panic!("no goodbye")
    };
    assert_eq!(taken.detail, "ä".repeat(REASON_BYTES_MAX / 2));
}

#[test]
fn every_control_value_survives() {
    for (name, control) in controls() {
        let body = body(&control);
        assert_eq!(parse_control(&body), Ok(control), "{name}");
        for end in 0..body.len() {
            assert!(parse_control(&body[..end]).is_err(), "{name} of {end} bytes");
        }
        assert!(parse_control(&[&body[..], &[0xc0]].concat()).is_err(), "{name} and more");
    }
}

#[test]
fn a_field_of_a_later_release_is_skipped() {
    let Control::Hello(hello) = controls().remove(0).1 else { panic!("a hello comes first") };
    let mut later = body(&Control::Hello(hello.clone()));
    // `{"hello": {…}}`: one more entry in the inner map.
    let inner = 1 + 1 + "hello".len();
    later[inner] += 1;
    later.extend([&[0xa5], &b"later"[..], &[0x92, 1, 0x81, 2, 3]].concat());
    assert_eq!(parse_control(&later), Ok(Control::Hello(hello)));
}

#[test]
fn a_nesting_bomb_is_an_error() {
    for depth in [40, 1_000, 1_000_000] {
        let bombs = [
            vec![0x91; depth],
            map("hello", &map("later", &vec![0x91; depth])),
            map("hello", &map("later", &[0x81, 0x01].repeat(depth / 2))),
            map("request", &[&[0x82, 0xa2], &b"id"[..], &[1], &vec![0x91; depth][..]].concat()),
        ];
        for bomb in bombs {
            assert!(parse_control(&bomb).is_err());
            assert_eq!(request_number(&bomb), None);
        }
    }
}

#[test]
fn a_length_that_is_not_there_allocates_nothing() {
    let huge: &[&[u8]] = &[
        &[0xdd, 0xff, 0xff, 0xff, 0xff],
        &[0xdf, 0xff, 0xff, 0xff, 0xff],
        &[0xdb, 0xff, 0xff, 0xff, 0xff],
        &[0xc6, 0xff, 0xff, 0xff, 0xff],
        &[0xc9, 0xff, 0xff, 0xff, 0xff, 1],
    ];
    for value in huge {
        assert!(parse_control(value).is_err());
        assert!(parse_control(&map("hello", value)).is_err());
        let attach = [
            &[0x82, 0xa2][..],
            b"id",
            &[1, 0xa7],
            b"request",
            &map("attach", &map("receivers", value)),
        ];
        assert!(parse_control(&map("request", &attach.concat())).is_err());
    }
}

#[test]
fn what_is_wrong_with_a_request_can_be_answered() {
    let add = |name: &str, url: &str, settings: &[u8]| {
        let command = [
            &[0x83, 0xa4][..],
            b"name",
            &text(name),
            &[0xa3],
            b"url",
            &text(url),
            &[0xa8],
            b"settings",
            settings,
        ];
        let admin = map("admin", &map("peer_add", &command.concat()));
        let request = [&[0x82, 0xa2][..], b"id", &[7, 0xa7], b"request", &admin];
        map("request", &request.concat())
    };
    let none = &[0x80];
    assert!(parse_control(&add("a", "attach:", none)).is_ok());
    for (body, code) in [
        (add("a/b", "attach:", none), Code::BadName),
        (add("a\n", "attach:", none), Code::BadName),
        (add(&"a".repeat(255), "attach:", none), Code::BadName),
        (add("a", "gopher://x:1", none), Code::BadUrl),
        (add("a", "tcp://x:0", none), Code::BadUrl),
        (add("a", "attach:", &map("window_messages", &[0xff])), Code::Malformed),
        (add("a", "attach:", &map("windowmessages", &[1])), Code::Malformed),
        (
            map(
                "request",
                &[&[0x82, 0xa2][..], b"id", &[7, 0xa7], b"request", &map("dance", &[1])].concat(),
            ),
            Code::Malformed,
        ),
    ] {
        assert_eq!(code_of(&body), code);
        assert_eq!(request_number(&body), Some(7));
    }
    assert_eq!(request_number(&map("dance", &[1])), None);
}

#[test]
fn bounds_of_what_is_not_answered_end_the_connection() {
    let alias = |alias| body(&Control::Alias { alias, name: "a".parse().unwrap() });
    assert!(parse_control(&alias(ALIASES_MAX - 1)).is_ok());
    assert!(parse_control(&alias(ALIASES_MAX)).is_err());
    let Control::Hello(hello) = controls().remove(0).1 else { panic!("a hello comes first") };
    for agent in ["x".repeat(129), "new\nline".to_owned(), "\u{7f}".to_owned()] {
        let mut hello = hello.clone();
        hello.agent = agent;
        assert!(parse_control(&body(&Control::Hello(hello))).is_err());
    }
}

#[test]
fn a_control_value_over_its_limit_is_not_begun() {
    let request = |bytes| {
        let request = Request::LogFilter { filter: "x".repeat(bytes) };
        Control::Request { id: 1, request }
    };
    let mut out = BytesMut::from(&b"before"[..]);
    let error = put_control(&mut out, &request(CONTROL_BYTES_MAX)).unwrap_err();
    assert!(matches!(error, FrameError::TooLong { .. }));
    assert_eq!(&out[..], b"before");
    put_control(&mut out, &request(CONTROL_BYTES_MAX - 100)).unwrap();
    let next = next_frame(&out[6..], &Limits::default()).unwrap();
    let Next::Frame { frame: Frame::Control(body), .. } = next else { panic!("{next:?}") };
    assert_eq!(parse_control(body), Ok(request(CONTROL_BYTES_MAX - 100)));
    assert!(parse_control(&vec![0xc0; CONTROL_BYTES_MAX + 1]).is_err());
}

#[test]
fn before_the_hello_there_is_room_for_a_hello_only() {
    for (name, control) in controls() {
        let mut out = BytesMut::new();
        put_control(&mut out, &control).unwrap();
        if name.starts_with("hello") || name.starts_with("welcome") {
            assert!(next_frame(&out, &Limits::BEFORE_HELLO).is_ok(), "{name}");
        }
    }
    let long = [&5_000u32.to_be_bytes()[..], &[0x10]].concat();
    assert!(matches!(next_frame(&long, &Limits::BEFORE_HELLO), Err(FrameError::TooLong { .. })));
}
