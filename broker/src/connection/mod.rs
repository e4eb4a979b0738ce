//! One connection of the native protocol, whoever opened it: producer, receiver, operator, or all at
//! once.
//!
//! Constraints: it runs on the data arbiter, so nothing here blocks or reads a file; it never stops
//! reading, because acks must always get through; everything it keeps has a bound; ending it, by
//! whatever way, tells every peer that was attached.
//!
//! ```text
//!            ┌────────────────────────── Connection ──────────────────────────┐
//!  socket ──►│ reader ─► intake ─┬─ publishes of one read ─► router           │
//!            │                   ├─ acks of one read, per slot ─► peers       │
//!            │                   └─ requests ─► tasks ─► admin, peers, router │
//!  socket ◄──│ writer ◄── outbox ◄─ confirms, deliveries, answers             │
//!            │ pulse: heartbeats, silence, stalls: one timer                  │
//!            └────────────────────────────────────────────────────────────────┘
//! ```
//!
//! handshake.rs  the first frame of each side        reader.rs   bytes, without copies
//! intake.rs     one pass over a read                credit.rs, aliases.rs  what a producer may and means
//! slots.rs      attachments, acks to their peers    outbox.rs   what is going to be said, by whom
//! requests.rs   what is asked · tasks.rs, watch.rs  pulse.rs    signs of life
//! accept.rs, dial.rs  how a connection begins       drive.rs    its loop · closing.rs  how it ends

mod accept;
mod aliases;
mod closing;
mod credit;
mod dial;
mod drive;
mod handshake;
mod intake;
mod net;
mod outbox;
mod pulse;
mod reader;
mod requests;
mod slots;
mod tasks;
mod watch;

pub(crate) use accept::{refuse, serve};
pub(crate) use dial::introduce;
pub(crate) use net::{Net, Settings};

use restante_protocol::refusal::Refusal;
use std::io;

/// Why a connection ended.
#[derive(Debug)]
enum End {
    /// The other side closed it, or said goodbye.
    Left(String),
    /// This side closes it and says why.
    Refused(Refusal),
    /// The socket failed.
    Broken(io::Error),
}

impl End {
    /// One line for the log and for the peers that were attached.
    fn why(&self) -> String {
        match self {
            End::Left(why) => why.clone(),
            End::Refused(refusal) => refusal.to_string(),
            End::Broken(error) => error.to_string(),
        }
    }
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> End {
        End::Broken(error)
    }
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> End {
        End::Refused(refusal)
    }
}
