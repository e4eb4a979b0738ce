//! `config check`, `config show`, and the settings that `serve` takes as flags.

use super::output::{Output, Paint, Table, note, print};
use super::{Exit, Failure};
use crate::config::{ConfigError, Effective, Flag, Origin, Sources, VALUES, Value};
use std::path::PathBuf;

#[derive(clap::Subcommand)]
pub(super) enum Verb {
    /// Check the configuration and print nothing when it is good
    Check(Settings),
    /// Print every value that would take effect and where it was set
    Show(Settings),
}

/// Where a node's configuration comes from. Flags win over the environment, which wins over the file.
#[derive(clap::Args, Clone, Debug, Default)]
pub(super) struct Settings {
    /// A TOML file with settings
    #[arg(long, value_name = "FILE", env = "RESTANTE_CONFIG")]
    config: Option<PathBuf>,
    /// The directory that holds the journal [default: ./restante-data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Where to listen; port 0 takes a free one [default: 127.0.0.1:7700]
    #[arg(long, value_name = "ADDR")]
    tcp: Option<String>,
    /// Write {"tcp":"…","pid":n} to this file once the node is ready
    #[arg(long, value_name = "FILE")]
    addr_file: Option<String>,
    /// human, json or auto [default: auto]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// A level, or levels by module [default: info]
    #[arg(long, value_name = "FILTER")]
    log_filter: Option<String>,
    /// Listen on an address that other machines can reach, without login and TLS
    #[arg(long)]
    allow_open_listener: bool,
    /// Set any value by its key; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl Settings {
    /// The configuration these settings, the file and the environment come to.
    pub(super) fn load(self) -> Result<Effective, Failure> {
        let file = self.config.clone();
        let sources = Sources { file, environment: environment()?, flags: self.flags()? };
        Ok(sources.load()?)
    }

    fn flags(self) -> Result<Vec<Flag>, Failure> {
        let open = self.allow_open_listener.then(|| "true".to_owned());
        let mut flags: Vec<Flag> = [
            ("data_dir", self.data_dir),
            ("tcp", self.tcp),
            ("addr_file", self.addr_file),
            ("log_format", self.log_format),
            ("log_filter", self.log_filter),
            ("allow_open_listener", open),
        ]
        .into_iter()
        .filter_map(|(key, text)| {
            let flag = format!("--{}", key.replace('_', "-"));
            Some(Flag { flag, key: key.to_owned(), text: text? })
        })
        .collect();
        for pair in self.set {
            let (key, text) = pair.split_once('=').ok_or_else(|| {
                Failure::new(Exit::Usage, format_args!("--set {pair}: expected KEY=VALUE"))
            })?;
            let flag = format!("--set {key}");
            flags.push(Flag { flag, key: key.to_owned(), text: text.to_owned() });
        }
        Ok(flags)
    }
}

/// The variables that may be settings.
fn environment() -> Result<Vec<(String, String)>, Failure> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .filter(|(name, _)| name.starts_with("RESTANTE_"))
        .map(|(name, value)| match value.into_string() {
            Ok(value) => Ok((name, value)),
            Err(_) => Err(Failure::new(Exit::Usage, format_args!("{name}: expected UTF-8 text"))),
        })
        .collect()
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Failure {
        Failure::new(Exit::Usage, error)
    }
}

pub(super) fn run(verb: Verb, output: Output) -> Result<(), Failure> {
    match verb {
        Verb::Check(settings) => {
            let effective = settings.load()?;
            for variable in &effective.unknown_variables {
                note(&format!("{variable} is no setting and is ignored"));
            }
            Ok(())
        }
        Verb::Show(settings) => {
            let effective = settings.load()?;
            print(&if output.json { as_json(&effective)? } else { as_table(&effective, output) })
        }
    }
}

fn as_table(effective: &Effective, output: Output) -> String {
    let mut table = Table::new(output, &["KEY", "VALUE", "SET BY", "UNIT AND BOUNDS"]);
    for value in VALUES {
        let origin = effective.origin(value.key);
        let paint = if origin == Origin::Default { Paint::Dim } else { Paint::Green };
        table.row(vec![
            (None, value.key.to_owned()),
            (None, value.of(&effective.config)),
            (Some(paint), origin.to_string()),
            (Some(Paint::Dim), value.range()),
        ]);
    }
    table.render()
}

fn as_json(effective: &Effective) -> Result<String, Failure> {
    #[derive(serde::Serialize)]
    struct Line<'a> {
        key: &'a str,
        value: serde_json::Value,
        set_by: String,
    }
    let line = |value: &Value| {
        let key = value.key;
        let set_by = effective.origin(key).to_string();
        // What a value is written as in TOML is JSON as well.
        let value =
            serde_json::from_str(&value.of(&effective.config)).map_err(std::io::Error::from)?;
        Output::json_line(&Line { key, value, set_by })
    };
    let lines: Result<Vec<_>, _> = VALUES.iter().map(line).collect();
    Ok(lines?.concat())
}
