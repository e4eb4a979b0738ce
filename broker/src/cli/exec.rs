//! `sub --exec`: a shell command for each message.

use super::{Exit, Failure};
use restante_client::{Delivery, Nack, Settled};
use restante_protocol::id::MessageId;
use restante_protocol::limits::{REASON_BYTES_MAX, RETURN_BYTES_MAX};
use std::collections::VecDeque;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// Messages whose command has succeeded that are remembered, in case they come again.
const DONE_MAX: usize = 64;
/// How long the pipes of a command that has ended are read: what it has left running may hold them
/// open for ever.
const LINGER: Duration = Duration::from_secs(1);

/// Runs a command for each message, once for each that it succeeds with.
pub(super) struct Runner<'a> {
    command: &'a str,
    /// What was done lately, the latest last, and the answers.
    done: VecDeque<(MessageId, Vec<u8>)>,
}

impl<'a> Runner<'a> {
    pub(super) fn new(command: &'a str) -> Runner<'a> {
        Runner { command, done: VecDeque::new() }
    }

    /// Runs the command with the payload on its standard input, and settles the delivery by its
    /// status. Dropping the future kills the command and leaves the delivery unacked.
    pub(super) async fn handle(&mut self, delivery: Delivery) -> Result<Settled, Failure> {
        let done = self.done.iter().find(|(id, _)| *id == delivery.id);
        if let Some((_, answer)) = done {
            // It was acked before, too late or into a connection that was lost.
            return Ok(ack(delivery, answer));
        }
        let Ran { status, answer, complaint } =
            run(shell(self.command, &delivery), &delivery.payload).await.map_err(|error| {
                Failure::new(Exit::Failed, format_args!("cannot run sh: {error}"))
            })?;
        if !status.success() {
            return Ok(delivery.nack(Nack::transient(reason(status, &complaint))));
        }
        if answer.len() <= RETURN_BYTES_MAX {
            if self.done.len() == DONE_MAX {
                self.done.pop_front();
            }
            self.done.push_back((delivery.id, answer.clone()));
        }
        Ok(ack(delivery, &answer))
    }
}

fn ack(delivery: Delivery, answer: &[u8]) -> Settled {
    if !delivery.is_call() {
        return delivery.ack();
    }
    delivery.ack_value(answer).unwrap_or_else(|error| {
        let reason = error.to_string();
        error.delivery.nack(Nack::permanent(reason))
    })
}

/// Why the message is refused, as long as a reason may be.
fn reason(status: ExitStatus, complaint: &str) -> String {
    let mut reason = match complaint {
        "" => status.to_string(),
        _ => format!("{status}: {complaint}"),
    };
    reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
    reason
}

fn shell(command: &str, delivery: &Delivery) -> Command {
    let key = String::from_utf8_lossy(delivery.key().unwrap_or_default()).replace('\0', "");
    let mut shell = Command::new("sh");
    shell
        .args(["-c", command])
        .env("RESTANTE_ID", delivery.id.to_string())
        .env("RESTANTE_RECEIVER", delivery.receiver().as_str())
        .env("RESTANTE_ATTEMPT", delivery.attempt.to_string())
        .env("RESTANTE_REDELIVERED", if delivery.redelivered { "1" } else { "0" })
        .env("RESTANTE_KEY", key)
        .stdout(if delivery.is_call() { Stdio::piped() } else { Stdio::inherit() });
    shell
}

/// How a command has ended.
struct Ran {
    status: ExitStatus,
    /// The beginning of what it printed, if that is a pipe: more than an answer may have, at most.
    answer: Vec<u8>,
    /// The last line of what it said on standard error.
    complaint: String,
}

async fn run(mut command: Command, payload: &[u8]) -> std::io::Result<Ran> {
    let mut child =
        command.stdin(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn()?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (mut answer, mut said) = (Vec::new(), Vec::new());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A command may end without reading everything; its status says what it thought of it.
            let _ = stdin.write_all(payload).await;
        }
    };
    let status = {
        let pipes = async {
            tokio::join!(
                feed,
                head(stdout, RETURN_BYTES_MAX + 1, &mut answer),
                tail(stderr, &mut said)
            );
        };
        tokio::pin!(pipes);
        let mut status = None;
        tokio::select! {
            () = &mut pipes => {}
            ended = child.wait() => status = Some(ended?),
        }
        match status {
            None => child.wait().await?,
            Some(status) => {
                // Whatever is still to come is not the command's own.
                let _ = tokio::time::timeout(LINGER, pipes).await;
                status
            }
        }
    };
    Ok(Ran { status, answer, complaint: last_line(&said) })
}

/// Reads to the end and keeps the first bytes.
async fn head(input: Option<impl AsyncRead + Unpin>, bytes_max: usize, kept: &mut Vec<u8>) {
    let Some(mut input) = input else { return };
    let mut chunk = vec![0; 16 * 1024];
    while let Ok(count @ 1..) = input.read(&mut chunk).await {
        kept.extend_from_slice(&chunk[..count.min(bytes_max - kept.len())]);
    }
}

/// Passes everything on to standard error and keeps the end of it.
async fn tail(input: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut input) = input else { return };
    let mut chunk = vec![0; 4 * 1024];
    while let Ok(count @ 1..) = input.read(&mut chunk).await {
        // Nobody to tell if standard error is gone.
        let _ = std::io::Write::write_all(&mut std::io::stderr(), &chunk[..count]);
        kept.extend_from_slice(&chunk[..count]);
        let surplus = kept.len().saturating_sub(2 * REASON_BYTES_MAX);
        kept.drain(..surplus);
    }
}

/// The last line that is not blank.
fn last_line(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sh(script: &str, payload: &[u8]) -> Ran {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdout(Stdio::piped());
        run(command, payload).await.unwrap()
    }

    #[tokio::test]
    async fn what_a_command_prints_and_says_is_kept() {
        let ran = sh("cat; echo first >&2; echo '  last ' >&2; echo >&2; exit 3", b"\xff\0x").await;
        assert_eq!((ran.status.code(), &ran.answer[..]), (Some(3), &b"\xff\0x"[..]));
        assert_eq!(reason(ran.status, &ran.complaint), "exit status: 3: last");
    }

    #[tokio::test]
    async fn what_a_command_leaves_running_is_not_waited_for() {
        let ran = sh("(sleep 5; echo late >&2) & echo early >&2; echo answer", b"unread").await;
        assert!(ran.status.success());
        assert_eq!((&ran.answer[..], &*ran.complaint), (&b"answer\n"[..], "early"));
    }
}
