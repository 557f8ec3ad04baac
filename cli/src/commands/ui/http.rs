//! As much HTTP/1.1 as one page on the loopback needs: one request a connection, heads and bodies bounded, every wait limited.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

/// The longest head of a request (bytes).
const HEAD_BYTES_MAX: usize = 16 << 10;
/// The longest body of a request (bytes): a prompt is shorter.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Header lines of a request at most; a browser sends about twenty.
const HEADERS_MAX: usize = 64;
/// A request has to have arrived within this.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Sent with every answer. The page loads its own files and nothing else, talks to its own server and to nobody else, runs no
/// script that stands in markup, turns no text into markup, and is shown in no frame.
const SECURITY_HEADERS: &str = "Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; \
img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
require-trusted-types-for 'script'; trusted-types 'none'\r\n\
X-Content-Type-Options: nosniff\r\nX-Frame-Options: DENY\r\nReferrer-Policy: no-referrer\r\nCache-Control: no-store\r\n\
Cross-Origin-Opener-Policy: same-origin\r\nCross-Origin-Resource-Policy: same-origin\r\nConnection: close\r\n";

/// A request that was read whole.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// `GET`, `POST`, ...
    pub(super) method: String,
    /// The path without a query.
    pub(super) path: String,
    /// `Host`, when there is exactly one.
    pub(super) host: Option<String>,
    /// `Origin`.
    pub(super) origin: Option<String>,
    /// What follows `Bearer ` in `Authorization`.
    pub(super) bearer: Option<String>,
    /// The content type without its parameters.
    pub(super) content_type: Option<String>,
    /// The body.
    pub(super) body: Vec<u8>,
}

/// Why a request could not be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// Nothing came, or it broke off: there is nobody to answer.
    Gone,
    /// It is answered with this status.
    Refused(u16),
}

impl Request {
    /// Reads a request from a stream whose reads time out.
    pub(super) fn read(stream: &mut impl Read) -> Result<Self, Unreadable> {
        let until = Instant::now() + REQUEST_TIMEOUT;
        let mut bytes = Vec::with_capacity(2 << 10);
        let (mut request, length, head_bytes) = loop {
            more(stream, &mut bytes, until)?;
            if let Some(parsed) = parse_head(&bytes)? {
                break parsed;
            }
            if bytes.len() > HEAD_BYTES_MAX {
                return Err(Unreadable::Refused(431));
            }
        };
        while bytes.len() < head_bytes + length {
            more(stream, &mut bytes, until)?;
        }
        request.body = bytes.get(head_bytes..head_bytes + length).unwrap_or_default().to_vec();
        Ok(request)
    }
}

fn more(stream: &mut impl Read, bytes: &mut Vec<u8>, until: Instant) -> Result<(), Unreadable> {
    let mut buffer = [0_u8; 8 << 10];
    if Instant::now() >= until {
        return Err(Unreadable::Refused(408));
    }
    match stream.read(&mut buffer) {
        Ok(0) | Err(_) => Err(Unreadable::Gone),
        Ok(count) => {
            bytes.extend_from_slice(&buffer[..count]);
            Ok(())
        }
    }
}

/// The head, the body's length and the head's; `None` while it is not whole.
fn parse_head(bytes: &[u8]) -> Result<Option<(Request, usize, usize)>, Unreadable> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Request::new(&mut headers);
    let head_bytes = match head.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Unreadable::Refused(431)),
        Err(_) => return Err(Unreadable::Refused(400)),
    };
    // A header that is there twice counts as none: no two readers may disagree about which one holds.
    let one = |name: &str| {
        let mut found = head.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
        let first = found.next()?;
        let text = std::str::from_utf8(first.value).ok()?.trim().to_owned();
        found.next().is_none().then_some(text)
    };
    let has = |name: &str| head.headers.iter().any(|header| header.name.eq_ignore_ascii_case(name));
    if has("transfer-encoding") {
        return Err(Unreadable::Refused(501));
    }
    let length = match one("content-length") {
        None if has("content-length") => return Err(Unreadable::Refused(400)),
        None => 0,
        Some(text) if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => {
            text.parse::<usize>().ok().filter(|length| *length <= BODY_BYTES_MAX).ok_or(Unreadable::Refused(413))?
        }
        Some(_) => return Err(Unreadable::Refused(400)),
    };
    let path = head.path.unwrap_or_default();
    let request = Request {
        method: head.method.unwrap_or_default().to_owned(),
        path: path.split(['?', '#']).next().unwrap_or_default().to_owned(),
        host: one("host"),
        origin: one("origin"),
        bearer: one("authorization").and_then(|value| value.strip_prefix("Bearer ").map(str::to_owned)),
        content_type: one("content-type").and_then(|value| value.split(';').next().map(|kind| kind.trim().to_owned())),
        body: Vec::new(),
    };
    Ok(Some((request, length, head_bytes)))
}

/// Writes a whole answer.
pub(super) fn answer(stream: &mut impl Write, status: u16, kind: &str, body: &[u8]) -> std::io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status} {}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{SECURITY_HEADERS}\r\n",
        reason(status),
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    stream.flush()
}

/// Begins an answer that goes on until the connection is closed.
pub(super) fn begin(stream: &mut impl Write, kind: &str) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n{SECURITY_HEADERS}\r\n")?;
    stream.flush()
}

const fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        415 => "Unsupported Media Type",
        421 => "Misdirected Request",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        _ => "Not Implemented",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its pieces one read at a time, as a slow network does.
    struct Pieces(Vec<Vec<u8>>);

    impl Read for Pieces {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            if self.0.is_empty() {
                return Ok(0);
            }
            let piece = self.0.remove(0);
            buffer[..piece.len()].copy_from_slice(&piece);
            Ok(piece.len())
        }
    }

    fn read(text: &str) -> Result<Request, Unreadable> {
        Request::read(&mut Pieces(text.as_bytes().chunks(7).map(<[u8]>::to_vec).collect()))
    }

    #[test]
    fn a_request_is_read_whole_whatever_the_pieces() {
        let request = read("POST /api/call?x=1 HTTP/1.1\r\nHost: 127.0.0.1:9\r\nOrigin: http://127.0.0.1:9\r\nAuthorization: Bearer k\r\n\
            Content-Type: application/json; charset=utf-8\r\nContent-Length: 2\r\n\r\n{}more")
        .unwrap();
        assert_eq!(
            (request.method.as_str(), request.path.as_str(), request.body.as_slice()),
            ("POST", "/api/call", b"{}".as_slice())
        );
        assert_eq!((request.host.as_deref(), request.bearer.as_deref()), (Some("127.0.0.1:9"), Some("k")));
        assert_eq!(request.content_type.as_deref(), Some("application/json"));
    }

    #[test]
    fn what_two_readers_could_read_in_two_ways_is_refused() {
        let refused = |text: &str| match read(text) {
            Err(Unreadable::Refused(status)) => status,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused("POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx"), 400);
        assert_eq!(refused("POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\nx"), 400);
        assert_eq!(refused("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"), 501);
        assert_eq!(refused("POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n"), 413);
        assert_eq!(refused("no http at all\r\n\r\n"), 400);
        assert_eq!(refused(&format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(HEAD_BYTES_MAX))), 431);
        assert_eq!(refused(&format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(HEADERS_MAX + 1))), 431);
        assert_eq!(read("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").unwrap().host, None, "two hosts are none");
        assert_eq!(read("GET / HTT"), Err(Unreadable::Gone));
        assert_eq!(read("POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nx"), Err(Unreadable::Gone));
    }
}
