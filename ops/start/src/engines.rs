//! Blocking: where the hub of a mesh keeps rows and pictures: below the mesh's folder, unless it was told otherwise. What it was told is
//! remembered in `engines.toml`, so that the next start and `--check` look at the same place.

use std::path::Path;

use muster_certs::files;
use muster_mesh::complaint::Complaint;
use serde::{Deserialize, Serialize};

use crate::mesh::{self, Node};

pub const ENGINES: &str = "engines.toml";

/// As the hub's configuration names them. None: SQLite, or a folder, below the hub's own folder.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Engines {
    /// `sqlite:///folder/file`, `postgres://user@host/database`
    pub store: Option<String>,
    /// A folder, or `s3://bucket/prefix`
    pub objects: Option<String>,
}

impl Engines {
    /// What the mesh in `folder` was told.
    pub fn of(folder: &Path) -> Result<Engines, Complaint> {
        let path = folder.join(ENGINES);
        if !path.exists() {
            return Ok(Engines::default());
        }
        let text = files::read(&path).map_err(|error| unusable(&path, &error.to_string()))?;
        toml::from_str(&text).map_err(|error| unusable(&path, &error.to_string()))
    }

    /// Takes what isn't said from what the mesh in `folder` was told, and remembers it there. A mesh never changes its engines: its hub would
    /// look as if it had lost everything.
    pub fn settle(self, folder: &Path) -> Result<Engines, Complaint> {
        let earlier = Engines::of(folder)?;
        let is_new = !mesh::folder_of(folder, &Node::Hub).exists();
        let differs = |said: &Option<String>, before: &Option<String>| said.is_some() && said != before;
        if !is_new && (differs(&self.store, &earlier.store) || differs(&self.objects, &earlier.objects)) {
            let what = format!("what lies in {} has another store, or another place for pictures, than was named now", folder.display());
            return Err(Complaint::new(what, "Name none, to go on with those, or start empty with --fresh"));
        }
        let settled = Engines { store: self.store.or(earlier.store), objects: self.objects.or(earlier.objects) };
        if settled != Engines::default() {
            let path = folder.join(ENGINES);
            let text = toml::to_string(&settled).map_err(|error| unusable(&path, &error.to_string()))?;
            // A URL may hold a password.
            files::write_secret(&path, text.as_bytes()).map_err(|error| unusable(&path, &error.to_string()))?;
        }
        Ok(settled)
    }

    pub fn store_url(&self, folder: &Path) -> String {
        self.store.clone().unwrap_or_else(|| format!("sqlite://{}", mesh::database_of(folder).display()))
    }

    pub fn objects(&self, folder: &Path) -> String {
        self.objects.clone().unwrap_or_else(|| mesh::folder_of(folder, &Node::Hub).join("objects").display().to_string())
    }

    /// `serve` brings a database of its own to its version by itself, a server's only when it is told.
    pub fn wants_migrate(&self) -> bool {
        self.store.as_ref().is_some_and(|url| url.starts_with("postgres"))
    }
}

fn unusable(path: &Path, why: &str) -> Complaint {
    Complaint::new(format!("{} can't be used: {why}", path.display()), "Put it right, or start empty with --fresh")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn postgres() -> Engines {
        Engines { store: Some("postgres://muster:secret@127.0.0.1/muster".into()), objects: Some("s3://bucket/muster".into()) }
    }

    #[test]
    fn what_was_told_once_holds_until_a_fresh_start() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path();
        assert_eq!(postgres().settle(folder).unwrap(), postgres());
        std::fs::create_dir(folder.join("hub")).unwrap();
        assert_eq!(Engines::default().settle(folder).unwrap(), postgres());
        assert_eq!(postgres().settle(folder).unwrap(), postgres());
        let other = Engines { store: Some("postgres://elsewhere/muster".into()), objects: None };
        let line = other.settle(folder).unwrap_err().to_string();
        assert!(line.contains("--fresh") && !line.contains("secret"), "{line}");
        mesh::empty(folder).unwrap();
        assert_eq!(Engines::of(folder).unwrap(), Engines::default());
    }

    #[test]
    fn untold_they_lie_below_the_hubs_folder_and_a_mesh_keeps_them() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path();
        let settled = Engines::default().settle(folder).unwrap();
        let here = |name: &str| folder.join("hub").join(name).display().to_string();
        assert_eq!((settled.store_url(folder), settled.objects(folder)), (format!("sqlite://{}", here("muster.db")), here("objects")));
        assert!(!settled.wants_migrate() && postgres().wants_migrate());
        std::fs::create_dir(folder.join("hub")).unwrap();
        assert!(postgres().settle(folder).is_err());
    }
}
