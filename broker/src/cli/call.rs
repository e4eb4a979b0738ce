//! `call`: publishes to one receiver and prints what it answers.

use super::delivery::Answer;
use super::input::Source;
use super::node::{Target, block_on};
use super::output::{Output, print, print_bytes};
use super::{Failure, values};
use restante_client::Publish;
use restante_protocol::name::Name;
use serde::Serialize;

/// Publish to one receiver and print its answer
///
/// The message is durable and is delivered until the receiver has acked it, also when --timeout ends
/// the wait for the answer.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Whom to call
    name: Name,
    /// What to say: a text, @FILE, or - (the default) for standard input
    payload: Option<String>,
    /// A header; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME:VALUE", value_parser = values::header)]
    headers: Vec<(String, String)>,
    /// Messages of one key reach a receiver in the order they were published
    #[arg(long)]
    key: Option<String>,
}

pub(super) fn run(args: Args, target: &Target, output: Output) -> Result<(), Failure> {
    block_on(async {
        let client = target.connect_producer().await?;
        let payload = Source::parse(args.payload).whole().await?;
        let mut publish = Publish::to([&args.name]).payload(payload);
        for (name, value) in args.headers {
            publish = publish.header(name, value);
        }
        if let Some(key) = args.key {
            publish = publish.key(key);
        }
        let answer = client.call_with(publish, target.timeout).await?;
        client.close().await;
        if output.json_asked {
            #[derive(Serialize)]
            struct Line<'a> {
                answer: Answer<'a>,
            }
            return print(&Output::json_line(&Line { answer: Answer(&answer) })?);
        }
        let mut page = answer.to_vec();
        if output.terminal && !page.is_empty() && !page.ends_with(b"\n") {
            page.push(b'\n');
        }
        print_bytes(&page)
    })
}
