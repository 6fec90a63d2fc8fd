//! Async: `muster-hub check`: reads what `serve` would read, says what would stop it, and changes nothing.

use std::net::SocketAddr;

use muster_certs::issued;
use muster_mesh::{
    clock::{Clock, SystemClock},
    complaint::Complaint,
};

use crate::{
    config::Config,
    policy, running, serve,
    store::{Checked, Store},
};

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub what: &'static str,
    /// What is well, or what would stop `serve`.
    pub said: Result<String, Complaint>,
}

/// Looks at everything, whatever is wrong with one of them.
pub async fn check(config: &Config) -> Vec<Finding> {
    let finding = |what, said| Finding { what, said };
    vec![
        finding("certificate", certificate(config)),
        finding("policy", policy_file(config)),
        finding("issued devices", list(config)),
        finding("database", database(config).await),
        finding("mesh port", port(config.mesh.listen, "mesh.listen").await),
        finding("web port", port(config.web.listen, "web.listen").await),
        finding("status port", port(config.status.listen, "status.listen").await),
    ]
}

fn certificate(config: &Config) -> Result<String, Complaint> {
    let keys = running::keys(config)?;
    // It would not stop `serve`, only every relay.
    Ok(match keys.check_time(SystemClock::new().now().wall_ms) {
        Ok(()) => format!("{}", keys.identity()),
        Err(error) => format!("{}, but no relay will connect: {error}", keys.identity()),
    })
}

fn policy_file(config: &Config) -> Result<String, Complaint> {
    let policy = policy::check(&config.policy)?;
    Ok(format!("{}, kept for {} days", policy.hours, policy.retention_days))
}

fn list(config: &Config) -> Result<String, Complaint> {
    if !config.issued.exists() {
        return Ok("none yet".into());
    }
    let devices = issued::read(&config.issued)
        .map_err(|error| Complaint::new(format!("The list of issued devices can't be used ({error})"), "Put it right"))?;
    Ok(format!("{} lines", devices.len()))
}

/// Taken for a moment, and let go.
async fn port(listen: SocketAddr, field: &str) -> Result<String, Complaint> {
    serve::bind(listen, field).await?;
    Ok(format!("{listen} is free"))
}

async fn database(config: &Config) -> Result<String, Complaint> {
    let Checked { version, newest, migrates_itself } = Store::check(&config.store.url).await?;
    Ok(match version {
        None => "not there yet; `serve` makes it".into(),
        Some(version) if version == newest => format!("version {version}, sound"),
        Some(version) if migrates_itself => format!("version {version}, sound; `serve` brings it to {newest}"),
        Some(version) => {
            let what = format!("the database has version {version}, and this program needs {newest}");
            return Err(Complaint::new(what, "Run `muster-hub migrate`"));
        }
    })
}
