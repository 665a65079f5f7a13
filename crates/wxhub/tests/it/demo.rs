//! `wxhub demo`: it tells the story, or where it went wrong.

use test_support::Process;

use crate::running::{Dev, SOON, WXHUB};

#[tokio::test]
async fn without_a_dev_it_runs_its_own() {
    let demo = Process::start(WXHUB, ["demo"], []);
    let status = demo.wait(SOON * 2).await;
    let said = demo.stdout().join("\n");
    assert_eq!(
        status.code(),
        Some(0),
        "{said}\n{}",
        demo.stderr().join("\n")
    );
    assert!(said.contains("steps went as they should"), "{said}");
}

#[tokio::test]
async fn it_passes_against_a_running_dev_again_and_again_and_shows_no_secret() {
    let dev = Dev::start(&[], &[]).await;
    let flags = dev.demo_flags();
    for _ in 0..2 {
        let demo = Process::start(
            WXHUB,
            ["demo"].into_iter().chain(flags.iter().map(String::as_str)),
            [],
        );
        let status = demo.wait(SOON).await;
        let said = demo.stdout().join("\n");
        assert_eq!(
            status.code(),
            Some(0),
            "{said}\n{}",
            demo.stderr().join("\n")
        );
        // Tokens and sessions are cut short: no word of the story is as long as one.
        let words = said.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-'));
        assert!(words.clone().all(|word| word.len() <= 40), "{said}");
    }
}

#[tokio::test]
async fn a_step_that_goes_wrong_is_named() {
    let dev = Dev::start(&[], &[]).await;
    let flags = dev.demo_flags();
    let args = ["demo", "--caller-key", "nobody's"]
        .into_iter()
        .chain(flags.iter().map(String::as_str));
    let demo = Process::start(WXHUB, args, []);

    assert_eq!(demo.wait(SOON).await.code(), Some(1));
    let said = demo.stderr().join("\n");
    assert!(said.contains("step 2 (A team's backend asks over gRPC whose session that is): expected OK, got Unauthenticated"), "{said}");
}
