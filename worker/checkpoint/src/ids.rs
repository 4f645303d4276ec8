//! The names and numbers of a job log as types of their own, so that an epoch is never taken for a sequence number.
//! Raw integers appear only where bytes are written. Nothing here decides anything.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $raw:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name($raw);

        impl $name {
            pub const ZERO: $name = $name(0);

            pub const fn new(raw: $raw) -> Self {
                Self(raw)
            }

            pub const fn get(self) -> $raw {
                self.0
            }

            /// The next number. Saturates: the callers' numbers start at 0 and grow by one.
            pub const fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }

            /// The number before, `None` at 0.
            pub const fn prev(self) -> Option<Self> {
                match self.0.checked_sub(1) {
                    Some(n) => Some(Self(n)),
                    None => None,
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number!(
    /// Number of a committed whole. 0 is the empty state before the first commit. Never reused.
    Epoch, u64
);
number!(
    /// One incarnation of the running job: a claim in the log. 0 wrote `Created` and nothing else.
    Generation, u64
);
number!(
    /// Position of a record in the log. The first record (`Created`) is 1; 0 stands for "none".
    Seq, u64
);
number!(
    /// A fixed share of the key space.
    KeyGroup, u16
);
number!(
    /// A fixed logical writer of a sink.
    ShardId, u16
);
number!(
    /// A member of a job: a pod's ordinal, or 0 on a laptop.
    MemberId, u32
);

/// Event time or recorded time in microseconds since 1970, UTC.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Micros(i64);

impl Micros {
    pub const MIN: Micros = Micros(i64::MIN);
    pub const MAX: Micros = Micros(i64::MAX);

    pub const fn new(micros: i64) -> Self {
        Self(micros)
    }

    pub const fn from_millis(millis: i64) -> Self {
        Self(millis.saturating_mul(1000))
    }

    pub const fn get(self) -> i64 {
        self.0
    }

    pub const fn plus(self, micros: i64) -> Self {
        Self(self.0.saturating_add(micros))
    }

    /// Microseconds from `earlier` to `self`, negative when it is later.
    pub const fn since(self, earlier: Micros) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            pub fn new(name: impl Into<String>) -> Self {
                Self(name.into())
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<&str> for $name {
            fn from(name: &str) -> Self {
                Self(name.to_owned())
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(
    /// Name of a source in the manifest.
    SourceName
);
name!(
    /// A unit of a source, in the source's own words: `topic/3`, a file's path.
    SplitId
);
name!(
    /// Name of a sink in the manifest.
    SinkName
);
name!(
    /// Stable identity of a stateful operator.
    OperatorUid
);

macro_rules! hex16 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 16]);

        impl $name {
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), hex::encode(self.0))
            }
        }

        impl FromStr for $name {
            type Err = BadId;

            fn from_str(text: &str) -> Result<Self, BadId> {
                let mut bytes = [0; 16];
                hex::decode_to_slice(text, &mut bytes).map_err(|_| BadId { what: stringify!($name) })?;
                Ok(Self(bytes))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&hex::encode(self.0))
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

hex16!(
    /// The random identity of one job's history; names its prefix, its transactional ids and its markers.
    LogId
);
hex16!(
    /// A random number that tells one writing from another, whatever the store answers.
    Nonce
);

/// A text that is not 32 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} must be 32 hexadecimal digits")]
pub struct BadId {
    what: &'static str,
}

/// Where random numbers come from: the system, or a seed in tests and simulation.
pub trait Entropy: Send + Sync {
    fn bytes16(&mut self) -> [u8; 16];

    fn number(&mut self) -> u64 {
        u128::from_le_bytes(self.bytes16()) as u64
    }
}

/// The system's random numbers.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    #[expect(clippy::disallowed_methods, reason = "this is where chance comes in")]
    fn bytes16(&mut self) -> [u8; 16] {
        rand::random()
    }
}

/// A repeatable sequence from a seed.
#[derive(Debug)]
pub struct SeededEntropy(rand::rngs::StdRng);

impl SeededEntropy {
    pub fn new(seed: u64) -> Self {
        use rand::SeedableRng;
        Self(rand::rngs::StdRng::seed_from_u64(seed))
    }
}

impl Entropy for SeededEntropy {
    fn bytes16(&mut self) -> [u8; 16] {
        use rand::RngCore;
        let mut bytes = [0; 16];
        self.0.fill_bytes(&mut bytes);
        bytes
    }
}
