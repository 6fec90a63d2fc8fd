//! Async: a line of a test's own before a server, on a thread of its own: what it does to whoever comes by it can be changed at any moment.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    sync::watch,
    time::sleep,
};

/// What happens to connections. At each change those that there are break off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    Fine,
    /// Each is closed as soon as it is made.
    Refused,
    /// Nothing is read, and nothing answered.
    Silent,
    /// Whatever the server says comes so much later.
    Late(Duration),
    /// It ends after so many bytes of what the client says.
    CutAfter(u64),
    /// Someone answers in the server's stead, to each request, that there is no room.
    NoRoom,
}

const PIECE_BYTES: usize = 16 * 1024;
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// As an S3 server says it.
const NO_ROOM: &[u8] = b"HTTP/1.1 507 Insufficient Storage\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// Dropped, it and everything on it is gone.
pub struct Line {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    met: Arc<AtomicUsize>,
    runtime: Option<Runtime>,
}

impl Line {
    /// Before the server at this address.
    pub fn before(server: SocketAddr) -> Line {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a listener");
        let address = listener.local_addr().expect("its address");
        let (weather, seen) = watch::channel(Weather::Fine);
        let met = Arc::<AtomicUsize>::default();
        runtime.spawn(accept(listener, server, seen, met.clone()));
        Line { address, weather, met, runtime: Some(runtime) }
    }

    /// Where clients come.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn set(&self, weather: Weather) {
        self.met.store(0, Ordering::SeqCst);
        self.weather.send_replace(weather);
    }

    /// How many connections this weather has met since it was set.
    pub fn met(&self) -> usize {
        self.met.load(Ordering::SeqCst)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A test's own runtime may not wait for another one's end.
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: std::net::TcpListener, server: SocketAddr, mut weather: watch::Receiver<Weather>, met: Arc<AtomicUsize>) {
    let listener = TcpListener::from_std(listener).expect("a listener");
    while let Ok((client, _)) = listener.accept().await {
        let now = *weather.borrow_and_update();
        met.fetch_add(1, Ordering::SeqCst);
        let mut changes = weather.clone();
        tokio::spawn(async move {
            tokio::select! {
                // Whichever end broke off: both are gone now.
                _ = carry(client, server, now) => {}
                _ = changes.changed() => {}
            }
        });
    }
}

async fn carry(mut client: TcpStream, server: SocketAddr, weather: Weather) -> io::Result<()> {
    let (late, most) = match weather {
        Weather::Refused => return Ok(()),
        Weather::Silent => return std::future::pending().await,
        Weather::NoRoom => return refuse_each(&mut client).await,
        Weather::Fine => (Duration::ZERO, u64::MAX),
        Weather::Late(late) => (late, u64::MAX),
        Weather::CutAfter(most) => (Duration::ZERO, most),
    };
    let mut server = TcpStream::connect(server).await?;
    let (from_client, mut to_client) = client.split();
    let (from_server, mut to_server) = server.split();
    let mut up = from_client.take(most);
    tokio::select! {
        // The client's end may come before the server's answer, but here nobody closes one half only.
        done = copy(&mut up, &mut to_server) => done.map(drop),
        done = carry_late(from_server, &mut to_client, late) => done,
    }
}

async fn carry_late(mut from: impl AsyncRead + Unpin, to: &mut (impl AsyncWrite + Unpin), late: Duration) -> io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let length = from.read(&mut piece).await?;
        if length == 0 {
            return Ok(());
        }
        sleep(late).await;
        to.write_all(&piece[..length]).await?;
    }
}

/// Reads a request to its end, since an answer before that may be lost with the connection.
async fn refuse_each(client: &mut TcpStream) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > HEAD_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        head.push(client.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok()).unwrap_or(0);
    copy(&mut (&mut *client).take(length), &mut tokio::io::sink()).await?;
    client.write_all(NO_ROOM).await?;
    client.shutdown().await
}
