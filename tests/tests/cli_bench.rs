//! `bench` against a real node: what it counts is complete, and nothing of it stays.

use restante_tests::harness::Cli;
use restante_tests::scene;
use serde_json::Value;

/// The one object a run prints.
fn measured(cli: &Cli, args: &str) -> Value {
    let finished = cli.run(&args.split(' ').collect::<Vec<_>>());
    finished.ok();
    finished.json().remove(0)
}

#[tokio::test]
async fn runs_of_every_kind_lose_nothing_and_leave_nothing() {
    let scene = scene!("bench");
    let node = scene.node().start().await;
    let (cli, pid) = (node.cli(), node.pid());
    for kind in [
        "--receivers 4 --producers 2",
        "--receivers 4 --producers 2 --fanout 3 --receivers-per-connection 2 --rate 3000",
        "--receivers 2 --producers 2 --dialled --size 5000 --outstanding 50",
    ] {
        let run = measured(&cli, &format!("bench --warmup 0 --seconds 1 --pid {pid} {kind}"));
        let fanout = run["load"]["fanout"].as_u64().expect("a number");
        let confirmed = run["confirmed"].as_u64().expect("a number");
        assert!(confirmed > 0, "{kind}: {run}");
        assert_eq!(run["delivered"], confirmed * fanout, "{kind}: {run}");
        assert_eq!([&run["lost"], &run["duplicates"], &run["foreign"]], [0, 0, 0], "{kind}: {run}");
        assert!(run["node"]["us_per_delivery"].as_f64() > Some(0.0), "{kind}: {run}");
        assert_eq!(cli.ok(&["peer", "ls", "--json"]), "", "{kind}: its peers are gone");
    }
}

#[test]
fn a_node_of_its_own_is_gone_afterwards() {
    let scene = scene!("bench-spawn");
    let parent = scene.path("parent");
    std::fs::create_dir(&parent).expect("a directory");
    let cli = Cli::of(env!("CARGO_BIN_EXE_restante-faulty"));
    let parent_text = parent.to_str().expect("text");
    for kind in ["--down 50", "--attached 50 --connections 5"] {
        let args =
            format!("bench idle --spawn --data-dir {parent_text} --warmup 0 --seconds 1 {kind}");
        let run = measured(&cli, &args);
        assert_eq!(run["peers"], 50, "{run}");
        assert!(run["memory_bytes"].as_u64() > Some(0), "{run}");
        let left = std::fs::read_dir(&parent).expect("a directory").count();
        assert_eq!(left, 0, "{kind}: the data directory is removed");
    }
}

#[test]
fn a_deep_queue_survives_a_kill_and_is_drained() {
    let scene = scene!("bench-backlog");
    let parent = scene.path("parent");
    std::fs::create_dir(&parent).expect("a directory");
    let cli = Cli::of(env!("CARGO_BIN_EXE_restante-faulty"));
    let parent_text = parent.to_str().expect("text");
    let run = measured(
        &cli,
        &format!(
            "bench backlog --messages 5001 --receivers 3 --receivers-per-connection 2 --size 300 --rest 0 --data-dir {parent_text}"
        ),
    );
    assert_eq!([&run["messages"], &run["lost"], &run["duplicates"]], [5001, 0, 0], "{run}");
    assert!(run["first_delivery_ms"].as_f64() > Some(0.0), "{run}");
    assert!(run["memory_bytes_queued"].as_u64() > Some(0), "{run}");
    assert!(run["disk_bytes_queued"].as_u64() > Some(5001 * 300), "{run}");
    let left = std::fs::read_dir(&parent).expect("a directory").count();
    assert_eq!(left, 0, "the data directory is removed");
}

#[test]
fn loads_that_make_no_sense_are_refused() {
    let cli = Cli::of(env!("CARGO_BIN_EXE_restante-faulty"));
    for (args, said) in [
        ("bench --fanout 11", "--receivers 10"),
        ("bench --size 15", "16"),
        ("bench --rate 0", "messages a second"),
        ("bench idle", "--down"),
    ] {
        cli.run(&args.split(' ').collect::<Vec<_>>()).failed(2, &[said]);
    }
}
