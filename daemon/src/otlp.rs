//! Sends the metrics to an OpenTelemetry collector: OTLP over HTTP with JSON, as the OpenTelemetry Protocol Specification 1 has it
//! (`opentelemetry.proto.collector.metrics.v1.ExportMetricsServiceRequest`). The names are those of [`crate::scrape`].
//!
//! Sums are cumulative since the start of the daemon, so that a message that was lost is made up for by the next.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use mneme_base::Timestamp;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::metrics::BUCKETS;
use crate::service::Service;

/// Where a collector on this machine listens.
const AUTO: &str = "http://127.0.0.1:4318/v1/metrics";
/// A message is sent and answered within this.
const TIMEOUT: Duration = Duration::from_secs(5);
/// What is read of an answer (bytes): its first line says everything.
const ANSWER_BYTES_MAX: usize = 256;
/// `AGGREGATION_TEMPORALITY_CUMULATIVE`.
const CUMULATIVE: u32 = 2;

/// An address in its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Endpoint {
    host: String,
    port: u16,
    path: String,
}

impl Endpoint {
    /// Takes an address apart that the configuration has let through.
    fn of(text: &str) -> Option<Self> {
        let text = if text == "auto" { AUTO } else { text };
        let rest = text.strip_prefix("http://")?;
        let (place, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = place.rsplit_once(':').unwrap_or((place, "80"));
        let path = if path.is_empty() { "/" } else { path };
        Some(Self { host: host.to_owned(), port: port.parse().ok()?, path: path.to_owned() })
    }
}

/// Begins to send, until the daemon drains. A collector that is away is told once in the log, and so is its return.
pub(crate) fn start(service: &Arc<Service>) {
    let settings = &service.config().metrics;
    let Some(endpoint) = Endpoint::of(&settings.otlp_endpoint) else { return };
    let interval = settings.otlp_interval;
    let service = Arc::clone(service);
    tokio::spawn(async move {
        let mut drained = service.drained();
        let mut arrives = true;
        loop {
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                _ = drained.wait_for(|drained| *drained) => return,
            }
            let sent = send(&endpoint, &message(&service)).await;
            match (&sent, arrives) {
                (Err(error), true) => {
                    tracing::warn!(%error, host = endpoint.host, port = endpoint.port, "metrics do not reach the collector");
                }
                (Ok(()), false) => tracing::info!("metrics reach the collector again"),
                _ => {}
            }
            arrives = sent.is_ok();
        }
    });
}

/// Sends one message and waits for its status.
async fn send(endpoint: &Endpoint, message: &Value) -> io::Result<()> {
    let Endpoint { host, port, path } = endpoint;
    let body = message.to_string();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: mnemed/{}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        env!("CARGO_PKG_VERSION"),
        body.len()
    );
    let exchange = async {
        let mut stream = TcpStream::connect((host.as_str(), *port)).await?;
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
        let mut answer = Vec::new();
        let mut buffer = [0_u8; ANSWER_BYTES_MAX];
        while answer.len() < ANSWER_BYTES_MAX && !answer.contains(&b'\n') {
            match stream.read(&mut buffer).await? {
                0 => break,
                count => answer.extend_from_slice(&buffer[..count]),
            }
        }
        let line = String::from_utf8_lossy(&answer);
        let line = line.lines().next().unwrap_or_default();
        match line.split(' ').nth(1) {
            Some(status) if line.starts_with("HTTP/1.") && status.len() == 3 && status.starts_with('2') => Ok(()),
            _ => Err(io::Error::other(format!("collector answered {line:?}"))),
        }
    };
    match tokio::time::timeout(TIMEOUT, exchange).await {
        Ok(sent) => sent,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", TIMEOUT.as_secs()))),
    }
}

/// All metrics in one message. In OTLP's JSON, 64-bit integers are texts.
fn message(service: &Service) -> Value {
    let (start, now) = (nanos(service.started_at()), nanos(service.now()));
    let requests: Vec<Value> = service
        .metrics
        .histograms()
        .into_iter()
        .map(|times| {
            json!({
                "attributes": [attribute("method", times.method)],
                "startTimeUnixNano": start, "timeUnixNano": now,
                "count": times.count.to_string(), "sum": times.seconds,
                "bucketCounts": times.buckets.iter().map(u64::to_string).collect::<Vec<_>>(),
                "explicitBounds": BUCKETS,
            })
        })
        .collect();
    let errors: Vec<Value> = service
        .metrics
        .errors()
        .into_iter()
        .map(|(kind, count)| {
            json!({
                "attributes": [attribute("kind", &kind)],
                "startTimeUnixNano": start, "timeUnixNano": now, "asInt": count.to_string(),
            })
        })
        .collect();
    let mut metrics = vec![
        json!({
            "name": "mneme_request_seconds", "description": "Time in the daemon, by method.", "unit": "s",
            "histogram": {"aggregationTemporality": CUMULATIVE, "dataPoints": requests},
        }),
        json!({
            "name": "mneme_errors_total", "description": "Errors answered, by kind.", "unit": "1",
            "sum": {"aggregationTemporality": CUMULATIVE, "isMonotonic": true, "dataPoints": errors},
        }),
    ];
    metrics.extend(service.metrics.gauges().into_iter().chain(service.gauges()).map(|(name, about, value)| {
        json!({
            "name": name, "description": about,
            "gauge": {"dataPoints": [{"timeUnixNano": now, "asDouble": value}]},
        })
    }));
    let (version, boot) = (env!("CARGO_PKG_VERSION"), service.boot().to_string());
    json!({"resourceMetrics": [{
        "resource": {"attributes": [
            attribute("service.name", "mneme"),
            attribute("service.version", version),
            attribute("service.instance.id", &boot),
        ]},
        "scopeMetrics": [{"scope": {"name": "mneme", "version": version}, "metrics": metrics}],
    }]})
}

fn attribute(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}

fn nanos(time: Timestamp) -> String {
    (i128::from(time.as_millis()) * 1_000_000).to_string()
}

#[cfg(test)]
mod tests {
    use mneme_memory::{DurableOptions, InMemoryStore};
    use tokio::net::TcpListener;

    use super::*;
    use crate::service::tests::service;

    /// Takes one message as a collector does, and answers with a status.
    async fn collect(listener: &TcpListener, status: &str) -> (String, Value) {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut bytes = Vec::new();
        loop {
            let mut buffer = [0_u8; 4 << 10];
            let count = stream.read(&mut buffer).await.unwrap();
            bytes.extend_from_slice(&buffer[..count]);
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
            if body.len() == length.parse::<usize>().unwrap() {
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\n{{}}");
                stream.write_all(answer.as_bytes()).await.unwrap();
                return (head.to_owned(), serde_json::from_str(body).unwrap());
            }
        }
    }

    #[tokio::test]
    async fn a_collector_gets_every_metric_and_its_refusal_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let service = service(Arc::new(InMemoryStore::new(DurableOptions::default())), folder.path()).await;
        service.metrics.request("ping", Duration::from_micros(100));
        service.metrics.request("ping", Duration::from_mins(1));
        service.metrics.error("busy".into());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}/v1/metrics", listener.local_addr().unwrap());
        let endpoint = Endpoint::of(&address).unwrap();
        let body = message(&service);
        let ((head, got), sent) = tokio::join!(collect(&listener, "200 OK"), send(&endpoint, &body));
        sent.unwrap();
        assert!(head.starts_with("POST /v1/metrics HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("Content-Type: application/json"), "{head}");
        let scope = &got["resourceMetrics"][0]["scopeMetrics"][0];
        let metric =
            |name: &str| scope["metrics"].as_array().unwrap().iter().find(|metric| metric["name"] == name).unwrap();
        let ping = &metric("mneme_request_seconds")["histogram"]["dataPoints"][0];
        assert_eq!((&ping["count"], &ping["attributes"][0]["value"]["stringValue"]), (&json!("2"), &json!("ping")));
        let buckets = ping["bucketCounts"].as_array().unwrap();
        assert_eq!((buckets.len(), &buckets[0], &buckets[12]), (BUCKETS.len() + 1, &json!("1"), &json!("1")));
        let errors = &metric("mneme_errors_total")["sum"];
        assert_eq!((&errors["dataPoints"][0]["asInt"], &errors["isMonotonic"]), (&json!("1"), &json!(true)));
        // Whatever Prometheus is told, the collector is told.
        let names = service.prometheus();
        for name in names.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()) {
            metric(name);
        }
        let (_, sent) = tokio::join!(collect(&listener, "503 Service Unavailable"), send(&endpoint, &body));
        assert!(sent.unwrap_err().to_string().contains("503"));
        drop(listener);
        assert!(send(&endpoint, &body).await.is_err(), "nobody listens");
        service.system.stop().await;
    }

    #[test]
    fn an_address_is_taken_apart() {
        let parts = |text: &str| Endpoint::of(text).map(|found| (found.host, found.port, found.path));
        assert_eq!(parts("auto"), Some(("127.0.0.1".into(), 4318, "/v1/metrics".into())));
        assert_eq!(parts("http://collector"), Some(("collector".into(), 80, "/".into())));
        assert_eq!(parts("https://collector"), None);
    }
}
