//! The workloads, W1 to W9, each against any subject.
//!
//! | | | |
//! |---|---|---|
//! | W1 | 10 receivers, each message to one, 256 B | `flow` |
//! | W2 | each message to 8 receivers, 1 KiB | `flow` |
//! | W3 | a backlog for an absent receiver, then it comes, 1 KiB | `backlog`, with the limits in `raw` |
//! | W4 | one message at a time, 256 B | `flow`, with the limits in `raw` |
//! | W5 | `kill -9` with a backlog: the first message after the restart, what is lost | `backlog` |
//! | W6a, W6b | 1,000 receivers over 10 connections, and with one each, 1 KiB | `flow` |
//! | W7 | W1 with an eleventh receiver that is absent, against W1 | `absent` |
//! | W8 | an open loop at fixed rates | `flow` |
//! | W9 | growth in receivers, bytes and receivers a message | `flow` |

mod absent;
mod backlog;
mod flow;

use super::engine::Engine;
use super::failure::{Result, failure};
use super::raw;
use super::result::Metrics;
use super::server::{Scratch, Server};
use super::shape::{Pace, Routing, Shape, Times};
use super::subject::Subject;
use std::fmt::{self, Display, Formatter};
use std::path::Path;

/// What a case does to a subject.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    /// The limits of the machine; no subject.
    Raw,
    Flow(Shape),
    Backlog(Shape),
    Restart(Shape),
    Absent(Shape),
}

impl Work {
    fn shape(&self) -> Option<&Shape> {
        match self {
            Work::Raw => None,
            Work::Flow(shape) | Work::Backlog(shape) | Work::Restart(shape) => Some(shape),
            Work::Absent(shape) => Some(shape),
        }
    }
}

/// One line of the report for each subject.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) workload: &'static str,
    pub(crate) variant: String,
    pub(crate) work: Work,
    /// Only for Restante.
    pub(crate) own: bool,
    /// How often, for all subjects in turn.
    pub(crate) rounds: u32,
}

/// How much of everything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    pub(crate) rounds: u32,
    pub(crate) times: Times,
    /// Messages of W3's and W5's backlogs: for Restante in W3, and otherwise.
    pub(crate) backlog_own: u64,
    pub(crate) backlog: u64,
    /// Receivers of W6.
    pub(crate) many: u32,
    /// The sizes of growth, or only their ends.
    pub(crate) fine: bool,
    /// Whether growth is measured for all subjects.
    pub(crate) growth_all: bool,
}

impl Display for Scale {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let Scale { rounds, times, backlog_own, backlog, many, .. } = self;
        let window = times.window.as_secs_f64();
        write!(
            out,
            "medians of {rounds}, windows of {window} s, backlogs of {backlog_own} and {backlog}, \
             {many} receivers"
        )
    }
}

/// The cases of a workload; `own_rate`: Restante's W1, deliveries a second, once it is known.
pub(crate) fn cases(workload: &'static str, scale: &Scale, own_rate: Option<f64>) -> Vec<Case> {
    let case = |variant: &str, work: Work| Case {
        workload,
        variant: variant.to_owned(),
        work,
        own: false,
        rounds: scale.rounds,
    };
    let w1 = Shape::default();
    let many = |own_rounds: u32, receivers: u32, per_connection: u32| Case {
        rounds: own_rounds,
        ..case(
            &format!("{receivers} receivers"),
            Work::Flow(Shape {
                receivers,
                present: receivers,
                receivers_per_connection: per_connection,
                size: 1_024,
                ..w1
            }),
        )
    };
    match workload {
        "raw" => vec![case("", Work::Raw)],
        "W1" => {
            let lone = Work::Flow(Shape { producers: 1, ..w1 });
            vec![case("8 producers", Work::Flow(w1)), case("1 producer", lone)]
        }
        "W2" => {
            let routing = Routing::All;
            let shape = Shape { receivers: 8, present: 8, routing, size: 1_024, ..w1 };
            vec![case("", Work::Flow(shape))]
        }
        "W3" => {
            let backlog = Work::Backlog(backlog_shape(scale.backlog));
            vec![case("", backlog), case("limits", Work::Raw)]
        }
        "W4" => {
            let pace = Pace::Lone;
            let shape = Shape { producers: 1, receivers: 1, present: 1, pace, ..w1 };
            vec![case("", Work::Flow(shape)), case("limits", Work::Raw)]
        }
        "W5" => vec![case("", Work::Restart(backlog_shape(scale.backlog)))],
        "W6a" => {
            let mut cases = vec![many(scale.rounds, scale.many, scale.many.div_ceil(10))];
            let ten_times = many(scale.rounds, 10 * scale.many, scale.many);
            cases.push(Case { own: true, ..ten_times });
            cases
        }
        "W6b" => vec![many(scale.rounds, scale.many, 1)],
        "W7" => {
            let shape = Shape { receivers: 11, present: 10, ..w1 };
            vec![Case { rounds: 5.min(2 * scale.rounds - 1), ..case("", Work::Absent(shape)) }]
        }
        "W8" => {
            let half = own_rate.map(|rate| ("half of W1".to_owned(), rate / 2.0));
            let fixed = [1_000.0, 10_000.0, 25_000.0].map(|rate| (format!("{rate}/s"), rate));
            let open = |(variant, rate): (String, f64)| {
                case(&variant, Work::Flow(Shape { pace: Pace::Open(rate), ..w1 }))
            };
            fixed.into_iter().chain(half).map(open).collect()
        }
        _ => growth(scale, &case),
    }
}

fn backlog_shape(messages: u64) -> Shape {
    Shape { receivers: 1, present: 0, size: 1_024, messages, ..Shape::default() }
}

fn growth(scale: &Scale, case: &dyn Fn(&str, Work) -> Case) -> Vec<Case> {
    let few = |all: &[u32]| -> Vec<u32> {
        if scale.fine { all.to_vec() } else { vec![all[0], all[all.len() - 1]] }
    };
    let mut cases = Vec::new();
    for size in few(&[64, 256, 1_024, 4_096, 16_384, 65_536, 262_144, 1_048_576]) {
        let shape = Shape { size: size as usize, ..Shape::default() };
        cases.push(case(&format!("{size} B"), Work::Flow(shape)));
    }
    for receivers in few(&[1, 2, 4, 8, 16, 32]) {
        let (present, routing) = (receivers, Routing::All);
        let shape = Shape { receivers, present, routing, ..Shape::default() };
        cases.push(case(&format!("{receivers} a message"), Work::Flow(shape)));
    }
    for receivers in few(&[1, 10, 100, 1_000, 10_000]) {
        let receivers_per_connection = receivers.div_ceil(10);
        let shape =
            Shape { receivers, present: receivers, receivers_per_connection, ..Shape::default() };
        cases.push(case(&format!("{receivers} receivers"), Work::Flow(shape)));
    }
    cases.into_iter().map(|case| Case { own: !scale.growth_all, ..case }).collect()
}

/// Runs a case once.
pub(crate) fn run(
    case: &Case,
    subject: &dyn Subject,
    scale: &Scale,
    dir: &Path,
) -> Result<Metrics> {
    if let Some(shape) = case.work.shape()
        && let Some(why) = subject.unable(shape)
    {
        return Err(failure!("{why}"));
    }
    match case.work {
        Work::Raw => raw::measure(&Scratch::new(dir)?, 2 * scale.times.window),
        Work::Flow(shape) => flow::run(subject, &shape, &scale.times, dir),
        Work::Backlog(shape) => {
            // Ours is held against bounds that only a large backlog shows.
            let own = subject.name() == "Restante";
            let messages = if own { scale.backlog_own } else { shape.messages };
            backlog::fill_and_drain(subject, &Shape { messages, ..shape }, dir)
        }
        Work::Restart(shape) => backlog::kill_and_restart(subject, &shape, dir),
        Work::Absent(shape) => absent::run(subject, &shape, &scale.times, dir),
    }
}

/// A server that knows the receivers, and an engine with every connection.
fn begin(subject: &dyn Subject, shape: &Shape, dir: &Path) -> Result<(Server, Engine)> {
    let server = subject.start(Scratch::new(dir)?)?;
    subject.prepare(server.port, shape)?;
    let mut engine = Engine::new(shape)?;
    for receivers in shape.connections(0..shape.present) {
        engine.add_receiver(subject.receivers(server.port, shape, receivers)?)?;
    }
    for index in 0..shape.producers {
        engine.add_producer(subject.producer(server.port, shape, index)?)?;
    }
    Ok((server, engine))
}
