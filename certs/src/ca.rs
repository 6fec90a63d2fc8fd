//! Blocking: a CA in a folder.
//!
//! ```text
//! muster-ca/
//!   domain              the trust domain, one line; written last, so it marks a finished CA
//!   roots.pem           roots only: every node gets a copy
//!   rotation.json       from the first rotation on: what is in force, and how far a rotation is
//!   issued.jsonl        which device was issued to whom
//!   certificates.jsonl  which certificates were issued into files
//!   revoked.jsonl       whose certificates count no more
//!   backup.json         which keys have a backup
//!   issuing/            issuing.pem, issuing.key: what issuing needs; after a rotation issuing-<key>.pem and .key
//!   root/               root.pem, root.key: take this folder offline
//! ```
//!
//! `rotation.json` is the one file that says what is in force; its write is the moment at which a rotation goes on. `roots.pem` and the keys in
//! `issuing/` follow it, after a crash at the next command of `muster-certs rotate`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::time_provider::TimeProvider;
use rustls_pki_types::{CertificateDer, UnixTime};
use uuid::Uuid;

use crate::chain::{ChainError, check_chain};
use crate::files::{self, FileError};
use crate::identity::{Identity, IdentityError, Name, check_domain, check_label};
use crate::issued::{self, Issued, IssuedError};
use crate::issuer::{Issuer, IssuerError, LeafParams, Root, Signed};
use crate::keys::SystemTime;
use crate::leaf::{self, Expect, Leaf, LeafError, check_leaf, read_leaf};
use crate::ledger::{self, Certificate, LedgerError};
use crate::material::{KeysError, ROOTS_MAX, certificates, root_ders, root_store, utc_text};
use crate::members::{Holder, Report, ReportError, everybody};
use crate::rotation::{Authority, Bundle, RotationError, STATE_VERSION, State};
use crate::stranger::Fingerprint;

mod revocation;
mod turning;

pub use revocation::{RevocationList, RevocationLists};
pub use turning::Moved;

const DOMAIN: &str = "domain";
const ROOTS: &str = "roots.pem";
const ROTATION: &str = "rotation.json";
const ISSUED: &str = "issued.jsonl";
const CERTIFICATES: &str = "certificates.jsonl";
const REVOKED: &str = "revoked.jsonl";
const BACKUP: &str = "backup.json";
const ROOT_FOLDER: &str = "root";
const ISSUING_FOLDER: &str = "issuing";
const FIRST_ROOT: &str = "root";
const FIRST_ISSUING: &str = "issuing";

/// Why the CA can't do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// There is a CA, or half of one, already.
    #[error("there is already a CA in {0}; choose another folder, or move this one away")]
    Exists(PathBuf),
    /// There is none.
    #[error("there is no CA in {0}; make one with: muster-certs init --dir {0}")]
    Missing(PathBuf),
    /// A file of the CA.
    #[error(transparent)]
    File(#[from] FileError),
    /// A name outside the grammar.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Making a certificate.
    #[error(transparent)]
    Issuer(#[from] IssuerError),
    /// `roots.pem`.
    #[error("the CA's roots.pem is not usable: {0}")]
    Roots(KeysError),
    /// The list of devices.
    #[error(transparent)]
    Issued(#[from] IssuedError),
    /// Another list of the folder.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// `rotation.json`.
    #[error("{path} is not usable: {why}; put back the CA's last backup")]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A step of a rotation.
    #[error(transparent)]
    Rotation(#[from] RotationError),
    /// The hub's report.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// A root beside the CA's own.
    #[error("roots.pem holds {0} roots, and one of them is this CA's; take the others out before a rotation")]
    ForeignRoots(usize),
    /// The folder holds another CA by now.
    #[error("the folder now holds the CA of {found}, and this one is of {own}")]
    OtherDomain {
        /// What stands there.
        found: String,
        /// What stood there.
        own: String,
    },
    /// The root's key isn't where it was looked for.
    #[error("the root's key is not in {0}; bring the offline folder here and name it with --root DIR")]
    NoRootKey(PathBuf),
    /// Another command was faster.
    #[error("another command changed the CA meanwhile; look at: muster-certs rotate status")]
    Overtaken,
    /// The issuing CA has ended.
    #[error("the issuing CA expired on {}; make a new one with the root key: muster-certs rotate start issuing, then rotate advance", utc_text(*.0))]
    IssuingExpired(i64),
    /// Somebody who was revoked.
    #[error("{name} was revoked on {}; if its computer is in good hands again, issue it a new certificate", utc_text(*.at_ms))]
    Revoked {
        /// Who.
        name: Name,
        /// When, milliseconds UTC.
        at_ms: i64,
    },
    /// The clock gives no time.
    #[error("this computer's clock gives no time; set it")]
    Clock,
    /// What was made doesn't pass the checks of those who would receive it: nothing is given out.
    #[error("the new certificate would be refused ({0}); the CA's files do not fit together")]
    Chain(ChainError),
    /// The same, by the leaf check.
    #[error("the new certificate would be refused ({0}); the CA's files do not fit together")]
    Leaf(LeafError),
}

/// A CA whose issuing key is at hand. The root key is only touched by [`Ca::init`] and where a rotation starts.
#[derive(Debug)]
pub struct Ca {
    dir: PathBuf,
    time: Arc<dyn TimeProvider>,
    state: State,
    issuer: Issuer,
    roots_pem: String,
    roots: RootCertStore,
    stamp: Stamp,
}

/// A certificate for an agent, and who it is for.
#[derive(Debug)]
pub struct IssuedAgent {
    /// The line that stands in `issued.jsonl`.
    pub entry: Issued,
    /// Certificate and key.
    pub signed: Signed,
}

impl IssuedAgent {
    /// The new device id.
    pub fn device(&self) -> [u8; 16] {
        self.entry.device
    }
}

/// How the files that say what is in force looked when they were opened. Two that differ: open the CA again. Cheap to take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp(Vec<Option<(u64, u64, i64, i64)>>);

impl Stamp {
    /// As they look now. What isn't there is no error: it differs.
    pub fn of(dir: &Path) -> Stamp {
        let first = dir.join(ISSUING_FOLDER).join(FIRST_ISSUING);
        let files = [dir.join(ROTATION), dir.join(ROOTS), first.with_extension("pem"), first.with_extension("key")];
        let look = |path: &PathBuf| std::fs::metadata(path).ok().map(|it| (it.ino(), it.len(), it.mtime(), it.mtime_nsec()));
        Stamp(files.iter().map(look).collect())
    }
}

impl Ca {
    /// Makes a root and an issuing CA for `domain` in `dir`, which is made if it isn't there.
    /// Refuses a folder that already holds anything of a CA.
    pub fn init(dir: &Path, domain: &str) -> Result<Ca, CaError> {
        Ca::init_at(dir, domain, Arc::new(SystemTime))
    }

    /// [`Ca::init`] with a clock of the caller's own.
    pub fn init_at(dir: &Path, domain: &str, time: Arc<dyn TimeProvider>) -> Result<Ca, CaError> {
        check_domain(domain)?;
        let ours = [DOMAIN, ROOTS, ROTATION, ISSUED, CERTIFICATES, ROOT_FOLDER, ISSUING_FOLDER];
        if ours.iter().any(|name| dir.join(name).exists()) {
            return Err(CaError::Exists(dir.to_owned()));
        }
        let (root, issuer) = Issuer::in_memory(domain, now_ms(&*time)?)?;

        files::create_folder(&dir.join(ISSUING_FOLDER))?;
        put_root(&dir.join(ROOT_FOLDER), FIRST_ROOT, &root)?;
        put_issuing(dir, FIRST_ISSUING, &issuer)?;
        files::create_public(&dir.join(ROOTS), root.pem().as_bytes())?;
        files::create_public(&dir.join(DOMAIN), format!("{domain}\n").as_bytes())?;
        Ca::open_at(dir, time)
    }

    /// Opens a CA. The folder `root/` may be away.
    pub fn open(dir: &Path) -> Result<Ca, CaError> {
        Ca::open_at(dir, Arc::new(SystemTime))
    }

    /// [`Ca::open`] with a clock of the caller's own.
    pub fn open_at(dir: &Path, time: Arc<dyn TimeProvider>) -> Result<Ca, CaError> {
        let domain = match files::read(&dir.join(DOMAIN)) {
            Ok(text) => text.trim_end().to_owned(),
            Err(FileError::Missing(_)) => return Err(CaError::Missing(dir.to_owned())),
            Err(other) => return Err(other.into()),
        };
        // Taken first: what changes while the files are read shows as changed.
        let stamp = Stamp::of(dir);
        let (state, roots_pem) = read_state(dir)?;
        let roots = root_store(&roots_pem).map_err(CaError::Roots)?;
        let key = dir.join(ISSUING_FOLDER).join(format!("{}.key", state.issuer().file));
        let mut issuer = Issuer::from_pem(&domain, &state.issuer().pem, &files::read_secret(&key)?)?;
        if let Some(cross) = state.cross() {
            issuer = issuer.with_cross(cross)?;
        }
        Ok(Ca { dir: dir.to_owned(), time, state, issuer, roots_pem, roots, stamp })
    }

    /// Whether the folder says something else by now than when it was opened: then open it again, and on an error stay with this one. Cheap
    /// enough to ask every few seconds.
    pub fn changed(&self) -> bool {
        Stamp::of(&self.dir) != self.stamp
    }

    /// The same CA as its folder says now. This one stays as it is.
    pub fn reopen(&self) -> Result<Ca, CaError> {
        let new = Ca::open_at(&self.dir, self.time.clone())?;
        if new.domain() != self.domain() {
            return Err(CaError::OtherDomain { found: new.domain().to_owned(), own: self.domain().to_owned() });
        }
        Ok(new)
    }

    /// The key identifier of the issuing CA that issues now, lower-case hex.
    pub fn issuer_key(&self) -> &str {
        &self.state.issuer().key
    }

    /// How the folder looked when it was opened.
    pub fn stamp(&self) -> &Stamp {
        &self.stamp
    }

    /// What is in force, and how far a rotation is.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The version of the roots' bundle: it rises with each change of the roots.
    pub fn bundle_version(&self) -> u64 {
        self.state.bundle
    }

    /// What issues.
    pub fn issuer(&self) -> &Issuer {
        &self.issuer
    }

    /// The trust domain.
    pub fn domain(&self) -> &str {
        self.issuer.domain()
    }

    /// The roots that nodes get, as PEM.
    pub fn roots_pem(&self) -> &str {
        &self.roots_pem
    }

    /// Where `roots.pem` is.
    pub fn roots_path(&self) -> PathBuf {
        self.dir.join(ROOTS)
    }

    /// Where `issued.jsonl` is; it isn't there before the first agent.
    pub fn issued_path(&self) -> PathBuf {
        self.dir.join(ISSUED)
    }

    /// Where `certificates.jsonl` is; it isn't there before the first certificate.
    pub fn certificates_path(&self) -> PathBuf {
        self.dir.join(CERTIFICATES)
    }

    /// Where `revoked.jsonl` is; it isn't there before the first revocation.
    pub fn revoked_path(&self) -> PathBuf {
        self.dir.join(REVOKED)
    }

    /// Where `backup.json` is; it isn't there before the first note.
    pub fn backup_path(&self) -> PathBuf {
        self.dir.join(BACKUP)
    }

    /// End of the issuing CA, milliseconds UTC. No leaf outlives it.
    pub fn not_after_ms(&self) -> i64 {
        self.issuer.not_after_ms()
    }

    /// Milliseconds UTC by this CA's clock.
    pub fn now_ms(&self) -> Result<i64, CaError> {
        now_ms(&*self.time)
    }

    /// A certificate for a hub.
    pub fn issue_hub(&self, id: &str) -> Result<Signed, CaError> {
        self.issue_name(Name::Hub { id: id.to_owned() })
    }

    /// A certificate for a relay.
    pub fn issue_relay(&self, site: &str, id: &str) -> Result<Signed, CaError> {
        let (site, id) = (site.to_owned(), id.to_owned());
        self.issue_name(Name::Relay { site, id })
    }

    /// A certificate for a new device of a person; the line in `issued.jsonl` is on the disk when
    /// this returns.
    pub fn issue_agent(&self, site: &str, person: &str, name: &str) -> Result<IssuedAgent, CaError> {
        let people = [(person.to_owned(), name.to_owned())];
        let mut made = self.issue_agents(site, &people)?;
        made.pop().ok_or_else(|| IssuerError::Make("nothing was made".to_owned()).into())
    }

    /// [`Ca::issue_agent`] for several (person key, display name) at once, with one sync to disk.
    /// The list comes before the certificates are given out: a line without a certificate is
    /// harmless, a device that isn't listed is nobody's.
    pub fn issue_agents(&self, site: &str, people: &[(String, String)]) -> Result<Vec<IssuedAgent>, CaError> {
        let now_ms = self.now_ms()?;
        let mut made = Vec::with_capacity(people.len());
        for (person, name) in people {
            issued::check_person(person).map_err(IssuedError::from)?;
            issued::check_name(name).map_err(IssuedError::from)?;
            let device = Uuid::now_v7().into_bytes();
            let site = site.to_owned();
            let signed = self.issue(Name::Agent { site: site.clone(), device }, now_ms)?;
            let entry = Issued { device, site, person: person.clone(), name: name.clone(), not_after_ms: signed.not_after_ms };
            made.push(IssuedAgent { entry, signed });
        }
        self.list(made.iter().map(|agent| &agent.signed), now_ms, false)?;
        let entries: Vec<Issued> = made.iter().map(|agent| agent.entry.clone()).collect();
        issued::append(&self.issued_path(), &entries)?;
        Ok(made)
    }

    /// A control certificate: its key signs what comes down; it is never used on a connection.
    pub fn issue_control(&self, n: u32) -> Result<Signed, CaError> {
        self.issue_name(Name::Control { n })
    }

    /// New certificates, with new keys, for those who already have one of this CA's, to be laid beside those. They are listed as such before this
    /// returns; [`replaced`](Ca::replaced) says that they are in their places. Refused if one of them was revoked.
    pub fn reissue(&self, names: &[Name]) -> Result<Vec<Signed>, CaError> {
        let now_ms = self.now_ms()?;
        let revoked: BTreeMap<String, i64> =
            ledger::revoked(&self.revoked_path())?.into_iter().map(|revoked| (revoked.name, revoked.at_ms)).collect();
        let mut signed = Vec::with_capacity(names.len());
        for name in names {
            if let Some(at_ms) = revoked.get(&name.to_string()) {
                return Err(CaError::Revoked { name: name.clone(), at_ms: *at_ms });
            }
            signed.push(self.issue(name.clone(), now_ms)?);
        }
        self.list(signed.iter(), now_ms, true)?;
        Ok(signed)
    }

    /// Those that [`reissue`](Ca::reissue) gave are in use, and what they replaced isn't any more.
    pub fn replaced(&self, signed: &[Signed]) -> Result<(), CaError> {
        let lines: BTreeMap<[u8; 16], Issued> = self.devices()?.into_iter().map(|line| (line.device, line)).collect();
        let (mut devices, mut serials) = (Vec::new(), BTreeSet::new());
        for new in signed {
            let leaf = read_leaf(new.leaf()).map_err(CaError::Leaf)?;
            // A device's line says until when its certificate lasts.
            if let Some(line) = leaf.identity.name.device().and_then(|device| lines.get(&device)) {
                devices.push(Issued { not_after_ms: new.not_after_ms, ..line.clone() });
            }
            serials.insert(leaf.serial);
        }
        let beside =
            ledger::certificates(&self.certificates_path())?.into_iter().filter(|line| line.beside && serials.contains(&line.serial));
        let in_place: Vec<Certificate> = beside.map(|line| Certificate { beside: false, ..line }).collect();
        ledger::append_certificates(&self.certificates_path(), &in_place)?;
        if !devices.is_empty() {
            issued::append(&self.issued_path(), &devices)?;
        }
        Ok(())
    }

    /// Refuses what isn't a certificate of this CA, whatever the time: its chain must lead to one of its roots, now or earlier.
    pub fn check_own(&self, chain: &[CertificateDer<'static>]) -> Result<Leaf, CaError> {
        let (end, between) = chain.split_first().ok_or(CaError::Leaf(LeafError::Missing))?;
        let leaf = read_leaf(end).map_err(CaError::Leaf)?;
        let leaf = check_leaf(end, self.domain(), &Expect::Exactly(leaf.identity.name)).map_err(CaError::Leaf)?;
        let roots = root_store(&self.roots_ever_pem()).map_err(CaError::Roots)?;
        let then = UnixTime::since_unix_epoch(Duration::from_millis(leaf.not_before_ms.unsigned_abs()));
        check_chain(end, between, &roots, leaf.identity.role(), then).map_err(CaError::Chain)?;
        Ok(leaf)
    }

    /// The roots of this CA, those in force and those of earlier times.
    pub fn roots_ever(&self) -> Result<Vec<Fingerprint>, CaError> {
        Fingerprint::of_roots(&self.roots_ever_pem()).map_err(CaError::Roots)
    }

    /// Writes down that what was issued to somebody until now counts no more. The hub must be told, too: it keeps the list that nodes get.
    pub fn revoke(&self, name: &Name, why: &str) -> Result<ledger::Revoked, CaError> {
        let now_ms = self.now_ms()?;
        let revoked = ledger::Revoked { name: name.to_string(), issued_before_ms: now_ms, at_ms: now_ms, why: why.to_owned() };
        ledger::append_revoked(&self.revoked_path(), &revoked)?;
        Ok(revoked)
    }

    /// Everybody with a certificate: those in the hub's report, and those whose certificates were issued into files here.
    pub fn holders(&self, report: Option<&Report>) -> Result<Vec<Holder>, CaError> {
        let reported = report.map(Report::holders).transpose()?.unwrap_or_default();
        Ok(everybody(reported, self.listed()?))
    }

    /// Signs whatever `params` say, right or wrong: this is how tests get bad leaves.
    pub fn sign(&self, params: &LeafParams) -> Result<Signed, CaError> {
        Ok(self.issuer.sign(params)?)
    }

    /// Holders of certificates in files. A device in `issued.jsonl` alone is from before there was a list of certificates.
    fn listed(&self) -> Result<Vec<Holder>, CaError> {
        let devices = self.devices()?;
        let revoked: BTreeMap<String, i64> =
            ledger::revoked(&self.revoked_path())?.into_iter().map(|revoked| (revoked.name, revoked.issued_before_ms)).collect();
        let device = |line: Issued| {
            let name = Name::Agent { site: line.site, device: line.device };
            let denied = revoked.contains_key(&name.to_string());
            let not_after_ms = Some(line.not_after_ms);
            Holder { name, bundle: None, issuer_key: None, serial: None, issued_ms: None, not_after_ms, enrolled: false, denied }
        };
        let certificate = |line: &&Certificate| {
            let denied = revoked.get(&line.name).is_some_and(|before_ms| line.issued_ms <= *before_ms);
            line.holder().map(|holder| Holder { denied, ..holder })
        };
        let certificates = ledger::certificates(&self.certificates_path())?;
        let in_use = ledger::in_use(&certificates);
        let devices = devices.into_iter().map(device).map(|holder| (holder.name.to_string(), vec![holder]));
        let certificates = in_use.iter().map(|(name, lines)| ((*name).to_owned(), lines.iter().filter_map(certificate).collect()));
        let all: BTreeMap<String, Vec<Holder>> = devices.chain(certificates).collect();
        Ok(all.into_values().flatten().collect())
    }

    /// The lines of `issued.jsonl`, none before the first agent.
    fn devices(&self) -> Result<Vec<Issued>, CaError> {
        match issued::read(&self.issued_path()) {
            Ok(devices) => Ok(devices),
            Err(IssuedError::File(FileError::Missing(_))) => Ok(Vec::new()),
            Err(other) => Err(other.into()),
        }
    }

    fn roots_ever_pem(&self) -> String {
        let past = self.state.past.iter().filter(|authority| authority.key == authority.under);
        // The last ones: a roots file has room for so many.
        let before = past.rev().take(ROOTS_MAX / 2).chain([&self.state.root]);
        before.fold(self.roots_pem.clone(), |text, root| if text.contains(&root.pem) { text } else { text + &root.pem })
    }

    fn issue_name(&self, name: Name) -> Result<Signed, CaError> {
        let now_ms = self.now_ms()?;
        let signed = self.issue(name, now_ms)?;
        self.list([&signed].into_iter(), now_ms, false)?;
        Ok(signed)
    }

    fn issue(&self, name: Name, now_ms: i64) -> Result<Signed, CaError> {
        if now_ms > self.issuer.not_after_ms() {
            return Err(CaError::IssuingExpired(self.issuer.not_after_ms()));
        }
        let identity = Identity::new(self.domain(), name.clone())?;
        let signed = self.issuer.issue(&identity, now_ms)?;
        // Nothing is given out that its receivers would refuse.
        let role = identity.role();
        let now = UnixTime::since_unix_epoch(Duration::from_millis(now_ms.unsigned_abs()));
        let between = signed.chain.get(1..).unwrap_or_default();
        check_chain(signed.leaf(), between, &self.roots, role, now).map_err(CaError::Chain)?;
        check_leaf(signed.leaf(), self.domain(), &Expect::Exactly(name)).map_err(CaError::Leaf)?;
        Ok(signed)
    }

    /// Before certificates are given out: what isn't listed would be forgotten at a rotation.
    fn list<'a>(&self, signed: impl Iterator<Item = &'a Signed>, now_ms: i64, beside: bool) -> Result<(), CaError> {
        let mut lines = Vec::new();
        for signed in signed {
            let leaf = read_leaf(signed.leaf()).map_err(CaError::Leaf)?;
            lines.push(Certificate {
                name: leaf.identity.name.to_string(),
                serial: leaf.serial,
                issuer_key: self.state.issuer().key.clone(),
                bundle_version: self.state.bundle,
                issued_ms: now_ms,
                not_after_ms: leaf.not_after_ms,
                beside,
            });
        }
        Ok(ledger::append_certificates(&self.certificates_path(), &lines)?)
    }
}

/// What is in force, and the text of the roots.
fn read_state(dir: &Path) -> Result<(State, String), CaError> {
    let path = dir.join(ROTATION);
    let text = match files::read(&path) {
        Ok(text) => text,
        Err(FileError::Missing(_)) => return first_state(dir),
        Err(other) => return Err(other.into()),
    };
    let wrong = |why: String| CaError::State { path: path.clone(), why };
    let state: State = serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
    if state.version != STATE_VERSION {
        return Err(wrong(format!("it has version {}, and this program knows {STATE_VERSION}", state.version)));
    }
    let new = state.turn.iter().flat_map(|turn| [Some(&turn.issuing), turn.root.as_ref().map(|new| &new.authority)]).flatten();
    for authority in [&state.root, &state.issuing].into_iter().chain(new).chain(&state.past) {
        check_label(&authority.file).map_err(|e| wrong(e.to_string()))?;
    }
    let roots = state.roots_pem();
    Ok((state, roots))
}

/// Of a CA that was never rotated everything lies in its first files.
fn first_state(dir: &Path) -> Result<(State, String), CaError> {
    let issuing = files::read(&dir.join(ISSUING_FOLDER).join(format!("{FIRST_ISSUING}.pem")))?;
    let roots_pem = files::read(&dir.join(ROOTS))?;
    let issuing = authority("issuing CA", FIRST_ISSUING, &issuing)?;
    let roots = root_ders(&roots_pem).map_err(CaError::Roots)?;
    let mut known = Vec::with_capacity(roots.len());
    for (pem, der) in pems(&roots_pem).into_iter().zip(&roots) {
        known.push(authority_of("root", FIRST_ROOT, &pem, der)?);
    }
    let own = known.iter().find(|root| root.key == issuing.under).or_else(|| known.first()).cloned();
    let own = own.ok_or(CaError::Roots(KeysError::NotARoot { number: 1 }))?;
    let mut state = State::first(own, issuing);
    state.bundles = vec![Bundle { version: state.bundle, roots: known.into_iter().map(|root| root.key).collect() }];
    Ok((state, roots_pem))
}

fn authority(what: &'static str, file: &str, pem: &str) -> Result<Authority, CaError> {
    let ders = certificates("CA certificate", pem, 1).map_err(|e| damaged(what, &e))?;
    let der = ders.first().ok_or_else(|| damaged(what, &"it is empty"))?;
    authority_of(what, file, pem, der)
}

fn authority_of(what: &'static str, file: &str, pem: &str, der: &CertificateDer<'_>) -> Result<Authority, CaError> {
    let wrong = |e: LeafError| damaged(what, &e);
    let key = leaf::subject_key(der).map_err(wrong)?.ok_or_else(|| damaged(what, &"it has no key identifier"))?;
    let under = leaf::issuer_key(der).map_err(wrong)?.unwrap_or_else(|| key.clone());
    let not_after_ms = leaf::parse(der).map_err(wrong)?.validity().not_after.timestamp().saturating_mul(1000);
    Ok(Authority { key, under, file: file.to_owned(), not_after_ms, pem: pem.to_owned(), crossed: None })
}

/// The single certificates of a text, as text.
fn pems(text: &str) -> Vec<String> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    text.split(BEGIN).skip(1).map(|rest| format!("{BEGIN}{rest}")).collect()
}

fn put_root(folder: &Path, file: &str, root: &Root) -> Result<(), CaError> {
    files::create_folder(folder)?;
    files::create_secret(&folder.join(format!("{file}.key")), root.key_pem().as_bytes())?;
    Ok(files::create_public(&folder.join(format!("{file}.pem")), root.pem().as_bytes())?)
}

fn put_issuing(dir: &Path, file: &str, issuer: &Issuer) -> Result<(), CaError> {
    let folder = dir.join(ISSUING_FOLDER);
    let key = folder.join(format!("{file}.key"));
    files::create_secret(&key, issuer.key_pem().as_bytes())?;
    files::own_like(&key, &folder)?;
    Ok(files::create_public(&folder.join(format!("{file}.pem")), issuer.pem().as_bytes())?)
}

/// Held while a rotation goes on, so that two commands don't.
fn lock(dir: &Path) -> Result<File, CaError> {
    let path = dir.join(DOMAIN);
    let file = File::open(&path).map_err(|e| files::read_error(&path, e))?;
    file.lock().map_err(|e| files::read_error(&path, e))?;
    Ok(file)
}

fn damaged(what: &'static str, why: &dyn std::fmt::Display) -> CaError {
    CaError::Issuer(IssuerError::Damaged { what, why: why.to_string() })
}

fn now_ms(time: &dyn TimeProvider) -> Result<i64, CaError> {
    let seconds = time.current_time().ok_or(CaError::Clock)?.as_secs();
    i64::try_from(seconds.saturating_mul(1000)).map_err(|_| CaError::Clock)
}
