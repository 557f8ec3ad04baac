//! `mneme ui`: a page in the browser, served on the loopback for as long as this command runs.
//!
//! Reading order: [`access`] (who may ask), [`http`] (how it is asked), [`daemon`] (what the page may ask for). The page itself
//! lies in `page/` and is part of this program; it loads nothing from outside.

mod access;
mod daemon;
mod http;

use std::io::{BufRead as _, IsTerminal as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use self::access::Access;
use self::daemon::Daemon;
use self::http::{Request, Unreadable};
use super::Session;
use crate::args::UiArgs;
use crate::error::CommandError;
use crate::output;

/// Connections that are dealt with at once: a page opens about ten, and a stream holds one.
const CONNECTIONS_MAX: usize = 48;
/// A read or write that stands still for so long ends the connection.
const STILL_MAX: Duration = Duration::from_secs(10);
/// Pause after a connection could not be taken: the system is out of something.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const JSON: &str = "application/json";

/// The page's files.
const FILES: &[(&str, &str, &str)] = &[
    ("/", HTML, include_str!("page/index.html")),
    ("/style.css", "text/css; charset=utf-8", include_str!("page/style.css")),
    ("/icon.svg", "image/svg+xml", include_str!("page/icon.svg")),
    ("/app.js", SCRIPT, include_str!("page/app.js")),
    ("/api.js", SCRIPT, include_str!("page/api.js")),
    ("/dom.js", SCRIPT, include_str!("page/dom.js")),
    ("/chart.js", SCRIPT, include_str!("page/chart.js")),
    ("/memory.js", SCRIPT, include_str!("page/memory.js")),
    ("/map.js", SCRIPT, include_str!("page/map.js")),
    ("/canvas.js", SCRIPT, include_str!("page/canvas.js")),
    ("/evolution.js", SCRIPT, include_str!("page/evolution.js")),
    ("/status.js", SCRIPT, include_str!("page/status.js")),
];

/// Serves until the program is ended.
pub(super) fn run(session: &Session, args: &UiArgs) -> Result<(), CommandError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, args.port)).map_err(|error| CommandError::Usage {
        problem: format!("cannot listen on 127.0.0.1:{}: {error}", args.port),
        hint: Some("leave --port out and a free one is taken".into()),
    })?;
    let server = Server {
        access: Access::new(listener.local_addr()?.port()),
        daemon: Daemon::new(session.options.clone(), session.timeout),
        connections: AtomicUsize::new(0),
    };
    std::thread::scope(|scope| {
        scope.spawn(|| offer_links(session, &server.access));
        server.serve(scope, &listener)
    })
}

/// Prints a link, and a new one for each line on standard input: a link opens one tab only.
fn offer_links(session: &Session, access: &Access) {
    let mut lines = std::io::stdin().lock().lines();
    loop {
        match access.link() {
            Ok(link) => {
                let shown = json!({ "link": link });
                let _ = session.out.result(&shown, |_| output::line(format!("Open {}", output::bold(&link))));
            }
            Err(error) => session.out.error(&error),
        }
        if std::io::stdin().is_terminal() {
            session.out.remark("The link opens one tab, once. Enter prints a new one; Ctrl-C ends the page.");
        }
        if !matches!(lines.next(), Some(Ok(_))) {
            return;
        }
    }
}

struct Server {
    access: Access,
    daemon: Daemon,
    connections: AtomicUsize,
}

impl Server {
    fn serve<'scope>(
        &'scope self,
        scope: &'scope std::thread::Scope<'scope, '_>,
        listener: &TcpListener,
    ) -> Result<(), CommandError> {
        loop {
            let Ok((mut stream, peer)) = listener.accept() else {
                std::thread::sleep(ACCEPT_PAUSE);
                continue;
            };
            let timeouts = stream.set_read_timeout(Some(STILL_MAX)).and(stream.set_write_timeout(Some(STILL_MAX)));
            if !peer.ip().is_loopback() || timeouts.is_err() {
                continue;
            }
            if self.connections.fetch_add(1, Ordering::AcqRel) >= CONNECTIONS_MAX {
                self.connections.fetch_sub(1, Ordering::AcqRel);
                let _ = refuse(&mut stream, 503, "too many connections at once");
                continue;
            }
            scope.spawn(move || {
                let _leave = Leave(&self.connections);
                // A browser that goes away is no fault.
                let _ = self.handle(&mut stream);
            });
        }
    }

    fn handle(&self, stream: &mut TcpStream) -> std::io::Result<()> {
        let request = match Request::read(stream) {
            Ok(request) => request,
            Err(Unreadable::Gone) => return Ok(()),
            Err(Unreadable::Refused(status)) => return refuse(stream, status, "request cannot be read"),
        };
        if !self.access.is_ours(&request) {
            return refuse(stream, 421, "this page is reached by its own address only");
        }
        if request.method == "GET" {
            return match FILES.iter().find(|(path, ..)| *path == request.path) {
                Some((_, kind, text)) => http::answer(stream, 200, kind, text.as_bytes()),
                None => refuse(stream, 404, "there is no such file"),
            };
        }
        if request.method != "POST" {
            return refuse(stream, 405, "GET and POST are taken");
        }
        // Another site can send a form, but no JSON, without asking first.
        if request.content_type.as_deref() != Some(JSON) {
            return refuse(stream, 415, "body is not application/json");
        }
        let Ok(body) = serde_json::from_slice::<Value>(&request.body) else {
            return refuse(stream, 400, "body is not JSON");
        };
        if request.path == "/api/session" {
            return self.enter(stream, &body);
        }
        if !self.access.knows(&request) {
            let error = json!({"error": {"kind": "stale", "message": "this tab is not known (any more)",
                "hint": "press Enter where 'mneme ui' runs: it prints a new link"}});
            return http::answer(stream, 401, JSON, error.to_string().as_bytes());
        }
        match request.path.as_str() {
            "/api/call" => {
                let (status, answer) = self.daemon.call(body);
                http::answer(stream, status, JSON, answer.to_string().as_bytes())
            }
            "/api/generate" => {
                http::begin(stream, "application/x-ndjson")?;
                self.daemon.generate(body, stream)
            }
            _ => refuse(stream, 404, "there is no such call"),
        }
    }

    fn enter(&self, stream: &mut TcpStream, body: &Value) -> std::io::Result<()> {
        match self.access.enter(body["token"].as_str().unwrap_or_default()) {
            Ok(Some(key)) => http::answer(stream, 200, JSON, json!({ "key": key }).to_string().as_bytes()),
            Ok(None) => {
                let error = json!({"error": {"kind": "stale", "message": "a link opens one tab, once, within ten minutes",
                    "hint": "press Enter where 'mneme ui' runs: it prints a new one"}});
                http::answer(stream, 403, JSON, error.to_string().as_bytes())
            }
            Err(error) => refuse(stream, 503, &error.to_string()),
        }
    }
}

/// Gives a connection's place back.
struct Leave<'a>(&'a AtomicUsize);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn refuse(stream: &mut TcpStream, status: u16, message: &str) -> std::io::Result<()> {
    let body = json!({"error": {"kind": "refused", "message": message}});
    http::answer(stream, status, JSON, body.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_loads_only_files_that_are_part_of_the_program() {
        let known = |path: &str| FILES.iter().any(|(name, ..)| *name == path);
        for (name, _, text) in FILES {
            for line in text.lines() {
                let import = line.trim_start().starts_with("import ").then(|| line.rsplit('"').nth(1)).flatten();
                assert!(import.is_none_or(known), "{name}: {line}");
            }
            let outside = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!outside.contains("http://") && !outside.contains("https://"), "{name} names another server");
        }
        let (_, _, html) = FILES[0];
        for attribute in ["href=\"/", "src=\"/"] {
            for rest in html.split(attribute).skip(1) {
                let path = rest.split('"').next().unwrap_or_default();
                assert!(known(&format!("/{path}")), "index.html: /{path}");
            }
        }
    }

    #[test]
    fn the_page_has_no_way_from_text_to_markup() {
        for (name, _, text) in FILES {
            for way in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "new Function",
                "srcdoc",
                "onclick=\"",
            ] {
                assert!(!text.contains(way), "{name} has {way}");
            }
        }
    }
}
