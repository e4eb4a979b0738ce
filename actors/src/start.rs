//! How the actors of a node come to life: one path for a first boot and for every restart.

use crate::admin::{Admin, SetLogFilter, Sources};
use crate::directory::Directory;
use crate::health::Health;
use crate::journal::{Opened, PublishedRun};
use crate::link::Dialer;
use crate::observe::Observer;
use crate::peer::{Budget, Shared};
use crate::router::Router;
use crate::shaping::Shaping;
use crate::{Figures, Limits, clock, events, supervise};
use actix::prelude::*;
use parking_lot::Mutex;
use restante_protocol::anchors::Anchors;
use restante_protocol::control::NodeLife;
use restante_protocol::producers::Run;
use restante_protocol::refusal::Refusal;
use restante_protocol::state::{NodeState, StateError, StateLimits};
use std::sync::atomic::AtomicI64;
use std::sync::{Arc, OnceLock};
use tokio::sync::watch;

/// The journal partition of a node that is not part of a cluster.
const PARTITION: u16 = 0;

/// The addresses of a running node's actors. Cheap to clone.
#[derive(Clone)]
pub struct Handles {
    /// Who is there.
    pub directory: Arc<Directory>,
    /// Where publishes go.
    pub router: Addr<Router>,
    /// Where questions and changes go.
    pub admin: Addr<Admin>,
    /// Where watches go.
    pub observer: Addr<Observer>,
    /// What is counted.
    pub figures: Arc<Figures>,
    /// The journal's tag and epoch: what ids, deliver frames, hellos and welcomes carry.
    pub life: NodeLife,
    /// Holds a reason once the node cannot go on and has to start anew from its journal.
    pub fatal: watch::Receiver<Option<String>>,
}

/// Why the actors could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// What the journal kept of the node's state cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// A default for new peers is out of bounds.
    #[error("the defaults for new peers: {0}")]
    Defaults(Refusal),
    /// The second arbiter is gone.
    #[error("an actor could not be started: {0}")]
    Arbiter(#[from] std::io::Error),
}

/// Starts the actors: router and peers on the current arbiter, the others on `second`.
///
/// # Errors
/// When the recovered state is of a newer format or does not follow from itself; nothing has been
/// written then.
pub fn start(
    opened: Opened,
    limits: Limits,
    dialer: Arc<dyn Dialer>,
    second: &ArbiterHandle,
    set_log_filter: SetLogFilter,
) -> Result<Handles, StartError> {
    let Opened { journal, completions, recovered } = opened;
    let Limits { peers_max, producers_max, .. } = limits;
    let bounds = StateLimits { peers_max, producers_max };
    let mut state = match &recovered.checkpoint {
        Some(bytes) => NodeState::restore(bytes, bounds)?,
        None => NodeState::new(bounds),
    };
    // Values out of bounds were refused with the configuration; a caller's own are refused here.
    state.registry.set_defaults(limits.peer_defaults.clone()).map_err(StartError::Defaults)?;
    for event in &recovered.admin {
        state.apply_bytes(event)?;
    }
    for run in &recovered.published {
        let PublishedRun { producer, first_sequence, count, first_number, accepted_ms } = *run;
        let run = Run { first_sequence, count, first_number, accepted_ms };
        state.producers.replay_run(producer, run);
    }
    let maybe_sent = journal.next_number().saturating_sub(1);
    state.producers.set_durable(maybe_sent);
    let directory = Arc::new(Directory::default());
    let figures = Arc::new(Figures { started_ms: clock::wall_ms(), ..Figures::default() });
    let node = recovered.node;
    let health = {
        let (directory, figures) = (Arc::clone(&directory), Arc::clone(&figures));
        let journal = Arc::clone(&journal);
        supervise::start_in(second, "health", move || {
            Health::new(directory, node, PARTITION, figures, journal)
        })?
    };
    let shared = Arc::new(Shared {
        journal: Arc::clone(&journal),
        dialer,
        directory: Arc::clone(&directory),
        health,
        router: OnceLock::new(),
        node,
        partition: PARTITION,
        maybe_sent,
        queued_bytes: Budget::new(limits.queued_bytes_max),
        page_bytes: Budget::new(limits.page_bytes_max),
        anchors: Mutex::new(Anchors::new(maybe_sent + 1, clock::wall_ms(), clock::now())),
        kept: AtomicI64::new(0),
        shaping: Arc::new(Shaping::new(clock::now(), &limits.rates)),
    });
    let peer_share = limits.peer_share;
    let (tell_fatal, fatal) = watch::channel(None);
    let tell_fatal = Arc::new(tell_fatal);
    {
        let (shaping, tell_fatal) = (Arc::clone(&shared.shaping), Arc::clone(&tell_fatal));
        let serve = async move { shaping.serve().await };
        actix_rt::spawn(supervise::watch_over(serve, move |panic| {
            events::actor_crashed("shaper", None, None, &panic, 1);
            tell_fatal.send_replace(Some(panic));
        }));
    }
    let router = {
        let (shared, figures) = (Arc::clone(&shared), Arc::clone(&figures));
        let router =
            Router::new(shared, state, completions, limits, figures, Arc::clone(&tell_fatal));
        let ctx = Context::<Router>::new();
        let addr = ctx.address();

        actix_rt::spawn(supervise::watch_over(ctx.into_future(router), move |panic| {
            events::actor_crashed("router", None, None, &panic, 1);
            tell_fatal.send_replace(Some(panic));
        }));
        addr
    };
    // The peers start with the router, and it has not had its first turn yet.
    let _ = shared.router.set(router.clone());
    let admin = {
        let sources = Sources {
            directory: Arc::clone(&directory),
            router: router.clone(),
            journal: Arc::clone(&journal),
            figures: Arc::clone(&figures),
            node,
            epoch: recovered.epoch,
            peer_share,
            set_log_filter,
        };
        supervise::start_in(second, "admin", move || Admin::new(sources))?
    };
    let observer = {
        let (directory, router) = (Arc::clone(&directory), router.clone());
        // An epoch leaves room for 2^40 changes below the next one's.
        let first_version = u64::from(recovered.epoch) << 40;
        supervise::start_in(second, "observer", move || {
            Observer::new(directory, router, journal, first_version)
        })?
    };
    let life = NodeLife { tag: node, epoch: recovered.epoch };
    Ok(Handles { directory, router, admin, observer, figures, life, fatal })
}
