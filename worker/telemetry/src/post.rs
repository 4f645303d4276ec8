//! How spans go out: one request each few seconds, on the exporter's own thread.

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::ExporterBuildError;
use reqwest::redirect::Policy;

/// Of an answer that is read: a collector says a few words at most.
const ANSWER: usize = 64 << 10;

#[derive(Debug)]
pub struct Post(reqwest::Client);

impl Post {
    pub fn new() -> Result<Self, ExporterBuildError> {
        // Where the process has chosen one, that stays.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .redirect(Policy::none())
            .timeout(opentelemetry_otlp::OTEL_EXPORTER_OTLP_TIMEOUT_DEFAULT)
            // A connection does not outlive the runtime of its request.
            .pool_max_idle_per_host(0)
            .build();
        Ok(Self(client.map_err(|e| {
            ExporterBuildError::InternalFailure(e.to_string())
        })?))
    }

    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let mut answer = self.0.execute(request.try_into()?).await?;
        let mut words = BytesMut::new();
        while let Some(some) = answer.chunk().await? {
            if words.len() + some.len() > ANSWER {
                return Err("the collector's answer is too long".into());
            }
            words.extend_from_slice(&some);
        }
        let mut response = Response::new(words.freeze());
        *response.status_mut() = answer.status();
        *response.headers_mut() = answer.headers().clone();
        Ok(response)
    }
}

#[async_trait]
impl HttpClient for Post {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        // The thread that sends has no runtime, and nothing else to do.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(self.send(request))
    }
}
