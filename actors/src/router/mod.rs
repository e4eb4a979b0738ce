//! The router actor.

pub mod messages;
pub use messages::*;

use actix::prelude::*;
use restante_protocol::admin::AdminDone;
use restante_protocol::refusal::{Code, Refusal};

/// The router.
pub struct Router;
impl Actor for Router {
    type Context = Context<Self>;
}
macro_rules! stub { ($($m:ident => $t:ty, $e:expr;)*) => { $(impl Handler<$m> for Router { type Result = MessageResult<$m>; fn handle(&mut self, _: $m, _: &mut Context<Self>) -> Self::Result { let v: $t = $e; MessageResult(v) } })* } }
stub! { PublishBatch => (), (); OpenProducer => Result<OpenedProducer, Refusal>, Err(Refusal::new(Code::Internal, "")); Administer => Result<AdminDone, Refusal>, Err(Refusal::new(Code::Internal, "")); CallEnded => (), (); FlushSettles => Result<(), Refusal>, Ok(()); PeerRecords => Vec<PeerRecordView>, Vec::new(); Drain => (), (); }
