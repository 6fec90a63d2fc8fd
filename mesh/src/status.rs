//! Async: what monitoring asks: `/healthz` (the process lives), `/readyz` (it does its work) and `/metrics` (Prometheus), on loopback.
//!
//! Metrics are made anywhere with the macros of `metrics`; a name that ends in `_seconds` is a histogram with the buckets below. No label
//! names a person, a device or a title.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CACHE_CONTROL, CONTENT_TYPE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{complaint::Complaint, limits};

/// From a fast commit to a slow handshake.
const SECONDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];
/// Histograms keep every sample until somebody tidies up, asked or not.
const TIDY_EVERY: Duration = Duration::from_secs(5);

/// The metrics of this process.
#[derive(Clone)]
pub struct Status {
    metrics: PrometheusHandle,
}

impl Status {
    /// Takes the metrics of this process in, from now on. A second call gives the same.
    pub fn install() -> Status {
        static METRICS: OnceLock<PrometheusHandle> = OnceLock::new();
        Status { metrics: METRICS.get_or_init(recorder).clone() }
    }

    /// Answers on `listen` (loopback only; port 0 chooses one) until `stop`. `ready` is the program's own word on whether it does its work.
    pub async fn serve(
        &self,
        listen: SocketAddr,
        ready: Arc<AtomicBool>,
        stop: CancellationToken,
    ) -> Result<(SocketAddr, JoinHandle<()>), Complaint> {
        if !listen.ip().is_loopback() {
            return Err(Complaint::new(
                format!("`status.listen` is {listen}, and health and metrics are answered on loopback only"),
                format!("Take 127.0.0.1:{} and let a proxy with sign-in stand before it", listen.port()),
            ));
        }
        let listener = TcpListener::bind(listen).await.map_err(|error| not_bound(listen, &error))?;
        let address = listener.local_addr().map_err(|error| not_bound(listen, &error))?;
        let page = Page { status: self.clone(), ready };
        Ok((address, tokio::spawn(answer_all(listener, page, stop))))
    }

    /// All metrics in Prometheus' text format.
    pub fn text(&self) -> String {
        self.metrics.render()
    }
}

fn recorder() -> PrometheusHandle {
    let builder = PrometheusBuilder::new();
    let seconds = Matcher::Suffix("_seconds".to_owned());
    // It refuses only an empty list of buckets.
    let builder = builder.set_buckets_for_metric(seconds, &SECONDS).unwrap_or_else(|_| PrometheusBuilder::new());
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    if metrics::set_global_recorder(recorder).is_err() {
        tracing::warn!("another recorder takes this process' metrics; /metrics stays empty");
    }
    handle
}

fn not_bound(listen: SocketAddr, error: &io::Error) -> Complaint {
    match error.kind() {
        io::ErrorKind::AddrInUse => Complaint::new(
            format!("port {} on {} is in use by another program", listen.port(), listen.ip()),
            "Stop it, or give another as `status.listen`",
        ),
        _ => Complaint::new(format!("health and metrics can't listen on {listen}: {error}"), "Give another as `status.listen`"),
    }
}

async fn answer_all(listener: TcpListener, page: Page, stop: CancellationToken) {
    let mut readers = JoinSet::new();
    let mut tidy = tokio::time::interval(TIDY_EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tidy.tick() => page.status.metrics.run_upkeep(),
            Some(_) = readers.join_next() => {}
            accepted = listener.accept(), if readers.len() < limits::STATUS_READERS_MAX => match accepted {
                Ok((stream, _)) => { readers.spawn(answer_one(stream, page.clone())); }
                // No file descriptors left: waiting is all that helps.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
        }
    }
}

/// One request per connection: scrapers come every few seconds, and nobody can keep a connection for ever.
async fn answer_one(stream: TcpStream, page: Page) {
    let service = service_fn(move |request| {
        let answer = page.answer(&request);
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).keep_alive(false).max_buf_size(16 * 1024);
    let _ = timeout(limits::STATUS_TIMEOUT, http.serve_connection(TokioIo::new(stream), service)).await;
}

#[derive(Clone)]
struct Page {
    status: Status,
    ready: Arc<AtomicBool>,
}

impl Page {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
        }
        match request.uri().path() {
            "/healthz" => text(StatusCode::OK, "alive\n".to_owned()),
            "/readyz" if self.ready.load(Ordering::Relaxed) => text(StatusCode::OK, "ready\n".to_owned()),
            "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n".to_owned()),
            "/metrics" => text(StatusCode::OK, self.status.text()),
            _ => text(StatusCode::NOT_FOUND, "/healthz /readyz /metrics\n".to_owned()),
        }
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    headers.insert(CACHE_CONTROL, hyper::header::HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    fn loopback() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    #[tokio::test]
    async fn health_readiness_and_metrics_are_answered() {
        let (ready, stop) = (Arc::new(AtomicBool::new(false)), CancellationToken::new());
        let (address, task) = Status::install().serve(loopback(), ready.clone(), stop.clone()).await.unwrap();
        metrics::counter!("muster_test_batches_total").increment(7);
        metrics::histogram!("muster_test_commit_seconds").record(0.003);
        assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 503"));
        ready.store(true, Ordering::Relaxed);
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        let text = get(address, "/metrics").await;
        assert!(text.contains("muster_test_batches_total 7"), "{text}");
        assert!(text.contains("muster_test_commit_seconds_bucket{le=\"0.005\"} 1"), "{text}");
        assert!(get(address, "/secrets").await.starts_with("HTTP/1.1 404"));
        stop.cancel();
        task.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn a_reader_that_says_nothing_doesnt_stop_the_others() {
        let stop = CancellationToken::new();
        let (address, _task) = Status::install().serve(loopback(), Arc::default(), stop).await.unwrap();
        let _silent = [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
        assert!(get(address, "/healthz").await.contains("alive"));
    }

    #[tokio::test]
    async fn a_port_in_use_and_an_open_address_are_each_one_clear_line() {
        let taken = TcpListener::bind(loopback()).await.unwrap();
        let line = |listen| async move {
            Status::install().serve(listen, Arc::default(), CancellationToken::new()).await.unwrap_err().to_string()
        };
        let used = line(taken.local_addr().unwrap()).await;
        assert!(used.contains("is in use by another program. Stop it"), "{used}");
        let open = line(SocketAddr::from(([0, 0, 0, 0], 9465))).await;
        assert!(open.contains("loopback only"), "{open}");
    }
}
