//! Async: the web port with the organisation's own certificate, and certificates that change while a hub runs. Real sockets, real handshakes.
#![allow(clippy::unwrap_used)]

use std::{
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use muster_certs::{AltName, Ca, Identity, Issuer, LeafParams, Root, Signed, SystemTime, files, tls::provider};
use muster_hub::{
    config::{Config, ControlFiles, Mesh, StatusAt, StoreAt, Web},
    running::{self, Running},
};
use muster_mesh::{
    clock::{Clock, SystemClock},
    status::Status,
};
use rustls::{RootCertStore, pki_types::CertificateDer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

const DAY_MS: i64 = 86_400_000;
const SOON: Duration = Duration::from_secs(20);

/// One after the other: SIGHUP and the metrics are the whole process'.
#[tokio::test]
async fn the_web_port_serves_the_organisations_certificate_and_takes_a_new_one_without_a_restart() {
    let house = House::new().await;
    let first = house.meet().await;
    assert_eq!(leaf(&first), *house.served.leaf());
    let mut old = first;
    assert!(ask(&mut old).await.starts_with("HTTP/1.1 401"), "it answers whatever name the organisation gave it");

    // A new certificate, and the old connection goes on.
    let renewed = house.organisation.sign("localhost", 60_000, DAY_MS);
    house.put(&renewed);
    house.hang_up("reloaded", "web").await;
    assert_eq!(leaf(&house.meet().await), *renewed.leaf());
    assert!(ask(&mut old).await.starts_with("HTTP/1.1 401"));

    // Each kind of bad file: refused, counted, and the present one stays.
    let stranger = Organisation::new();
    type Change<'a> = (&'a str, Box<dyn Fn() + 'a>);
    let (put, from) = (|signed: Signed| house.put(&signed), |after_ms| house.organisation.sign("localhost", after_ms, DAY_MS));
    let changes: [Change; 6] = [
        ("another's key", Box::new(|| files::write_secret(&house.key, house.served.key_pem.as_bytes()).unwrap())),
        ("one that has ended", Box::new(|| put(from(-2 * DAY_MS)))),
        ("one that hasn't begun", Box::new(|| put(from(DAY_MS)))),
        ("rubbish", Box::new(|| files::write_public(&house.certificate, b"rubbish").unwrap())),
        ("half a file", Box::new(|| files::write_public(&house.certificate, &renewed.pem.as_bytes()[..300]).unwrap())),
        ("a key for everybody", Box::new(|| std::fs::set_permissions(&house.key, PermissionsExt::from_mode(0o644)).unwrap())),
    ];
    for (what, change) in changes {
        change();
        house.hang_up("refused", "web").await;
        assert_eq!(leaf(&house.meet().await), *renewed.leaf(), "{what}");
        house.put(&renewed);
    }
    let text = Status::install().text();
    assert!(text.contains("muster_cert_files_refused{role=\"web\"} 1"), "{text}");
    assert!(text.contains("muster_cert_files_refused{role=\"hub\"} 0"), "{text}");

    // Whose CA it is is the organisation's matter.
    house.put(&stranger.sign("localhost", 0, DAY_MS));
    house.hang_up("reloaded", "web").await;

    // The hub's own, in the same run: another mesh's is refused, a renewal is taken.
    let other = Ca::init(&house.folder.path().join("other"), "muster.test").unwrap();
    write_keys(&house.folder.path().join("hub"), &other.issue_hub("hub-1").unwrap());
    house.hang_up("refused", "hub").await;
    let renewed = house.ca.issue_hub("hub-1").unwrap();
    write_keys(&house.folder.path().join("hub"), &renewed);
    house.hang_up("reloaded", "hub").await;

    let ends = |role: &str| format!("muster_cert_expiry_timestamp_seconds{{role=\"{role}\"}} ");
    let text = Status::install().text();
    for role in ["hub", "web", "root"] {
        assert!(text.contains(&ends(role)), "{role}: {text}");
    }
    assert!(text.contains("muster_hub_members{standing=\"cloned\"} 0"), "{text}");
    house.running.drain().await;
}

// --- a hub with an organisation's certificate ---

struct House {
    folder: tempfile::TempDir,
    ca: Ca,
    organisation: Organisation,
    served: Signed,
    certificate: PathBuf,
    key: PathBuf,
    running: Running,
}

impl House {
    async fn new() -> House {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let ca = Ca::init(&at("ca"), "muster.test").unwrap();
        write_keys(&at("hub"), &ca.issue_hub("hub-1").unwrap());
        write_keys(&at("control"), &ca.issue_control(1).unwrap());
        std::fs::write(at("policy.toml"), include_str!("policy.toml")).unwrap();
        let organisation = Organisation::new();
        let served = organisation.sign("localhost", 0, DAY_MS);
        write_keys(&at("web"), &served);
        let anywhere: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let config = Config {
            state: at("state"),
            policy: at("policy.toml"),
            issued: ca.issued_path(),
            test_mode: true,
            mesh: Mesh { listen: anywhere, certificate: at("hub.pem"), key: at("hub.key"), roots: ca.roots_path(), address: None },
            door: None,
            signer: None,
            control: Some(ControlFiles { certificate: at("control.pem"), key: at("control.key") }),
            web: Web { listen: anywhere, certificate: Some(at("web.pem")), key: Some(at("web.key")) },
            store: StoreAt { url: format!("sqlite://{}", at("muster.db").display()), objects: None },
            status: StatusAt { listen: anywhere },
        };
        let running = running::start(config, false).await.unwrap();
        let (certificate, key) = (at("web.pem"), at("web.key"));
        House { folder, ca, organisation, served, certificate, key, running }
    }

    fn put(&self, signed: &Signed) {
        write_keys(&self.certificate.with_extension(""), signed);
    }

    /// SIGHUP, until this outcome is counted once more.
    async fn hang_up(&self, outcome: &str, role: &str) {
        let before = count(outcome, role);
        let counted = async {
            while count(outcome, role) == before {
                let sent = Command::new("sh").arg("-c").arg(format!("kill -HUP {}", std::process::id())).status().unwrap();
                assert!(sent.success());
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(SOON, counted).await.unwrap_or_else(|_| panic!("no {outcome} of {role} was counted"));
    }

    /// Believes the organisation's root and asks for `localhost`, as a browser does.
    async fn meet(&self) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        let ders = muster_certs::material::certificates("roots", self.organisation.root.pem(), 1).unwrap();
        roots.add(ders[0].clone()).unwrap();
        let config = rustls::ClientConfig::builder_with_details(provider().clone(), Arc::new(SystemTime))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(self.running.web).await.unwrap();
        TlsConnector::from(Arc::new(config)).connect("localhost".try_into().unwrap(), stream).await.unwrap()
    }
}

fn write_keys(stem: &Path, signed: &Signed) {
    files::write_secret(&stem.with_extension("key"), signed.key_pem.as_bytes()).unwrap();
    files::write_public(&stem.with_extension("pem"), signed.pem.as_bytes()).unwrap();
}

fn count(outcome: &str, role: &str) -> u64 {
    let begin = format!("muster_cert_reloads_total{{role=\"{role}\",outcome=\"{outcome}\"}} ");
    let text = Status::install().text();
    text.lines().find_map(|line| line.strip_prefix(&begin)).map_or(0, |count| count.parse().unwrap())
}

fn leaf(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

/// One request on a connection that stays open; the head of its answer.
async fn ask(stream: &mut TlsStream<TcpStream>) -> String {
    stream.write_all(b"GET /api/v1/devices HTTP/1.1\r\nhost: people.example.org\r\n\r\n").await.unwrap();
    let mut answer = vec![0; 4_096];
    let read = timeout(SOON, stream.read(&mut answer)).await.unwrap().unwrap();
    String::from_utf8_lossy(&answer[..read]).into_owned()
}

/// Some CA whose certificates name hosts.
struct Organisation {
    root: Root,
    issuer: Issuer,
}

impl Organisation {
    fn new() -> Organisation {
        let (root, issuer) = Issuer::in_memory("example.org", SystemClock::new().now().wall_ms - 10 * DAY_MS).unwrap();
        Organisation { root, issuer }
    }

    /// As if issued so long from now.
    fn sign(&self, host: &str, after_ms: i64, life_ms: i64) -> Signed {
        let now_ms = SystemClock::new().now().wall_ms + after_ms;
        let like = Identity::new("example.org", "hub/any".parse().unwrap()).unwrap();
        let params =
            LeafParams { names: vec![AltName::Dns(host.to_owned())], not_after_ms: now_ms + life_ms, ..LeafParams::of(&like, now_ms) };
        self.issuer.sign(&params).unwrap()
    }
}
