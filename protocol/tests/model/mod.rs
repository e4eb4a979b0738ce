//! What can happen to a peer, and the world in which it happens.

mod checks;
mod leave;
mod world;

pub(crate) use world::World;

use proptest::prelude::*;
use restante_protocol::admin::Order;
use restante_protocol::shaper::Amount;

/// How a run begins.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) order: Order,
    pub(crate) window: u32,
    pub(crate) window_min: u32,
    pub(crate) window_bytes: u64,
    pub(crate) dials: bool,
    pub(crate) seed: u64,
    /// What is sent by one leave, where the rate is limited.
    pub(crate) leave: Option<Amount>,
}

impl Default for Setup {
    fn default() -> Setup {
        let (order, window, window_bytes) = (Order::Sent, 64, 1 << 20);
        Setup { order, window, window_min: 0, window_bytes, dials: true, seed: 7, leave: None }
    }
}

/// One thing that happens. Indexes choose among what is there, modulo how much that is.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Enqueue { count: u64, stride: u64, keys: u64, bytes: u32 },
    EnqueueMortal { count: u64, keys: u64, ttl_ms: u64 },
    Missed { count: u64 },
    LinkUp { grant: Option<u64> },
    LinkLost,
    DialFailed,
    Ack { at: usize, length: u64 },
    AckAll,
    AckValue { at: usize },
    AckGivenUp { at: usize },
    AckOdd { ahead: u64 },
    AckEarlier,
    Nack { at: usize, permanent: bool, after_ms: Option<u64> },
    NackGivenUp { at: usize, permanent: bool },
    Grant { more: u64 },
    Advance { ms: u64 },
    AdvanceToDeadline,
    Page { size: usize },
    PageFails,
    Policy { order: Order, window: u32 },
    Pause,
    Resume,
    AddressChanged { dials: bool },
    Exclude { at: usize },
    Restart,
    Trim,
}

pub(crate) fn order() -> impl Strategy<Value = Order> {
    prop_oneof![3 => Just(Order::Sent), 2 => Just(Order::Strict), 1 => Just(Order::None)]
}

pub(crate) fn setup() -> impl Strategy<Value = Setup> {
    let window = prop_oneof![1..4_u32, 4..40_u32, Just(2_048_u32)];
    let window_bytes = prop_oneof![Just(300_u64), Just(1 << 20)];
    let leave = (1..9_u64, 0..900_u64).prop_map(|(messages, bytes)| Amount { messages, bytes });
    let leave = prop::option::weighted(0.4, leave);
    let window = (window, prop_oneof![3 => Just(0_u32), 2 => 1..40_u32]);
    let all = (order(), window, window_bytes, prop::bool::weighted(0.7), any::<u64>(), leave);
    all.prop_map(|(order, (window, min), window_bytes, dials, seed, leave)| Setup {
        order,
        window,
        window_min: min.min(window),
        window_bytes,
        dials,
        seed,
        leave,
    })
}

pub(crate) fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        24 => traffic(),
        40 => answer(),
        22 => time_and_reads(),
        9 => link(),
        3 => operator(),
    ]
}

fn traffic() -> impl Strategy<Value = Op> {
    let count = prop_oneof![40 => 1..6_u64, 12 => 6..60_u64, 1 => Just(1_500_u64)];
    let bytes = prop_oneof![4 => Just(100_u32), 1 => 0..400_u32, 1 => Just(700_000_u32)];
    prop_oneof![
        9 => (count, 1..3_u64, 1..5_u64, bytes).prop_map(|(count, stride, keys, bytes)| {
            Op::Enqueue { count, stride, keys, bytes }
        }),
        3 => (1..20_u64, 1..5_u64, 0..4_000_u64)
            .prop_map(|(count, keys, ttl_ms)| Op::EnqueueMortal { count, keys, ttl_ms }),
        1 => (1..20_u64).prop_map(|count| Op::Missed { count }),
    ]
}

fn answer() -> impl Strategy<Value = Op> {
    let at = any::<usize>();
    let after_ms = prop::option::of(1..5_000_u64);
    prop_oneof![
        10 => (at, 1..20_u64).prop_map(|(at, length)| Op::Ack { at, length }),
        3 => Just(Op::AckAll),
        2 => any::<usize>().prop_map(|at| Op::AckValue { at }),
        3 => any::<usize>().prop_map(|at| Op::AckGivenUp { at }),
        1 => (0..9_u64).prop_map(|ahead| Op::AckOdd { ahead }),
        1 => Just(Op::AckEarlier),
        6 => (any::<usize>(), prop::bool::weighted(0.15), after_ms)
            .prop_map(|(at, permanent, after_ms)| Op::Nack { at, permanent, after_ms }),
        1 => (any::<usize>(), any::<bool>())
            .prop_map(|(at, permanent)| Op::NackGivenUp { at, permanent }),
        2 => (0..9_u64).prop_map(|more| Op::Grant { more }),
    ]
}

fn time_and_reads() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0..3_000_u64).prop_map(|ms| Op::Advance { ms }),
        5 => Just(Op::AdvanceToDeadline),
        9 => (1..40_usize).prop_map(|size| Op::Page { size }),
        6 => Just(Op::Page { size: usize::MAX }),
        1 => Just(Op::PageFails),
    ]
}

fn link() -> impl Strategy<Value = Op> {
    let grant = prop_oneof![4 => Just(None), 1 => (0..20_u64).prop_map(Some)];
    prop_oneof![
        6 => grant.prop_map(|grant| Op::LinkUp { grant }),
        3 => Just(Op::LinkLost),
        1 => Just(Op::DialFailed),
    ]
}

fn operator() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (order(), 1..60_u32).prop_map(|(order, window)| Op::Policy { order, window }),
        1 => Just(Op::Pause),
        3 => Just(Op::Resume),
        1 => any::<bool>().prop_map(|dials| Op::AddressChanged { dials }),
        2 => any::<usize>().prop_map(|at| Op::Exclude { at }),
        2 => Just(Op::Restart),
        1 => Just(Op::Trim),
    ]
}
