//! How a job's coordinator is spoken to: by mutual TLS, at the address of its pod and nowhere else, and for no more than an answer may
//! be. A worker runs its tenant's code, so nothing that it says leads the controller elsewhere, or fills its memory or a status.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::runtime::reflector::Store;
use penstock_crds::rpc::JobStatus;
use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use rustls::ClientConfig;

use crate::address::Workers;
use crate::status::{bounded, word};

/// How long a coordinator may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes that an answer may have.
const MOST: usize = 256 << 10;

/// Why a coordinator has not answered.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    #[error(transparent)]
    Http(#[from] reqwest::Error),
    #[error("it answers {0}")]
    Status(StatusCode),
    #[error("it answers more than {} KiB", MOST >> 10)]
    TooLong,
    #[error("it answers what cannot be read: {0}")]
    Unread(#[from] serde_json::Error),
}

/// The client of all coordinators. `tls`: what it shows and whom it believes. `pods`: where workers are.
///
/// # Errors
/// When there is no HTTP client to be had.
pub fn client(tls: ClientConfig, pods: Store<Pod>) -> reqwest::Result<Client> {
    Client::builder()
        .use_preconfigured_tls(tls)
        .https_only(true)
        // Or a worker could send the controller, with its certificate, to another tenant's worker.
        .redirect(Policy::none())
        .no_proxy()
        .connect_timeout(Duration::from_secs(1))
        // A connection that waits for the next question costs more memory than a new one costs time.
        .pool_max_idle_per_host(0)
        .dns_resolver(Arc::new(Workers(pods)))
        .build()
}

/// What the coordinator says at this URL.
///
/// # Errors
/// When it does not answer in time, or something else than a status.
pub async fn status(http: &Client, url: String) -> Result<JobStatus, Unanswered> {
    let mut answer = send(http.get(url)).await?;
    let mut text = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        if text.len() + chunk.len() > MOST {
            return Err(Unanswered::TooLong);
        }
        text.extend_from_slice(&chunk);
    }
    Ok(within(serde_json::from_slice(&text)?))
}

/// Asks something of a coordinator.
///
/// # Errors
/// When it does not answer in time, or not that it has heard: a redirection is no answer either.
pub async fn send(request: RequestBuilder) -> Result<Response, Unanswered> {
    let answer = request.timeout(PATIENCE).send().await?;
    match answer.status() {
        status if status.is_success() => Ok(answer),
        status => Err(Unanswered::Status(status)),
    }
}

/// With texts that a status has room for.
fn within(mut said: JobStatus) -> JobStatus {
    said.log_id = word(&said.log_id);
    said.engine = word(&said.engine);
    if let Some(watermark) = &mut said.watermark {
        watermark.held_back_by = watermark.held_back_by.as_deref().map(bounded);
    }
    if let Some(failure) = &mut said.last_failure {
        failure.code = word(&failure.code);
        failure.message = bounded(&failure.message);
    }
    said
}

#[cfg(test)]
mod tests;
