//! How a command reaches the node, and what it makes of each way the client can fail.

use super::exit::exit_of;
use super::output::{Output, note, print};
use super::{EVERYWHERE, Exit, Failure};
use restante_client::{
    AttachError, CallError, Client, ConnectError, DrainError, EndReason, PublishError,
    ReceiveError, RequestError, WatchError,
};
use restante_protocol::admin::AdminCommand;
use restante_protocol::refusal::Code;
use std::future::Future;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Has the node change a group or a class, and says what has been done to it.
pub(super) async fn change(
    client: &Client,
    command: AdminCommand,
    kind: &str,
    what: &str,
    output: Output,
) -> Result<(), Failure> {
    let name = command.subject().to_owned();
    let done = client.admin(command).await?;
    if output.json_asked {
        return print(&Output::json_line(&done)?);
    }
    note(&format!("{name} {what} ({kind}, version {})", done.version));
    Ok(())
}

/// Where the node is and how long it may take to answer.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Target {
    /// The node's address
    #[arg(long, global = true, value_name = "ADDR", env = "RESTANTE_SERVER", help_heading = EVERYWHERE)]
    #[arg(default_value = "127.0.0.1:7700", hide_default_value = true)]
    server: String,
    /// How long to wait for the node, and with call and pub --wait for the receivers
    #[arg(long, global = true, value_name = "DURATION", default_value = "30s", help_heading = EVERYWHERE)]
    #[arg(value_parser = super::values::duration, allow_hyphen_values = true)]
    pub(super) timeout: Duration,
}

/// What the node's log calls this program.
pub(super) const AGENT: &str = concat!("restante-cli/", env!("CARGO_PKG_VERSION"));
/// How long resolving, connecting and greeting may take, whatever `--timeout` says.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// How long an answer may take that is not bounded in time.
const PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);

impl Target {
    /// Where the node is.
    pub(super) fn server(&self) -> &str {
        &self.server
    }

    /// A client that asks and receives.
    pub(super) async fn connect(&self) -> Result<Client, Failure> {
        Ok(self.builder()?.receive_only().connect().await?)
    }

    /// A client that waits for answers as long as they take.
    pub(super) async fn connect_patiently(&self) -> Result<Client, Failure> {
        Ok(self.builder()?.receive_only().request_timeout(PATIENCE).connect().await?)
    }

    /// A client that publishes.
    pub(super) async fn connect_producer(&self) -> Result<Client, Failure> {
        Ok(self.builder()?.connect().await?)
    }

    fn builder(&self) -> Result<restante_client::Builder, Failure> {
        if self.timeout.is_zero() {
            return Err(Failure::new(Exit::Usage, "--timeout: expected more than zero"));
        }
        Ok(Client::builder(&self.server)
            .agent(AGENT)
            .connect_timeout(self.timeout.min(CONNECT_MAX))
            .request_timeout(self.timeout))
    }
}

/// Runs a command that talks to a node.
pub(super) fn block_on<T>(command: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, format_args!("cannot start: {error}")))?;
    let outcome = runtime.block_on(command);
    // A thread that waits for standard input never ends by itself.
    runtime.shutdown_background();
    outcome
}

/// Ends when the process is asked to stop, by Ctrl-C or SIGTERM.
pub(super) async fn stop_asked() {
    match Stop::listen() {
        Ok(mut stop) => stop.asked().await,
        Err(_) => std::future::pending().await,
    }
}

/// What asks the process to stop, in place of ending it.
pub(super) struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    pub(super) fn listen() -> Result<Stop, Failure> {
        let listen = |kind| {
            let failed =
                |error| Failure::new(Exit::Failed, format_args!("cannot hear signals: {error}"));
            signal(kind).map_err(failed)
        };
        let (interrupt, terminate) = (SignalKind::interrupt(), SignalKind::terminate());
        Ok(Stop { interrupt: listen(interrupt)?, terminate: listen(terminate)? })
    }

    /// Ends when the process is asked to stop since this was last answered. Cancel-safe.
    pub(super) async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Failure {
        let exit = match &error {
            ConnectError::BadOption { .. } => Exit::Usage,
            ConnectError::Refused { refusal, .. } if refusal.code == Code::NotAllowed => {
                Exit::NotAllowed
            }
            _ => Exit::CannotConnect,
        };
        let remedy = match exit {
            Exit::CannotConnect => "; is a node running there? `restante serve` starts one",
            _ => "",
        };
        Failure::new(exit, format_args!("{error}{remedy}"))
    }
}

fn exit_of_end(reason: &EndReason) -> Exit {
    match reason {
        EndReason::Refused(refusal) => exit_of(refusal.code),
        EndReason::Superseded(_) | EndReason::IdentityShared { .. } => Exit::Refused,
        EndReason::Lost
        | EndReason::Closed
        | EndReason::Stopped
        | EndReason::GaveUp { .. }
        | EndReason::Protocol { .. } => Exit::CannotConnect,
    }
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Failure {
        let exit = match &error {
            RequestError::Refused(refusal) => exit_of(refusal.code),
            RequestError::TimedOut { .. } => Exit::TimedOut,
            RequestError::Disconnected => Exit::CannotConnect,
            RequestError::Ended(reason) => exit_of_end(reason),
            RequestError::TooMany { .. }
            | RequestError::TooLarge { .. }
            | RequestError::WrongReply => Exit::Failed,
        };
        Failure::new(exit, error)
    }
}

impl From<PublishError> for Failure {
    fn from(error: PublishError) -> Failure {
        let exit = match &error {
            PublishError::NoReceiver
            | PublishError::TooManyReceivers { .. }
            | PublishError::BadName { .. }
            | PublishError::BadKey { .. }
            | PublishError::BadTtl { .. }
            | PublishError::BadDelay { .. }
            | PublishError::BadDeliverAt { .. }
            | PublishError::BadHeader { .. }
            | PublishError::HeadersTooLarge { .. } => Exit::Usage,
            PublishError::TooLarge { .. } => Exit::Refused,
            PublishError::Refused(refused) => exit_of(refused.code),
            PublishError::NotSent(reason) | PublishError::Ended { reason, .. } => {
                exit_of_end(reason)
            }
            PublishError::TimedOut { .. } => Exit::TimedOut,
            _ => Exit::Failed,
        };
        match &error {
            // Not the node's word: it was not asked.
            PublishError::TooLarge { .. } => {
                let code = Code::TooLarge;
                Failure::new(exit, format_args!("{code}: {error}; {}", code.remedy()))
            }
            PublishError::BadName { .. } => bad_name(&error),
            _ => Failure::new(exit, error),
        }
    }
}

/// A name that the client refused, in the words of the node.
fn bad_name(error: &dyn std::fmt::Display) -> Failure {
    let code = Code::BadName;
    Failure::new(Exit::Usage, format_args!("{code}: {error}; {}", code.remedy()))
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Failure {
        let exit = match error {
            CallError::Publish(error) => return error.into(),
            CallError::Refused { .. } => Exit::Refused,
            CallError::TimedOut { .. } => Exit::TimedOut,
            CallError::Ended(ref reason) => exit_of_end(reason),
            _ => Exit::Failed,
        };
        Failure::new(exit, error)
    }
}

impl From<AttachError> for Failure {
    fn from(error: AttachError) -> Failure {
        let exit = match &error {
            AttachError::BadName { .. } => return bad_name(&error),
            AttachError::Refused { refusal, .. } if refusal.code == Code::UnknownReceiver => {
                Exit::NotFound
            }
            AttachError::Refused { refusal, .. } => exit_of(refusal.code),
            AttachError::TimedOut { .. } => Exit::TimedOut,
            AttachError::Ended(reason) => exit_of_end(reason),
            _ => Exit::Failed,
        };
        Failure::new(exit, error)
    }
}

impl From<ReceiveError> for Failure {
    fn from(error: ReceiveError) -> Failure {
        let exit = match &error {
            ReceiveError::Detached { refusal, .. } => exit_of(refusal.code),
            ReceiveError::Ended(reason) => exit_of_end(reason),
        };
        Failure::new(exit, error)
    }
}

impl From<WatchError> for Failure {
    fn from(error: WatchError) -> Failure {
        let exit = match &error {
            WatchError::Refused(refusal) => exit_of(refusal.code),
            WatchError::Ended(reason) => exit_of_end(reason),
        };
        Failure::new(exit, error)
    }
}

impl From<DrainError> for Failure {
    fn from(error: DrainError) -> Failure {
        let exit = match error {
            DrainError::TimedOut { .. } => Exit::TimedOut,
            DrainError::Acks(error) => return error.into(),
            DrainError::Ended(ref reason) => exit_of_end(reason),
        };
        Failure::new(exit, error)
    }
}
