//! Blocking: a CA in a folder.
//!
//! ```text
//! muster-ca/
//!   domain            the trust domain, one line; written last, so it marks a finished CA
//!   roots.pem         roots only: every node gets a copy
//!   issued.jsonl      which device was issued to whom
//!   issuing/          issuing.pem, issuing.key: what issuing needs
//!   root/             root.pem, root.key: take this folder offline
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::RootCertStore;
use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;
use uuid::Uuid;

use crate::chain::{ChainError, check_chain};
use crate::files::{self, FileError};
use crate::identity::{Identity, IdentityError, Name, check_domain};
use crate::issued::{self, Issued, IssuedError};
use crate::issuer::{Issuer, IssuerError, LeafParams, Signed};
use crate::keys::SystemTime;
use crate::leaf::{Expect, LeafError, check_leaf};
use crate::material::{KeysError, root_store, utc_text};

const DOMAIN: &str = "domain";
const ROOTS: &str = "roots.pem";
const ISSUED: &str = "issued.jsonl";
const ROOT_FOLDER: &str = "root";
const ISSUING_FOLDER: &str = "issuing";

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
    /// The issuing CA has ended.
    #[error("the issuing CA expired on {}; a new one must be made with the root key", utc_text(*.0))]
    IssuingExpired(i64),
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

/// A CA whose issuing key is at hand. The root key is only touched by [`Ca::init`].
#[derive(Debug)]
pub struct Ca {
    dir: PathBuf,
    issuer: Issuer,
    roots_pem: String,
    roots: RootCertStore,
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

impl Ca {
    /// Makes a root and an issuing CA for `domain` in `dir`, which is made if it isn't there.
    /// Refuses a folder that already holds anything of a CA.
    pub fn init(dir: &Path, domain: &str) -> Result<Ca, CaError> {
        check_domain(domain)?;
        let ours = [DOMAIN, ROOTS, ISSUED, ROOT_FOLDER, ISSUING_FOLDER];
        if ours.iter().any(|name| dir.join(name).exists()) {
            return Err(CaError::Exists(dir.to_owned()));
        }
        let (root, issuer) = Issuer::in_memory(domain, now_ms()?)?;

        let root_dir = dir.join(ROOT_FOLDER);
        let issuing_dir = dir.join(ISSUING_FOLDER);
        files::create_folder(&root_dir)?;
        files::create_folder(&issuing_dir)?;
        files::create_secret(&root_dir.join("root.key"), root.key_pem().as_bytes())?;
        files::create_public(&root_dir.join("root.pem"), root.pem().as_bytes())?;
        let issuing = issuing_dir.join("issuing");
        let issuing_key = issuer.key_pem();
        files::create_secret(&issuing.with_extension("key"), issuing_key.as_bytes())?;
        files::create_public(&issuing.with_extension("pem"), issuer.pem().as_bytes())?;
        files::create_public(&dir.join(ROOTS), root.pem().as_bytes())?;
        files::create_public(&dir.join(DOMAIN), format!("{domain}\n").as_bytes())?;
        Ca::open(dir)
    }

    /// Opens a CA. The folder `root/` may be away.
    pub fn open(dir: &Path) -> Result<Ca, CaError> {
        let domain = match files::read(&dir.join(DOMAIN)) {
            Ok(text) => text.trim_end().to_owned(),
            Err(FileError::Missing(_)) => return Err(CaError::Missing(dir.to_owned())),
            Err(other) => return Err(other.into()),
        };
        let issuing = dir.join(ISSUING_FOLDER).join("issuing");
        let pem = files::read(&issuing.with_extension("pem"))?;
        let key_pem = files::read_secret(&issuing.with_extension("key"))?;
        let roots_pem = files::read(&dir.join(ROOTS))?;
        let roots = root_store(&roots_pem).map_err(CaError::Roots)?;
        Ok(Ca { dir: dir.to_owned(), issuer: Issuer::from_pem(&domain, &pem, &key_pem)?, roots_pem, roots })
    }

    /// What issues, and the text of `roots.pem`.
    pub fn into_parts(self) -> (Issuer, String) {
        (self.issuer, self.roots_pem)
    }

    /// The trust domain.
    pub fn domain(&self) -> &str {
        self.issuer.domain()
    }

    /// The text of `roots.pem`.
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

    /// End of the issuing CA, milliseconds UTC. No leaf outlives it.
    pub fn not_after_ms(&self) -> i64 {
        self.issuer.not_after_ms()
    }

    /// A certificate for a hub.
    pub fn issue_hub(&self, id: &str) -> Result<Signed, CaError> {
        self.issue(Name::Hub { id: id.to_owned() }, now_ms()?)
    }

    /// A certificate for a relay.
    pub fn issue_relay(&self, site: &str, id: &str) -> Result<Signed, CaError> {
        let (site, id) = (site.to_owned(), id.to_owned());
        self.issue(Name::Relay { site, id }, now_ms()?)
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
        let now_ms = now_ms()?;
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
        let entries: Vec<Issued> = made.iter().map(|agent| agent.entry.clone()).collect();
        issued::append(&self.issued_path(), &entries)?;
        Ok(made)
    }

    /// A control certificate: its key signs what comes down; it is never used on a connection.
    pub fn issue_control(&self, n: u32) -> Result<Signed, CaError> {
        self.issue(Name::Control { n }, now_ms()?)
    }

    /// Signs whatever `params` say, right or wrong: this is how tests get bad leaves.
    pub fn sign(&self, params: &LeafParams) -> Result<Signed, CaError> {
        Ok(self.issuer.sign(params)?)
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
}

fn now_ms() -> Result<i64, CaError> {
    let seconds = SystemTime.current_time().ok_or(CaError::Clock)?.as_secs();
    i64::try_from(seconds.saturating_mul(1000)).map_err(|_| CaError::Clock)
}
