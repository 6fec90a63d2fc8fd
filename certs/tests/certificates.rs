//! Blocking: certificates as they are really issued: the leaf check's every reason, a node's files,
//! the CA's folder.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use muster_certs::files::FileError;
use muster_certs::*;
use rustls::time_provider::TimeProvider;
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

const DOMAIN: &str = "test.internal";
const NOW_MS: i64 = 1_800_000_000_000;
const DAY_MS: i64 = 24 * 60 * 60 * 1000;
const AGENT: &str = "site/oslo/agent/0190b7e8c4d27d30a5f1c2d3e4f50617";
const RELAY: &str = "site/oslo/relay/oslo-1";

#[test]
fn a_good_leaf_of_each_role_passes_and_says_who_it_is() {
    let (_, issuer) = Issuer::in_memory(DOMAIN, NOW_MS).unwrap();
    for (text, role, days) in [(AGENT, Role::Agent, 30), (RELAY, Role::Relay, 14), ("hub/hub-1", Role::Hub, 90)] {
        let signed = issuer.issue(&identity(text), NOW_MS).unwrap();
        let leaf = check_leaf(signed.leaf(), DOMAIN, &Expect::Exactly(name(text))).unwrap();
        assert_eq!(leaf.identity, identity(text));
        assert_eq!(leaf.identity.role(), role);
        assert_eq!(leaf.not_before_ms, NOW_MS - 600_000);
        assert_eq!(leaf.not_after_ms, NOW_MS + days * DAY_MS);
        assert!((2..=32).contains(&leaf.serial.len()));
        assert!(check_leaf(signed.leaf(), DOMAIN, &Expect::Roles(&Role::ALL)).is_ok());
    }
}

#[test]
fn no_leaf_outlives_the_ca_that_issued_it() {
    let (_, issuer) = Issuer::in_memory(DOMAIN, NOW_MS).unwrap();
    let late_ms = NOW_MS + 300 * DAY_MS;
    let signed = issuer.issue(&identity("hub/hub-1"), late_ms).unwrap();
    assert_eq!(signed.not_after_ms, issuer.not_after_ms());
    assert_eq!(read_leaf(signed.leaf()).unwrap().not_after_ms, issuer.not_after_ms());
}

#[test]
fn rubbish_and_bytes_behind_a_leaf_are_refused() {
    assert!(matches!(read_leaf(&CertificateDer::from(&b"rubbish"[..])), Err(LeafError::Unreadable(_))));
    let good = leaf_of(|_| ());
    let mut longer = good.to_vec();
    longer.push(0);
    assert!(matches!(read_leaf(&CertificateDer::from(longer)), Err(LeafError::Unreadable("bytes after its end"))));
    for length in 0..good.len() {
        let cut = CertificateDer::from(good[..length].to_vec());
        assert!(matches!(read_leaf(&cut), Err(LeafError::Unreadable(_))));
    }
}

#[test]
fn a_leaf_with_any_byte_changed_is_read_or_refused_but_never_a_panic() {
    let good = leaf_of(|_| ()).to_vec();
    for at in 0..good.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut changed = good.clone();
            changed[at] ^= flip;
            let _ = read_leaf(&CertificateDer::from(changed));
        }
    }
}

#[test]
fn a_ca_is_no_leaf() {
    assert_eq!(refusal(|leaf| leaf.ca = true), LeafError::Ca);
    assert_eq!(refusal(|leaf| leaf.signs_certificates = true), LeafError::Ca);
    let (root, _) = Issuer::in_memory(DOMAIN, NOW_MS).unwrap();
    let pem = material::certificates("roots", root.pem(), 1).unwrap();
    assert_eq!(read_leaf(&pem[0]), Err(LeafError::Ca));
}

#[test]
fn a_leaf_without_a_name_is_refused() {
    assert_eq!(refusal(|leaf| leaf.names.clear()), LeafError::NoName);
}

#[test]
fn a_leaf_with_two_uris_is_refused() {
    let second = AltName::Uri(format!("spiffe://{DOMAIN}/hub/hub-1"));
    assert_eq!(refusal(|leaf| leaf.names.push(second)), LeafError::ManyNames(2));
}

#[test]
fn a_leaf_with_a_host_name_beside_its_uri_is_refused() {
    let second = AltName::Dns("localhost".into());
    assert_eq!(refusal(|leaf| leaf.names.push(second)), LeafError::ManyNames(2));
}

#[test]
fn a_leaf_whose_name_is_no_uri_is_refused() {
    for name in [AltName::Dns("hub-1".into()), AltName::Email("a@b".into())] {
        let error = refusal(|leaf| leaf.names = vec![name]);
        assert!(matches!(error, LeafError::NotAUri(_)), "{error}");
    }
}

#[test]
fn a_leaf_outside_the_grammar_is_refused_and_its_name_is_fit_for_a_log() {
    for uri in ["https://x/", "spiffe://test.internal/hub/Hub", "spiffe://x/hub/a/"] {
        let error = refusal(|leaf| leaf.names = vec![AltName::Uri(uri.into())]);
        assert!(matches!(error, LeafError::BadIdentity { .. }), "{error}");
    }
    let nasty = format!("spiffe://x/hub/\u{1b}[31m\n{}", "a".repeat(5000));
    let error = refusal(|leaf| leaf.names = vec![AltName::Uri(nasty)]).to_string();
    assert!(!error.contains(char::is_control) && error.len() < 500, "{error}");
}

#[test]
fn a_leaf_whose_usage_is_not_exactly_its_roles_is_refused() {
    use Usage::{Any, Client, CodeSigning, Server};
    for (text, wrongs) in [
        (AGENT, vec![vec![], vec![Server], vec![Client, Server], vec![Any], vec![Client, Any]]),
        ("hub/hub-1", vec![vec![], vec![Client], vec![Client, Server]]),
        (RELAY, vec![vec![], vec![Client], vec![Server], vec![Client, Server, CodeSigning]]),
        ("control/1", vec![vec![], vec![Client], vec![CodeSigning, Server], vec![Any]]),
    ] {
        for wrong in wrongs {
            let (_, issuer) = Issuer::in_memory(DOMAIN, NOW_MS).unwrap();
            let mut params = LeafParams::of(&identity(text), NOW_MS);
            params.usages = wrong.clone();
            let signed = issuer.sign(&params).unwrap();
            let error = check_leaf(signed.leaf(), DOMAIN, &Expect::Exactly(name(text)));
            assert!(matches!(error, Err(LeafError::WrongUsage { .. })), "{text} {wrong:?}: {error:?}");
        }
    }
}

#[test]
fn a_leaf_of_another_domain_is_refused() {
    let uri = format!("spiffe://other.internal/{AGENT}");
    let error = refusal(|leaf| leaf.names = vec![AltName::Uri(uri)]);
    assert!(matches!(error, LeafError::OtherDomain { .. }));
}

#[test]
fn a_leaf_of_another_role_is_refused() {
    let leaf = leaf_of(|_| ());
    let error = check_leaf(&leaf, DOMAIN, &Expect::Roles(&[Role::Relay, Role::Hub])).unwrap_err();
    assert!(matches!(&error, LeafError::OtherRole { .. }));
    assert!(error.to_string().ends_with("is an agent; expected here: relay or hub"), "{error}");
    assert!(check_leaf(&leaf, DOMAIN, &Expect::Roles(&[])).is_err());
}

#[test]
fn a_leaf_of_another_name_than_dialled_is_refused() {
    let leaf = leaf_of(|_| ());
    let error = check_leaf(&leaf, DOMAIN, &Expect::Exactly(name(RELAY))).unwrap_err();
    assert!(matches!(error, LeafError::OtherName { .. }));
}

#[test]
fn keys_load_from_three_files_and_say_who_they_are() {
    let node = Node::new(RELAY);
    let keys = node.load(NOW_MS).unwrap();
    assert_eq!((keys.identity(), keys.role()), (identity(RELAY), Role::Relay));
    assert_eq!(keys.not_after_ms(), NOW_MS + 14 * DAY_MS);
    assert!(!keys.expired(NOW_MS) && keys.check_time(NOW_MS).is_ok());
    assert!(!format!("{keys:?}").contains("PRIVATE"));
}

#[test]
fn an_expired_certificate_loads_and_says_so() {
    let node = Node::new(RELAY);
    let later_ms = NOW_MS + 20 * DAY_MS;
    // Longer than the issuing CA lives, too.
    for now_ms in [later_ms, NOW_MS + 5000 * DAY_MS] {
        let keys = node.load(now_ms).unwrap();
        assert!(keys.expired(now_ms));
        let warning = keys.check_time(now_ms).unwrap_err();
        assert!(matches!(warning, KeysError::Expired { not_after_ms, .. }
            if not_after_ms == NOW_MS + 14 * DAY_MS));
        assert!(warning.to_string().contains("expired on 2027-01-29 08:00:00 UTC"), "{warning}");
    }
}

#[test]
fn a_clock_in_1970_loads_too_and_says_so() {
    let keys = Node::new(RELAY).load(0).unwrap();
    assert!(!keys.expired(0));
    assert!(matches!(keys.check_time(0), Err(KeysError::NotYetValid { .. })));
}

#[test]
fn a_key_that_others_may_read_is_refused() {
    let node = Node::new(RELAY);
    let loose = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(&node.key, loose).unwrap();
    assert!(matches!(node.load(NOW_MS), Err(KeysError::File(FileError::NotOwnerOnly { mode: 0o644, .. }))));
}

#[test]
fn a_missing_file_is_named() {
    let node = Node::new(RELAY);
    std::fs::remove_file(&node.roots).unwrap();
    let error = node.load(NOW_MS).unwrap_err();
    assert!(matches!(&error, KeysError::File(FileError::Missing(path)) if *path == node.roots));
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let (node, other) = (Node::new(RELAY), Node::new(RELAY));
    std::fs::copy(&other.key, &node.key).unwrap();
    assert!(matches!(node.load(NOW_MS), Err(KeysError::KeyMismatch)));
}

#[test]
fn a_certificate_of_another_role_is_refused() {
    let node = Node::new(AGENT);
    assert!(matches!(node.load_as(Role::Relay, NOW_MS), Err(KeysError::Leaf(LeafError::OtherRole { .. }))));
}

#[test]
fn roots_of_another_mesh_are_refused() {
    let (node, other) = (Node::new(RELAY), Node::new(RELAY));
    std::fs::copy(&other.roots, &node.roots).unwrap();
    assert!(matches!(node.load(NOW_MS), Err(KeysError::Chain(ChainError::UnknownIssuer))));
}

#[test]
fn a_certificate_file_without_its_issuing_ca_is_refused() {
    let node = Node::new(RELAY);
    let text = std::fs::read_to_string(&node.certificate).unwrap();
    let leaf_only = text.split_inclusive("-----END CERTIFICATE-----\n").next().unwrap();
    std::fs::write(&node.certificate, leaf_only).unwrap();
    assert!(matches!(node.load(NOW_MS), Err(KeysError::Chain(ChainError::UnknownIssuer))));
}

#[test]
fn a_leaf_or_an_issuing_ca_among_the_roots_is_refused() {
    let node = Node::new(RELAY);
    let roots = std::fs::read_to_string(&node.roots).unwrap();
    let chain = std::fs::read_to_string(&node.certificate).unwrap();
    let parts: Vec<&str> = chain.split_inclusive("-----END CERTIFICATE-----\n").collect();
    assert_eq!(parts.len(), 2);
    for foreign in parts {
        std::fs::write(&node.roots, format!("{roots}{foreign}")).unwrap();
        assert!(matches!(node.load(NOW_MS), Err(KeysError::NotARoot { number: 2 })));
    }
}

#[test]
fn a_self_signed_certificate_that_is_no_ca_is_no_root() {
    let node = Node::new(RELAY);
    let key = rcgen::KeyPair::generate().unwrap();
    let foreign = rcgen::CertificateParams::default().self_signed(&key).unwrap();
    std::fs::write(&node.roots, foreign.pem()).unwrap();
    assert!(matches!(node.load(NOW_MS), Err(KeysError::NotARoot { number: 1 })));
}

#[test]
fn empty_and_swapped_files_are_refused_by_name() {
    for (file, what) in [(0, "certificate"), (1, "key"), (2, "roots")] {
        let node = Node::new(RELAY);
        let path = [&node.certificate, &node.key, &node.roots][file];
        files::write_secret(path, b"hello").unwrap();
        let error = node.load(NOW_MS).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
        assert!(matches!(error, KeysError::NotPem { .. }));
    }
}

#[test]
fn a_bad_new_set_is_refused_and_the_old_one_stays() {
    let node = Node::new(RELAY);
    let keys = node.load(NOW_MS).unwrap();
    let old = keys.leaf();
    let (good_certificate, good_key) = (std::fs::read(&node.certificate).unwrap(), std::fs::read(&node.key).unwrap());
    let put = |signed: &Signed| {
        files::write_secret(&node.key, signed.key_pem.as_bytes()).unwrap();
        files::write_public(&node.certificate, signed.pem.as_bytes()).unwrap();
        keys.replace(&node.certificate, &node.key, &node.roots)
    };
    // Someone else.
    let other = node.issuer.issue(&identity("site/oslo/relay/oslo-2"), NOW_MS);
    assert!(matches!(put(&other.unwrap()), Err(KeysError::OtherIdentity { .. })));
    // Expired while the present one is valid.
    let expired = node.issuer.issue(&identity(RELAY), NOW_MS - 20 * DAY_MS).unwrap();
    assert!(matches!(put(&expired), Err(KeysError::Expired { .. })));
    // Not valid yet.
    let early = node.issuer.issue(&identity(RELAY), NOW_MS + DAY_MS).unwrap();
    assert!(matches!(put(&early), Err(KeysError::NotYetValid { .. })));
    // Only one of the two files changed.
    files::write_secret(&node.key, &good_key).unwrap();
    let result = keys.replace(&node.certificate, &node.key, &node.roots);
    assert!(matches!(result, Err(KeysError::KeyMismatch)));
    assert_eq!(keys.leaf(), old);

    // A good one goes in, and again the very same.
    let renewed = node.issuer.issue(&identity(RELAY), NOW_MS + 60_000).unwrap();
    put(&renewed).unwrap();
    assert_ne!(keys.leaf().serial, old.serial);
    assert_eq!(keys.not_after_ms(), NOW_MS + 60_000 + 14 * DAY_MS);
    files::write_public(&node.certificate, &good_certificate).unwrap();
    files::write_secret(&node.key, &good_key).unwrap();
    keys.replace(&node.certificate, &node.key, &node.roots).unwrap();
}

#[test]
fn an_expired_node_still_takes_new_roots() {
    let node = Node::new(RELAY);
    let keys = node.load(NOW_MS + 20 * DAY_MS).unwrap();
    let more = Node::new(RELAY);
    let both = [&node.roots, &more.roots].map(|path| std::fs::read_to_string(path).unwrap());
    std::fs::write(&node.roots, both.concat()).unwrap();
    keys.replace(&node.certificate, &node.key, &node.roots).unwrap();
}

#[test]
fn an_expired_certificate_gives_way_to_a_later_one_only() {
    let node = Node::new(RELAY);
    let keys = node.load(NOW_MS + 40 * DAY_MS).unwrap();
    let roots = std::fs::read_to_string(&node.roots).unwrap();
    let of = |issued_ms| node.issuer.issue(&identity(RELAY), issued_ms).unwrap();
    let later = of(NOW_MS + 5 * DAY_MS);
    keys.replace_pem(&later.pem, &later.key_pem, &roots).unwrap();
    let older = of(NOW_MS + 4 * DAY_MS);
    let error = keys.replace_pem(&older.pem, &older.key_pem, &roots);
    assert!(matches!(error, Err(KeysError::Expired { .. })));
    assert_eq!(keys.not_after_ms(), later.not_after_ms);
}

#[test]
fn the_same_files_change_nothing_and_the_root_that_ends_first_is_told() {
    let node = Node::new(RELAY);
    let keys = node.load(NOW_MS).unwrap();
    assert_eq!(keys.reload(&node.certificate, &node.key, &node.roots).unwrap(), Reloaded::Same);
    let first_end_ms = NOW_MS - 30 * DAY_MS + muster_certs::issuer::ROOT_LIFE_MS;
    assert_eq!(keys.roots_end_ms(), first_end_ms);
    let (later, _) = Issuer::in_memory(DOMAIN, NOW_MS).unwrap();
    let roots = std::fs::read_to_string(&node.roots).unwrap();
    files::write_public(&node.roots, (later.pem().to_owned() + &roots).as_bytes()).unwrap();
    assert_eq!(keys.reload(&node.certificate, &node.key, &node.roots).unwrap(), Reloaded::Taken);
    assert_eq!(keys.roots_end_ms(), first_end_ms);
}

#[test]
fn who_missed_a_whole_rotation_comes_back_by_the_cross_certificate_alone() {
    let node = Node::new(RELAY);
    let keys = node.load(NOW_MS).unwrap();
    let (new_root, new_issuer) = Issuer::in_memory(DOMAIN, NOW_MS).unwrap();
    let signed = new_issuer.issue(&identity(RELAY), NOW_MS).unwrap();
    files::write_secret(&node.key, signed.key_pem.as_bytes()).unwrap();
    files::write_public(&node.roots, new_root.pem().as_bytes()).unwrap();
    files::write_public(&node.certificate, signed.pem.as_bytes()).unwrap();
    let error = keys.reload(&node.certificate, &node.key, &node.roots);
    assert!(matches!(error, Err(KeysError::OtherRoots)), "{error:?}");
    // The new root's key and name, under the old root's signature.
    let new_key = rcgen::KeyPair::from_pem(&new_root.key_pem()).unwrap();
    let old_key = rcgen::KeyPair::from_pem(&node.root.key_pem()).unwrap();
    let by = rcgen::Issuer::from_ca_cert_pem(node.root.pem(), old_key).unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = name_of(&new_root);
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let cross = params.signed_by(&new_key, &by).unwrap();
    files::write_public(&node.certificate, (signed.pem + &cross.pem()).as_bytes()).unwrap();
    assert_eq!(keys.reload(&node.certificate, &node.key, &node.roots).unwrap(), Reloaded::Taken);
    assert_eq!(keys.roots_pem(), new_root.pem());
}

/// As `Root` writes it: a common name and nothing else.
fn name_of(root: &Root) -> rcgen::DistinguishedName {
    let der = &muster_certs::material::certificates("roots", root.pem(), 1).unwrap()[0];
    let (_, certificate) = X509Certificate::from_der(der).unwrap();
    let mut name = rcgen::DistinguishedName::new();
    name.push(rcgen::DnType::CommonName, certificate.subject().iter_common_name().next().unwrap().as_str().unwrap());
    name
}

#[test]
fn a_ca_lies_in_its_folder_as_documented() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("deep/ca");
    let ca = Ca::init(&dir, DOMAIN).unwrap();
    let mode = |name: &str| dir.join(name).metadata().unwrap().mode() & 0o777;
    assert_eq!(mode("root/root.key"), 0o600);
    assert_eq!(mode("issuing/issuing.key"), 0o600);
    assert_eq!(mode("root"), 0o700);
    assert_eq!(mode("roots.pem"), 0o644);
    assert_eq!(std::fs::read_to_string(dir.join("domain")).unwrap(), "test.internal\n");
    assert_eq!(std::fs::read_to_string(ca.roots_path()).unwrap(), ca.roots_pem());
    assert!(matches!(Ca::init(&dir, DOMAIN), Err(CaError::Exists(_))));
}

#[test]
fn issuing_works_while_the_root_is_offline() {
    let temp = tempfile::tempdir().unwrap();
    Ca::init(temp.path(), DOMAIN).unwrap();
    std::fs::remove_dir_all(temp.path().join("root")).unwrap();
    let ca = Ca::open(temp.path()).unwrap();
    assert_eq!(ca.domain(), DOMAIN);
    let hub = ca.issue_hub("hub-1").unwrap();
    let time = Arc::new(SystemTime);
    let keys = Keys::from_pem(&hub.pem, &hub.key_pem, ca.roots_pem(), Role::Hub, time).unwrap();
    assert_eq!(keys.identity(), identity("hub/hub-1"));
}

#[test]
fn each_agent_is_listed_before_its_certificate_is_given_out() {
    let temp = tempfile::tempdir().unwrap();
    let ca = Ca::init(temp.path(), DOMAIN).unwrap();
    let one = ca.issue_agent("oslo", "kari", "Kari").unwrap();
    let two = ca.issue_agent("bergen", "ola", "Ola").unwrap();
    let list = issued::read(&ca.issued_path()).unwrap();
    assert_eq!(list, [one.entry.clone(), two.entry.clone()]);
    for agent in [&one, &two] {
        let leaf = read_leaf(agent.signed.leaf()).unwrap();
        assert_eq!(leaf.identity.name.device(), Some(agent.device()));
        assert_eq!(leaf.identity.name.site(), Some(agent.entry.site.as_str()));
        assert_eq!(leaf.not_after_ms / 1000, agent.entry.not_after_ms / 1000);
        assert_eq!(agent.device()[6] >> 4, 7, "device ids are UUIDv7");
    }
    assert_ne!(one.device(), two.device());
}

#[test]
fn a_ca_whose_files_do_not_fit_together_gives_nothing_out() {
    let temp = tempfile::tempdir().unwrap();
    let (one, two) = (temp.path().join("one"), temp.path().join("two"));
    let ca = Ca::init(&one, DOMAIN).unwrap();
    Ca::init(&two, DOMAIN).unwrap();
    std::fs::copy(two.join("roots.pem"), one.join("roots.pem")).unwrap();
    let mixed = Ca::open(&one).unwrap();
    let error = mixed.issue_agent("oslo", "kari", "Kari").err().unwrap();
    assert!(matches!(error, CaError::Chain(ChainError::UnknownIssuer)));
    assert!(!ca.issued_path().exists());
    std::fs::copy(two.join("issuing/issuing.key"), one.join("issuing/issuing.key")).unwrap();
    assert!(matches!(Ca::open(&one), Err(CaError::Issuer(IssuerError::KeyMismatch(_)))));
}

#[test]
fn serials_are_random_and_have_128_bits() {
    let (_, issuer) = Issuer::in_memory(DOMAIN, NOW_MS).unwrap();
    let mut serials: Vec<String> =
        (0..20).map(|_| issuer.issue(&identity(RELAY), NOW_MS).unwrap()).map(|signed| read_leaf(signed.leaf()).unwrap().serial).collect();
    assert!(serials.iter().any(|serial| serial.len() == 32));
    serials.sort();
    serials.dedup();
    assert_eq!(serials.len(), 20);
}

#[test]
fn a_root_made_again_from_its_files_issues_under_the_same_roots() {
    let (root, _) = Issuer::in_memory(DOMAIN, NOW_MS).unwrap();
    let again = Root::from_pem(root.pem(), &root.key_pem()).unwrap();
    let issuer = again.issue_issuing(DOMAIN, NOW_MS).unwrap();
    let hub = issuer.issue(&identity("hub/hub-1"), NOW_MS).unwrap();
    let time = Arc::new(Fixed(NOW_MS));
    Keys::from_pem(&hub.pem, &hub.key_pem, root.pem(), Role::Hub, time).unwrap();
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn identity(text: &str) -> Identity {
    Identity::new(DOMAIN, name(text)).unwrap()
}

/// A really issued agent's leaf, changed beforehand.
fn leaf_of(change: impl FnOnce(&mut LeafParams)) -> CertificateDer<'static> {
    let (_, issuer) = Issuer::in_memory(DOMAIN, NOW_MS).unwrap();
    let mut params = LeafParams::of(&identity(AGENT), NOW_MS);
    change(&mut params);
    issuer.sign(&params).unwrap().leaf().clone()
}

/// Why such a leaf is refused where an agent would be welcome.
fn refusal(change: impl FnOnce(&mut LeafParams)) -> LeafError {
    check_leaf(&leaf_of(change), DOMAIN, &Expect::Roles(&[Role::Agent])).unwrap_err()
}

/// A node's three files, and the CA they came from.
struct Node {
    _dir: tempfile::TempDir,
    root: Root,
    issuer: Issuer,
    role: Role,
    certificate: PathBuf,
    key: PathBuf,
    roots: PathBuf,
}

impl Node {
    fn new(text: &str) -> Node {
        // Older than now, so that tests can also issue what has ended.
        let made_ms = NOW_MS - 30 * DAY_MS;
        let (root, issuer) = Issuer::in_memory(DOMAIN, made_ms).unwrap();
        let signed = issuer.issue(&identity(text), NOW_MS).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| -> PathBuf { Path::join(dir.path(), name) };
        let (certificate, key, roots) = (at("n.pem"), at("n.key"), at("roots.pem"));
        files::write_public(&certificate, signed.pem.as_bytes()).unwrap();
        files::write_secret(&key, signed.key_pem.as_bytes()).unwrap();
        files::write_public(&roots, root.pem().as_bytes()).unwrap();
        let role = identity(text).role();
        Node { _dir: dir, root, issuer, role, certificate, key, roots }
    }

    fn load(&self, now_ms: i64) -> Result<Arc<Keys>, KeysError> {
        self.load_as(self.role, now_ms)
    }

    fn load_as(&self, role: Role, now_ms: i64) -> Result<Arc<Keys>, KeysError> {
        let time = Arc::new(Fixed(now_ms));
        Keys::load(&self.certificate, &self.key, &self.roots, role, time)
    }
}

#[derive(Debug)]
struct Fixed(i64);

impl TimeProvider for Fixed {
    fn current_time(&self) -> Option<UnixTime> {
        let now = std::time::Duration::from_millis(self.0.unsigned_abs());
        Some(UnixTime::since_unix_epoch(now))
    }
}
