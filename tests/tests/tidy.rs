//! The rules of the house that no compiler checks: which crate may depend on what, how long a file
//! may be, what must not stand in the text. Each failure names the file and the remedy.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Longest source file, in lines.
const LINES_MAX: usize = 600;

/// Files that may be longer, each with the reason.
const LONG_FILES: &[(&str, &str)] = &[];

/// What a package may depend on.
struct Arrows {
    package: &'static str,
    /// Among ours.
    ours: &'static [&'static str],
    /// Beyond ours, where purity or weight demands that nothing creeps in.
    others: Option<&'static [&'static str]>,
}

/// Dependencies run one way: broker → journal → actors → protocol, broker → client → protocol.
const ARROWS: &[Arrows] = &[
    Arrows {
        package: "protocol",
        ours: &[],
        // No runtime, no clock, no sockets, no randomness.
        others: Some(&[
            "bytes",
            "foldhash",
            "rmp-serde",
            "serde",
            "serde_bytes",
            "smallvec",
            "thiserror",
        ]),
    },
    Arrows { package: "actors", ours: &["restante-protocol"], others: None },
    Arrows {
        package: "broker/client",
        ours: &["restante-protocol"],
        // A program that embeds the client gets none of the broker's dependencies.
        others: Some(&[
            "bytes",
            "foldhash",
            "futures-core",
            "parking_lot",
            "rand",
            "rmp-serde",
            "slab",
            "smallvec",
            "socket2",
            "thiserror",
            "tokio",
            "tracing",
        ]),
    },
    // It implements the seam that the actors name, and knows nothing of nodes and connections.
    Arrows {
        package: "broker/journal",
        ours: &["restante-actors", "restante-protocol"],
        others: None,
    },
    Arrows {
        package: "broker",
        ours: &["restante-actors", "restante-client", "restante-journal", "restante-protocol"],
        others: None,
    },
    Arrows {
        package: "tests",
        ours: &[
            "restante",
            "restante-actors",
            "restante-client",
            "restante-journal",
            "restante-protocol",
        ],
        others: None,
    },
];

#[test]
fn dependencies_run_one_way() {
    let members = manifest("Cargo.toml")["workspace"]["members"].clone();
    let members: BTreeSet<&str> =
        members.as_array().expect("members").iter().filter_map(toml::Value::as_str).collect();
    assert_eq!(members, ARROWS.iter().map(|arrows| arrows.package).collect());
    for Arrows { package, ours, others } in ARROWS {
        let manifest = manifest(&format!("{package}/Cargo.toml"));
        for name in dependencies(&manifest, "dependencies") {
            let allowed = match name.starts_with("restante") {
                true => ours.contains(&name.as_str()),
                false => others.is_none_or(|others| others.contains(&name.as_str())),
            };
            assert!(allowed, "{package}/Cargo.toml: {name} is not among what {package} may use");
        }
        for section in ["dev-dependencies", "build-dependencies"] {
            for name in dependencies(&manifest, section) {
                let allowed = !name.starts_with("restante") || ours.contains(&name.as_str());
                assert!(
                    allowed,
                    "{package}/Cargo.toml: {name} in {section} runs against the arrows"
                );
            }
        }
    }
}

#[test]
fn every_package_follows_the_lints_of_the_workspace() {
    for Arrows { package, .. } in ARROWS {
        let manifest = manifest(&format!("{package}/Cargo.toml"));
        let inherits = manifest.get("lints").and_then(|lints| lints.get("workspace"));
        assert_eq!(
            inherits.and_then(toml::Value::as_bool),
            Some(true),
            "{package}/Cargo.toml needs [lints] workspace = true"
        );
    }
}

#[test]
fn source_files_are_short() {
    for file in sources() {
        let lines = read(&file).lines().count();
        let excused = LONG_FILES.iter().any(|(name, _)| Path::new(name) == file);
        assert!(
            (lines <= LINES_MAX) != excused,
            "{} has {lines} lines: at most {LINES_MAX}, or a reason in LONG_FILES (and none when short)",
            file.display()
        );
    }
}

#[test]
fn every_source_file_belongs_to_a_module() {
    for file in sources() {
        let stem = file.file_stem().and_then(|stem| stem.to_str()).expect("a name");
        let folder = file.parent().expect("a folder");
        let root = ["lib", "main", "build"].contains(&stem)
            || ["bin", "tests", "examples", "benches", "fuzz_targets"]
                .iter()
                .any(|end| folder.ends_with(end));
        if root {
            continue;
        }
        // `a/mod.rs` is declared beside `a`; `a/b.rs` in a/mod.rs, a.rs or the root of the crate,
        // which for a shared part of tests may be any test.
        let (name, folder) = match stem {
            "mod" => (last(folder), folder.parent().expect("a folder")),
            stem => (stem, folder),
        };
        let beside = folder.parent().map(|up| up.join(format!("{}.rs", last(folder))));
        let parents = ["mod.rs", "lib.rs", "main.rs"].map(|parent| folder.join(parent));
        let of_tests = sources()
            .into_iter()
            .filter(|test| folder.ends_with("tests") && test.parent() == Some(folder));
        let declared = parents.into_iter().chain(beside).chain(of_tests).any(|parent| {
            let text = fs::read_to_string(root_dir().join(parent)).unwrap_or_default();
            text.lines().any(|line| {
                let line = ["pub ", "pub(crate) ", "pub(super) "]
                    .into_iter()
                    .find_map(|visible| line.strip_prefix(visible))
                    .unwrap_or(line);
                line == format!("mod {name};")
            })
        });
        assert!(declared, "{} is in no module: declare it or delete it", file.display());
    }
}

#[test]
fn the_readme_names_only_commands_there_are() {
    let verbs = restante::cli::verbs();
    let readme = read(Path::new("README.md"));
    let named: BTreeSet<&str> = readme
        .split("restante ")
        .skip(1)
        .map(|rest| rest.split(|c: char| c != '-' && !c.is_ascii_lowercase()).next())
        .map(Option::unwrap_or_default)
        .filter(|word| !word.is_empty() && !word.starts_with('-'))
        .collect();
    for verb in &named {
        assert!(
            verbs.iter().any(|known| known == verb),
            "README.md: there is no `restante {verb}`"
        );
    }
    for verb in verbs {
        assert!(named.contains(verb.as_str()), "README.md does not name `restante {verb}`");
    }
    for command in ["cargo run --release -- serve", "cargo test --workspace"] {
        assert!(readme.contains(command), "README.md begins with {command}");
    }
}

#[test]
fn the_maps_name_only_places_there_are() {
    for map in ["README.md", "broker/ARCHITECTURE.md"] {
        let mut last = PathBuf::new();
        for named in paths_named(&read(Path::new(map))) {
            let path = root_dir().join(&named);
            if path.exists() {
                last = path;
                continue;
            }
            // What follows a place may be named from there: in it, or beside it.
            let near = [Some(last.as_path()), last.parent()];
            let is_near = near.into_iter().flatten().any(|place| place.join(&named).exists());
            assert!(is_near, "{map} names {named}, which is not there: correct the map");
        }
    }
}

/// What stands between backticks outside of code blocks and looks like a file or directory of ours.
fn paths_named(text: &str) -> Vec<String> {
    const ENDINGS: [&str; 6] = ["/", ".rs", ".md", ".toml", ".service", ".sh"];
    /// In a node's data directory.
    const NOT_OURS: [&str; 1] = ["quarantine/"];
    let blocks = text.split("```").step_by(2);
    let quoted = blocks.flat_map(|block| block.split('`').skip(1).step_by(2));
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    quoted
        .filter(|word| word.chars().all(is_plain) && !word.starts_with("./"))
        .filter(|word| !NOT_OURS.contains(word))
        .filter(|word| word.contains('/') || ENDINGS.iter().any(|ending| word.ends_with(ending)))
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_text_has_nothing_that_does_not_belong() {
    // In pieces, so that this file does not find itself.
    let banned = [
        (concat!("TO", "DO"), "do it, or open an issue"),
        (concat!("FIX", "ME"), "fix it, or open an issue"),
        (concat!("#[", "ignore"), "a test that does not run proves nothing"),
        (concat!("/", "work/"), "no path of one machine"),
        (concat!("/", "home/"), "no path of one machine"),
        (concat!("/", "root/"), "no path of one machine"),
        ("\u{fe0f}", "no emoji"),
    ];
    for file in texts() {
        for (number, line) in read(&file).lines().enumerate() {
            for (word, remedy) in &banned {
                let at = number + 1;
                assert!(!line.contains(word), "{}:{at}: {word}: {remedy}", file.display());
            }
        }
    }
}

/// What an operator reads is in the catalogue, all of it.
#[test]
fn the_node_logs_events_and_nothing_else() {
    let macros = ["error", "warn", "info"].map(|level| format!("tracing::{level}!"));
    let outside = |file: &PathBuf| {
        let path = file.strip_prefix(root_dir()).unwrap_or(file);
        !path.starts_with("actors/src/events") && !path.starts_with("broker/client")
    };
    for file in sources().into_iter().filter(outside) {
        let text = read(&file);
        for name in &macros {
            let path = file.display();
            assert!(!text.contains(name), "{path}: {name} is no event of actors/src/events");
        }
    }
}

#[test]
fn every_exception_to_a_lint_says_why() {
    for file in sources() {
        let text = read(&file);
        for opening in [concat!("#[", "allow("), concat!("#![", "allow("), concat!("#[", "expect(")]
        {
            for (at, _) in text.match_indices(opening) {
                let attribute = text[at..].split(")]").next().unwrap_or_default();
                assert!(
                    attribute.contains("reason"),
                    "{}: {attribute})] needs reason = \"…\"",
                    file.display()
                );
            }
        }
    }
}

fn root_dir() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn manifest(path: &str) -> toml::Table {
    read(Path::new(path)).parse().expect("Cargo.toml is TOML")
}

/// Names in a section, the ones for single targets included.
fn dependencies(manifest: &toml::Table, section: &str) -> Vec<String> {
    let of = |table: &toml::Table| -> Vec<String> {
        let names = table.get(section).and_then(toml::Value::as_table);
        names.map(|names| names.keys().cloned().collect()).unwrap_or_default()
    };
    let targets = manifest.get("target").and_then(toml::Value::as_table);
    let targets = targets.into_iter().flat_map(|targets| targets.values());
    targets.filter_map(toml::Value::as_table).flat_map(of).chain(of(manifest)).collect()
}

fn read(path: &Path) -> String {
    fs::read_to_string(root_dir().join(path))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn last(folder: &Path) -> &str {
    folder.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn sources() -> Vec<PathBuf> {
    texts().into_iter().filter(|path| path.extension().is_some_and(|end| end == "rs")).collect()
}

/// Every text file of the repository, by its path from the root.
fn texts() -> Vec<PathBuf> {
    const ENDINGS: &[&str] = &["rs", "toml", "md", "service", "yml", "yaml", "sh", "json", "txt"];
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root_dir().join(&folder)).expect("a readable folder") {
            let entry = entry.expect("a readable entry");
            let name = entry.file_name().into_string().expect("a name in UTF-8");
            let path = folder.join(&name);
            let ours =
                !["target", ".git", "restante-data", "node_modules"].contains(&name.as_str());
            if entry.file_type().expect("a kind").is_dir() {
                folders.extend(ours.then_some(path));
            } else if path.extension().is_some_and(|end| ENDINGS.iter().any(|known| *known == end))
                || folder == Path::new(".ci")
            {
                found.push(path);
            }
        }
    }
    found.sort();
    assert!(found.len() > 20, "the walk found only {} files", found.len());
    found
}
