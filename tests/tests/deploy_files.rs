//! What operators read and install under `deploy/` says what the code does.

use restante::config::{Config, Sources, VALUES, sample};
use std::io::Write;
use std::path::Path;

#[test]
fn the_log_catalogue_is_drawn_from_the_events() {
    same_as_drawn("LOGS.md", &restante_actors::events::catalogue());
}

#[test]
fn the_sample_configuration_is_drawn_from_the_values() {
    same_as_drawn("restante.toml", &sample());
}

#[test]
fn the_sample_configuration_with_every_key_set_is_the_defaults() {
    let text = sample();
    let is_key =
        |line: &str| VALUES.iter().any(|value| line.starts_with(&format!("#{} =", value.key)));
    let keys: Vec<&str> = text.lines().filter(|line| is_key(line)).collect();
    assert_eq!(keys.len(), VALUES.len());
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    for key in keys {
        writeln!(file, "{}", &key[1..]).expect("a temporary file can be written");
    }
    let sources = Sources { file: Some(file.path().to_owned()), ..Sources::default() };
    assert_eq!(sources.load().expect("the sample is sound").config, Config::default());
}

#[test]
fn the_unit_does_not_try_a_wrong_configuration_again() {
    let unit = std::fs::read_to_string(deploy("restante.service")).expect("the unit");
    let has = |line: &str| unit.lines().any(|of_unit| of_unit == line);
    assert!(has("Restart=always") && has("RestartPreventExitStatus=2"));
}

/// What the unit sets in the environment wins over the file that it tells operators to edit.
#[test]
fn the_unit_leaves_every_setting_to_the_file() {
    let unit = std::fs::read_to_string(deploy("restante.service")).expect("the unit");
    let set: Vec<_> = unit.lines().filter(|line| line.starts_with("Environment")).collect();
    assert!(set.is_empty(), "{set:?}");
    assert_eq!(Config::default().data_dir, Path::new("./restante-data"));
    for line in ["WorkingDirectory=%S/restante", "StateDirectory=restante", "ProtectSystem=strict"]
    {
        assert!(unit.lines().any(|of_unit| of_unit == line), "{line}");
    }
}

/// Run with `BLESS=1` to write the file anew after a change to what it is drawn from.
fn same_as_drawn(file: &str, drawn: &str) {
    let path = deploy(file);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, drawn).expect("the file can be written");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = written.lines().zip(drawn.lines()).position(|(file, code)| file != code);
    assert!(
        written == drawn,
        "deploy/{file} differs from the code, first at line {:?}; \
         BLESS=1 cargo test -p restante-tests --test deploy_files writes it anew",
        differs.map(|line| line + 1)
    );
}

fn deploy(file: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(file)
}
