//! Blocking: words in the hub's name, made of all that an insider has: the relay's own key and chain, a CA and a control key of its own, and
//! whatever the hub has really signed.

use std::{fs, path::Path};

use bytes::Bytes;
use muster_certs::Issuer;
use muster_mesh::{
    control_key::ControlKey,
    ids::{DeviceId, SpoolId, Version},
    message::{Bundle, ControlChain, HubAck, Signed, SignedKind},
    policy::Policy,
};

/// The number of the control key that it claims its own relay's key to be.
const CLAIMED: u32 = 66;

pub struct Forger {
    /// Of a CA of its own, with the number of the hub's.
    foreign: ControlKey,
    foreign_chain: String,
    /// The relay's own key, called by the hub's number, and by a number that nobody has.
    relay: ControlKey,
    claimed: ControlKey,
    relay_chain: String,
}

impl Forger {
    pub fn new(domain: &str, state: &Path, now_ms: i64) -> Forger {
        let member: serde_json::Value = serde_json::from_str(&fs::read_to_string(state.join("member/member.json")).unwrap()).unwrap();
        let (_, issuer) = Issuer::in_memory(domain, now_ms).unwrap();
        let (foreign, chain) = ControlKey::issue(&issuer, 1, now_ms).unwrap();
        let key = member["key"].as_str().unwrap();
        Forger {
            foreign,
            foreign_chain: chain.pem,
            relay: ControlKey::from_pem(1, key).unwrap(),
            claimed: ControlKey::from_pem(CLAIMED, key).unwrap(),
            relay_chain: member["chain"].as_str().unwrap().to_owned(),
        }
    }

    /// By every kind of false word: the hub has these numbers. `real`: acks of the hub's, of whomever.
    pub fn acks(&self, device: DeviceId, spool: SpoolId, last: u64, real: &[Bytes]) -> Vec<Bytes> {
        let body = HubAck { stored: vec![(1, last)], ..HubAck::default() }.bytes().unwrap();
        let epoch = real.iter().filter_map(|ack| Signed::read(ack).ok()).map(|ack| ack.version.epoch).max().unwrap_or(1);
        let wanted = Signed { device: Some(device), spool: Some(spool), ..Signed::new(SignedKind::Ack, Version { epoch, n: 0 }, body) };
        let mut words = self.of_nobody(&wanted);
        for bytes in real {
            let signed = Signed::read(bytes).unwrap();
            // A true signature under other ranges, under another's name, and in another spool.
            words.push(Signed { body: wanted.body.clone(), ..signed.clone() }.bytes().unwrap().into());
            words.push(Signed { device: Some(device), spool: Some(spool), ..signed.clone() }.bytes().unwrap().into());
            words.push(Signed { key: signed.key, signature: signed.signature.clone(), ..wanted.clone() }.bytes().unwrap().into());
            if signed.device != Some(device) {
                words.push(bytes.clone());
            }
        }
        words
    }

    /// Policies that collect more than the hub's newest, and the hub's own from before it.
    pub fn policies(&self, device: DeviceId, words: &[Bytes]) -> Vec<Bytes> {
        let policies = || words.iter().filter(|word| is(word, SignedKind::Policy));
        let Some(newest) = policies().max_by_key(|word| Signed::read(word).unwrap().version) else { return Vec::new() };
        let newest = Signed::read(newest).unwrap();
        let version = Version { epoch: newest.version.epoch, n: newest.version.n + 1_000 };
        let wider = Signed { body: wider(&newest.body), ..newest.clone() };
        let mut all = vec![
            wider.clone(),
            Signed { version, ..wider.clone() },
            Signed { version, ..newest.clone() },
            Signed { device: Some(device), ..wider.clone() },
            Signed { flags: !newest.flags, ..newest.clone() },
        ]
        .into_iter()
        .map(|signed| signed.bytes().unwrap().into())
        .collect::<Vec<Bytes>>();
        all.extend(self.of_nobody(&Signed { version, ..wider }));
        all.extend(policies().filter(|word| Signed::read(word).unwrap().version < newest.version).cloned());
        all
    }

    /// Bundles by which its own keys would be the hub's.
    pub fn bundles(&self, words: &[Bytes]) -> Vec<Bytes> {
        let Some(newest) = words.iter().rev().find(|word| is(word, SignedKind::Bundle)) else { return Vec::new() };
        let newest = Signed::read(newest).unwrap();
        let version = Version { epoch: newest.version.epoch, n: newest.version.n + 1_000 };
        let with = |n: u32, chain: &str| {
            let mut bundle = Bundle::read(&newest.body).unwrap();
            bundle.controls.retain(|control| control.n != n);
            bundle.controls.push(ControlChain { n, chain: chain.to_owned() });
            Signed { version, body: bundle.bytes().unwrap(), ..newest.clone() }
        };
        let claimed = with(CLAIMED, &self.relay_chain);
        let mut words: Vec<Bytes> = vec![
            self.claimed.sign(&claimed).unwrap().into(),
            self.relay.sign(&with(1, &self.relay_chain)).unwrap().into(),
            self.foreign.sign(&with(1, &self.foreign_chain)).unwrap().into(),
        ];
        // The hub's signature, under more than it was over.
        words.push(claimed.bytes().unwrap().into());
        words
    }

    /// Signed by nobody, by the hub of another mesh, by the relay itself.
    fn of_nobody(&self, wanted: &Signed) -> Vec<Bytes> {
        let unsigned = Signed { key: 0, signature: Vec::new(), ..wanted.clone() }.bytes().unwrap();
        let signed = [&self.foreign, &self.relay, &self.claimed].map(|key| key.sign(wanted).unwrap());
        std::iter::once(unsigned).chain(signed).map(Bytes::from).collect()
    }
}

fn wider(body: &[u8]) -> Vec<u8> {
    let policy = Policy::from_bytes(body).unwrap();
    Policy { titles: true, applications: true, counts: true, addresses: true, heartbeat_s: 1, ..policy }.to_bytes()
}

pub fn is(word: &[u8], kind: SignedKind) -> bool {
    Signed::read(word).is_ok_and(|signed| signed.kind == kind.as_u8())
}
