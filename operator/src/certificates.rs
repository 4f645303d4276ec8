//! The controller's authority: it makes the certificates of workers, and those that the controller itself shows. Its key lies in
//! one Secret of the controller's own namespace, the only one that it may read, and that by name. What is shown, and made anew in
//! time, is `shown`'s.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use chrono::{DateTime, TimeDelta, Utc};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, ResourceExt};
use penstock_crds::job::StreamingJob;
use penstock_crds::rpc::CONTROLLER;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::time::Instant;
use x509_parser::parse_x509_certificate;

use crate::clock;
use crate::issue::Issue;
use crate::metrics::Metrics;
use crate::names::{self, CERTIFICATE_UNTIL, MANAGER, VERSION, workers};

mod shown;

pub use shown::{Files, Renewed};

/// The Secret with the authority's own certificate and key.
const SECRET: &str = "penstock-authority";
const AUTHORITY: &str = "ca.crt";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
/// Days that an authority holds. It is not renewed by itself: whoever believes it would have to be told.
const AUTHORITY_LIFETIME: i64 = 3650;

/// How long an API server that errs is tried, and how often. After that the process ends, and is started again.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_secs(1);

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    until: DateTime<Utc>,
}

/// Whether it may be otherwise a moment later: no answer, or one that does not judge what was asked.
fn passes(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<kube::Error>() {
        Some(kube::Error::Api(e)) => e.code >= 500 || matches!(e.code, 409 | 429),
        Some(_) => true,
        None => false,
    }
}

/// A certificate and its key, as PEM.
struct Pair {
    certificate: String,
    key: String,
}

impl Authority {
    /// The one that all controllers of this namespace share; made by the first. An API server that errs is tried again for a while.
    ///
    /// # Errors
    /// When the API server refuses, or the Secret holds something else.
    pub async fn open(client: &Client, namespace: &str) -> Result<Self> {
        let began = Instant::now();
        loop {
            match Self::opened(client, namespace).await {
                Err(error) if passes(&error) && began.elapsed() < PATIENCE => {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "the authority is not read yet"
                    );
                    tokio::time::sleep(PAUSE).await;
                }
                other => return other,
            }
        }
    }

    async fn opened(client: &Client, namespace: &str) -> Result<Self> {
        let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
        if let Some(secret) = secrets.get_opt(SECRET).await? {
            return Self::read(&secret);
        }
        let (certificate, key) = make(clock::now())?;
        let data = [(CERTIFICATE, certificate.as_str()), (KEY, key.as_str())];
        let secret = secret(named(SECRET), data);
        match secrets.create(&PostParams::default(), &secret).await {
            Ok(made) => Self::read(&made),
            // Another controller was first.
            Err(kube::Error::Api(e)) if e.code == 409 => Self::read(&secrets.get(SECRET).await?),
            Err(e) => Err(e.into()),
        }
    }

    fn read(secret: &Secret) -> Result<Self> {
        let text = |name: &str| {
            let bytes = secret.data.as_ref().and_then(|d| d.get(name));
            let bytes = bytes.with_context(|| format!("secret {SECRET} has no {name}"))?;
            String::from_utf8(bytes.0.clone()).with_context(|| format!("secret {SECRET}: {name}"))
        };
        Self::of(text(CERTIFICATE)?, &text(KEY)?)
    }

    fn of(certificate: String, key: &str) -> Result<Self> {
        let key = KeyPair::from_pem(key).context("the authority's key")?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, key).context("the authority")?;
        let der = CertificateDer::from_pem_slice(certificate.as_bytes())?;
        let until = until(&der).context("the authority")?;
        Ok(Self {
            issuer,
            certificate,
            until,
        })
    }

    fn sign(
        &self,
        name: &str,
        usage: &[ExtendedKeyUsagePurpose],
        (from, until): (DateTime<Utc>, DateTime<Utc>),
    ) -> Result<Pair> {
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, MANAGER);
        params.extended_key_usages = usage.to_vec();
        params.not_before = SystemTime::from(from).into();
        // Nothing outlives its authority.
        params.not_after = SystemTime::from(until.min(self.until)).into();
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Pair {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    /// The Secret that workers mount which start now; it goes with its owner.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn for_workers(
        &self,
        job: &StreamingJob,
        issue: &Issue,
        owner: OwnerReference,
    ) -> Result<Secret> {
        let (name, namespace) = (job.name_any(), job.namespace().unwrap_or_default());
        let host = format!("*.{}.{namespace}.svc", workers(&name));
        // Workers connect to each other.
        let usage = [
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let pair = self.sign(&host, &usage, (issue.from, issue.until))?;
        let until = issue.until.to_rfc3339();
        let said = [(VERSION, issue.version.clone()), (CERTIFICATE_UNTIL, until)];
        let metadata = ObjectMeta {
            namespace: Some(namespace),
            labels: Some(names::labels(&name)),
            annotations: Some(said.map(|(name, value)| (name.to_owned(), value)).into()),
            owner_references: Some(vec![owner]),
            ..named(&issue.secret)
        };
        let data = [
            (AUTHORITY, self.certificate.as_str()),
            (CERTIFICATE, pair.certificate.as_str()),
            (KEY, pair.key.as_str()),
        ];
        Ok(secret(metadata, data))
    }

    /// What the webhook shows to the API server, which is told to believe this authority.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn server(self: &Arc<Self>, host: &str, metrics: &Arc<Metrics>) -> Result<ServerConfig> {
        let usage = ExtendedKeyUsagePurpose::ServerAuth;
        let shown = Renewed::new(self, host, usage, Some(Arc::clone(metrics)))?;
        server(Arc::new(shown))
    }

    /// The authority's own certificate, as PEM.
    pub fn pem(&self) -> &str {
        &self.certificate
    }

    /// When it ends.
    pub fn until(&self) -> DateTime<Utc> {
        self.until
    }

    /// What tells it from another.
    pub fn identity(&self) -> String {
        let hash = xxhash_rust::xxh3::xxh3_64(self.certificate.as_bytes());
        format!("{hash:016x}")
    }

    /// What the controller shows to workers, and whom it believes.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn client(self: &Arc<Self>) -> Result<ClientConfig> {
        let shown = Renewed::new(self, CONTROLLER, ExtendedKeyUsagePurpose::ClientAuth, None)?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.certificate.as_bytes())?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_cert_resolver(Arc::new(shown));
        Ok(config)
    }
}

/// A server that shows what it is told to, and asks nobody who they are.
///
/// # Errors
/// When there is no TLS to be had.
pub fn server(shown: Arc<dyn rustls::server::ResolvesServerCert>) -> Result<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(shown);
    Ok(config)
}

/// When a certificate ends.
fn until(der: &CertificateDer<'_>) -> Result<DateTime<Utc>> {
    let (_, certificate) = parse_x509_certificate(der)?;
    let end = certificate.validity().not_after.timestamp();
    DateTime::from_timestamp(end, 0).context("it ends at no moment")
}

/// A new authority: certificate and key.
fn make(now: DateTime<Utc>) -> Result<(String, String)> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, MANAGER);
    params.not_before = SystemTime::from(now - TimeDelta::days(1)).into();
    params.not_after = SystemTime::from(now + TimeDelta::days(AUTHORITY_LIFETIME)).into();
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        ..ObjectMeta::default()
    }
}

fn secret<const N: usize>(metadata: ObjectMeta, data: [(&str, &str); N]) -> Secret {
    Secret {
        metadata,
        immutable: Some(true),
        type_: Some("Opaque".to_owned()),
        data: Some(
            data.into_iter()
                .map(|(k, v)| (k.to_owned(), ByteString(v.as_bytes().to_vec())))
                .collect(),
        ),
        ..Secret::default()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(super) fn now() -> DateTime<Utc> {
        "2026-11-22T12:00:00Z".parse().unwrap()
    }

    pub(crate) fn authority() -> Arc<Authority> {
        authority_of(now())
    }

    /// One that was made then.
    pub(crate) fn authority_of(now: DateTime<Utc>) -> Arc<Authority> {
        let (certificate, key) = make(now).unwrap();
        Arc::new(Authority::of(certificate, &key).unwrap())
    }

    fn for_workers(authority: &Authority) -> Secret {
        let job = crate::build::tests::job();
        let issue = crate::issue::of(&job, "v", &authority.identity(), now());
        let owner = OwnerReference {
            kind: "ConfigMap".to_owned(),
            ..OwnerReference::default()
        };
        authority.for_workers(&job, &issue, owner).unwrap()
    }

    /// An API server without the Secret that answers its creation with these codes, one after the other; then with the Secret.
    async fn opened(codes: &[u16]) -> (Result<Authority>, usize) {
        use std::collections::VecDeque;

        use http::{Method, Request, Response};
        use kube::client::Body;
        use kube::core::Status;
        use parking_lot::Mutex;

        let codes = Arc::new(Mutex::new(codes.iter().copied().collect::<VecDeque<u16>>()));
        let left = Arc::clone(&codes);
        let server = tower::service_fn(move |request: Request<Body>| {
            let codes = Arc::clone(&left);
            async move {
                let creates = request.method() == Method::POST;
                let code = match creates {
                    true => codes.lock().pop_front().unwrap_or(201),
                    false => 404,
                };
                let body = match code {
                    201 => request.into_body().collect_bytes().await.unwrap().to_vec(),
                    _ => {
                        let reason = if code == 404 { "NotFound" } else { "Wrong" };
                        let status = Status::failure("no", reason).with_code(code);
                        serde_json::to_vec(&status).unwrap()
                    }
                };
                let mut answer = Response::new(Body::from(body));
                *answer.status_mut() = code.try_into().unwrap();
                Ok::<_, std::convert::Infallible>(answer)
            }
        });
        let opened = Authority::open(&Client::new(server, "penstock"), "penstock").await;
        let unasked = codes.lock().len();
        (opened, unasked)
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_errs_at_the_start_is_tried_again_and_one_that_refuses_is_not() {
        let (made, unasked) = opened(&[500, 429, 503]).await;
        assert_eq!((made.is_ok(), unasked), (true, 0));
        let (refused, unasked) = opened(&[500, 403, 500]).await;
        assert_eq!((refused.is_err(), unasked), (true, 1));
        let (never, unasked) = opened(&[500; 100]).await;
        assert!(never.is_err() && unasked > 0, "it does not try for ever");
    }

    #[test]
    fn what_the_authority_signs_is_what_a_client_believes() {
        let authority = authority();
        let data = for_workers(&authority).data.unwrap();
        let leaf = CertificateDer::from_pem_slice(&data[CERTIFICATE].0).unwrap();
        let root = CertificateDer::from_pem_slice(&data[AUTHORITY].0).unwrap();
        let leaf = webpki::EndEntityCert::try_from(&leaf).unwrap();
        let anchors = [webpki::anchor_from_trusted_cert(&root).unwrap()];
        let at = u64::try_from(now().timestamp()).unwrap();
        let at = rustls::pki_types::UnixTime::since_unix_epoch(std::time::Duration::from_secs(at));
        // Others connect to it, and it to them.
        for usage in [
            webpki::KeyUsage::server_auth(),
            webpki::KeyUsage::client_auth(),
        ] {
            let all = webpki::ALL_VERIFICATION_ALGS;
            leaf.verify_for_usage(all, &anchors, &[], at, usage, None, None)
                .unwrap();
        }
        let name = "payments-worker-0.payments-worker.risk.svc"
            .try_into()
            .unwrap();
        leaf.verify_is_valid_for_subject_name(&name).unwrap();
        let other = "payments-worker-0.payments-worker.other.svc"
            .try_into()
            .unwrap();
        assert!(leaf.verify_is_valid_for_subject_name(&other).is_err());
        authority.client().unwrap();
    }

    #[test]
    fn a_certificate_of_workers_goes_with_its_version_and_says_when_it_ends() {
        let secret = for_workers(&authority());
        let owners = secret.metadata.owner_references.unwrap();
        assert_eq!(owners[0].kind, "ConfigMap");
        let der = CertificateDer::from_pem_slice(&secret.data.unwrap()[CERTIFICATE].0).unwrap();
        let said = &secret.metadata.annotations.unwrap()[CERTIFICATE_UNTIL];
        assert_eq!(said.parse::<DateTime<Utc>>().unwrap(), until(&der).unwrap());
    }

    #[test]
    fn an_authority_holds_ten_years_and_nothing_outlives_it() {
        let authority = authority();
        assert_eq!(authority.until(), now() + TimeDelta::days(3650));
        let life = (now(), now() + TimeDelta::days(5000));
        let usage = [ExtendedKeyUsagePurpose::ServerAuth];
        let pair = authority.sign("x", &usage, life).unwrap();
        let der = CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap();
        assert_eq!(until(&der).unwrap(), authority.until());
    }
}
