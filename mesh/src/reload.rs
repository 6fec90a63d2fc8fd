//! Async: certificates that lie in files, looked at again while a program runs: every half minute and on SIGHUP. New files are taken when they
//! pass every check, and connections go on; files that don't pass are refused aloud, once per change, and what was in use stays.
//!
//! Three files can't be replaced at one stroke. What doesn't fit is therefore left alone until it has stood unchanged for one whole look.

use std::{fs, os::unix::fs::MetadataExt, path::Path, path::PathBuf, sync::Arc, time::Duration};

use muster_certs::{Keys, Reloaded, WebKeys, material::utc_text};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::Notify,
    task::spawn_blocking,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

/// Soon enough for who copies files and waits; three stamps are read for it.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// What is in use, and the files that it came from.
#[derive(Debug, Clone)]
pub enum Kept {
    Node { keys: Arc<Keys>, certificate: PathBuf, key: PathBuf, roots: PathBuf },
    Web { keys: Arc<WebKeys>, certificate: PathBuf, key: PathBuf },
}

/// What one look came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Looked {
    /// The files are as they were, or hold what is in use.
    Same,
    /// What they hold is in use from now on.
    Taken,
    /// They don't fit, and may be half of a change.
    Unfit,
    /// They don't fit: why.
    Refused(String),
    /// They don't fit, and that was said.
    StillRefused,
}

/// Keeps one set of files and what is in use together. One task per set.
#[derive(Debug)]
pub struct Reloading {
    kept: Kept,
    /// As the files stood when they held what is in use.
    good: Option<Stamps>,
    /// As they stood at the last look at which they didn't fit.
    unfit: Option<Stamps>,
    told: Option<(Stamps, String)>,
}

impl Reloading {
    pub fn new(kept: Kept) -> Reloading {
        // Nothing is taken for seen: the files may have changed since they were loaded.
        Reloading { kept, good: None, unfit: None, told: None }
    }

    /// Looks until `stop`; also at each SIGHUP, which then doesn't end this process.
    pub async fn run(self, stop: CancellationToken) {
        let hangup = signal(SignalKind::hangup());
        if let Err(error) = &hangup {
            tracing::warn!(%error, "SIGHUP can't be heard: changed certificates are noticed within 30 s all the same");
        }
        self.look_on(hangup.ok(), stop).await;
    }

    /// [`run`](Self::run), for a program to which SIGHUP says something else.
    pub async fn run_without_hangup(self, stop: CancellationToken) {
        self.look_on(None, stop).await;
    }

    async fn look_on(mut self, mut hangup: Option<Signal>, stop: CancellationToken) {
        self.kept.count("reloaded", 0);
        self.kept.count("refused", 0);
        loop {
            let asked = tokio::select! {
                () = stop.cancelled() => return,
                () = hung_up(&mut hangup) => true,
                () = sleep(LOOK_EVERY) => false,
            };
            let looking = spawn_blocking(move || {
                let looked = self.look(asked);
                self.tell(&looked, asked);
                self
            });
            match looking.await {
                Ok(back) => self = back,
                Err(error) => {
                    return tracing::error!(%error, "changed certificates aren't noticed any more: restart this program to take them");
                }
            }
        }
    }

    /// One look. `asked`: by somebody who wants to hear now what is wrong.
    pub fn look(&mut self, asked: bool) -> Looked {
        // Read before the files: what changes meanwhile is seen at the next look.
        let stamps = self.kept.stamps();
        if !asked && self.good.as_ref() == Some(&stamps) {
            return Looked::Same;
        }
        match self.kept.reload() {
            Ok(reloaded) => {
                (self.good, self.unfit, self.told) = (Some(stamps), None, None);
                match reloaded {
                    Reloaded::Same => Looked::Same,
                    Reloaded::Taken => Looked::Taken,
                }
            }
            Err(why) => self.unfit(stamps, why, asked),
        }
    }

    fn unfit(&mut self, stamps: Stamps, why: String, asked: bool) -> Looked {
        let stood = self.unfit.replace(stamps.clone()).as_ref() == Some(&stamps);
        let now = (stamps, why);
        // Looked at again all the same: a certificate of tomorrow fits tomorrow.
        if !asked && self.told.as_ref() == Some(&now) {
            return Looked::StillRefused;
        }
        if !asked && !stood {
            return Looked::Unfit;
        }
        let why = now.1.clone();
        self.told = Some(now);
        Looked::Refused(why)
    }

    fn tell(&self, looked: &Looked, asked: bool) {
        let (what, refused) = (self.kept.role(), self.told.is_some());
        match looked {
            Looked::Same if asked => tracing::info!(what, "the files hold the certificate that is in use"),
            Looked::Same | Looked::Unfit | Looked::StillRefused => {}
            Looked::Taken => {
                tracing::info!(what, until = utc_text(self.kept.not_after_ms()), "a new certificate was taken from its files");
                self.kept.count("reloaded", 1);
            }
            Looked::Refused(why) => {
                tracing::error!(what, "the changed certificate files are refused, and what was in use stays: {why}");
                self.kept.count("refused", 1);
            }
        }
        metrics::gauge!("muster_cert_files_refused", "role" => what).set(if refused { 1.0 } else { 0.0 });
    }
}

impl Kept {
    fn files(&self) -> Vec<&Path> {
        match self {
            Kept::Node { certificate, key, roots, .. } => vec![certificate, key, roots],
            Kept::Web { certificate, key, .. } => vec![certificate, key],
        }
    }

    fn reload(&self) -> Result<Reloaded, String> {
        match self {
            Kept::Node { keys, certificate, key, roots } => keys.reload(certificate, key, roots).map_err(|error| error.to_string()),
            Kept::Web { keys, certificate, key } => keys.reload(certificate, key).map_err(|error| error.to_string()),
        }
    }

    fn role(&self) -> &'static str {
        match self {
            Kept::Node { keys, .. } => keys.role().as_str(),
            Kept::Web { .. } => "web",
        }
    }

    fn not_after_ms(&self) -> i64 {
        match self {
            Kept::Node { keys, .. } => keys.not_after_ms(),
            Kept::Web { keys, .. } => keys.not_after_ms(),
        }
    }

    fn stamps(&self) -> Stamps {
        Stamps(self.files().into_iter().map(Stamp::of).collect())
    }

    fn count(&self, outcome: &'static str, times: u64) {
        metrics::counter!("muster_cert_reloads_total", "role" => self.role(), "outcome" => outcome).increment(times);
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamps(Vec<Option<Stamp>>);

/// What differs when a file was written, replaced, or made readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// None: there is no such file, or nobody can look at it.
    fn of(path: &Path) -> Option<Stamp> {
        let found = fs::metadata(path).ok()?;
        Some(Stamp {
            device: found.dev(),
            inode: found.ino(),
            bytes: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }
}

/// For a program that was enrolled and has no such files: SIGHUP has its renewal look at once, and doesn't end it.
pub async fn wake_at_hangup(wake: Arc<Notify>, stop: CancellationToken) {
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => Some(hangup),
        Err(error) => return tracing::warn!(%error, "SIGHUP can't be heard: it ends this program"),
    };
    while stop.run_until_cancelled(hung_up(&mut hangup)).await.is_some() {
        wake.notify_one();
    }
}

async fn hung_up(hangup: &mut Option<Signal>) {
    let heard = match hangup {
        Some(hangup) => hangup.recv().await,
        None => None,
    };
    // None comes when no signal will ever come again.
    if heard.is_none() {
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use bytes::Bytes;
    use muster_certs::{Identity, Issuer, LeafParams, Root, Signed, SystemTime, files, read_leaf};
    use tokio::time::timeout;

    use super::*;
    use crate::{
        clock::{Clock, SystemClock},
        quic::{Client, Connection, Server},
    };

    const RELAY: &str = "site/oslo/relay/oslo-1";
    const AGENT: &str = "site/oslo/agent/0190b7e8c4d27d30a5f1c2d3e4f50617";
    const DAY_MS: i64 = 86_400_000;
    const SOON: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn new_connections_see_the_new_certificate_and_the_old_connection_goes_on() {
        let (ca, relay) = (Ca::new(), Node::new(RELAY));
        relay.put(&ca.sign(RELAY, 0), ca.root.pem());
        let keys = relay.load();
        let mut reloading = relay.reloading(&keys);
        let first = keys.leaf().serial;
        let mut door = Door::open(&keys);
        let (agent, at_relay) = door.meet(&ca).await;
        assert_eq!(reloading.look(false), Looked::Same);

        let renewed = ca.sign(RELAY, 60_000);
        relay.put(&renewed, ca.root.pem());
        assert_eq!(reloading.look(false), Looked::Taken);
        assert_ne!(keys.leaf().serial, first);
        let (newer, _at_relay) = door.meet(&ca).await;
        assert_eq!((serial(&agent), serial(&newer)), (first, keys.leaf().serial));
        assert_eq!((agent.ended(), at_relay.ended()), (None, None));
        says_hello(&agent, &at_relay).await;
        assert_eq!(reloading.look(false), Looked::Same);
    }

    #[tokio::test]
    async fn each_kind_of_bad_file_is_refused_once_and_what_was_in_use_stays() {
        let (ca, other) = (Ca::new(), Ca::new());
        let good = ca.sign(RELAY, 0);
        let foreign = other.sign(RELAY, 0);
        let strange = |name: &str, after_ms: i64| ca.sign(name, after_ms);
        type Change = Box<dyn Fn(&Node)>;
        let put = |signed: Signed, roots: String| -> Change { Box::new(move |node| node.put(&signed, &roots)) };
        let root = || ca.root.pem().to_owned();
        let changes: [(&str, Change, &str); 11] = [
            ("another relay's", put(strange("site/oslo/relay/oslo-2", 0), root()), "restart it to change who it is"),
            ("an agent's", put(strange(AGENT, 0), root()), "expected here: relay"),
            ("one that has ended", put(strange(RELAY, -20 * DAY_MS), root()), "expired"),
            ("one that hasn't begun", put(strange(RELAY, DAY_MS), root()), "valid only from"),
            ("another mesh's, with its roots", put(other.sign(RELAY, 0), other.root.pem().to_owned()), "of another mesh"),
            ("another mesh's, without its roots", put(other.sign(RELAY, 0), root()), "none of the given roots"),
            ("another key", Box::new(move |node: &Node| node.put_key(&foreign.key_pem)), "does not belong"),
            ("rubbish", Box::new(|node: &Node| fs::write(&node.certificate, "rubbish").unwrap()), "no BEGIN CERTIFICATE"),
            ("no roots", Box::new(|node: &Node| fs::remove_file(&node.roots).unwrap()), "does not exist"),
            ("a leaf as root", Box::new(|node: &Node| assert!(fs::copy(&node.certificate, &node.roots).is_ok())), "is not a root"),
            (
                "a key for everybody",
                Box::new(|node: &Node| fs::set_permissions(&node.key, fs::Permissions::from_mode(0o644)).unwrap()),
                "chmod 600",
            ),
        ];
        for (what, change, said) in changes {
            let node = Node::new(RELAY);
            node.put(&good, ca.root.pem());
            let keys = node.load();
            let mut reloading = node.reloading(&keys);
            let before = keys.leaf();
            assert_eq!(reloading.look(false), Looked::Same, "{what}");
            change(&node);
            assert_eq!(reloading.look(false), Looked::Unfit, "{what}: it may be half of a change");
            let Looked::Refused(why) = reloading.look(false) else { panic!("{what} isn't refused") };
            assert!(why.contains(said) && !why.contains('\n'), "{what}: {why}");
            assert_eq!(reloading.look(false), Looked::StillRefused, "{what}: it is said once");
            assert_eq!(reloading.look(true), Looked::Refused(why), "{what}: who asks hears it");
            assert_eq!(keys.leaf(), before, "{what}");
            let mut door = Door::open(&keys);
            assert_eq!(serial(&door.meet(&ca).await.0), before.serial, "{what}");
            node.put(&ca.sign(RELAY, 60_000), ca.root.pem());
            assert_eq!(reloading.look(false), Looked::Taken, "{what}: a good one is taken after it");
        }
    }

    #[test]
    fn half_of_a_change_is_waited_for_and_never_told() {
        let (ca, node) = (Ca::new(), Node::new(RELAY));
        node.put(&ca.sign(RELAY, 0), ca.root.pem());
        let keys = node.load();
        let mut reloading = node.reloading(&keys);
        assert_eq!(reloading.look(false), Looked::Same);
        let (renewed, again) = (ca.sign(RELAY, 60_000), ca.sign(RELAY, 120_000));
        node.put_key(&renewed.key_pem);
        assert_eq!(reloading.look(false), Looked::Unfit);
        // Somebody is still at it: no look finds the same files twice.
        node.put_key(&again.key_pem);
        assert_eq!(reloading.look(false), Looked::Unfit);
        files::write_public(&node.certificate, again.pem.as_bytes()).unwrap();
        assert_eq!(reloading.look(false), Looked::Taken);
        assert_eq!(keys.leaf().serial, read_leaf(again.leaf()).unwrap().serial);
    }

    #[test]
    fn roots_that_come_beside_the_old_ones_are_taken_and_then_the_old_may_go() {
        let (old, new, node) = (Ca::new(), Ca::new(), Node::new(RELAY));
        node.put(&old.sign(RELAY, 0), old.root.pem());
        let keys = node.load();
        let mut reloading = node.reloading(&keys);
        node.put(&old.sign(RELAY, 0), &format!("{}{}", old.root.pem(), new.root.pem()));
        assert_eq!(reloading.look(false), Looked::Taken);
        node.put(&new.sign(RELAY, 0), new.root.pem());
        assert_eq!(reloading.look(false), Looked::Taken);
        assert_eq!(keys.roots_pem(), new.root.pem());
    }

    /// The signal is the whole process': what else looks here looks once more, and that is all.
    #[tokio::test]
    async fn a_hangup_is_a_look_and_no_end() {
        let (ca, node) = (Ca::new(), Node::new(RELAY));
        node.put(&ca.sign(RELAY, 0), ca.root.pem());
        let keys = node.load();
        let first = keys.leaf().serial;
        let stop = CancellationToken::new();
        let running = tokio::spawn(node.reloading(&keys).run(stop.clone()));
        // From here on a hangup ends nobody, whether or not the task has begun.
        let _heard = signal(SignalKind::hangup()).unwrap();
        node.put(&ca.sign(RELAY, 60_000), ca.root.pem());
        let taken = async {
            while keys.leaf().serial == first {
                rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::HUP).unwrap();
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(SOON, taken).await.unwrap();
        stop.cancel();
        running.await.unwrap();
    }

    // --- a node and its files ---

    struct Node {
        certificate: PathBuf,
        key: PathBuf,
        roots: PathBuf,
        name: &'static str,
        _folder: tempfile::TempDir,
    }

    impl Node {
        fn new(name: &'static str) -> Node {
            let folder = tempfile::tempdir().unwrap();
            let at = |name: &str| folder.path().join(name);
            Node { certificate: at("node.pem"), key: at("node.key"), roots: at("roots.pem"), name, _folder: folder }
        }

        fn put(&self, signed: &Signed, roots: &str) {
            self.put_key(&signed.key_pem);
            files::write_public(&self.certificate, signed.pem.as_bytes()).unwrap();
            files::write_public(&self.roots, roots.as_bytes()).unwrap();
        }

        fn put_key(&self, pem: &str) {
            files::write_secret(&self.key, pem.as_bytes()).unwrap();
        }

        fn load(&self) -> Arc<Keys> {
            let role = self.name.parse::<muster_certs::Name>().unwrap().role();
            Keys::load(&self.certificate, &self.key, &self.roots, role, Arc::new(SystemTime)).unwrap()
        }

        fn reloading(&self, keys: &Arc<Keys>) -> Reloading {
            let Node { certificate, key, roots, .. } = self;
            let (keys, certificate, key, roots) = (keys.clone(), certificate.clone(), key.clone(), roots.clone());
            Reloading::new(Kept::Node { keys, certificate, key, roots })
        }
    }

    struct Ca {
        root: Root,
        issuer: Issuer,
    }

    impl Ca {
        fn new() -> Ca {
            let (root, issuer) = Issuer::in_memory("test.internal", now_ms() - 30 * DAY_MS).unwrap();
            Ca { root, issuer }
        }

        /// As if issued so long from now.
        fn sign(&self, name: &str, after_ms: i64) -> Signed {
            let identity = Identity::new("test.internal", name.parse().unwrap()).unwrap();
            self.issuer.sign(&LeafParams::of(&identity, now_ms() + after_ms)).unwrap()
        }
    }

    fn now_ms() -> i64 {
        SystemClock::new().now().wall_ms
    }

    // --- a relay's door on loopback ---

    struct Door {
        server: Server,
    }

    impl Door {
        fn open(keys: &Arc<Keys>) -> Door {
            Door { server: Server::bind("127.0.0.1:0".parse().unwrap(), keys).unwrap() }
        }

        /// A new connection, at both ends.
        async fn meet(&mut self, ca: &Ca) -> (Connection, Connection) {
            let agent = Node::new(AGENT);
            agent.put(&ca.sign(AGENT, 0), ca.root.pem());
            let (client, address, relay) = (Client::new(&agent.load()), self.server.address().to_string(), RELAY.parse().unwrap());
            let (agent, relay) = tokio::join!(client.connect(&address, &relay, SOON), async {
                let incoming = timeout(SOON, self.server.accept()).await.unwrap().unwrap();
                incoming.handshake().await.unwrap()
            });
            (agent.unwrap(), relay)
        }
    }

    /// Of who answered.
    fn serial(agent: &Connection) -> String {
        agent.peer().leaf.serial.clone()
    }

    async fn says_hello(agent: &Connection, relay: &Connection) {
        let (mut up, _down) = agent.open_control().await.unwrap();
        up.send(Bytes::from_static(b"\x05\0\0\0hello")).await.unwrap();
        let (_back, mut arriving) = timeout(SOON, relay.accept_control()).await.unwrap().unwrap();
        assert_eq!(timeout(SOON, arriving.receive()).await.unwrap().unwrap().unwrap(), "hello");
    }
}
