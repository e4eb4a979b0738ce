//! Where values come from and what is said about bad ones.

use super::*;
use std::io::Write;
use tempfile::NamedTempFile;

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn from_file(text: &str) -> Result<Effective, String> {
    let file = file(text);
    let sources = Sources { file: Some(file.path().to_owned()), ..Sources::default() };
    // The message without the name of the temporary file.
    let name = format!("{}:", file.path().display());
    sources.load().map_err(|error| error.to_string().replace(&name, ""))
}

fn flag(key: &str, text: &str) -> Flag {
    Flag { flag: format!("--{key}"), key: key.to_owned(), text: text.to_owned() }
}

fn variable(name: &str, text: &str) -> (String, String) {
    (name.to_owned(), text.to_owned())
}

#[test]
fn nothing_set_is_the_documented_default_and_is_sound() {
    let effective = Sources::default().load().unwrap();
    assert_eq!(effective.config, Config::default());
    assert!(VALUES.iter().all(|value| effective.origin(value.key) == Origin::Default));
}

#[test]
fn later_sources_win_and_the_origin_is_known() {
    let file = file("heartbeat_ms = 1_000\nsilence_ms_max = 0x1000\ndials_max = 7\n");
    let sources = Sources {
        file: Some(file.path().to_owned()),
        environment: vec![
            variable("RESTANTE_HEARTBEAT_MS", "1500"),
            variable("RESTANTE_PEER_DEFAULTS_WINDOW_MESSAGES", "9"),
            variable("RESTANTE_SERVER", "elsewhere:1"),
            variable("RESTANTE_PORT_7700_TCP", "tcp://10.0.0.1:7700"),
            variable("PATH", "/bin"),
        ],
        flags: vec![flag("heartbeat_ms", "2000")],
    };
    let effective = sources.load().unwrap();
    let config = &effective.config;
    assert_eq!((config.heartbeat_ms, config.silence_ms_max, config.dials_max), (2_000, 4_096, 7));
    assert_eq!(config.peer_defaults.window_messages, 9);
    assert_eq!(effective.origin("heartbeat_ms").to_string(), "flag --heartbeat_ms");
    let line_3 = Origin::File { path: file.path().to_owned(), line: 3 };
    assert_eq!(effective.origin("dials_max"), line_3);
    assert_eq!(
        effective.origin("peer_defaults.window_messages").to_string(),
        "environment RESTANTE_PEER_DEFAULTS_WINDOW_MESSAGES"
    );
    assert_eq!(effective.unknown_variables, ["RESTANTE_PORT_7700_TCP"]);
}

#[test]
fn an_error_names_place_value_and_what_was_expected() {
    for (text, message) in [
        (
            "\nheartbeet_ms = 5",
            "2: there is no setting \"heartbeet_ms\" (did you mean heartbeat_ms?); `restante config show` lists them all",
        ),
        (
            "[peer_defaults]\nwindow = 5",
            "2: there is no setting \"peer_defaults.window\" (did you mean peer_defaults.window_messages?); `restante config show` lists them all",
        ),
        (
            "[log]\nfilter = \"info\"",
            "1: there is no setting \"log\"; `restante config show` lists them all",
        ),
        ("dials_max = 0", "1: dials_max = 0: expected a whole number from 1 to 4096"),
        ("dials_max = -3", "1: dials_max = -3: expected a whole number from 1 to 4096"),
        (
            "dials_max = 99999999999999999999",
            "1: dials_max = 99999999999999999999: expected a whole number from 1 to 4096",
        ),
        ("dials_max = \"7\"", "1: dials_max = \"7\": expected a whole number, without quotes"),
        ("dials_max = 1.5", "1: dials_max = (float): expected a whole number, without quotes"),
        ("log_format = \"xml\"", "1: log_format = \"xml\": expected auto, human or json"),
        ("data_dir = \"\"", "1: data_dir = \"\": expected a path"),
        ("allow_open_listener = 1", "1: allow_open_listener = 1: expected true or false"),
        (
            "tcp = \"somewhere\"",
            "1: tcp = \"somewhere\": expected ADDRESS:PORT with a numeric address, like 127.0.0.1:7700 or [::1]:7700; port 0 takes a free one",
        ),
        (
            "peer_defaults.retry_schedule_ms = [1, \"a\"]",
            "1: peer_defaults.retry_schedule_ms = (array): expected a list of whole numbers, like [1000, 5000]",
        ),
        ("dials_max = 1\ndials_max = 2", "2: not TOML: duplicate key"),
        ("a = [", "1: not TOML: unclosed array, expected `]`"),
    ] {
        assert_eq!(from_file(text).unwrap_err(), message, "{text}");
    }
    for bad in ["restante=loud", "inof", "info,debog", ""] {
        let error = from_file(&format!("log_filter = \"{bad}\"")).unwrap_err();
        assert!(error.contains("expected levels"), "{error}");
    }
    assert!(from_file("log_filter = \"warn,restante=debug\"").is_ok());
    let missing = Sources { file: Some("/nowhere/r.toml".into()), ..Sources::default() };
    assert!(missing.load().unwrap_err().to_string().contains("/nowhere/r.toml"));
}

#[test]
fn values_that_do_not_go_together_are_refused_at_the_one_that_was_set() {
    for (text, message) in [
        (
            "heartbeat_ms = 20_000",
            "silence_ms_max: 30000 must be at least twice heartbeat_ms (20000)",
        ),
        ("payload_bytes_max = 16_777_216", "credit_bytes: 8388608 must hold one message"),
        (
            "journal_bytes_max = 10\njournal_bytes_resume = 11",
            "2: journal_bytes_resume: 11 must not be above journal_bytes_max (10)",
        ),
        (
            "disk_free_bytes_resume = 1",
            "disk_free_bytes_min: 268435456 must not be above disk_free_bytes_resume (1)",
        ),
        ("tcp = \"0.0.0.0:7700\"", "1: tcp: 0.0.0.0:7700 can be reached from other machines"),
    ] {
        let error = from_file(text).unwrap_err();
        assert!(error.contains(message), "{text}: {error}");
    }
    let told = from_file("tcp = \"[::]:7700\"\nallow_open_listener = true").unwrap();
    assert!(!told.config.loopback_only() && !told.config.creates_peer_on_attach());
    assert!(from_file("tcp = \"[::1]:0\"").unwrap().config.creates_peer_on_attach());
}

#[test]
fn what_is_shown_can_be_read_back() {
    let evil = "a\"b\\c\n\u{7f}é";
    let sources = Sources {
        flags: vec![
            flag("data_dir", evil),
            flag("peer_defaults.retry_schedule_ms", "1,2,3"),
            flag("peer_defaults.order", "strict"),
            flag("log_format", "json"),
        ],
        ..Sources::default()
    };
    let config = sources.load().unwrap().config;
    let written: String =
        VALUES.iter().map(|value| format!("{} = {}\n", value.key, value.of(&config))).collect();
    assert_eq!(from_file(&written).unwrap().config, config, "{written}");
    for value in VALUES {
        serde_json::from_str::<serde_json::Value>(&value.of(&config)).expect(value.key);
    }
}

#[test]
fn every_value_is_documented_with_unit_and_bounds_that_hold_its_default() {
    for value in VALUES {
        assert!(!value.doc.is_empty(), "{}", value.key);
        let number = value.of(&Config::default()).parse::<u64>();
        if let Ok(default) = number {
            let (low, high) = value.bounds.expect(value.key);
            assert!((low..=high).contains(&default), "{}", value.key);
            assert!(!value.unit.is_empty(), "{}", value.key);
        }
    }
}
