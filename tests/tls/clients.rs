//! Async: who is refused by the relay's door (QUIC) and by the hub's mesh port (HTTPS), and by which alert.

use muster_certs::{AltName, Issuer, LeafParams, Name, Signed, Usage};
use muster_mesh::message::{AGENT_ALPN, CloseCode};
use rustls::AlertDescription;

use crate::{mesh::*, strangers::*};

/// The leaf check's refusals.
const UNKNOWN: AlertDescription = AlertDescription::CertificateUnknown;
/// webpki's refusal of a leaf without client usage.
const UNSUPPORTED: AlertDescription = AlertDescription::UnsupportedCertificate;

impl Mesh {
    /// Both doors refuse a client whose leaf differs from a good one in this, and take the good one.
    async fn both_refuse(&self, change: impl Fn(&mut LeafParams), expected: AlertDescription) {
        self.both_refuse_signed(
            |params| {
                let mut params = params.clone();
                change(&mut params);
                self.ca.issuer.sign(&params).unwrap()
            },
            expected,
        )
        .await;
    }

    async fn both_refuse_signed(&self, sign: impl Fn(&LeafParams) -> Signed, expected: AlertDescription) {
        let agent = sign(&self.ca.params(&self.new_agent()));
        assert_eq!(self.at_relay(Some(&agent)).await, alert(expected), "the relay's door");
        let relay = sign(&self.ca.params(&relay_name()));
        assert_eq!(self.at_hub(Some(&relay)).await, alert(expected), "the hub's door");
        self.both_take_the_good().await;
    }

    async fn both_take_the_good(&self) {
        assert_eq!(self.at_relay(Some(&self.ca.good(&self.new_agent()))).await, Met::Welcomed);
        let relay = self.ca.good(&relay_name());
        assert_eq!(post_to_hub(self.hub.mesh, client(Some(&relay), HTTP)).await, Met::Welcomed);
    }

    async fn at_relay(&self, shown: Option<&Signed>) -> Met {
        knock_at_relay(self.relay.agents_address(), client(shown, AGENT_ALPN)).await
    }

    async fn at_hub(&self, shown: Option<&Signed>) -> Met {
        knock_at_hub(self.hub.mesh, client(shown, HTTP)).await
    }
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let mesh = Mesh::start().await;
    assert_eq!(mesh.at_relay(None).await, alert(AlertDescription::CertificateRequired));
    assert_eq!(mesh.at_hub(None).await, alert(AlertDescription::CertificateRequired));
    mesh.both_take_the_good().await;
}

#[tokio::test]
async fn a_client_of_another_ca_is_refused_although_its_name_is_right() {
    let (mesh, other) = (Mesh::start().await, Authority::new());
    mesh.both_refuse_signed(|params| other.issuer.sign(params).unwrap(), AlertDescription::UnknownCA).await;
}

#[tokio::test]
async fn a_client_whose_certificate_has_expired_is_refused() {
    let mesh = Mesh::start().await;
    let expired = |params: &mut LeafParams| (params.not_before_ms, params.not_after_ms) = (now_ms() - 2 * DAY_MS, now_ms() - 2_000);
    mesh.both_refuse(expired, AlertDescription::CertificateExpired).await;
}

#[tokio::test]
async fn a_client_whose_certificate_is_not_valid_yet_is_refused() {
    let mesh = Mesh::start().await;
    mesh.both_refuse(|params| params.not_before_ms = now_ms() + DAY_MS, AlertDescription::CertificateExpired).await;
}

#[tokio::test]
async fn a_client_whose_certificate_is_no_clients_is_refused() {
    let mesh = Mesh::start().await;
    mesh.both_refuse(|params| params.usages = vec![Usage::Server], UNSUPPORTED).await;
}

#[tokio::test]
async fn a_servers_certificate_is_refused_as_a_client() {
    let mesh = Mesh::start().await;
    let hub = mesh.ca.good(&hub_name());
    assert_eq!(mesh.at_relay(Some(&hub)).await, alert(UNSUPPORTED));
    assert_eq!(mesh.at_hub(Some(&hub)).await, alert(UNSUPPORTED));
    mesh.both_take_the_good().await;
}

#[tokio::test]
async fn an_agent_is_refused_at_the_hubs_port() {
    let mesh = Mesh::start().await;
    let agent = mesh.ca.good(&mesh.new_agent());
    assert_eq!(mesh.at_hub(Some(&agent)).await, alert(UNKNOWN));
    mesh.both_take_the_good().await;
}

#[tokio::test]
async fn a_relay_that_poses_as_an_agent_is_refused() {
    let mesh = Mesh::start().await;
    let relay = mesh.ca.good(&relay_name());
    assert_eq!(mesh.at_relay(Some(&relay)).await, alert(UNKNOWN));
    mesh.both_take_the_good().await;
}

/// Whatever its usages say, a name of a role that never dials lets nobody in.
#[tokio::test]
async fn a_client_of_another_role_is_refused() {
    let mesh = Mesh::start().await;
    for name in [hub_name(), Name::Control { n: 1 }] {
        for usages in [vec![Usage::Client], vec![Usage::Client, Usage::Server]] {
            let params = LeafParams { usages, ..mesh.ca.params(&name) };
            let signed = mesh.ca.issuer.sign(&params).unwrap();
            assert_eq!((mesh.at_relay(Some(&signed)).await, mesh.at_hub(Some(&signed)).await), (alert(UNKNOWN), alert(UNKNOWN)), "{name}");
        }
    }
    mesh.both_take_the_good().await;
}

#[tokio::test]
async fn a_client_with_two_uri_names_is_refused() {
    let mesh = Mesh::start().await;
    let second = |params: &mut LeafParams| {
        let other = Name::Agent { site: "oslo".to_owned(), device: [99; 16] };
        params.names.push(AltName::Uri(identity(&other).to_string()));
    };
    mesh.both_refuse(second, UNKNOWN).await;
    // Nor any other second name, nor one that is no URI, nor none.
    mesh.both_refuse(|params| params.names.push(AltName::Dns("oslo.example.org".to_owned())), UNKNOWN).await;
    mesh.both_refuse(|params| params.names = vec![AltName::Dns("oslo.example.org".to_owned())], UNKNOWN).await;
    mesh.both_refuse(|params| params.names.clear(), UNKNOWN).await;
}

#[tokio::test]
async fn a_client_of_another_domain_is_refused_although_our_ca_signed_it() {
    let mesh = Mesh::start().await;
    let elsewhere = |params: &mut LeafParams| {
        let AltName::Uri(uri) = &params.names[0] else { panic!() };
        params.names = vec![AltName::Uri(uri.replace(DOMAIN, "evil.test"))];
    };
    mesh.both_refuse(elsewhere, UNKNOWN).await;
}

#[tokio::test]
async fn a_long_chain_is_refused() {
    let mesh = Mesh::start().await;
    let long = |params: &LeafParams| {
        let mut signed = mesh.ca.issuer.sign(params).unwrap();
        while signed.chain.len() < 5 {
            signed.chain.push(signed.chain[1].clone());
        }
        signed
    };
    mesh.both_refuse_signed(long, UNKNOWN).await;
}

#[tokio::test]
async fn a_leaf_that_signs_leaves_is_refused_and_so_are_its_leaves() {
    let mesh = Mesh::start().await;
    let as_ca = |params: &LeafParams| LeafParams { signs_certificates: true, ..params.clone() };
    mesh.both_refuse_signed(|params| mesh.ca.issuer.sign(&as_ca(params)).unwrap(), UNKNOWN).await;
    for name in [mesh.new_agent(), relay_name()] {
        let between = mesh.ca.issuer.sign(&LeafParams { ca: true, ..as_ca(&mesh.ca.params(&name)) }).unwrap();
        let pem = between.pem.split_inclusive("-----END CERTIFICATE-----\n").next().unwrap();
        let forger = Issuer::from_pem(DOMAIN, pem, &between.key_pem).unwrap();
        let mut forged = forger.sign(&mesh.ca.params(&name)).unwrap();
        forged.chain.push(between.chain[1].clone());
        let met = if name == relay_name() { mesh.at_hub(Some(&forged)).await } else { mesh.at_relay(Some(&forged)).await };
        assert!(matches!(met, Met::Alert(_)), "{name}: {met:?}");
    }
}

#[tokio::test]
async fn an_agent_whose_leaf_has_both_usages_is_refused() {
    let mesh = Mesh::start().await;
    let both = LeafParams { usages: vec![Usage::Client, Usage::Server], ..mesh.ca.params(&mesh.new_agent()) };
    assert_eq!(mesh.at_relay(Some(&mesh.ca.issuer.sign(&both).unwrap())).await, alert(UNKNOWN));
    mesh.both_take_the_good().await;
}

#[tokio::test]
async fn a_relay_whose_leaf_has_only_one_usage_is_refused() {
    let mesh = Mesh::start().await;
    for (usage, expected) in [(Usage::Client, UNKNOWN), (Usage::Server, UNSUPPORTED)] {
        let one = LeafParams { usages: vec![usage], ..mesh.ca.params(&relay_name()) };
        assert_eq!(mesh.at_hub(Some(&mesh.ca.issuer.sign(&one).unwrap())).await, alert(expected), "{usage:?}");
    }
    mesh.both_take_the_good().await;
}

/// rustls alone takes such a leaf for both.
#[tokio::test]
async fn a_leaf_without_any_usage_is_refused() {
    let mesh = Mesh::start().await;
    mesh.both_refuse(|params| params.usages.clear(), UNKNOWN).await;
    mesh.both_refuse(|params| params.usages = vec![Usage::Any], UNSUPPORTED).await;
}

#[tokio::test]
async fn an_agent_of_a_site_that_is_neither_the_relays_nor_a_guests_is_turned_away() {
    let mesh = Mesh::start().await;
    let of = |site: &str| mesh.ca.good(&mesh.new_agent_of(site));
    assert_eq!(mesh.at_relay(Some(&of("trondheim"))).await, Met::Closed(CloseCode::NotOurSite));
    // Not by its beginning either.
    assert_eq!(mesh.at_relay(Some(&of("oslo-2"))).await, Met::Closed(CloseCode::NotOurSite));
    assert_eq!(mesh.at_relay(Some(&of(GUEST))).await, Met::Welcomed);
    assert_eq!(mesh.at_relay(Some(&of("oslo"))).await, Met::Welcomed);
    mesh.stop().await;
}
