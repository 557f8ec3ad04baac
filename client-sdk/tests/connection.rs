//! What becomes of a connection whose caller gives up while it sends.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics, in its helpers too")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use mneme_client_sdk::ipc::{methods, types};
use mneme_client_sdk::{CallOptions, Client, ClientError, ClientOptions};
use serde_json::{Value, json};

/// More than the buffers of a socket take (bytes).
const LONG: usize = 4 << 20;
const BOOT: &str = "00000000-0000-7000-8000-000000000001";

/// Reads a request and answers it.
fn answer(reader: &mut BufReader<UnixStream>, result: &Value) {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let request: Value = serde_json::from_str(&line).expect("every line is one request");
    writeln!(reader.get_mut(), "{}", json!({"jsonrpc": "2.0", "id": request["id"], "result": result})).unwrap();
}

/// Takes a connection and greets.
fn greeted(listener: &UnixListener) -> BufReader<UnixStream> {
    let mut reader = BufReader::new(listener.accept().unwrap().0);
    let limits = json!({
        "frame_bytes_max": 2 * LONG, "requests_in_flight_max": 8, "text_bytes_max": 2 * LONG, "recall_limit_max": 100,
        "import_batch_max": 100, "idle_timeout_ms": 900_000,
    });
    answer(
        &mut reader,
        &json!({"protocol": 1, "protocol_min": 1, "server": "stand-in", "boot": BOOT, "limits": limits}),
    );
    reader
}

#[tokio::test]
async fn a_call_that_is_given_up_while_it_is_sent_spoils_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("mneme.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let daemon = std::thread::spawn(move || {
        // The first connection is not read from: the long request stays half sent.
        let mut first = greeted(&listener);
        let mut second = greeted(&listener);
        answer(&mut second, &json!({ "boot": BOOT }));
        let mut half = Vec::new();
        first.read_to_end(&mut half).unwrap();
        half
    });
    let client = Client::connect(ClientOptions::new("test").socket(&socket)).await.unwrap();
    let long = types::RememberParams { text: "x".repeat(LONG), ..Default::default() };
    let options = CallOptions { timeout: Some(Duration::from_millis(300)), ..CallOptions::default() };
    let given_up = client.call_with::<methods::Remember>(long, options).await;
    assert!(matches!(given_up, Err(ClientError::Timeout { .. })), "{given_up:?}");
    let options = CallOptions { timeout: Some(Duration::from_secs(20)), ..CallOptions::default() };
    client.call_with::<methods::Ping>(types::PingParams {}, options).await.expect("it goes over a new connection");
    drop(client);
    let half = daemon.join().unwrap();
    assert!(!half.is_empty() && half.len() < LONG && !half.contains(&b'\n'), "nothing is glued to the half line");
}
