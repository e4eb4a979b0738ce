//! The comparison with other brokers compares: against Restante and the bare relay, which need nothing
//! to be installed. What it measures is not looked at, only that it is complete and leaves nothing.

use serde_json::Value;
use std::path::Path;
use std::process::Command;

#[test]
fn a_quick_run_is_complete_and_leaves_nothing() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let page = dir.path().join("page.md");
    let data = dir.path().join("data");
    std::fs::create_dir(&data).expect("a directory");
    let run = Command::new(env!("CARGO_BIN_EXE_versus"))
        .args(["--quick", "--json", "--brokers", "restante,bare", "--backlog", "2000"])
        .args(["--backlog-own", "2000", "--receivers", "20", "--rounds", "1"])
        .args(["--only", "raw,W1,W2,W3,W4,W5,W6a,W6b,W7", "--restante"])
        .arg(env!("CARGO_BIN_EXE_restante-faulty"))
        .arg("--dir")
        .arg(&data)
        .arg("--write")
        .arg(&page)
        .output()
        .expect("it runs");
    let stderr = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(run.status.success(), "{stderr}");
    let report: Value = serde_json::from_slice(&run.stdout).expect("JSON");
    let outcomes = report["outcomes"].as_array().expect("outcomes");
    let of = |workload: &str, subject: &str| -> Vec<&Value> {
        let wanted =
            |outcome: &&Value| outcome["workload"] == workload && outcome["subject"] == subject;
        outcomes.iter().filter(wanted).collect()
    };
    for workload in ["W1", "W2", "W3", "W4", "W5", "W6a", "W6b", "W7"] {
        let own = of(workload, "Restante");
        assert!(!own.is_empty(), "{workload}: {stderr}");
        for outcome in own {
            let median = &outcome["median"];
            assert_eq!(outcome["failure"], Value::Null, "{outcome}");
            assert_eq!([&median["lost"], &median["foreign"]], [0.0, 0.0], "{outcome}");
        }
    }
    for (workload, metric) in [
        ("W1", "deliveries_per_s"),
        ("W1", "cpu_us_per_delivery"),
        ("W1", "memory_peak_mib"),
        ("W3", "out_per_s"),
        ("W4", "deliver_p99_us"),
        ("W5", "first_s"),
        ("W7", "accepted_ratio"),
    ] {
        let median = &of(workload, "Restante")[0]["median"];
        assert!(median[metric].as_f64() > Some(0.0), "{workload} {metric}: {median}");
    }
    let relay = of("W6b", "bare relay")[0]["median"]["deliveries_per_s"].as_f64();
    assert!(relay > Some(0.0), "the bare relay relays: {stderr}");
    let machine = &of("raw", "this machine")[0]["median"];
    assert!(machine["append_sync_mb_per_s"].as_f64() > Some(0.0), "{machine}");
    let text = std::fs::read_to_string(&page).expect("a page");
    assert!(text.contains("### Goals") && text.contains("page.svg"), "{text}");
    let chart = std::fs::read_to_string(page.with_extension("svg")).expect("a chart");
    assert!(chart.matches("class=\"own\"").count() > 5, "{chart}");
    assert!(page.with_extension("json").exists());
    assert_eq!(entries(&data), 0, "directories of servers are removed");
}

#[test]
fn what_there_is_not_is_named() {
    let run = |arguments: &[&str]| {
        let run = Command::new(env!("CARGO_BIN_EXE_versus")).args(arguments).output();
        let run = run.expect("it runs");
        assert!(!run.status.success(), "{arguments:?}");
        String::from_utf8_lossy(&run.stderr).into_owned()
    };
    assert!(run(&["--only", "W99"]).contains("W99"));
    let missing = run(&["--brokers", "restante", "--restante", "missing"]);
    assert!(missing.contains("cargo build --release"), "{missing}");
}

fn entries(path: &Path) -> usize {
    std::fs::read_dir(path).expect("a directory").count()
}
