//! Samples of what is said about classes.

use crate::samples::name;
use restante_protocol::admin::{AdminCommand, ClassChoice, PeerPatch};
use restante_protocol::control::{Reply, Request};
use restante_protocol::shaper::{RatePatch, Rates, RatesPatch};
use restante_protocol::status::ClassStatus;

/// So many messages a second at most.
fn rates(ceil: u64) -> RatesPatch {
    let messages = RatePatch { ceil: Some(ceil), ..RatePatch::default() };
    RatesPatch { messages, ..RatesPatch::default() }
}

pub(crate) fn requests() -> Vec<(&'static str, Request)> {
    vec![
        (
            "request-peer-set-no-class",
            Request::Admin(AdminCommand::PeerSet {
                name: name("orders"),
                if_version: None,
                url: None,
                settings: PeerPatch { class: Some(ClassChoice::None), ..PeerPatch::default() },
            }),
        ),
        (
            "request-class-add",
            Request::Admin(AdminCommand::ClassAdd { name: name("bulk"), rates: rates(100) }),
        ),
        (
            "request-class-set",
            Request::Admin(AdminCommand::ClassSet {
                name: name("bulk"),
                if_version: Some(1),
                rates: rates(50),
            }),
        ),
        (
            "request-class-remove",
            Request::Admin(AdminCommand::ClassRemove { name: name("bulk"), if_version: None }),
        ),
        ("request-classes", Request::Classes),
    ]
}

pub(crate) fn replies() -> Vec<(&'static str, Reply)> {
    vec![(
        "response-classes",
        Reply::Classes(vec![ClassStatus {
            name: name("bulk"),
            version: 2,
            peers: 17,
            rates: rates(50).applied_to(&Rates::default()),
        }]),
    )]
}
