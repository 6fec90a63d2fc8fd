//! Quiet: the ids and versions that cross the mesh, parsed once at the edge.
//!
//! Each id is 16 bytes on the wire and 32 lower-case hex digits as text, everywhere (certificates, JSON, file names).

use std::{fmt, str::FromStr};

use bincode::{Decode, Encode};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A text that is not the id it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an id: 32 lower-case hex digits are expected")]
pub struct IdError {
    text: String,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                hex16(text).map(Self).ok_or_else(|| IdError { text: text.chars().take(64).collect() })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

id! {
    /// One employee's computer, for one person, for life (UUIDv7, chosen by the issuer).
    DeviceId
}
id! {
    /// One opening of one lane's queue at an agent (UUIDv7); the middle of the key (device, spool, seq).
    SpoolId
}
id! {
    /// One relay queue, born with it (16 random bytes). A queue that lost its `progress` is a new instance.
    InstanceId
}
id! {
    /// One boot of a computer, as the operating system names it.
    BootId
}

impl SpoolId {
    /// A new spool's id: UUIDv7, so that a device's spools sort by their birth.
    pub fn new(unix_ms: u64, random: [u8; 10]) -> Self {
        Self(*uuid::Builder::from_unix_timestamp_millis(unix_ms, &random).as_uuid().as_bytes())
    }
}

fn hex16(text: &str) -> Option<[u8; 16]> {
    let digits = text.as_bytes();
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut id = [0; 16];
    if digits.len() != 32 {
        return None;
    }
    for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(id)
}

/// The version of a policy, a notice, an erasure, a deny list or a bundle. A restored hub takes a new epoch, which
/// is above any `n` of the one before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize)]
pub struct Version {
    pub epoch: u32,
    pub n: u32,
}

impl Version {
    /// As one number that sorts as the version does, up to an epoch of 2^31: for a column, and for monitoring.
    pub fn number(self) -> i64 {
        (i64::from(self.epoch) << 32) | i64::from(self.n)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.n)
    }
}

/// Telemetry or pictures: each has its own queue, stream, POSTs and budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    Telemetry,
    Pictures,
}

impl Lane {
    pub const ALL: [Lane; 2] = [Lane::Telemetry, Lane::Pictures];

    pub fn from_u8(number: u8) -> Option<Lane> {
        match number {
            0 => Some(Lane::Telemetry),
            1 => Some(Lane::Pictures),
            _ => None,
        }
    }

    pub fn as_u8(self) -> u8 {
        self.index() as u8
    }

    /// Place in an array that has one element per lane.
    pub fn index(self) -> usize {
        match self {
            Lane::Telemetry => 0,
            Lane::Pictures => 1,
        }
    }

    /// The name in paths, metrics and messages.
    pub fn name(self) -> &'static str {
        match self {
            Lane::Telemetry => "telemetry",
            Lane::Pictures => "pictures",
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_32_lower_case_hex_digits() {
        let text = "0192f3a4b5c67d8e9fa0b1c2d3e4f506";
        let id: DeviceId = text.parse().unwrap();
        assert_eq!(id.to_string(), text);
        for bad in
            ["", "0192f3a4", "0192F3A4B5C67D8E9FA0B1C2D3E4F506", "0192f3a4b5c67d8e9fa0b1c2d3e4f50g", "0192f3a4-b5c6-7d8e-9fa0-b1c2d3e4f506"]
        {
            assert!(bad.parse::<DeviceId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn spools_sort_by_birth() {
        assert!(SpoolId::new(1, [255; 10]) < SpoolId::new(2, [0; 10]));
    }
}
