//! The controller's authority: it makes a certificate for the workers of each version of a job, and one for itself. Its key lies
//! in one Secret of the controller's own namespace, the only one that it may read, and that by name.

use std::sync::Arc;

use anyhow::{Context, Result};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, ResourceExt};
use penstock_crds::job::StreamingJob;
use penstock_crds::rpc::CONTROLLER;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::names::{self, MANAGER, workers};

/// The Secret with the authority's own certificate and key.
const SECRET: &str = "penstock-authority";
const AUTHORITY: &str = "ca.crt";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

/// A certificate and its key, as PEM.
struct Pair {
    certificate: String,
    key: String,
}

impl Authority {
    /// The one that all controllers of this namespace share; made by the first.
    ///
    /// # Errors
    /// When the API server refuses, or the Secret holds something else.
    pub async fn open(client: &Client, namespace: &str) -> Result<Self> {
        let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
        if let Some(secret) = secrets.get_opt(SECRET).await? {
            return Self::read(&secret);
        }
        let (certificate, key) = make()?;
        let secret = secret(
            SECRET,
            None,
            [(CERTIFICATE, certificate.as_str()), (KEY, key.as_str())],
        );
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
        Ok(Self {
            issuer,
            certificate,
        })
    }

    fn sign(&self, name: &str, usage: &[ExtendedKeyUsagePurpose]) -> Result<Pair> {
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, MANAGER);
        params.extended_key_usages = usage.to_vec();
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Pair {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    /// The Secret that the workers of a version mount.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn for_workers(&self, job: &StreamingJob, version: &str) -> Result<Secret> {
        let (name, namespace) = (job.name_any(), job.namespace().unwrap_or_default());
        let host = format!("*.{}.{namespace}.svc", workers(&name));
        let pair = self.sign(&host, &[ExtendedKeyUsagePurpose::ServerAuth])?;
        Ok(secret(
            &names::certificate(&name, version),
            Some(job),
            [
                (AUTHORITY, self.certificate.as_str()),
                (CERTIFICATE, pair.certificate.as_str()),
                (KEY, pair.key.as_str()),
            ],
        ))
    }

    /// What the webhook shows to the API server, which is told to believe this authority.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn server(&self, host: &str) -> Result<ServerConfig> {
        let pair = self.sign(host, &[ExtendedKeyUsagePurpose::ServerAuth])?;
        let chain = vec![CertificateDer::from_pem_slice(pair.certificate.as_bytes())?];
        let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        Ok(config)
    }

    /// The authority's own certificate, as PEM.
    pub fn pem(&self) -> &str {
        &self.certificate
    }

    /// What the controller shows to workers, and whom it believes.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn client(&self) -> Result<ClientConfig> {
        let pair = self.sign(CONTROLLER, &[ExtendedKeyUsagePurpose::ClientAuth])?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.certificate.as_bytes())?)?;
        let chain = vec![CertificateDer::from_pem_slice(pair.certificate.as_bytes())?];
        let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        Ok(config)
    }
}

/// A new authority: certificate and key.
fn make() -> Result<(String, String)> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, MANAGER);
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn secret<const N: usize>(
    name: &str,
    job: Option<&StreamingJob>,
    data: [(&str, &str); N],
) -> Secret {
    let of = job.map(|j| j.name_any()).unwrap_or_default();
    let owner = job.and_then(|j| kube::Resource::controller_owner_ref(j, &()));
    Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: job.and_then(ResourceExt::namespace),
            labels: job.map(|_| names::labels(&of)),
            owner_references: owner.map(|o| vec![o]),
            ..ObjectMeta::default()
        },
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
mod tests {
    use super::*;

    #[test]
    fn what_the_authority_signs_is_what_a_client_believes() {
        let (certificate, key) = make().unwrap();
        let authority = Authority::of(certificate, &key).unwrap();
        let job = crate::build::tests::job();
        let secret = authority.for_workers(&job, "v").unwrap();
        let data = secret.data.unwrap();
        let leaf = CertificateDer::from_pem_slice(&data[CERTIFICATE].0).unwrap();
        let root = CertificateDer::from_pem_slice(&data[AUTHORITY].0).unwrap();
        let leaf = webpki::EndEntityCert::try_from(&leaf).unwrap();
        let anchors = [webpki::anchor_from_trusted_cert(&root).unwrap()];
        leaf.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            &[],
            rustls::pki_types::UnixTime::now(),
            webpki::KeyUsage::server_auth(),
            None,
            None,
        )
        .unwrap();
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
}
