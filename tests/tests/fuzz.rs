//! A bounded run of the fuzzer: no input makes a reader panic or hold more than it may.

use mneme_tests::fuzz::{Until, run};

#[test]
fn no_mutated_request_makes_a_reader_panic() {
    let tally = run(include_str!("../data/fuzz/requests.jsonl"), 20_261_124, Until::Inputs(30_000));
    // Some must still be read, and most must not: otherwise the mutations are too weak or too strong to mean anything.
    assert!(tally.accepted > 1_000 && tally.accepted < 20_000, "{tally:?}");
}
