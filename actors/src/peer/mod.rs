//! The peer actor: feed the core, drain it, arm one timer.

pub mod messages;
pub use messages::*;

use actix::prelude::*;
use restante_protocol::delivery::types::{Snapshot, Whereabouts};
use restante_protocol::refusal::{Code, Refusal};

/// The actor that serves one peer.
pub struct Peer;
impl Actor for Peer {
    type Context = Context<Self>;
}
macro_rules! stub { ($($m:ident => $t:ty, $e:expr;)*) => { $(impl Handler<$m> for Peer { type Result = MessageResult<$m>; fn handle(&mut self, _: $m, _: &mut Context<Self>) -> Self::Result { let v: $t = $e; MessageResult(v) } })* } }
stub! { Enqueue => (), (); LinkUp => Result<u64, Refusal>, Err(Refusal::new(Code::Internal, "")); LinkDown => (), (); Acked => (), (); AckedValue => (), (); Nacked => (), (); Granted => (), (); Writable => (), (); Reconfigure => (), (); Retire => (), (); Inspect => Option<Snapshot>, None; Locate => Option<Whereabouts>, None; }
