//! Blocking: our certificates as others read them: OpenSSL verifies each chain for each purpose, pkilint reads each kind of certificate.
//!
//! `openssl` is a Debian package of `ops/packages`; `ops/engines start` says by `MUSTER_TEST_PKILINT` where pkilint's programs are. Without
//! one of them a test says so and passes, and fails where `CI` is set.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use muster_certs::*;

const DOMAIN: &str = "test.internal";
const PKILINT: &str = "MUSTER_TEST_PKILINT";
/// Debian's answers here are given in English, whatever language this machine speaks.
const C: (&str, &str) = ("LC_ALL", "C");

#[test]
fn openssl_verifies_every_chain_for_its_purpose_and_no_other() {
    let Some(openssl) = openssl() else { return };
    let mut mesh = Mesh::new();
    let before = mesh.leaves("before");
    let old = mesh.roots("old");
    mesh.ca.start_root(&mesh.ca.root_folder()).unwrap();
    let both = mesh.roots("both");
    mesh.ca.advance(None, false).unwrap();
    let overlap = mesh.leaves("overlap");
    mesh.ca.advance(None, true).unwrap();
    let new = mesh.roots("new");
    let retired = mesh.leaves("retired");
    mesh.ca.advance(None, true).unwrap();
    let after = mesh.leaves("after");

    let verify = |roots: &Path, leaf: &Leafs, purpose: &str| {
        openssl.verifies(&["-purpose", purpose, "-x509_strict", "-check_ss_sig"], roots, &leaf.chain, &leaf.leaf)
    };
    // Who holds only the old root, both, only the new one; and what is good there.
    let table = [(&old, [true, true, true, false]), (&both, [true, true, true, true]), (&new, [false, true, true, true])];
    for (roots, good) in table {
        for (leaves, good) in [&before, &overlap, &retired, &after].into_iter().zip(good) {
            for leaf in leaves {
                let role = leaf.role;
                let said = |purpose: &str| verify(roots, leaf, purpose);
                let shown = format!("{} by {}", leaf.leaf.display(), roots.display());
                assert_eq!(said("sslclient").0, good && role.dials(), "client: {shown}: {}", said("sslclient").1);
                assert_eq!(said("sslserver").0, good && role.listens(), "server: {shown}: {}", said("sslserver").1);
                assert_eq!(said("any").0, good, "any: {shown}: {}", said("any").1);
            }
        }
    }
}

#[test]
fn openssl_finds_the_revoked_by_the_exported_lists() {
    let Some(openssl) = openssl() else { return };
    let mut mesh = Mesh::new();
    let old = mesh.leaves("old");
    mesh.ca.start_issuing(&mesh.ca.root_folder()).unwrap();
    mesh.ca.advance(None, false).unwrap();
    let new = mesh.leaves("new");
    let empty = mesh.lists("empty");
    mesh.ca.revoke(&"hub/hub-1".parse().unwrap(), "stolen").unwrap();
    let lists = mesh.lists("lists");
    let roots = mesh.roots("roots");
    for leaf in old.iter().chain(&new) {
        let check = |lists: &Path| openssl.verifies(&["-crl_check", "-CRLfile", lists.to_str().unwrap()], &roots, &leaf.chain, &leaf.leaf);
        assert_eq!(check(&empty), (true, check(&empty).1), "{}", leaf.leaf.display());
        let (good, said) = check(&lists);
        let revoked = leaf.role == Role::Hub;
        assert_eq!(good, !revoked, "{}: {said}", leaf.leaf.display());
        assert_eq!(said.contains("certificate revoked"), revoked, "{said}");
    }
}

#[test]
fn pkilint_finds_no_error_in_any_certificate_but_those_that_are_argued() {
    let Some(programs) = pkilint() else { return };
    let mut mesh = Mesh::new();
    mesh.ca.start_root(&mesh.ca.root_folder()).unwrap();
    mesh.ca.advance(None, false).unwrap();
    let state = mesh.ca.state().clone();
    let turn = state.turn.as_ref().unwrap();
    let new = turn.root.as_ref().unwrap();
    let mut all = vec![
        ("root", mesh.put("root", &state.root.pem)),
        ("root", mesh.put("new-root", &new.authority.pem)),
        ("issuing", mesh.put("issuing", &turn.issuing.pem)),
        ("cross", mesh.put("cross", &new.cross)),
    ];
    let leaves = mesh.leaves("leaf");
    all.extend(leaves.iter().map(|leaf| (leaf.role.as_str(), leaf.leaf.clone())));
    let exclusions: Vec<serde_json::Value> =
        serde_json::from_str(&fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pkilint.json")).unwrap()).unwrap();

    let mut used = vec![0; exclusions.len()];
    for (kind, path) in &all {
        for finding in findings(&programs.join("lint_pkix_cert"), &["lint", "-s", "ERROR", "-f", "JSON"], &[path]) {
            let excluded = exclusions.iter().position(|it| {
                it["code"] == finding["code"]
                    && finding["message"].as_str().unwrap_or_default().starts_with(it["message"].as_str().unwrap())
                    && it["certificates"].as_array().unwrap().iter().any(|it| it == kind)
            });
            let at = excluded.unwrap_or_else(|| panic!("{kind} ({}): {finding}", path.display()));
            used[at] += 1;
        }
    }
    for (exclusion, used) in exclusions.iter().zip(used) {
        assert!(used > 0, "nothing needs this any more: {exclusion}");
        assert!(exclusion["why"].as_str().is_some_and(|why| why.len() > 40), "{exclusion}");
    }

    // What signs what, pair by pair; and a list of revoked.
    let [root, new_root, issuing, cross] = [0, 1, 2, 3].map(|at| &all[at].1);
    let pairs = [(root, cross), (new_root, issuing), (cross, issuing)].into_iter();
    for (signer, signed) in pairs.chain(leaves.iter().map(|leaf| (issuing, &leaf.leaf))) {
        let found =
            findings(&programs.join("lint_pkix_signer_signee_cert_chain"), &["lint", "-s", "ERROR", "-f", "JSON"], &[signer, signed]);
        assert!(found.iter().all(|it| it["code"] == "pkix.invalid_uri_syntax"), "{}: {found:?}", signed.display());
    }
    mesh.ca.revoke(&"hub/hub-1".parse().unwrap(), "stolen").unwrap();
    for (number, list) in mesh.ca.revocation_lists(None).unwrap().lists.iter().enumerate() {
        let path = mesh.put(&format!("list-{number}"), &list.pem);
        let found = findings(&programs.join("lint_crl"), &["lint", "-t", "CRL", "-p", "PKIX", "-s", "ERROR", "-f", "JSON"], &[&path]);
        assert_eq!(found, [] as [serde_json::Value; 0]);
    }
}

fn findings(program: &Path, words: &[&str], files: &[&PathBuf]) -> Vec<serde_json::Value> {
    let done = Command::new(program).args(words).args(files).env(C.0, C.1).output().unwrap();
    let text = String::from_utf8(done.stdout).unwrap();
    let read: serde_json::Value = serde_json::from_str(&text)
        .unwrap_or_else(|e| panic!("{}: {e}: {text}{}", program.display(), String::from_utf8_lossy(&done.stderr)));
    let results = read["results"].as_array().unwrap();
    results.iter().flat_map(|result| result["finding_descriptions"].as_array().unwrap().clone()).collect()
}

/// A CA in a folder, and files beside it.
struct Mesh {
    folder: tempfile::TempDir,
    ca: Ca,
}

/// A leaf and what stands behind it, in files.
struct Leafs {
    role: Role,
    leaf: PathBuf,
    chain: PathBuf,
}

impl Mesh {
    fn new() -> Mesh {
        let folder = tempfile::tempdir().unwrap();
        let ca = Ca::init(&folder.path().join("ca"), DOMAIN).unwrap();
        Mesh { folder, ca }
    }

    fn put(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(format!("{name}.pem"));
        fs::write(&path, text).unwrap();
        path
    }

    fn roots(&self, name: &str) -> PathBuf {
        self.put(name, self.ca.roots_pem())
    }

    fn lists(&self, name: &str) -> PathBuf {
        let lists = self.ca.revocation_lists(None).unwrap();
        assert_eq!(lists.left_out, 0);
        self.put(name, &lists.lists.iter().map(|list| list.pem.as_str()).collect::<String>())
    }

    /// One of each role, with the chain that is given out now.
    fn leaves(&self, when: &str) -> Vec<Leafs> {
        let signed = [
            (Role::Hub, self.ca.issue_hub("hub-1").unwrap()),
            (Role::Relay, self.ca.issue_relay("oslo", "oslo-1").unwrap()),
            (Role::Agent, self.ca.issue_agent("oslo", "kari", "Kari").unwrap().signed),
            (Role::Control, self.ca.issue_control(1).unwrap()),
        ];
        let put = |(role, signed): (Role, Signed)| {
            let end = signed.pem.find("-----END CERTIFICATE-----\n").unwrap() + "-----END CERTIFICATE-----\n".len();
            let leaf = self.put(&format!("{when}-{role}"), &signed.pem[..end]);
            Leafs { role, leaf, chain: self.put(&format!("{when}-{role}-chain"), &signed.pem[end..]) }
        };
        signed.into_iter().map(put).collect()
    }
}

struct Openssl;

impl Openssl {
    /// Whether it is good, and what was said.
    fn verifies(&self, words: &[&str], roots: &Path, chain: &Path, leaf: &Path) -> (bool, String) {
        let Output { status, stdout, stderr } = Command::new("openssl")
            .arg("verify")
            .args(words)
            .args(["-no-CAfile", "-no-CApath", "-no-CAstore", "-trusted"])
            .arg(roots)
            .arg("-untrusted")
            .args([chain, leaf])
            .env(C.0, C.1)
            .output()
            .unwrap();
        (status.success(), String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned())
    }
}

fn openssl() -> Option<Openssl> {
    match Command::new("openssl").arg("version").output() {
        Ok(_) => Some(Openssl),
        Err(error) => skipped(&format!("no openssl ({error}); apt-get install openssl")),
    }
}

fn pkilint() -> Option<PathBuf> {
    match std::env::var_os(PKILINT) {
        Some(folder) => Some(folder.into()),
        None => skipped("no pkilint; `source <(ops/engines start FOLDER)` says where one is"),
    }
}

fn skipped<T>(why: &str) -> Option<T> {
    assert!(std::env::var_os("CI").is_none(), "{why}");
    println!("skipped: {why}");
    None
}
