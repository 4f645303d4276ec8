//! Certificates that the controller shows while it runs, and how they are made anew without a restart: those of its authority are
//! signed again in time, those that lie in files are read again. Both are looked at when somebody asks, so nothing runs beside.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use chrono::{DateTime, TimeDelta, Utc};
use parking_lot::Mutex;
use rcgen::ExtendedKeyUsagePurpose;
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::{Authority, CERTIFICATE, KEY, until};
use crate::clock;
use crate::metrics::{Metrics, Shown};

/// Days that what the controller shows holds.
const LIFETIME: i64 = 90;
/// Days before its end when it is made anew.
const BEFORE: i64 = 30;
/// Seconds after which files are read again.
const READ_AGAIN: i64 = 10;

/// A certificate with its key.
#[derive(Debug, Clone)]
struct Held {
    key: Arc<CertifiedKey>,
    /// When it was made or read.
    since: DateTime<Utc>,
    until: DateTime<Utc>,
}

impl Held {
    fn new(certificate: &[u8], key: &[u8], since: DateTime<Utc>) -> Result<Self> {
        let chain: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(certificate).collect::<Result<_, _>>()?;
        let until = until(chain.first().context("there is no certificate")?)?;
        let key = PrivateKeyDer::from_pem_slice(key)?;
        let provider = rustls::crypto::ring::default_provider();
        let key = Arc::new(CertifiedKey::from_der(chain, key, &provider)?);
        Ok(Self { key, since, until })
    }
}

/// One that the authority signs again when its end is near.
pub struct Renewed {
    authority: Arc<Authority>,
    name: String,
    usage: ExtendedKeyUsagePurpose,
    /// Where the end of the webhook's certificate is told.
    metrics: Option<Arc<Metrics>>,
    held: Mutex<Held>,
}

impl std::fmt::Debug for Renewed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Renewed").field(&self.name).finish()
    }
}

impl Renewed {
    /// `name`: whom it is made out to.
    ///
    /// # Errors
    /// When no key can be made.
    pub(super) fn new(
        authority: &Arc<Authority>,
        name: &str,
        usage: ExtendedKeyUsagePurpose,
        metrics: Option<Arc<Metrics>>,
    ) -> Result<Self> {
        let held = made(authority, name, &usage, clock::now())?;
        let this = Self {
            authority: Arc::clone(authority),
            name: name.to_owned(),
            usage,
            metrics,
            held: Mutex::new(held.clone()),
        };
        this.tell(&held);
        Ok(this)
    }

    fn tell(&self, held: &Held) {
        if let Some(metrics) = &self.metrics {
            metrics.expires(Shown::Webhook, held.until);
        }
    }

    /// What is shown now.
    fn at(&self, now: DateTime<Utc>) -> Arc<CertifiedKey> {
        let mut held = self.held.lock();
        // One that an authority near its own end has signed is short from the start, and no other can be had.
        let renewed = held.until < self.authority.until();
        if renewed && held.until - now < TimeDelta::days(BEFORE) {
            match made(&self.authority, &self.name, &self.usage, now) {
                Ok(new) => {
                    self.tell(&new);
                    *held = new;
                }
                Err(error) => tracing::warn!(%error, "the certificate was not made anew"),
            }
        }
        Arc::clone(&held.key)
    }
}

fn made(
    authority: &Authority,
    name: &str,
    usage: &ExtendedKeyUsagePurpose,
    now: DateTime<Utc>,
) -> Result<Held> {
    // Clocks differ.
    let life = (now - TimeDelta::days(1), now + TimeDelta::days(LIFETIME));
    let pair = authority.sign(name, std::slice::from_ref(usage), life)?;
    Held::new(pair.certificate.as_bytes(), pair.key.as_bytes(), now)
}

impl ResolvesServerCert for Renewed {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.at(clock::now()))
    }
}

impl ResolvesClientCert for Renewed {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.at(clock::now()))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// One that somebody else makes and renews: `tls.crt` and `tls.key` of a folder, as the kubelet mounts a Secret.
pub struct Files {
    folder: PathBuf,
    metrics: Arc<Metrics>,
    held: Mutex<Held>,
}

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Files").field(&self.folder).finish()
    }
}

impl Files {
    /// # Errors
    /// When the files are not there or not a certificate and its key.
    pub fn open(folder: &Path, metrics: &Arc<Metrics>) -> Result<Self> {
        Self::open_at(folder, metrics, clock::now())
    }

    fn open_at(folder: &Path, metrics: &Arc<Metrics>, now: DateTime<Utc>) -> Result<Self> {
        let held = read(folder, now)?;
        metrics.expires(Shown::Webhook, held.until);
        Ok(Self {
            folder: folder.to_owned(),
            metrics: Arc::clone(metrics),
            held: Mutex::new(held),
        })
    }

    /// What is shown now. Files that cannot be read, or do not belong together because they are just being changed, change nothing.
    fn at(&self, now: DateTime<Utc>) -> Arc<CertifiedKey> {
        let mut held = self.held.lock();
        if now - held.since >= TimeDelta::seconds(READ_AGAIN) {
            held.since = now;
            match read(&self.folder, now) {
                Ok(new) => {
                    self.metrics.expires(Shown::Webhook, new.until);
                    *held = new;
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(%error, "the webhook's certificate was not read again");
                }
            }
        }
        Arc::clone(&held.key)
    }
}

fn read(folder: &Path, now: DateTime<Utc>) -> Result<Held> {
    let file = |name: &str| {
        let path = folder.join(name);
        std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let held = Held::new(&file(CERTIFICATE)?, &file(KEY)?, now);
    held.with_context(|| format!("{} holds no certificate and its key", folder.display()))
}

impl ResolvesServerCert for Files {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.at(clock::now()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{authority, now};
    use super::*;

    fn end(of: &CertifiedKey) -> DateTime<Utc> {
        until(&of.cert[0]).unwrap()
    }

    #[test]
    fn what_the_authority_signed_is_signed_again_a_month_before_its_end() {
        let authority = authority();
        let usage = ExtendedKeyUsagePurpose::ServerAuth;
        let held = made(&authority, "x", &usage, now()).unwrap();
        let metrics = Arc::new(Metrics::default());
        let shown = Renewed {
            authority,
            name: "x".to_owned(),
            usage,
            metrics: Some(Arc::clone(&metrics)),
            held: Mutex::new(held),
        };
        let first = shown.at(now());
        assert_eq!(end(&first), now() + TimeDelta::days(LIFETIME));
        let late = now() + TimeDelta::days(LIFETIME - BEFORE);
        assert_eq!(shown.at(late).cert, first.cert);
        let due = late + TimeDelta::seconds(1);
        let second = shown.at(due);
        assert_eq!(end(&second), due + TimeDelta::days(LIFETIME));
        assert_eq!(shown.at(due).cert, second.cert);
    }

    #[test]
    fn what_an_ending_authority_signed_is_not_signed_at_every_handshake() {
        let authority = authority();
        let usage = ExtendedKeyUsagePurpose::ClientAuth;
        let late = authority.until() - TimeDelta::days(10);
        let held = made(&authority, "x", &usage, late).unwrap();
        let shown = Renewed {
            authority,
            name: "x".to_owned(),
            usage,
            metrics: None,
            held: Mutex::new(held),
        };
        assert_eq!(shown.at(late).cert, shown.at(late).cert);
    }

    #[test]
    fn files_that_change_are_shown_and_ones_that_do_not_fit_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let authority = authority();
        let pair = |days: i64| {
            let life = (now(), now() + TimeDelta::days(days));
            let usage = ExtendedKeyUsagePurpose::ServerAuth;
            authority.sign("x", &[usage], life).unwrap()
        };
        let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
        let (first, second) = (pair(1), pair(2));
        write(CERTIFICATE, &first.certificate);
        write(KEY, &first.key);
        let metrics = Arc::new(Metrics::default());
        let files = Files::open_at(folder, &metrics, now()).unwrap();
        let ends = |seconds: i64| end(&files.at(now() + TimeDelta::seconds(seconds))) - now();
        assert_eq!(ends(0), TimeDelta::days(1));
        // The certificate is new, its key is not there yet.
        write(CERTIFICATE, &second.certificate);
        assert_eq!(ends(10), TimeDelta::days(1));
        write(KEY, &second.key);
        assert_eq!(ends(15), TimeDelta::days(1), "they were read a moment ago");
        assert_eq!(ends(20), TimeDelta::days(2));
        std::fs::remove_file(folder.join(KEY)).unwrap();
        assert_eq!(ends(30), TimeDelta::days(2));
        assert!(Files::open(folder, &metrics).is_err());
    }
}
