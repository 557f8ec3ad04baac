//! The protocol's edges without a daemon; the tools against a daemon are in the Python client's suite.

use std::path::Path;

use super::*;

/// What a server without a daemon answers to these lines, by id.
fn answers(lines: &[Value]) -> HashMap<String, Value> {
    let text = lines.iter().map(Value::to_string).collect::<Vec<_>>().join("\n");
    spoken(text.as_bytes()).into_iter().map(|answer| (answer["id"].to_string(), answer)).collect()
}

fn spoken(input: &[u8]) -> Vec<Value> {
    let options = ClientOptions::new("test").socket(Path::new("/nonexistent/mneme.sock"));
    let server = Server::new(options, Duration::from_secs(1));
    let mut output = Vec::new();
    server.serve(&mut &input[..], &mut output).unwrap();
    output
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

fn modern(id: u32, method: &str, mut params: Value) -> Value {
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
    });
    json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
}

fn hello(version: &str) -> Value {
    let params = json!({"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}});
    json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params})
}

#[test]
fn the_handshake_agrees_on_a_revision_with_a_handshake() {
    for (asked, given) in [
        ("2025-11-25", "2025-11-25"),
        ("2025-06-18", "2025-06-18"),
        ("2026-07-28", "2025-11-25"),
        // Servers of this one have to take batches.
        ("2025-03-26", "2025-11-25"),
    ] {
        let answer = &answers(&[hello(asked)])["0"];
        assert_eq!(answer["result"]["protocolVersion"], given);
        assert_eq!(answer["result"]["serverInfo"]["name"], "mneme");
        assert!(answer["result"].get("resultType").is_none());
    }
}

#[test]
fn the_modern_revision_needs_no_handshake_and_dresses_its_results() {
    let answers = answers(&[
        modern(1, "server/discover", json!({})),
        modern(2, "tools/list", json!({})),
        modern(3, "ping", json!({})),
        json!({"jsonrpc": "2.0", "id": 4, "method": "tools/list"}),
    ]);
    assert_eq!(answers["1"]["result"]["supportedVersions"][0], MODERN);
    for id in ["1", "2"] {
        assert_eq!(answers[id]["result"]["resultType"], "complete");
        assert_eq!(answers[id]["result"]["cacheScope"], "public");
    }
    assert_eq!(answers["3"]["error"]["code"], METHOD_NOT_FOUND);
    assert_eq!(answers["4"]["error"]["code"], INVALID_REQUEST);
}

#[test]
fn a_version_that_is_not_spoken_is_refused_with_those_that_are() {
    let mut request = modern(1, "tools/list", json!({}));
    request["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"] = json!("2031-01-01");
    let answer = &answers(&[request])["1"];
    assert_eq!(answer["error"]["code"], UNSUPPORTED_VERSION);
    assert_eq!(answer["error"]["data"]["requested"], "2031-01-01");
    assert_eq!(answer["error"]["data"]["supported"][0], MODERN);
}

#[test]
fn malformed_lines_are_refused_and_reading_goes_on() {
    let answers = spoken(b"nonsense\n[]\n\n{\"id\":1}\n{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"ping\"}\n{\"jsonrpc\":\"1\",\"id\":3,\"method\":\"ping\"}");
    let codes: Vec<i64> = answers.iter().filter_map(|answer| answer["error"]["code"].as_i64()).collect();
    assert_eq!(codes, [PARSE_ERROR, INVALID_REQUEST, INVALID_REQUEST, INVALID_REQUEST]);
    assert_eq!(answers.iter().filter(|answer| answer.get("result").is_some()).count(), 1);
}

#[test]
fn a_line_that_is_too_long_is_passed_over_whole() {
    let mut input = vec![b'x'; LINE_BYTES_MAX as usize * 2 + 5];
    input.extend_from_slice(b"\n{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"ping\"}\n");
    let answers = spoken(&input);
    assert_eq!(answers.len(), 2);
    assert_eq!(answers[0]["error"]["code"], INVALID_REQUEST);
    assert_eq!(answers[1]["id"], 2);
}

#[test]
fn a_missing_daemon_is_a_tool_error_that_says_what_to_do() {
    let answer = &answers(&[modern(1, "tools/call", json!({"name": "status", "arguments": {}}))])["1"];
    assert_eq!(answer["result"]["isError"], true);
    let text = answer["result"]["content"][0]["text"].as_str().unwrap();
    assert!(text.contains("/nonexistent/mneme.sock") && text.contains("hint: "), "{text}");
}

#[test]
fn wrong_arguments_are_tool_errors_and_unknown_tools_are_not() {
    let call =
        |id, name: &str, arguments: Value| modern(id, "tools/call", json!({"name": name, "arguments": arguments}));
    let answers = answers(&[
        call(1, "remember", json!({"txt": "x"})),
        call(2, "forget", json!({})),
        call(3, "forget", json!({"ids": [], "source": null})),
        call(4, "recall", json!({"query": "x", "limit": 51})),
        call(5, "generate", json!({"regex": "a", "json_schema": {}})),
        call(6, "no-such-tool", json!({})),
        modern(7, "prompts/get", json!({"name": "recall-first", "arguments": {"task": "plan"}})),
        modern(8, "prompts/get", json!({"name": "recall-first"})),
        modern(9, "resources/read", json!({"uri": "file:///etc/passwd"})),
    ]);
    for id in ["1", "2", "3", "4", "5"] {
        assert_eq!(answers[id]["result"]["isError"], true, "{id}");
    }
    for id in ["6", "8", "9"] {
        assert_eq!(answers[id]["error"]["code"], INVALID_PARAMS, "{id}");
    }
    assert!(answers["7"]["result"]["messages"][0]["content"]["text"].as_str().unwrap().ends_with("Task: plan"));
}

#[test]
fn a_resource_that_does_not_exist_is_told_in_the_code_of_the_revision() {
    let params = json!({"uri": "mneme://memory/nonsense"});
    let older = json!({"jsonrpc": "2.0", "id": 2, "method": "resources/read", "params": params});
    let answers = answers(&[hello("2025-11-25"), modern(1, "resources/read", params), older]);
    for (id, code) in [("1", INVALID_PARAMS), ("2", RESOURCE_NOT_FOUND)] {
        assert_eq!(answers[id]["error"]["code"], code);
        assert_eq!(answers[id]["error"]["data"]["uri"], "mneme://memory/nonsense");
    }
}

#[test]
fn every_tool_has_schemas_and_hints_in_a_fixed_order() {
    let listed = tools::list();
    let names: Vec<&str> = listed.as_array().unwrap().iter().map(|tool| tool["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["remember", "recall", "forget", "generate", "feedback", "status"]);
    for tool in listed.as_array().unwrap() {
        assert_eq!(tool["inputSchema"]["additionalProperties"], false);
        assert_eq!(tool["outputSchema"]["type"], "object");
        for hint in ["readOnlyHint", "destructiveHint", "idempotentHint"] {
            assert!(tool["annotations"][hint].is_boolean());
        }
    }
    for (place, is_destructive) in [(0, true), (1, false), (2, true), (3, false), (4, false), (5, false)] {
        assert_eq!(listed[place]["annotations"]["destructiveHint"], is_destructive, "{}", names[place]);
    }
}

#[test]
fn names_of_clients_are_made_safe_for_provenance() {
    assert_eq!(provenance(Some("Claude Code\n")), "mcp:Claude-Code-");
    assert_eq!(provenance(Some("")), "mcp:unknown");
    assert!(provenance(Some(&"é".repeat(500))).len() <= 64);
}

type Requests = Receiver<Map<String, Value>>;

/// Queues that nobody works on yet, and where their requests come out.
fn queues() -> (Queues, Requests, Requests) {
    let (memory, memory_requests) = sync_channel(QUEUE);
    let (generate, generate_requests) = sync_channel(GENERATE_QUEUE);
    (Queues { memory, generate }, memory_requests, generate_requests)
}

fn cancellation(id: u32) -> Value {
    json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id}})
}

#[test]
fn a_cancelled_request_gets_no_answer_and_its_id_may_be_used_again() {
    let server = Server::new(ClientOptions::new("test").socket("/nonexistent/mneme.sock"), Duration::from_secs(1));
    let (queues, memory, _generate) = queues();
    let output = Mutex::new(Vec::new());
    let call = modern(1, "tools/call", json!({"name": "status"}));
    for message in [&cancellation(1), &call, &cancellation(1)] {
        server.sort(message.as_object().unwrap().clone(), &queues, &output).unwrap();
    }
    drop(queues);
    server.work(&Mutex::new(memory), &output);
    assert!(lock(&output).is_empty());
    assert!(lock(&server.under_way).is_empty());
}

#[test]
fn generations_that_wait_leave_room_for_the_memory_and_too_many_are_refused() {
    let server = Server::new(ClientOptions::new("test").socket("/nonexistent/mneme.sock"), Duration::from_secs(1));
    let (queues, memory, generate) = queues();
    let output = Mutex::new(Vec::new());
    let count = u32::try_from(GENERATE_QUEUE).unwrap() + 1;
    let sort = |message: &Value| server.sort(message.as_object().unwrap().clone(), &queues, &output).unwrap();
    for id in 0..count {
        sort(&modern(id, "tools/call", json!({"name": "generate", "arguments": {"prompt": "x"}})));
    }
    sort(&modern(count, "tools/call", json!({"name": "status"})));
    sort(&modern(count + 1, "resources/read", json!({"uri": "mneme://status"})));
    assert_eq!((generate.try_iter().count(), memory.try_iter().count()), (GENERATE_QUEUE, 2));
    let refused: Value = serde_json::from_slice(&lock(&output)).unwrap();
    assert_eq!((&refused["id"], &refused["error"]["code"]), (&json!(count - 1), &json!(BUSY)));
    assert!(!lock(&server.under_way).contains_key(&(count - 1).to_string()), "it may be sent again");
}
