//! `sub --exec`: a shell command for each message.

use super::{Exit, Failure};
use restante_client::{Delivery, Nack};
use restante_protocol::limits::{REASON_BYTES_MAX, RETURN_BYTES_MAX};
use std::process::{ExitStatus, Stdio};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// Runs the command with the payload on its standard input, and settles the delivery by its status.
/// Dropping the future kills the command and leaves the delivery unacked.
pub(super) async fn handle(command: &str, delivery: Delivery) -> Result<(), Failure> {
    let answers = delivery.is_call();
    let mut child = Command::new("sh")
        .args(["-c", command])
        .env("RESTANTE_ID", delivery.id.to_string())
        .env("RESTANTE_RECEIVER", delivery.receiver().as_str())
        .env("RESTANTE_ATTEMPT", delivery.attempt.to_string())
        .env("RESTANTE_REDELIVERED", if delivery.redelivered { "1" } else { "0" })
        .env(
            "RESTANTE_KEY",
            String::from_utf8_lossy(delivery.key().unwrap_or_default()).replace('\0', ""),
        )
        .stdin(Stdio::piped())
        .stdout(if answers { Stdio::piped() } else { Stdio::inherit() })
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| Failure::new(Exit::Failed, format_args!("cannot run sh: {error}")))?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A command may end without reading everything; its status says what it thought of it.
            let _ = stdin.write_all(&delivery.payload).await;
        }
    };
    let (status, (), answer, complaint) =
        tokio::join!(child.wait(), feed, head(stdout, RETURN_BYTES_MAX + 1), tail(stderr));
    let status = status.map_err(|error| Failure::new(Exit::Failed, error))?;
    settle(delivery, status, answer, &complaint);
    Ok(())
}

fn settle(delivery: Delivery, status: ExitStatus, answer: Vec<u8>, complaint: &str) {
    if !status.success() {
        let reason = if complaint.is_empty() {
            status.to_string()
        } else {
            format!("{status}: {complaint}")
        };
        let end = reason.floor_char_boundary(REASON_BYTES_MAX.min(reason.len()));
        delivery.nack(Nack::transient(&reason[..end]));
    } else if delivery.is_call() {
        if let Err(error) = delivery.ack_value(answer) {
            let reason = error.to_string();
            error.delivery.nack(Nack::permanent(reason));
        }
    } else {
        delivery.ack();
    }
}

/// Reads to the end and keeps the first bytes.
async fn head(input: Option<impl AsyncRead + Unpin>, bytes_max: usize) -> Vec<u8> {
    let mut kept = Vec::new();
    let Some(mut input) = input else { return kept };
    let mut chunk = vec![0; 16 * 1024];
    while let Ok(count @ 1..) = input.read(&mut chunk).await {
        kept.extend_from_slice(&chunk[..count.min(bytes_max - kept.len())]);
    }
    kept
}

/// Passes everything on to standard error and keeps the last line that is not blank.
async fn tail(input: Option<impl AsyncRead + Unpin>) -> String {
    let mut kept: Vec<u8> = Vec::new();
    let Some(mut input) = input else { return String::new() };
    let mut chunk = vec![0; 4 * 1024];
    while let Ok(count @ 1..) = input.read(&mut chunk).await {
        // Nobody to tell if standard error is gone.
        let _ = std::io::Write::write_all(&mut std::io::stderr(), &chunk[..count]);
        kept.extend_from_slice(&chunk[..count]);
        let surplus = kept.len().saturating_sub(2 * REASON_BYTES_MAX);
        kept.drain(..surplus);
    }
    let text = String::from_utf8_lossy(&kept);
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned()
}
