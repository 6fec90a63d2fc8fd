//! Blocking: real handshakes in memory, no sockets: two rustls connections whose bytes are carried
//! from one to the other.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use muster_certs::tls::provider;
use muster_certs::*;
use rustls::client::Resumption;
use rustls::{AlertDescription, CertificateError, ClientConfig, Error, HandshakeKind, ProtocolVersion, ServerConfig, ServerConnection};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

use wire::{Clock, Failed, Met, meet, meet_shared};

mod wire;

const DOMAIN: &str = "test.internal";
const NOW_MS: i64 = 1_800_000_000_000;
const DAY_MS: i64 = 24 * 60 * 60 * 1000;
const AGENTS: &[Role] = &[Role::Agent];
const RELAYS: &[Role] = &[Role::Relay];
const ALPN: &[&[u8]] = &[b"muster/1"];
const RELAY: &str = "site/oslo/relay/oslo-1";

#[test]
fn an_agent_and_a_relay_meet_and_know_each_other() {
    let mesh = Mesh::new();
    let (relay, agent) = (mesh.relay("oslo-1"), mesh.agent());
    let met = mesh.meet(&agent, &relay, "site/oslo/relay/oslo-1").unwrap();
    assert_eq!(met.client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(met.server.alpn_protocol(), Some(&b"muster/1"[..]));
    assert_eq!(met.server.server_name(), None, "SNI is off");

    let seen = check_peer(met.server.peer_certificates().unwrap(), &relay, AGENTS).unwrap();
    assert_eq!(seen.identity, agent.identity());
    assert_eq!(seen.not_after_ms, NOW_MS + 30 * DAY_MS);
    let dialled = name("site/oslo/relay/oslo-1");
    let seen = check_dialled(met.client.peer_certificates().unwrap(), &agent, &dialled).unwrap();
    assert_eq!(seen.identity, relay.identity());
}

#[test]
fn a_stranger_believes_a_door_by_its_roots_fingerprint_alone() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    let relay = mesh.relay("oslo-1");
    let knock = |trusted: &Trusted, expected: &str| {
        let client = stranger_config(trusted, &name(expected), relay.time().clone(), ALPN).unwrap();
        meet(client, door_config(&relay, ALPN).unwrap())
    };
    let trusted = Trusted { domain: DOMAIN.to_owned(), roots: Fingerprint::of_roots(&relay.roots_pem()).unwrap(), held: Vec::new() };
    let met = knock(&trusted, "site/oslo/relay/oslo-1").unwrap();
    assert_eq!(met.server.peer_certificates(), None);
    let seen = check_door(met.client.peer_certificates().unwrap(), &trusted, &name("site/oslo/relay/oslo-1")).unwrap();
    assert_eq!(seen.identity, relay.identity());

    let strange = Trusted { roots: Fingerprint::of_roots(&other.relay("oslo-1").roots_pem()).unwrap(), ..trusted.clone() };
    assert_eq!(client_side(knock(&strange, "site/oslo/relay/oslo-1")), bad(CertificateError::UnknownIssuer));
    let somebody_else = client_side(knock(&trusted, "site/oslo/relay/oslo-2"));
    let why = leaf_error(&somebody_else).unwrap();
    assert!(matches!(why, LeafError::OtherName { .. }));
    // What people are shown has only our own words.
    assert_eq!(handshake_words(&somebody_else.to_string()), why.to_string());
    let elsewhere = Trusted { domain: "other.internal".to_owned(), ..trusted.clone() };
    assert!(matches!(leaf_error(&client_side(knock(&elsewhere, "site/oslo/relay/oslo-1"))), Some(LeafError::OtherDomain { .. })));
    // The fingerprint of what isn't a root makes nobody a root.
    let met = knock(&trusted, "site/oslo/relay/oslo-1").unwrap();
    let leaf = Fingerprint::of(&met.client.peer_certificates().unwrap()[0]);
    let naive = Trusted { roots: vec![leaf], ..trusted };
    assert_eq!(client_side(knock(&naive, "site/oslo/relay/oslo-1")), bad(CertificateError::UnknownIssuer));
}

#[test]
fn a_relay_and_a_hub_meet() {
    let mesh = Mesh::new();
    let (hub, relay) = (mesh.hub("hub-1"), mesh.relay("oslo-1"));
    let server = server_config(&hub, RELAYS, ALPN).unwrap();
    let client = client_config(&relay, &name("hub/hub-1"), ALPN).unwrap();
    meet(client, server).unwrap();
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let mesh = Mesh::new();
    let server = server_config(&mesh.relay("oslo-1"), AGENTS, ALPN).unwrap();
    let client = bare_client(&mesh).with_no_client_auth();
    let refusal = refused(meet(client, server));
    assert_eq!(refusal, Error::NoCertificatesPresented);
    let relay = mesh.relay("oslo-1");
    assert_eq!(check_peer(&[], &relay, AGENTS), Err(LeafError::Missing));
}

#[test]
fn a_client_of_another_ca_is_refused_although_its_names_are_right() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    let client = mesh.raw_client(&other.sign(&mesh.agent_params()));
    let refusal = refused(meet(client, mesh.agents_server()));
    assert_eq!(refusal, bad(CertificateError::UnknownIssuer));
}

#[test]
fn a_server_of_another_ca_is_refused() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    let server = server_config(&other.relay("oslo-1"), AGENTS, ALPN).unwrap();
    let client = client_config(&mesh.agent(), &name("site/oslo/relay/oslo-1"), ALPN).unwrap();
    assert_eq!(client_side(meet(client, server)), bad(CertificateError::UnknownIssuer));
}

#[test]
fn an_expired_client_is_refused() {
    let mesh = Mesh::new();
    let (relay, agent) = (mesh.relay("oslo-1"), mesh.agent());
    mesh.clock.set(NOW_MS + 31 * DAY_MS);
    // The relay is renewed, the agent is not.
    let renewed = mesh.sign(&LeafParams::of(&relay.identity(), mesh.clock.now_ms()));
    let (pem, key, roots) = mesh.texts(&renewed);
    relay.replace_pem(&pem, &key, &roots).unwrap();
    assert!(agent.expired(mesh.clock.now_ms()));
    let refusal = refused(mesh.meet(&agent, &relay, "site/oslo/relay/oslo-1"));
    assert!(matches!(refusal, Error::InvalidCertificate(CertificateError::ExpiredContext { .. })));
}

#[test]
fn an_expired_server_is_refused() {
    let mesh = Mesh::new();
    let (relay, agent) = (mesh.relay("oslo-1"), mesh.agent());
    mesh.clock.set(NOW_MS + 15 * DAY_MS);
    let error = client_side(mesh.meet(&agent, &relay, "site/oslo/relay/oslo-1"));
    assert!(matches!(error, Error::InvalidCertificate(CertificateError::ExpiredContext { .. })));
}

#[test]
fn a_client_that_is_not_valid_yet_is_refused() {
    let mesh = Mesh::new();
    let mut params = mesh.agent_params();
    params.not_before_ms = NOW_MS + DAY_MS;
    let client = mesh.raw_client(&mesh.sign(&params));
    let refusal = refused(meet(client, mesh.agents_server()));
    assert!(matches!(refusal, Error::InvalidCertificate(CertificateError::NotValidYetContext { .. })));
}

#[test]
fn a_clock_that_stands_in_1970_keeps_nobody_out_whose_certificate_began_since() {
    let mesh = Mesh::new();
    let dead = Clock::at(0);
    let with_dead_clock = |text: &str| mesh.keys_by(text, NOW_MS, &dead);
    let renewed = |text: &str| mesh.keys_by(text, NOW_MS + 5 * DAY_MS, &mesh.clock);
    mesh.clock.set(NOW_MS + 5 * DAY_MS);
    let (relay, agent) = (renewed(RELAY), renewed(&agents_name()));
    let (relay_in_1970, agent_in_1970) = (with_dead_clock(RELAY), with_dead_clock(&agents_name()));
    for (agent, relay) in [(&agent, &relay_in_1970), (&agent_in_1970, &relay), (&agent_in_1970, &relay_in_1970)] {
        mesh.meet(agent, relay, RELAY).unwrap();
    }
    // The door's keys have a right clock, the newcomer's computer hasn't.
    let trusted = Trusted::of_roots(DOMAIN, mesh.root.pem()).unwrap();
    meet(stranger_config(&trusted, &name(RELAY), dead.provider(), ALPN).unwrap(), door_config(&relay, ALPN).unwrap()).unwrap();
}

#[test]
fn a_clock_that_stands_in_1970_lets_nobody_in_whose_certificate_has_ended() {
    let mesh = Mesh::new();
    let dead = Clock::at(0);
    mesh.clock.set(NOW_MS + 50 * DAY_MS);
    let ended = mesh.keys_by(&agents_name(), NOW_MS + 10 * DAY_MS, &mesh.clock);
    let relay = mesh.keys_by(RELAY, NOW_MS + 50 * DAY_MS, &dead);
    let refusal = refused(mesh.meet(&ended, &relay, RELAY));
    assert!(matches!(refusal, Error::InvalidCertificate(CertificateError::ExpiredContext { .. })));
    // Ended since its own certificate was issued: what the hub signed afterwards says so.
    let last_day = mesh.keys_by(&agents_name(), NOW_MS + 21 * DAY_MS, &mesh.clock);
    mesh.meet(&last_day, &relay, RELAY).unwrap();
    relay.signed_at(NOW_MS + 52 * DAY_MS);
    let refusal = refused(mesh.meet(&last_day, &relay, RELAY));
    assert!(matches!(refusal, Error::InvalidCertificate(CertificateError::ExpiredContext { .. })));
}

#[test]
fn with_a_dead_clock_a_renewal_is_taken() {
    let mesh = Mesh::new();
    let relay = mesh.keys_by(RELAY, NOW_MS, &Clock::at(0));
    let signed = mesh.sign(&LeafParams::of(&relay.identity(), NOW_MS + 7 * DAY_MS));
    let (pem, key, roots) = mesh.texts(&signed);
    relay.replace_pem(&pem, &key, &roots).unwrap();
    assert_eq!(relay.not_after_ms(), NOW_MS + 21 * DAY_MS);
    assert!(relay.past_ms() > NOW_MS + 6 * DAY_MS && relay.clock_is_behind());
}

#[test]
fn a_client_without_client_usage_is_refused() {
    let mesh = Mesh::new();
    let mut params = mesh.agent_params();
    params.usages = vec![Usage::Server];
    let client = mesh.raw_client(&mesh.sign(&params));
    let refusal = refused(meet(client, mesh.agents_server()));
    assert!(matches!(refusal, Error::InvalidCertificate(CertificateError::InvalidPurposeContext { .. })));
}

#[test]
fn a_hub_certificate_is_refused_as_a_client() {
    let mesh = Mesh::new();
    let hub = mesh.sign(&LeafParams::of(&mesh.identity("hub/hub-1"), NOW_MS));
    let refusal = refused(meet(mesh.raw_client(&hub), mesh.agents_server()));
    assert!(matches!(refusal, Error::InvalidCertificate(CertificateError::InvalidPurposeContext { .. })));
}

#[test]
fn a_control_certificate_is_refused_on_both_sides() {
    let mesh = Mesh::new();
    let control = mesh.sign(&LeafParams::of(&mesh.identity("control/1"), NOW_MS));
    let refusal = refused(meet(mesh.raw_client(&control), mesh.agents_server()));
    assert!(matches!(refusal, Error::InvalidCertificate(CertificateError::InvalidPurposeContext { .. })));
    let client = client_config(&mesh.agent(), &name("site/oslo/relay/oslo-1"), ALPN).unwrap();
    let error = client_side(meet(client, mesh.raw_server(&control)));
    assert!(matches!(error, Error::InvalidCertificate(CertificateError::InvalidPurposeContext { .. })));
    let (pem, key, roots) = mesh.texts(&control);
    let error = Keys::from_pem(&pem, &key, &roots, Role::Control, mesh.clock.provider());
    assert!(matches!(error, Err(KeysError::Control)));
}

#[test]
fn a_client_without_any_usage_is_refused_though_rustls_alone_would_take_it() {
    let mesh = Mesh::new();
    let mut params = mesh.agent_params();
    params.usages.clear();
    let client = mesh.raw_client(&mesh.sign(&params));
    let refusal = refused(meet(client, mesh.agents_server()));
    assert!(matches!(leaf_error(&refusal), Some(LeafError::WrongUsage { .. })));
}

#[test]
fn an_agent_with_both_usages_is_refused() {
    let mesh = Mesh::new();
    let mut params = mesh.agent_params();
    params.usages = vec![Usage::Client, Usage::Server];
    let client = mesh.raw_client(&mesh.sign(&params));
    let refusal = refused(meet(client, mesh.agents_server()));
    assert!(matches!(leaf_error(&refusal), Some(LeafError::WrongUsage { .. })));
}

#[test]
fn a_client_of_another_role_is_refused() {
    let mesh = Mesh::new();
    // An agent at the hub's port, and a relay that poses as an agent.
    let hub = server_config(&mesh.hub("hub-1"), RELAYS, ALPN).unwrap();
    let agent = mesh.raw_client(&mesh.sign(&mesh.agent_params()));
    let refusal = refused(meet(agent, hub));
    assert!(matches!(leaf_error(&refusal), Some(LeafError::OtherRole { .. })));

    let relay = mesh.sign(&LeafParams::of(&mesh.identity("site/oslo/relay/x"), NOW_MS));
    let refusal = refused(meet(mesh.raw_client(&relay), mesh.agents_server()));
    assert!(matches!(leaf_error(&refusal), Some(LeafError::OtherRole { .. })));
}

#[test]
fn a_client_of_another_domain_is_refused_although_our_ca_signed_it() {
    let mesh = Mesh::new();
    let mut params = mesh.agent_params();
    params.names = vec![AltName::Uri(mesh.agent_uri().replace(DOMAIN, "evil.internal"))];
    let client = mesh.raw_client(&mesh.sign(&params));
    let refusal = refused(meet(client, mesh.agents_server()));
    assert!(matches!(leaf_error(&refusal), Some(LeafError::OtherDomain { .. })));
}

#[test]
fn a_client_with_two_uris_is_refused() {
    let mesh = Mesh::new();
    let mut params = mesh.agent_params();
    params.names.push(AltName::Uri(format!("spiffe://{DOMAIN}/hub/hub-1")));
    let client = mesh.raw_client(&mesh.sign(&params));
    let refusal = refused(meet(client, mesh.agents_server()));
    assert_eq!(leaf_error(&refusal), Some(&LeafError::ManyNames(2)));
}

#[test]
fn a_ca_is_refused_as_a_client() {
    let mesh = Mesh::new();
    let mut params = mesh.agent_params();
    params.ca = true;
    assert!(meet(mesh.raw_client(&mesh.sign(&params)), mesh.agents_server()).is_err());
    // What webpki lets pass: no CA by its constraints, but a key that may sign certificates.
    let mut params = mesh.agent_params();
    params.signs_certificates = true;
    let client = mesh.raw_client(&mesh.sign(&params));
    let refusal = refused(meet(client, mesh.agents_server()));
    assert_eq!(leaf_error(&refusal), Some(&LeafError::Ca));
}

#[test]
fn a_leaf_behind_a_further_ca_is_refused() {
    let mesh = Mesh::new();
    let mut params = mesh.agent_params();
    params.ca = true;
    params.signs_certificates = true;
    let sub = mesh.sign(&params);
    let sub_pem = sub.pem.split_inclusive("-----END CERTIFICATE-----\n").next().unwrap();
    let forger = Issuer::from_pem(DOMAIN, sub_pem, &sub.key_pem).unwrap();
    let mut forged = forger.sign(&mesh.agent_params()).unwrap();
    forged.chain.push(sub.chain[1].clone());
    assert!(meet(mesh.raw_client(&forged), mesh.agents_server()).is_err());
}

#[test]
fn a_long_chain_is_refused_on_both_sides() {
    let mesh = Mesh::new();
    let mut client = mesh.sign(&mesh.agent_params());
    while client.chain.len() < 5 {
        client.chain.push(client.chain[1].clone());
    }
    let refusal = refused(meet(mesh.raw_client(&client), mesh.agents_server()));
    assert_eq!(leaf_error(&refusal), Some(&LeafError::LongChain(5)));
    assert_eq!(check_peer(&client.chain, &mesh.relay("oslo-1"), AGENTS), Err(LeafError::LongChain(5)));

    let dialled = "site/oslo/relay/oslo-1";
    let mut server = mesh.sign(&LeafParams::of(&mesh.identity(dialled), NOW_MS));
    server.chain.extend(client.chain.drain(2..));
    let error = client_side(meet(client_config(&mesh.agent(), &name(dialled), ALPN).unwrap(), mesh.raw_server(&server)));
    assert_eq!(leaf_error(&error), Some(&LeafError::LongChain(5)));
}

#[test]
fn a_server_with_another_id_than_dialled_is_refused() {
    let mesh = Mesh::new();
    let error = client_side(mesh.meet(&mesh.agent(), &mesh.relay("oslo-1"), "site/oslo/relay/oslo-2"));
    assert!(matches!(leaf_error(&error), Some(LeafError::OtherName { .. })));
}

#[test]
fn a_server_of_another_role_or_domain_is_refused() {
    let mesh = Mesh::new();
    let dialled = "site/oslo/relay/oslo-1";
    let client = || client_config(&mesh.agent(), &name(dialled), ALPN).unwrap();
    let hub = mesh.raw_server(&mesh.sign(&LeafParams::of(&mesh.identity("hub/hub-1"), NOW_MS)));
    let error = client_side(meet(client(), hub));
    assert!(matches!(leaf_error(&error), Some(LeafError::OtherName { .. })));

    let mut params = LeafParams::of(&mesh.identity(dialled), NOW_MS);
    params.names = vec![AltName::Uri(format!("spiffe://evil.internal/{dialled}"))];
    let error = client_side(meet(client(), mesh.raw_server(&mesh.sign(&params))));
    assert!(matches!(leaf_error(&error), Some(LeafError::OtherDomain { .. })));
}

#[test]
fn an_agents_certificate_is_refused_as_a_server() {
    let mesh = Mesh::new();
    let client = client_config(&mesh.agent(), &name("site/oslo/relay/oslo-1"), ALPN).unwrap();
    let server = mesh.raw_server(&mesh.sign(&mesh.agent_params()));
    let error = client_side(meet(client, server));
    assert!(matches!(error, Error::InvalidCertificate(CertificateError::InvalidPurposeContext { .. })));
}

#[test]
fn tls_1_2_is_refused() {
    // Written by hand: this build of rustls has no TLS 1.2 to dial with.
    let mut hello = vec![0x03, 0x03];
    hello.extend([0x2a; 32]); // random
    hello.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]); // no session, one suite, no compression
    let extensions = [
        [0x00, 0x0a, 0, 4, 0, 2, 0x00, 0x1d], // group x25519
        [0x00, 0x0d, 0, 4, 0, 2, 0x04, 0x03], // ECDSA P-256 SHA-256
    ];
    hello.extend([0, 16]);
    hello.extend(extensions.concat());
    let length = u8::try_from(hello.len()).unwrap();
    let mut record = vec![0x16, 0x03, 0x01, 0, length + 4, 1, 0, 0, length];
    record.extend(hello);

    let mesh = Mesh::new();
    let mut server = ServerConnection::new(Arc::new(mesh.agents_server())).unwrap();
    server.read_tls(&mut &record[..]).unwrap();
    let error = server.process_new_packets().unwrap_err();
    assert!(matches!(error, Error::PeerIncompatible(_)), "{error:?}");
}

#[test]
fn another_alpn_is_refused() {
    let mesh = Mesh::new();
    let server = server_config(&mesh.relay("oslo-1"), AGENTS, ALPN).unwrap();
    let dialled = name("site/oslo/relay/oslo-1");
    let client = client_config(&mesh.agent(), &dialled, &[b"other/1"]).unwrap();
    assert_eq!(refused(meet(client, server)), Error::NoApplicationProtocol);
}

#[test]
fn no_ticket_is_sent_and_a_second_handshake_is_full() {
    let mesh = Mesh::new();
    let server = Arc::new(server_config(&mesh.relay("oslo-1"), AGENTS, ALPN).unwrap());
    // Our own client never resumes, so this one is told to try.
    let mut client = client_config(&mesh.agent(), &name("site/oslo/relay/oslo-1"), ALPN).unwrap();
    assert!(!client.enable_early_data && !client.enable_sni);
    client.resumption = Resumption::in_memory_sessions(16);
    let client = Arc::new(client);
    for _ in 0..3 {
        let met = meet_shared(client.clone(), server.clone()).unwrap();
        assert_eq!(met.client.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(met.server.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(met.client.tls13_tickets_received(), 0);
    }
}

#[test]
fn a_client_of_ours_does_not_resume_at_a_server_that_offers_it() {
    let mesh = Mesh::new();
    let mut server = server_config(&mesh.relay("oslo-1"), AGENTS, ALPN).unwrap();
    server.send_tls13_tickets = 2;
    server.session_storage = rustls::server::ServerSessionMemoryCache::new(16);
    let server = Arc::new(server);
    let dialled = name("site/oslo/relay/oslo-1");
    let client = Arc::new(client_config(&mesh.agent(), &dialled, ALPN).unwrap());
    for _ in 0..2 {
        let met = meet_shared(client.clone(), server.clone()).unwrap();
        assert!(met.client.tls13_tickets_received() > 0, "the test offers tickets");
        assert_eq!(met.client.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[test]
fn nothing_is_sent_early() {
    let mesh = Mesh::new();
    let server = server_config(&mesh.relay("oslo-1"), AGENTS, ALPN).unwrap();
    assert_eq!(server.max_early_data_size, 0);
    assert!(!server.send_half_rtt_data);
    assert_eq!(server.send_tls13_tickets, 0);
    assert!(!server.session_storage.can_cache());
}

#[test]
fn a_new_key_is_used_by_the_next_handshake_and_live_connections_go_on() {
    let mesh = Mesh::new();
    let (relay, agent) = (mesh.relay("oslo-1"), mesh.agent());
    let server = Arc::new(server_config(&relay, AGENTS, ALPN).unwrap());
    let dialled = name("site/oslo/relay/oslo-1");
    let client = Arc::new(client_config(&agent, &dialled, ALPN).unwrap());
    let mut before = meet_shared(client.clone(), server.clone()).unwrap();
    let old = relay.leaf().serial;

    for keys in [&relay, &agent] {
        let renewed = mesh.sign(&LeafParams::of(&keys.identity(), NOW_MS + 60_000));
        let (pem, key, roots) = mesh.texts(&renewed);
        keys.replace_pem(&pem, &key, &roots).unwrap();
    }
    let after = meet_shared(client, server).unwrap();
    let serial = |met: &Met| {
        let chain = met.client.peer_certificates().unwrap();
        read_leaf(&chain[0]).unwrap().serial
    };
    assert_eq!(serial(&before), old);
    assert_eq!(serial(&after), relay.leaf().serial);
    assert_ne!(old, relay.leaf().serial);
    before.say(b"still here");
}

#[test]
fn new_roots_let_in_the_new_ca_and_at_last_only_it() {
    let (old, new) = (Mesh::new(), Mesh::new());
    let (relay, agent) = (old.relay("oslo-1"), old.agent());
    let new_agent = new.agent();
    let dialled = "site/oslo/relay/oslo-1";
    assert!(old.meet(&new_agent, &relay, dialled).is_err());

    // Both roots stand side by side while the mesh moves from one CA to the other.
    let both = format!("{}{}", old.root.pem(), new.root.pem());
    let relay_leaf = old.sign(&LeafParams::of(&relay.identity(), NOW_MS));
    relay.replace_pem(&relay_leaf.pem, &relay_leaf.key_pem, &both).unwrap();
    let new_leaf = new.sign(&LeafParams::of(&new_agent.identity(), NOW_MS));
    new_agent.replace_pem(&new_leaf.pem, &new_leaf.key_pem, &both).unwrap();
    old.meet(&agent, &relay, dialled).unwrap();
    old.meet(&new_agent, &relay, dialled).unwrap();

    // The old root goes: its agents are out, the new ones stay.
    let relay_leaf = new.sign(&LeafParams::of(&relay.identity(), NOW_MS));
    relay.replace_pem(&relay_leaf.pem, &relay_leaf.key_pem, new.root.pem()).unwrap();
    new.meet(&new_agent, &relay, dialled).unwrap();
    assert!(new.meet(&agent, &relay, dialled).is_err());
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused() {
    let mesh = Mesh::new();
    let (hub, relay, agent) = (mesh.hub("hub-1"), mesh.relay("oslo-1"), mesh.agent());
    assert!(matches!(server_config(&agent, AGENTS, ALPN), Err(TlsError::DoesNotListen(Role::Agent))));
    assert!(matches!(server_config(&relay, &[], ALPN), Err(TlsError::NoRoles)));
    assert!(matches!(server_config(&relay, &[Role::Agent, Role::Control], ALPN), Err(TlsError::DoesNotDial(Role::Control))));
    assert!(matches!(client_config(&hub, &name("site/oslo/relay/oslo-1"), ALPN), Err(TlsError::DoesNotDial(Role::Hub))));
    assert!(matches!(client_config(&relay, &name("control/1"), ALPN), Err(TlsError::DoesNotListen(Role::Control))));
}

#[test]
fn the_dialled_name_is_a_server_name() {
    rustls_pki_types::ServerName::try_from(DIALLED_NAME).unwrap();
}

/// A CA in memory, a clock to turn, and certificates for whoever asks.
struct Mesh {
    root: Root,
    issuer: Issuer,
    clock: Clock,
}

impl Mesh {
    fn new() -> Mesh {
        let (root, issuer) = Issuer::in_memory(DOMAIN, NOW_MS).unwrap();
        let clock = Clock::at(NOW_MS);
        Mesh { root, issuer, clock }
    }

    fn identity(&self, text: &str) -> Identity {
        Identity::new(DOMAIN, name(text)).unwrap()
    }

    fn agent_uri(&self) -> String {
        format!("spiffe://{DOMAIN}/site/oslo/agent/{}", "0a".repeat(16))
    }

    fn agent_params(&self) -> LeafParams {
        LeafParams::of(&self.agent_uri().parse().unwrap(), NOW_MS)
    }

    fn sign(&self, params: &LeafParams) -> Signed {
        self.issuer.sign(params).unwrap()
    }

    fn texts(&self, signed: &Signed) -> (String, String, String) {
        let roots = self.root.pem().to_owned();
        (signed.pem.clone(), signed.key_pem.clone(), roots)
    }

    fn keys(&self, text: &str) -> Arc<Keys> {
        self.keys_by(text, NOW_MS, &self.clock)
    }

    /// Issued at `issued_ms`, on a computer with a clock of its own.
    fn keys_by(&self, text: &str, issued_ms: i64, clock: &Clock) -> Arc<Keys> {
        let identity = self.identity(text);
        let signed = self.issuer.issue(&identity, issued_ms).unwrap();
        let (pem, key, roots) = self.texts(&signed);
        Keys::from_pem(&pem, &key, &roots, identity.role(), clock.provider()).unwrap()
    }

    fn agent(&self) -> Arc<Keys> {
        self.keys(&agents_name())
    }

    fn relay(&self, id: &str) -> Arc<Keys> {
        self.keys(&format!("site/oslo/relay/{id}"))
    }

    fn hub(&self, id: &str) -> Arc<Keys> {
        self.keys(&format!("hub/{id}"))
    }

    fn agents_server(&self) -> ServerConfig {
        server_config(&self.relay("oslo-1"), AGENTS, ALPN).unwrap()
    }

    fn meet(&self, client: &Arc<Keys>, server: &Arc<Keys>, dialled: &str) -> Result<Met, Failed> {
        meet(client_config(client, &name(dialled), ALPN).unwrap(), server_config(server, AGENTS, ALPN).unwrap())
    }

    /// A client with no manners: it shows any certificate and takes any server of the mesh.
    fn raw_client(&self, signed: &Signed) -> ClientConfig {
        let mut config = bare_client(self).with_client_auth_cert(signed.chain.clone(), key_of(signed)).unwrap();
        config.alpn_protocols = vec![ALPN[0].to_vec()];
        config
    }

    /// A server that shows any certificate and asks for none.
    fn raw_server(&self, signed: &Signed) -> ServerConfig {
        let mut config = ServerConfig::builder_with_details(provider().clone(), self.clock.provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(signed.chain.clone(), key_of(signed))
            .unwrap();
        config.alpn_protocols = vec![ALPN[0].to_vec()];
        config
    }
}

fn bare_client(mesh: &Mesh) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    #[derive(Debug)]
    struct Anyone;
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    impl ServerCertVerifier for Anyone {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &rustls_pki_types::ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            provider().signature_verification_algorithms.supported_schemes()
        }
    }
    ClientConfig::builder_with_details(provider().clone(), mesh.clock.provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
}

fn agents_name() -> String {
    format!("site/oslo/agent/{}", "0a".repeat(16))
}

fn key_of(signed: &Signed) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_slice(signed.key_pem.as_bytes()).unwrap()
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn refused(result: Result<Met, Failed>) -> Error {
    match result {
        Err(Failed::Server(error)) => error,
        other => panic!("the server should have refused: {other:?}"),
    }
}

fn client_side(result: Result<Met, Failed>) -> Error {
    match result {
        Err(Failed::Client(error)) => {
            assert!(!matches!(error, Error::AlertReceived(AlertDescription::InternalError)));
            error
        }
        other => panic!("the client should have refused: {other:?}"),
    }
}

fn bad(why: CertificateError) -> Error {
    Error::InvalidCertificate(why)
}
