//! Envelopes: requests, responses, notifications, as JSON-RPC 2.0 with three members of our own on requests.

use mneme_base::{Lsn, OpId};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::error::{ErrorBody, ErrorKind};

/// A deadline is at most this far away (milliseconds): one day.
pub const DEADLINE_MS_MAX: u64 = 86_400_000;
/// A textual request id is at most this long (bytes): it is echoed.
pub const ID_BYTES_MAX: usize = 128;

/// What ties a response to its request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RequestId {
    /// A number.
    Number(i64),
    /// A text of at most [`ID_BYTES_MAX`] bytes.
    Text(String),
}

/// A request as it stands on the line; the parameters are not looked into yet.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestFrame<'a> {
    /// Always `2.0`.
    pub jsonrpc: &'a str,
    /// Ties the response to it.
    pub id: RequestId,
    /// Which method.
    pub method: String,
    /// Its parameters.
    #[serde(borrow, default)]
    pub params: Option<&'a RawValue>,
    /// Names a change, so that sending it again does it once.
    #[serde(default)]
    pub op_id: Option<OpId>,
    /// How long the client will wait (milliseconds).
    #[serde(default)]
    pub deadline_ms: Option<u64>,
    /// The answer must have seen this change.
    #[serde(default)]
    pub min_lsn: Option<Lsn>,
}

impl<'a> RequestFrame<'a> {
    /// Reads a line. The error carries the request's id when it could be found, so that the client can match it.
    pub fn parse(line: &'a [u8]) -> Result<Self, (Option<RequestId>, ErrorBody)> {
        let text = std::str::from_utf8(line).map_err(|error| {
            let message = format!("frame is not UTF-8 at byte {}", error.valid_up_to());
            (None, ErrorBody::new(ErrorKind::ParseError, message))
        })?;
        if text.trim_start().starts_with('[') {
            let error = ErrorBody::new(ErrorKind::InvalidRequest, "batches are not supported")
                .hint("send one request a line; requests on one connection run side by side");
            return Err((None, error));
        }
        let frame: Self = serde_json::from_str(text).map_err(|error| Self::explain(text, &error))?;
        let id = frame.id.clone();
        let invalid = |message: String| (Some(id.clone()), ErrorBody::new(ErrorKind::InvalidRequest, message));
        if frame.jsonrpc != "2.0" {
            return Err(invalid(format!("jsonrpc is {:?}, it must be \"2.0\"", shorten(frame.jsonrpc))));
        }
        if let RequestId::Text(id_text) = &frame.id
            && id_text.len() > ID_BYTES_MAX
        {
            return Err((
                None,
                ErrorBody::new(
                    ErrorKind::InvalidRequest,
                    format!("id has {} bytes, at most {ID_BYTES_MAX} are allowed", id_text.len()),
                ),
            ));
        }
        if let Some(deadline_ms) = frame.deadline_ms
            && (deadline_ms == 0 || deadline_ms > DEADLINE_MS_MAX)
        {
            return Err(invalid(format!("deadline_ms is {deadline_ms}, allowed are 1 to {DEADLINE_MS_MAX}")));
        }
        Ok(frame)
    }

    fn explain(text: &str, error: &serde_json::Error) -> (Option<RequestId>, ErrorBody) {
        #[derive(Deserialize)]
        struct OnlyId {
            id: Option<RequestId>,
        }
        let id = serde_json::from_str::<OnlyId>(text).ok().and_then(|only| only.id);
        let kind = if error.is_data() { ErrorKind::InvalidRequest } else { ErrorKind::ParseError };
        (id, ErrorBody::new(kind, format!("request cannot be read: {error}")))
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(16).collect()
}

/// A response: exactly one of `result` and `error`.
#[derive(Debug, Clone, Serialize)]
pub struct ResponseFrame<R> {
    jsonrpc: &'static str,
    id: Option<RequestId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<R>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorBody>,
}

impl<R: Serialize> ResponseFrame<R> {
    /// A response with a result.
    pub const fn ok(id: RequestId, result: R) -> Self {
        Self { jsonrpc: "2.0", id: Some(id), result: Some(result), error: None }
    }

    /// A response with an error; `id` is `None` when the request's could not be read.
    pub const fn error(id: Option<RequestId>, error: ErrorBody) -> Self {
        Self { jsonrpc: "2.0", id, result: None, error: Some(error) }
    }

    /// The line, with its end.
    pub fn to_line(&self) -> Vec<u8> {
        line_of(self)
    }
}

/// A message that nobody has to answer.
#[derive(Debug, Clone, Serialize)]
pub struct Notification<P> {
    jsonrpc: &'static str,
    method: &'static str,
    params: P,
}

impl<P: Serialize> Notification<P> {
    /// A notification of a kind.
    pub const fn new(method: &'static str, params: P) -> Self {
        Self { jsonrpc: "2.0", method, params }
    }

    /// The line, with its end.
    pub fn to_line(&self) -> Vec<u8> {
        line_of(self)
    }
}

fn line_of(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("wire types always serialise");
    line.push(b'\n');
    line
}

/// What a client reads: a response, or a notification when `method` is there. Unknown members are tolerated.
#[derive(Debug, Clone, Deserialize)]
pub struct ServerFrame {
    /// Of a response: the request's id; missing when the daemon could not read it.
    #[serde(default)]
    pub id: Option<RequestId>,
    /// Of a notification: its kind.
    #[serde(default)]
    pub method: Option<String>,
    /// Of a notification: its content.
    #[serde(default)]
    pub params: Option<Box<RawValue>>,
    /// Of a response: its result.
    #[serde(default)]
    pub result: Option<Box<RawValue>>,
    /// Of a response: its error.
    #[serde(default)]
    pub error: Option<ErrorBody>,
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(line: &str, expected: Expect) {
        let shown = match RequestFrame::parse(line.as_bytes()) {
            Ok(frame) => format!("ok {:?} {}", frame.id, frame.method),
            Err((id, error)) => format!("{id:?} {:?}: {}", error.kind(), error.message),
        };
        expected.assert_eq(&shown);
    }

    #[test]
    fn requests_are_read_or_refused_with_their_id() {
        check(r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#, expect!["ok Number(1) ping"]);
        check(r#"{"jsonrpc":"2.0","id":"a","method":"ping","params":{}}"#, expect![[r#"ok Text("a") ping"#]]);
        check(
            r#"{"jsonrpc":"1.0","id":1,"method":"ping"}"#,
            expect![[r#"Some(Number(1)) InvalidRequest: jsonrpc is "1.0", it must be "2.0""#]],
        );
        check("[]", expect!["None InvalidRequest: batches are not supported"]);
        check(
            r#"{"jsonrpc":"2.0","id":7,"method":"ping","deadline_ms":0}"#,
            expect!["Some(Number(7)) InvalidRequest: deadline_ms is 0, allowed are 1 to 86400000"],
        );
    }

    #[test]
    fn an_unknown_member_is_refused_with_the_id() {
        let (id, error) = RequestFrame::parse(br#"{"jsonrpc":"2.0","id":3,"method":"ping","extra":1}"#).unwrap_err();
        assert_eq!((id, error.kind()), (Some(RequestId::Number(3)), ErrorKind::InvalidRequest));
    }

    #[test]
    fn what_is_not_utf8_or_not_json_is_a_parse_error() {
        for line in [&b"\xff\xfe{}"[..], b"{\"jsonrpc\":", b"hello", &[b'['; 1][..]] {
            let (_, error) = RequestFrame::parse(line).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::ParseError | ErrorKind::InvalidRequest));
        }
    }

    #[test]
    fn deep_nesting_is_refused_and_not_a_crash() {
        let line = format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\",\"params\":{}", "[".repeat(100_000));
        assert!(RequestFrame::parse(line.as_bytes()).is_err());
    }

    #[test]
    fn a_response_has_exactly_one_of_result_and_error() {
        let ok = String::from_utf8(ResponseFrame::ok(RequestId::Number(1), 5).to_line()).unwrap();
        assert_eq!(ok, "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":5}\n");
        let error = ResponseFrame::<()>::error(None, ErrorBody::new(ErrorKind::Busy, "too much is under way"));
        let error = String::from_utf8(error.to_line()).unwrap();
        assert!(error.starts_with("{\"jsonrpc\":\"2.0\",\"id\":null,\"error\":{\"code\":-32004"));
    }
}
