//! Blocking: a clock to turn, and two rustls connections whose bytes are carried from one to the other.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use muster_certs::DIALLED_NAME;
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, ClientConnection, Error, ServerConfig, ServerConnection};
use rustls_pki_types::UnixTime;

#[derive(Clone, Debug)]
pub struct Clock(Arc<AtomicU64>);

impl Clock {
    pub fn at(ms: i64) -> Clock {
        Clock(Arc::new(AtomicU64::new(ms.unsigned_abs())))
    }

    pub fn set(&self, ms: i64) {
        self.0.store(ms.unsigned_abs(), Ordering::Relaxed);
    }

    pub fn now_ms(&self) -> i64 {
        i64::try_from(self.0.load(Ordering::Relaxed)).unwrap()
    }

    pub fn provider(&self) -> Arc<dyn TimeProvider> {
        Arc::new(self.clone())
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        let ms = self.0.load(Ordering::Relaxed);
        Some(UnixTime::since_unix_epoch(Duration::from_millis(ms)))
    }
}

#[derive(Debug)]
pub struct Met {
    pub client: ClientConnection,
    pub server: ServerConnection,
}

/// Who refused, and why.
#[derive(Debug)]
pub enum Failed {
    Client(Error),
    Server(Error),
}

pub fn meet(client: ClientConfig, server: ServerConfig) -> Result<Met, Failed> {
    meet_shared(Arc::new(client), Arc::new(server))
}

pub fn meet_shared(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Result<Met, Failed> {
    let mut met = Met {
        client: ClientConnection::new(client, DIALLED_NAME.try_into().unwrap()).unwrap(),
        server: ServerConnection::new(server).unwrap(),
    };
    // The client believes itself connected before the server has looked at it, so a few rounds
    // more than the handshake needs.
    for _ in 0..6 {
        met.carry()?;
    }
    assert!(!met.client.is_handshaking() && !met.server.is_handshaking());
    Ok(met)
}

impl Met {
    pub fn carry(&mut self) -> Result<(), Failed> {
        let mut bytes = Vec::new();
        while self.client.wants_write() {
            self.client.write_tls(&mut bytes).unwrap();
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            self.server.read_tls(&mut rest).unwrap();
            self.server.process_new_packets().map_err(Failed::Server)?;
        }
        let mut bytes = Vec::new();
        while self.server.wants_write() {
            self.server.write_tls(&mut bytes).unwrap();
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            self.client.read_tls(&mut rest).unwrap();
            self.client.process_new_packets().map_err(Failed::Client)?;
        }
        Ok(())
    }

    pub fn say(&mut self, text: &[u8]) {
        use std::io::{Read, Write};
        self.client.writer().write_all(text).unwrap();
        self.carry().unwrap();
        let mut heard = vec![0; text.len()];
        self.server.reader().read_exact(&mut heard).unwrap();
        assert_eq!(heard, text);
    }
}
