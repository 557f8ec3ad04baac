//! The optional door for a Prometheus on this machine: `GET /metrics` on 127.0.0.1, counts and sizes only.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::service::Service;

/// The longest request (bytes): a scraper sends some headers and no body.
const REQUEST_BYTES_MAX: usize = 8 << 10;
/// A request has to be there, and its answer taken, within this.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Scrapes at once.
const SCRAPES_MAX: usize = 4;

/// Opens the door when a port is configured. A port that cannot be had is told in the log: memory matters more than its meters.
pub(crate) fn start(service: &Arc<Service>) {
    let port = service.config().metrics.port;
    if port == 0 {
        return;
    }
    let service = Arc::clone(service);
    tokio::spawn(async move {
        let address = (Ipv4Addr::LOCALHOST, port as u16);
        match TcpListener::bind(address).await {
            Ok(listener) => {
                tracing::info!(port, "metrics are served on the loopback");
                serve(service, listener).await;
            }
            Err(error) => {
                tracing::error!(%error, port, "metrics cannot be served: the port is taken, or the service's unit forbids it");
            }
        }
    });
}

async fn serve(service: Arc<Service>, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(SCRAPES_MAX));
    let mut drained = service.drained();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = drained.wait_for(|drained| *drained) => return,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        // Over the limit the connection is closed at once: a scraper comes again by itself.
        if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
            let service = Arc::clone(&service);
            tokio::spawn(async move {
                let _ = tokio::time::timeout(TIMEOUT, answer(&service, stream)).await;
                drop(place);
            });
        }
    }
}

async fn answer(service: &Service, mut stream: TcpStream) -> std::io::Result<()> {
    let (status, body) = match read_head(&mut stream).await {
        Some(head) => match verdict(&head) {
            "200 OK" => ("200 OK", service.prometheus()),
            status => (status, String::new()),
        },
        None => ("400 Bad Request", String::new()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\n\
         X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

/// The head of a request; `None` when it is too long or no text.
async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut bytes = Vec::new();
    let mut buffer = [0_u8; 1 << 10];
    while bytes.len() < REQUEST_BYTES_MAX {
        let count = stream.read(&mut buffer).await.ok().filter(|count| *count > 0)?;
        bytes.extend_from_slice(&buffer[..count]);
        if bytes.windows(4).any(|window| window == b"\r\n\r\n") {
            return String::from_utf8(bytes).ok();
        }
    }
    None
}

/// The status of the answer. A page of another site that points its name at the loopback sends its own `Host`.
fn verdict(head: &str) -> &'static str {
    let mut lines = head.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let hosts: Vec<&str> = lines
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| name.eq_ignore_ascii_case("host"))
        .map(|(_, host)| host.trim())
        .collect();
    let name = |host: &str| host.rsplit_once(':').map_or(host, |(name, _)| name).to_owned();
    match hosts.as_slice() {
        [host] if matches!(name(host).as_str(), "127.0.0.1" | "localhost") => {}
        _ => return "421 Misdirected Request",
    }
    match (method, path.split('?').next()) {
        ("GET", Some("/metrics")) => "200 OK",
        ("GET", _) => "404 Not Found",
        _ => "405 Method Not Allowed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_scrape_is_answered_and_nothing_else() {
        let ask = |head: &str| verdict(&format!("{head}\r\n\r\n"));
        assert_eq!(ask("GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:9464"), "200 OK");
        assert_eq!(ask("GET /metrics?x=1 HTTP/1.1\r\nhost: localhost:9464"), "200 OK");
        assert_eq!(ask("GET / HTTP/1.1\r\nHost: localhost"), "404 Not Found");
        assert_eq!(ask("POST /metrics HTTP/1.1\r\nHost: localhost"), "405 Method Not Allowed");
        for host in ["", "Host: evil.example\r\n", "Host: localhost\r\nHost: evil.example", "Host: 10.0.0.1:9464"] {
            assert_eq!(ask(&format!("GET /metrics HTTP/1.1\r\n{host}")), "421 Misdirected Request", "{host}");
        }
        assert_eq!(
            read_head(&mut "GET / HTTP/1.1\r\n\r\n".as_bytes()).await.as_deref(),
            Some("GET / HTTP/1.1\r\n\r\n")
        );
        assert_eq!(read_head(&mut "x".repeat(REQUEST_BYTES_MAX * 2).as_bytes()).await, None);
        assert_eq!(read_head(&mut "GET /".as_bytes()).await, None);
    }
}
