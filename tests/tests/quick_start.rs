//! The client's quick start, as its documentation shows it, against a node.

#[allow(dead_code, reason = "its main function is the example's")]
#[path = "../../broker/client/examples/quick_start.rs"]
mod quick_start;

use restante_tests::harness::within;
use restante_tests::scene;
use std::time::Duration;

#[tokio::test]
async fn the_quick_start_does_what_it_says() {
    let scene = scene!("quick_start");
    let node = scene.node().start().await;
    let addr = node.addr().to_string();
    let started = quick_start::quick_start(&addr);
    within("the quick start", Duration::from_secs(60), started).await.expect("no error");
}
