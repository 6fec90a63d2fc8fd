//! Async: whom an agent and a relay refuse to talk to: the product's own diallers at servers that show bad certificates.

use std::{net::SocketAddr, sync::Arc};

use muster_certs::{AltName, LeafParams, Name, Signed, Usage};
use muster_mesh::quic::{Client, ConnectError};
use muster_relay::sync::{HubAddress, Line, PostError};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use crate::{mesh::*, strangers::*};

/// What the relay's dialler says of a hub with this certificate.
async fn relay_dials_hub(ca: &Authority, shown: &Signed) -> Result<(), String> {
    let address = https_server(shown).await;
    let line = Line::new(&ca.keys(&relay_name()), &HubAddress { address: address.to_string(), name: hub_name() }).unwrap();
    match line.post(post()).await {
        Err(PostError::Unreachable(why)) => Err(why),
        // It was trusted, and answers something else.
        Err(PostError::Protocol(_)) => Ok(()),
        other => panic!("{other:?}"),
    }
}

/// Answers each connection with a 404 of HTTP/1.1.
async fn https_server(shown: &Signed) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, acceptor) = (listener.local_addr().unwrap(), TlsAcceptor::from(Arc::new(server(shown, HTTP))));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let _ = stream.read(&mut [0; 4_096]).await;
            let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 12\r\n\r\nwe speak /0\r\n").await;
            let _ = stream.shutdown().await;
        }
    });
    address
}

async fn agent_dials_relay(ca: &Authority, shown: &Signed) -> Result<(), ConnectError> {
    let (address, _endpoint) = quic_server(shown);
    let agent = Name::Agent { site: "oslo".to_owned(), device: [1; 16] };
    Client::new(&ca.keys(&agent)).connect(&address.to_string(), &relay_name(), SOON).await.map(drop)
}

/// Both diallers refuse a server whose leaf differs from a good one in this, and take the good one.
async fn both_refuse(change: impl Fn(&mut LeafParams)) {
    let ca = Authority::new();
    let spoilt = |name: &Name| {
        let mut params = ca.params(name);
        change(&mut params);
        ca.issuer.sign(&params).unwrap()
    };
    both_refuse_signed(&ca, &spoilt(&relay_name()), &spoilt(&hub_name())).await;
}

async fn both_refuse_signed(ca: &Authority, relay: &Signed, hub: &Signed) {
    let agents = agent_dials_relay(ca, relay).await;
    let Err(ConnectError::Untrusted(why)) = agents else { panic!("the agent's dialler: {agents:?}") };
    let relays = relay_dials_hub(ca, hub).await;
    let of_certificates = ["certificate", "answered", "another mesh"];
    assert!(relays.as_ref().is_err_and(|why| of_certificates.iter().any(|words| why.contains(words))), "the relay's dialler: {relays:?}");
    // In words, not as the program has it.
    for why in [why, relays.unwrap_err()] {
        assert!(!why.contains("OtherError"), "{why}");
    }
    assert_eq!(agent_dials_relay(ca, &ca.good(&relay_name())).await, Ok(()));
    assert_eq!(relay_dials_hub(ca, &ca.good(&hub_name())).await, Ok(()));
}

#[tokio::test]
async fn a_server_of_another_ca_is_refused() {
    let (ca, other) = (Authority::new(), Authority::new());
    both_refuse_signed(&ca, &other.good(&relay_name()), &other.good(&hub_name())).await;
}

#[tokio::test]
async fn a_server_whose_certificate_has_expired_is_refused() {
    both_refuse(|params| (params.not_before_ms, params.not_after_ms) = (now_ms() - 2 * DAY_MS, now_ms() - 2_000)).await;
}

#[tokio::test]
async fn a_server_whose_certificate_is_not_valid_yet_is_refused() {
    both_refuse(|params| params.not_before_ms = now_ms() + DAY_MS).await;
}

#[tokio::test]
async fn a_hub_whose_leaf_has_both_usages_and_a_relay_whose_leaf_has_only_one_are_refused() {
    let ca = Authority::new();
    let with = |name: &Name, usages: Vec<Usage>| ca.issuer.sign(&LeafParams { usages, ..ca.params(name) }).unwrap();
    let hub = with(&hub_name(), vec![Usage::Server, Usage::Client]);
    for usage in [Usage::Client, Usage::Server] {
        both_refuse_signed(&ca, &with(&relay_name(), vec![usage]), &hub).await;
    }
}

#[tokio::test]
async fn a_server_whose_leaf_has_no_usage_is_refused() {
    both_refuse(|params| params.usages.clear()).await;
}

#[tokio::test]
async fn a_server_with_another_id_or_role_than_dialled_is_refused() {
    let ca = Authority::new();
    let other_relay = Name::Relay { site: "oslo".to_owned(), id: "oslo-2".to_owned() };
    both_refuse_signed(&ca, &ca.good(&other_relay), &ca.good(&Name::Hub { id: "hub-2".to_owned() })).await;
    both_refuse_signed(&ca, &ca.good(&hub_name()), &ca.good(&relay_name())).await;
    let agent = Name::Agent { site: "oslo".to_owned(), device: [2; 16] };
    both_refuse_signed(&ca, &ca.good(&agent), &ca.good(&agent)).await;
}

#[tokio::test]
async fn a_server_with_two_names_or_of_another_domain_is_refused() {
    both_refuse(|params| params.names.push(AltName::Uri(format!("spiffe://{DOMAIN}/hub/hub-9")))).await;
    both_refuse(|params| {
        let AltName::Uri(uri) = &params.names[0] else { panic!() };
        params.names = vec![AltName::Uri(uri.replace(DOMAIN, "evil.test"))];
    })
    .await;
}

#[tokio::test]
async fn a_server_with_a_long_chain_is_refused() {
    let ca = Authority::new();
    let long = |name: &Name| {
        let mut signed = ca.good(name);
        while signed.chain.len() < 5 {
            signed.chain.push(signed.chain[1].clone());
        }
        signed
    };
    both_refuse_signed(&ca, &long(&relay_name()), &long(&hub_name())).await;
}
