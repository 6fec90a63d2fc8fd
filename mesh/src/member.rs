//! Blocking: what an enrolled program keeps of itself, in `<state>/member/`, owner only.
//!
//! ```text
//! device.key    the key for life; what else is here may be lost, this not
//! member.json   who it is: certificate and its key, roots, whom to dial; replaced whole, so that nobody ever sees half of a change
//! asked.key     the key of a request that is under way: after a lost answer or a crash the same key is asked for again
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use muster_certs::{
    DeviceKey, Identity, KeyRequest, Keys, KeysError, Name, Role,
    device_key::DeviceKeyError,
    files::{self, FileError},
};
use rustls::time_provider::TimeProvider;
use serde::{Deserialize, Serialize};

use crate::{
    door::{Dial, Issued, Standing},
    seal::SealTo,
};

const FOLDER: &str = "member";
const DEVICE_KEY: &str = "device.key";
const MEMBER: &str = "member.json";
const ASKED_KEY: &str = "asked.key";

/// The folder of an enrolled program, or of one that is about to be.
#[derive(Debug, Clone)]
pub struct Home {
    folder: PathBuf,
}

/// Who an enrolled program is.
#[derive(Clone, PartialEq, Eq)]
pub struct Member {
    pub name: Name,
    pub join_state: u64,
    pub standing: Standing,
    /// Whom it dials: an agent its relays, a relay the hub.
    pub dial: Vec<Dial>,
    pub seal: SealTo,
    chain: String,
    key: String,
    roots: String,
}

/// Why an enrolled program's folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    DeviceKey(#[from] DeviceKeyError),
    #[error("{0} doesn't read: {1}")]
    Unreadable(PathBuf, String),
    #[error("what the hub issued can't be used: {0}")]
    Keys(#[from] KeysError),
    #[error("the hub issued a certificate of {found}, and {wanted} was asked for")]
    Other { found: String, wanted: String },
    #[error("no key can be made: {0}")]
    NoKey(String),
}

impl Home {
    /// Below a program's state folder.
    pub fn of(state: &Path) -> Home {
        Home { folder: state.join(FOLDER) }
    }

    /// Who it is. None: it was never enrolled.
    pub fn member(&self) -> Result<Option<Member>, MemberError> {
        let path = self.folder.join(MEMBER);
        match files::read_secret(&path) {
            Ok(text) => Member::read(&text).map(Some).map_err(|why| MemberError::Unreadable(path, why)),
            Err(FileError::Missing(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The key for life; made when it isn't there.
    pub fn device_key(&self) -> Result<DeviceKey, MemberError> {
        files::create_folder(&self.folder)?;
        Ok(DeviceKey::open(&self.folder.join(DEVICE_KEY))?)
    }

    /// The request that is under way, or a new one. Its key lies on the disk before anyone is asked: the hub answers one key always alike.
    pub fn request(&self) -> Result<KeyRequest, MemberError> {
        let path = self.folder.join(ASKED_KEY);
        let no_key = |error: muster_certs::IssuerError| MemberError::NoKey(error.to_string());
        match files::read_secret(&path) {
            // One that was damaged was never answered either, or it would be in `member.json`.
            Ok(pem) if KeyRequest::of_pem(&pem).is_ok() => KeyRequest::of_pem(&pem).map_err(no_key),
            Ok(_) | Err(FileError::Missing(_)) => {
                let made = KeyRequest::generate().map_err(no_key)?;
                files::create_folder(&self.folder)?;
                files::write_secret(&path, made.key_pem.as_bytes())?;
                Ok(made)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Takes what was issued for `request`, after looking at all of it: the chain leads to the roots, is that key's, and names who was meant.
    /// `wanted`: who it was before, if it was anyone.
    pub fn joined(
        &self,
        issued: &Issued,
        request: &KeyRequest,
        role: Role,
        wanted: Option<&Identity>,
        time: Arc<dyn TimeProvider>,
    ) -> Result<Member, MemberError> {
        let keys = Keys::from_pem(&issued.chain, &request.key_pem, &issued.roots, role, time)?;
        let found = keys.identity();
        if wanted.is_some_and(|wanted| *wanted != found) || issued.name().as_ref() != Some(&found.name) {
            let wanted = wanted.map_or_else(|| issued.name.clone(), ToString::to_string);
            return Err(MemberError::Other { found: found.to_string(), wanted });
        }
        let member = Member {
            name: found.name,
            join_state: issued.join_state,
            standing: issued.standing,
            dial: issued.dial.clone(),
            seal: SealTo(issued.seal),
            chain: issued.chain.clone(),
            key: request.key_pem.clone(),
            roots: issued.roots.clone(),
        };
        self.keep(&member)?;
        Ok(member)
    }

    fn keep(&self, member: &Member) -> Result<(), MemberError> {
        let path = self.folder.join(MEMBER);
        let text = member.text().map_err(|why| MemberError::Unreadable(path.clone(), why))?;
        files::write_secret(&path, text.as_bytes())?;
        // From here on the key is the member's: a request after this one gets a key of its own.
        match fs::remove_file(self.folder.join(ASKED_KEY)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(FileError::Write { path: self.folder.join(ASKED_KEY), error }.into())
            }
            _ => Ok(files::sync_folder_of(&path)?),
        }
    }
}

impl Member {
    /// What its connections are made with.
    pub fn keys(&self, time: Arc<dyn TimeProvider>) -> Result<Arc<Keys>, KeysError> {
        Keys::from_pem(&self.chain, &self.key, &self.roots, self.name.role(), time)
    }

    /// Puts the newest certificate and roots into keys that are in use.
    pub fn renew(&self, keys: &Keys) -> Result<(), KeysError> {
        keys.replace_pem(&self.chain, &self.key, &self.roots)
    }

    /// The request under which its present certificate was issued: brought again, it changes nothing, and is answered with the present standing.
    pub fn same_request(&self) -> Result<KeyRequest, MemberError> {
        KeyRequest::of_pem(&self.key).map_err(|error| MemberError::NoKey(error.to_string()))
    }

    fn read(text: &str) -> Result<Member, String> {
        let file: File = serde_json::from_str(text).map_err(|error| error.to_string())?;
        Ok(Member {
            name: file.name.parse().map_err(|error: muster_certs::IdentityError| error.to_string())?,
            join_state: file.join_state,
            standing: if file.approved { Standing::Approved } else { Standing::Waiting },
            dial: file.dial.into_iter().map(|DialFile { address, door, name }| Dial { address, door, name }).collect(),
            seal: SealTo(hex_32(&file.seal).ok_or("`seal` is no key of 64 hex digits")?),
            chain: file.chain,
            key: file.key,
            roots: file.roots,
        })
    }

    fn text(&self) -> Result<String, String> {
        let dial = self.dial.iter().cloned().map(|Dial { address, door, name }| DialFile { address, door, name }).collect();
        let file = File {
            name: self.name.to_string(),
            join_state: self.join_state,
            approved: self.standing == Standing::Approved,
            dial,
            seal: format!("{:?}", self.seal),
            chain: self.chain.clone(),
            key: self.key.clone(),
            roots: self.roots.clone(),
        };
        serde_json::to_string_pretty(&file).map(|text| text + "\n").map_err(|error| error.to_string())
    }
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key stays out.
        f.debug_struct("Member").field("name", &self.name).field("standing", &self.standing).finish_non_exhaustive()
    }
}

#[derive(Serialize, Deserialize)]
struct File {
    name: String,
    join_state: u64,
    approved: bool,
    dial: Vec<DialFile>,
    /// The hub's sealing key, hex.
    seal: String,
    /// PEM, as are the next two.
    chain: String,
    key: String,
    roots: String,
}

#[derive(Serialize, Deserialize)]
struct DialFile {
    address: String,
    door: String,
    name: String,
}

fn hex_32(text: &str) -> Option<[u8; 32]> {
    let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).ok()?;
    bytes.try_into().ok()
}

#[cfg(test)]
mod tests {
    use muster_certs::{Issuer, Requested, Root, SystemTime};

    use super::*;
    use crate::clock::{Clock, SystemClock};

    const NAME: &str = "site/oslo/agent/0190b7e8c4d27d30a5f1c2d3e4f50617";

    #[test]
    fn what_was_issued_is_kept_whole_and_read_back() {
        let (folder, hub) = (tempfile::tempdir().unwrap(), Ca::new());
        let home = Home::of(folder.path());
        assert_eq!(home.member().unwrap(), None);
        let request = home.request().unwrap();
        let member = home.joined(&hub.issue(NAME, &request), &request, Role::Agent, None, time()).unwrap();
        assert_eq!(home.member().unwrap(), Some(member.clone()));
        assert_eq!(member.keys(time()).unwrap().identity().name.to_string(), NAME);
        assert_ne!(home.request().unwrap().key_pem, request.key_pem, "the next request has a key of its own");
        assert_eq!(Requested::read(&member.same_request().unwrap().request).unwrap().public_key(), public(&request));
    }

    #[test]
    fn after_a_lost_answer_the_same_key_is_asked_for_again() {
        let folder = tempfile::tempdir().unwrap();
        let first = Home::of(folder.path()).request().unwrap();
        assert_eq!(public(&Home::of(folder.path()).request().unwrap()), public(&first));
        assert_eq!(Home::of(folder.path()).device_key().unwrap().public(), Home::of(folder.path()).device_key().unwrap().public());
    }

    #[test]
    fn what_does_not_fit_is_refused_and_the_old_stays() {
        let (folder, hub, other) = (tempfile::tempdir().unwrap(), Ca::new(), Ca::new());
        let home = Home::of(folder.path());
        let request = home.request().unwrap();
        let member = home.joined(&hub.issue(NAME, &request), &request, Role::Agent, None, time()).unwrap();
        let identity = member.keys(time()).unwrap().identity();
        let request = home.request().unwrap();
        let good = hub.issue(NAME, &request);
        let foreign = other.issue(NAME, &request);
        let somebody = hub.issue("site/oslo/agent/0190b7e8c4d27d30a5f1c2d3e4f50618", &request);
        let another_key = hub.issue(NAME, &KeyRequest::generate().unwrap());
        let relay = hub.issue("site/oslo/relay/oslo-1", &request);
        for (what, bad) in [
            ("roots of another mesh", Issued { roots: foreign.roots, ..good.clone() }),
            ("another name", somebody),
            ("another key", another_key),
            ("another role", relay),
            ("rubbish", Issued { chain: "rubbish".to_owned(), ..good.clone() }),
            ("a name beside the certificate's", Issued { name: "site/oslo/relay/oslo-1".to_owned(), ..good.clone() }),
        ] {
            assert!(home.joined(&bad, &request, Role::Agent, Some(&identity), time()).is_err(), "{what}");
            assert_eq!(home.member().unwrap(), Some(member.clone()), "{what}");
        }
        assert!(home.joined(&good, &request, Role::Agent, Some(&identity), time()).is_ok());
    }

    #[test]
    fn a_damaged_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(FOLDER)).unwrap();
        files::write_secret(&folder.path().join(FOLDER).join(MEMBER), b"{}").unwrap();
        assert!(Home::of(folder.path()).member().unwrap_err().to_string().contains("member.json"));
    }

    struct Ca {
        root: Root,
        issuer: Issuer,
    }

    impl Ca {
        fn new() -> Ca {
            let (root, issuer) = Issuer::in_memory("test.internal", now_ms()).unwrap();
            Ca { root, issuer }
        }

        fn issue(&self, name: &str, request: &KeyRequest) -> Issued {
            let identity = Identity::new("test.internal", name.parse().unwrap()).unwrap();
            let chain = self.issuer.issue_for(&identity, &Requested::read(&request.request).unwrap(), 60_000, now_ms()).unwrap();
            Issued {
                name: name.to_owned(),
                chain: chain.pem,
                roots: self.root.pem().to_owned(),
                join_state: 1,
                standing: Standing::Waiting,
                dial: vec![Dial { address: "a:1".into(), door: "a:2".into(), name: "site/oslo/relay/oslo-1".into() }],
                seal: [7; 32],
            }
        }
    }

    fn public(request: &KeyRequest) -> Vec<u8> {
        Requested::read(&request.request).unwrap().public_key()
    }

    fn now_ms() -> i64 {
        SystemClock::new().now().wall_ms
    }

    fn time() -> Arc<dyn TimeProvider> {
        Arc::new(SystemTime)
    }
}
