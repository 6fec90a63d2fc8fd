//! Async: asks for certificates on their way through it, at its door and from connected agents.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use muster_certs::{DeviceKey, Identity, Issuer, KeyRequest, Name, Requested};
use muster_mesh::{
    chance,
    door::{Answer, Ask, Issued, Opened, Plea, Said, Standing, Wish},
    ids::Version,
    quic::DoorServer,
    seal::SealTo,
};
use tokio::time::sleep;

use crate::{misdeed::Misdeed, upstream::Upstream};

/// "Later": long after the answer has come, and while the number in the ask still counts.
const LATER: Duration = Duration::from_secs(1);
const LIFE_MS: i64 = 86_400_000;

pub struct Door {
    upstream: Arc<Upstream>,
    misdeed: Misdeed,
    seal: SealTo,
    /// Its own.
    root: String,
    issuer: Issuer,
    now_ms: i64,
}

impl Door {
    pub fn new(upstream: Arc<Upstream>, misdeed: Misdeed, seal: SealTo, domain: &str, now_ms: i64) -> Door {
        let (root, issuer) = Issuer::in_memory(domain, now_ms).unwrap();
        Door { upstream, misdeed, seal, root: root.pem().to_owned(), issuer, now_ms }
    }

    /// Answers strangers for ever.
    pub async fn receive(self: Arc<Self>, strangers: DoorServer) {
        while let Some(knock) = strangers.knocked().await {
            let door = self.clone();
            tokio::spawn(async move {
                let Some(question) = knock.question().await else { return };
                let answer = door.answer(&question.ask, None).await;
                question.answer(&answer).await;
            });
        }
    }

    /// What the one who asks is told. `name`: who it is, where it is connected.
    pub async fn answer(&self, ask: &[u8], name: Option<&Name>) -> Bytes {
        let busy = || Answer::Busy { seconds: 1 }.bytes().unwrap().into();
        match (self.misdeed, Ask::read(ask)) {
            (Misdeed::SwapCsr, Ok(Ask::Sealed(sealed))) => self.swap(sealed, name).await,
            (Misdeed::ReplayAsk, Ok(Ask::Sealed(_))) => {
                let answer = self.upstream.ask(ask).await.unwrap_or_else(busy);
                tokio::spawn(replay(self.upstream.clone(), ask.to_vec(), answer.clone()));
                answer
            }
            _ => self.upstream.ask(ask).await.unwrap_or_else(busy),
        }
    }

    /// The ask reaches the hub changed, then as one of its own; and its owner gets a certificate that the hub never made.
    async fn swap(&self, mut sealed: Vec<u8>, name: Option<&Name>) -> Bytes {
        let middle = sealed.len() / 2;
        sealed[middle] ^= 1;
        let changed = self.upstream.ask(&Ask::Sealed(sealed).bytes().unwrap()).await;
        tracing::info!("did: changed an ask on its way: {}", said(changed.as_deref(), None));
        let device = DeviceKey::generate().unwrap();
        let request = KeyRequest::generate().unwrap();
        let victim = name.cloned().unwrap_or(Name::Agent { site: "trap".to_owned(), device: chance::random_16() });
        for join_state in [0, 1, 2] {
            let wish = match name {
                Some(name) => Wish::Renew { name: name.to_string(), join_state },
                None => Wish::Enroll { token: [7; 8], secret: chance::random_32() },
            };
            let plea = self.plea(wish, &request, &device).await;
            let asked = plea.seal(&device, &self.seal).unwrap().bytes().unwrap();
            let answered = self.upstream.ask(&asked).await;
            tracing::info!("did: put in a request of its own: {}", said(answered.as_deref(), Some(&plea)));
        }
        let identity = Identity::new(self.issuer.domain(), victim.clone()).unwrap();
        let chain = self.issuer.issue_for(&identity, &Requested::read(&request.request).unwrap(), LIFE_MS, self.now_ms).unwrap();
        let issued = Issued {
            name: victim.to_string(),
            chain: chain.pem,
            roots: self.root.clone(),
            join_state: 1,
            standing: Standing::Approved,
            dial: Vec::new(),
            seal: self.seal.0,
        };
        let plea = self.plea(Wish::Renew { name: victim.to_string(), join_state: 1 }, &request, &device).await;
        tracing::info!("did: answered with a certificate of its own");
        Opened { plea }.answer(&Said::Issued(issued)).unwrap().bytes().unwrap().into()
    }

    async fn plea(&self, wish: Wish, request: &KeyRequest, device: &DeviceKey) -> Plea {
        let nonce = self.upstream.ask(&Ask::Nonce.bytes().unwrap()).await.and_then(|answer| Answer::read(&answer).ok());
        let Some(Answer::Nonce(nonce)) = nonce else { panic!("the hub gives no number") };
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Plea {
            wish,
            nonce,
            request: request.request.clone(),
            device_key: device.public(),
            reply_key: chance::random_32(),
            version,
            bundle: Version::default(),
        }
    }
}

async fn replay(upstream: Arc<Upstream>, ask: Vec<u8>, first: Bytes) {
    let (one, other) = tokio::join!(upstream.ask(&ask), upstream.ask(&ask));
    sleep(LATER).await;
    let late = upstream.ask(&ask).await;
    for again in [one, other, late] {
        let outcome = if again.as_ref() == Some(&first) { "the same answer" } else { said(again.as_deref(), None) };
        tracing::info!("did: brought an ask again: {outcome}");
    }
}

/// What kind of answer it is, and of what kind inside, where the plea was its own.
fn said(answer: Option<&[u8]>, plea: Option<&Plea>) -> &'static str {
    match answer.and_then(|answer| Answer::read(answer).ok()) {
        None => "none",
        Some(Answer::Nonce(_)) => "a number",
        Some(Answer::Busy { .. }) => "busy",
        Some(Answer::Unreadable) => "unreadable",
        Some(Answer::Said { body, tag }) => match plea.map(|plea| plea.said(&body, &tag)) {
            None | Some(Err(_)) => "an answer to another",
            Some(Ok(Said::Issued(_))) => "ISSUED",
            Some(Ok(Said::Waiting)) => "waiting",
            Some(Ok(Said::Refused(refusal))) => refusal.name(),
        },
    }
}
