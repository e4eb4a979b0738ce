//! Receivers: what they make of what they are sent, and of the weather.

use super::net::{Answer, Event, Frame, Outside};
use super::plan::{HOUR, SECOND, Weather};
use super::post::Poison;
use rand::Rng;
use rand::rngs::StdRng;

/// After how long both sides find a line dead on which nothing comes through.
const HEARTBEAT_US: u64 = 45 * SECOND;

/// One receiver.
pub(super) struct Receiver {
    pub(super) weather: Weather,
    /// The connection it has.
    pub(super) session: Option<u64>,
    /// Whether it is about to attach.
    pub(super) attaches: bool,
    /// A message hangs it, until its connection ends.
    is_stuck: bool,
    /// Taken in bad weather, and not answered.
    unanswered: Vec<Frame>,
    dice: StdRng,
}

impl Receiver {
    pub(super) fn new(dice: StdRng) -> Receiver {
        Receiver {
            weather: Weather::Fair,
            session: None,
            attaches: false,
            is_stuck: false,
            unanswered: Vec::new(),
            dice,
        }
    }

    /// It has a connection.
    pub(super) fn connected(&mut self, link: u64) {
        self.session = Some(link);
        self.is_stuck = false;
        self.unanswered.clear();
    }
}

impl Outside {
    /// Deliveries reach a receiver. Whether they were read.
    pub(super) fn arrive(&mut self, peer: usize, link: u64, frames: Vec<Frame>) -> bool {
        let receiver = &mut self.receivers[peer];
        if receiver.session != Some(link) {
            return false;
        }
        match receiver.weather {
            Weather::Vanished | Weather::Refusing | Weather::Unread => false,
            Weather::Hung => {
                receiver.unanswered.extend(&frames);
                for frame in frames {
                    self.judge.arrived(peer, frame.token);
                }
                true
            }
            Weather::TurningAway => {
                self.lose(peer, "closed by the receiver");
                true
            }
            Weather::Fair | Weather::Flapping => {
                self.work(peer, link, &frames);
                true
            }
        }
    }

    /// A receiver works on what it got.
    fn work(&mut self, peer: usize, link: u64, frames: &[Frame]) {
        let mut answers = Vec::new();
        for frame in frames {
            if self.receivers[peer].is_stuck {
                return;
            }
            self.judge.arrived(peer, frame.token);
            let temper = &self.judge.peers[peer].temper;
            let post = &self.judge.posts[frame.token as usize].post;
            let (poison, key) = (post.poison_for(temper), post.key);
            let refuses_key = temper.refused_key.is_some_and(|(refused, from, until)| {
                refused == key && (from..until).contains(&self.now)
            });
            let draw = &mut self.receivers[peer].dice;
            let refuses = refuses_key || draw.random_range(0..1_000) < temper.nacks;
            let after_us = draw.random_ratio(1, 10).then(|| draw.random_range(1..3_600) * SECOND);
            let tag = frame.tag;
            match poison {
                Poison::Crash => return self.lose(peer, "the receiver crashed"),
                Poison::Hang => {
                    self.receivers[peer].is_stuck = true;
                    break;
                }
                Poison::Refused => {
                    answers.push(Answer::Nack { tag, permanent: true, after_us: None });
                }
                Poison::RefusedAlways => {
                    answers.push(Answer::Nack { tag, permanent: false, after_us: None });
                }
                Poison::None if refuses => {
                    answers.push(Answer::Nack { tag, permanent: false, after_us });
                }
                Poison::None => {
                    self.judge.taken(peer, frame.token);
                    answers.push(Answer::Ack { first: tag, last: tag });
                }
            }
        }
        self.answer(peer, link, answers, frames.last().map(|frame| frame.tag));
    }

    /// The answers leave, together or each by itself.
    fn answer(&mut self, peer: usize, link: u64, answers: Vec<Answer>, last: Option<u64>) {
        let temper = &self.judge.peers[peer].temper;
        let (is_parallel, repeats, work_us) = (temper.is_parallel, temper.repeats, temper.work_us);
        let grant = temper.grant.zip(last).map(|(grant, last)| Answer::Grant(last + grant));
        let latency = temper.latency_us;
        if is_parallel {
            for answer in answers.into_iter().chain(grant) {
                let work = self.receivers[peer].dice.random_range(work_us / 2..=2 * work_us);
                self.after(work + latency, Event::Answers { peer, link, answers: vec![answer] });
            }
            return;
        }
        let mut joined: Vec<Answer> = Vec::new();
        for answer in answers {
            match (joined.last_mut(), answer) {
                (Some(Answer::Ack { last, .. }), Answer::Ack { first, last: to })
                    if *last + 1 == first =>
                {
                    *last = to;
                }
                _ => joined.push(answer),
            }
        }
        joined.extend(grant);
        let wait = work_us + latency;
        if repeats {
            let answers = joined.clone();
            self.after(wait + 1_000, Event::Answers { peer, link, answers });
        }
        self.after(wait, Event::Answers { peer, link, answers: joined });
    }

    /// The receiver's connection ends; the node hears of it a moment later.
    pub(super) fn lose(&mut self, peer: usize, why: &'static str) {
        let latency = self.latency_us(peer);
        if let Some(link) = self.receivers[peer].session.take() {
            self.after(latency, Event::Lost { peer, link, why });
        }
    }

    /// Bad weather begins or ends.
    pub(super) fn turn_weather(&mut self, peer: usize, weather: Weather) {
        let before = std::mem::replace(&mut self.receivers[peer].weather, weather);
        let session = self.receivers[peer].session;
        self.judge.see(peer, super::judge::Seen::Said(format!("{before:?} turns {weather:?}")));
        match (before, weather) {
            (Weather::Hung, Weather::Fair) if self.receivers[peer].dice.random_bool(0.5) => {
                // It answers all it has taken, late.
                let frames = std::mem::take(&mut self.receivers[peer].unanswered);
                if let Some(link) = session {
                    self.work(peer, link, &frames);
                }
            }
            (Weather::Flapping, Weather::Fair) => {}
            (_, Weather::Fair) => self.lose(peer, "the receiver starts anew"),
            (_, Weather::Refusing | Weather::TurningAway) => self.lose(peer, "reset"),
            (_, Weather::Vanished) => {
                if let Some(link) = session {
                    let why = "nothing was heard for 45 s";
                    self.after(HEARTBEAT_US, Event::Lost { peer, link, why });
                }
            }
            (_, Weather::Flapping) => self.flap_soon(peer),
            (_, Weather::Hung | Weather::Unread) => {}
        }
        self.attach_soon(peer);
    }

    /// A flapping line is lost, and will be again.
    pub(super) fn flap(&mut self, peer: usize) {
        if self.receivers[peer].weather == Weather::Flapping {
            self.lose(peer, "the line flaps");
            self.flap_soon(peer);
        }
    }

    fn flap_soon(&mut self, peer: usize) {
        let wait = self.receivers[peer].dice.random_range(2 * SECOND..HOUR / 60);
        self.after(wait, Event::Flap(peer));
    }

    /// A receiver that comes by itself will, unless it is about to.
    pub(super) fn attach_soon(&mut self, peer: usize) {
        if !self.judge.peers[peer].temper.dials && !self.receivers[peer].attaches {
            self.receivers[peer].attaches = true;
            let wait = self.receivers[peer].dice.random_range(SECOND..5 * SECOND);
            self.after(wait, Event::Attach(peer));
        }
    }
}
