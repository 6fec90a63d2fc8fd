//! Async: a hub of a few lines behind real mutual TLS: it keeps what it is sent, and answers as it is told.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use muster_certs::{Issuer, Keys, Role, Root, server_config};
use muster_mesh::{
    clock::{Clock, SystemClock},
    control_key::ControlKey,
    ids::{DeviceId, SpoolId, Version},
    message::{Answer, Bundle, ControlChain, HeldVersion, HubAck, PostHead, Posted, Signed, SignedKind, Taken, Verdict},
    ranges::Ranges,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

/// What the hub says instead of taking a POST.
#[derive(Clone, Debug)]
pub enum Reply {
    Answer(Answer),
    Status(&'static str, &'static str),
}

#[derive(Default)]
pub struct Kept {
    pub heads: Vec<PostHead>,
    pub posted: Vec<Posted>,
    pub stored: BTreeMap<(DeviceId, SpoolId), Ranges>,
    /// Said before POSTs are taken.
    pub replies: VecDeque<Reply>,
    /// What the hub says under its signature, behind its bundle.
    pub signed: Vec<Signed>,
    /// What somebody between puts among the acks, and among the rest.
    pub forged: [Vec<Vec<u8>>; 2],
    /// What relays showed it.
    pub shown: Vec<Bytes>,
    /// The hub is silent about what it has.
    pub mute: bool,
}

/// The hub's signature.
pub struct Signing {
    pub key: ControlKey,
    pub bundle: Signed,
}

impl Signing {
    pub fn new(root: &Root, issuer: &Issuer) -> Signing {
        let made_ms = SystemClock::new().now().wall_ms;
        let (key, chain) = ControlKey::issue(issuer, 1, made_ms).unwrap();
        let controls = vec![ControlChain { n: 1, chain: chain.pem }];
        let bundle = Bundle { made_ms, ca: 1, issuer: String::new(), roots: root.pem().to_owned(), crosses: String::new(), controls };
        let version = Version { epoch: 1, n: 1 };
        Signing { key, bundle: Signed::new(SignedKind::Bundle, version, bundle.bytes().unwrap()) }
    }

    pub fn sign(&self, signed: &Signed) -> Vec<u8> {
        self.key.sign(signed).unwrap()
    }
}

pub struct Hub {
    pub address: String,
    pub signing: Arc<Signing>,
    pub kept: Arc<Mutex<Kept>>,
    task: JoinHandle<()>,
}

impl Hub {
    pub async fn start(keys: &Arc<Keys>, signing: Signing) -> Hub {
        let signing = Arc::new(signing);
        let own = signing.clone();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let tls = TlsAcceptor::from(Arc::new(server_config(keys, &[Role::Relay], &[b"http/1.1"]).unwrap()));
        let kept: Arc<Mutex<Kept>> = Arc::default();
        let serving = kept.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (tls, kept, signing) = (tls.clone(), serving.clone(), own.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = tls.accept(stream).await {
                        let mut stream = BufReader::new(stream);
                        while let Some((path, body)) = request(&mut stream).await {
                            let reply = match &*path {
                                "/signed/1" => shown(&kept, body),
                                _ => answer(&kept, &signing, body),
                            };
                            if stream.get_mut().write_all(&reply).await.is_err() {
                                return;
                            }
                        }
                    }
                });
            }
        });
        Hub { address, signing, kept, task }
    }

    pub fn say(&self, reply: Reply) {
        self.kept.lock().unwrap().replies.push_back(reply);
    }

    /// Numbers posted of a spool, in order of arrival.
    pub fn seqs(&self) -> Vec<u64> {
        self.kept.lock().unwrap().posted.iter().map(|posted| posted.envelope.header().seq).collect()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn request(stream: &mut BufReader<tokio_rustls::server::TlsStream<tokio::net::TcpStream>>) -> Option<(String, Bytes)> {
    let (mut path, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        let line = line.trim().to_lowercase();
        if let Some(asked) = line.strip_prefix("post ") {
            path = asked.split(' ').next().unwrap_or_default().to_owned();
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some((path, body.into()))
}

fn shown(kept: &Mutex<Kept>, body: Bytes) -> Vec<u8> {
    kept.lock().unwrap().shown.push(body);
    b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()
}

fn answer(kept: &Mutex<Kept>, signing: &Signing, body: Bytes) -> Vec<u8> {
    let mut kept = kept.lock().unwrap();
    let (head, posted) = PostHead::read(body).unwrap();
    kept.heads.push(head.clone());
    let reply = match kept.replies.pop_front() {
        Some(reply) => reply,
        None => Reply::Answer(Answer::Taken(take(&mut kept, signing, &head, posted.into_iter().map(Result::unwrap).collect()))),
    };
    let (status, headers, body) = match reply {
        Reply::Answer(answer) => {
            let status = if matches!(answer, Answer::Taken(_)) { "200 OK" } else { "409 Conflict" };
            (status, "", answer.bytes().unwrap())
        }
        Reply::Status(status, headers) => (status, headers, Bytes::from_static(b"no")),
    };
    let mut bytes = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n", body.len()).into_bytes();
    bytes.extend(body);
    bytes
}

fn take(kept: &mut Kept, signing: &Signing, head: &PostHead, posted: Vec<Posted>) -> Taken {
    let mut taken = Taken { number: head.number, ..Taken::default() };
    let mut asked: BTreeMap<(DeviceId, SpoolId), u64> = head.asks.iter().map(|ask| ((ask.device, ask.spool), ask.from)).collect();
    for one in posted {
        let header = *one.envelope.header();
        let stored = kept.stored.entry((header.device, header.spool)).or_default();
        taken.counts.add(if stored.contains(header.seq) { Verdict::Repeat } else { Verdict::Stored });
        stored.insert(header.seq);
        asked.entry((header.device, header.spool)).or_insert(1);
        kept.posted.push(one);
    }
    for ((device, spool), from) in asked {
        let Some(stored) = kept.stored.get(&(device, spool)) else { continue };
        let body = HubAck { stored: stored.from(from, 16), ..HubAck::default() }.bytes().unwrap();
        let ack = Signed { device: Some(device), spool: Some(spool), ..Signed::new(SignedKind::Ack, Version { epoch: 1, n: 0 }, body) };
        if !kept.mute {
            taken.acks.push(signing.sign(&ack));
        }
    }
    let [acks, signed] = kept.forged.clone();
    taken.acks.extend(acks);
    let said = || std::iter::once(&signing.bundle).chain(&kept.signed);
    taken.versions = said().map(|signed| HeldVersion { kind: signed.kind, version: signed.version }).collect();
    taken.signed = said().map(|signed| signing.sign(signed)).chain(signed).collect();
    taken
}
