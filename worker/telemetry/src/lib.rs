//! What a process tells of itself: log lines on standard error, and spans to an OpenTelemetry collector where the standard variables
//! name one (`OTEL_EXPORTER_OTLP_ENDPOINT`). Spans are of epochs, restores and looks of the controller, never of rows.

use std::env;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{
    ExporterBuildError, Protocol, SpanExporter, WithExportConfig, WithHttpConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::{EnvFilter, FilterFn};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

mod across;
mod post;

pub use across::{child_of, traceparent};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lines {
    Text,
    Json,
}

/// Sends what it still has when it is dropped, for at most five seconds.
#[derive(Debug)]
pub struct Spans(Option<SdkTracerProvider>);

impl Drop for Spans {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.take().map(|spans| spans.shutdown()) {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

/// Begins to tell, once in a process. `level`: of log lines, where `PENSTOCK_LOG` says nothing. `service`: the name under which spans
/// are sent, where `OTEL_SERVICE_NAME` says nothing; `None`: no spans.
pub fn start(lines: Lines, level: &str, service: Option<&'static str>) -> Spans {
    let filter = EnvFilter::try_from_env("PENSTOCK_LOG").unwrap_or_else(|_| level.into());
    let told = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let told = match lines {
        Lines::Text => told.compact().boxed(),
        Lines::Json => told.json().boxed(),
    };
    let told = tracing_subscriber::registry().with(told.with_filter(filter));
    let provider = service
        .filter(|_| names_a_collector(|name| env::var(name).ok()))
        .map(provider)
        .transpose();
    let (provider, error) = match provider {
        Ok(provider) => (provider, None),
        Err(error) => (None, Some(error)),
    };
    told.with(provider.as_ref().map(spans)).init();
    if let Some(error) = error {
        tracing::warn!(%error, "spans are not sent");
    }
    Spans(provider)
}

/// Whether the standard variables ask for spans to be sent.
fn names_a_collector(variable: impl Fn(&str) -> Option<String>) -> bool {
    let says = |name: &str| variable(name).filter(|value| !value.is_empty());
    let off = says("OTEL_SDK_DISABLED").is_some_and(|v| v.eq_ignore_ascii_case("true"))
        || says("OTEL_TRACES_EXPORTER").is_some_and(|v| v == "none");
    let endpoint =
        says("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").or(says("OTEL_EXPORTER_OTLP_ENDPOINT"));
    endpoint.is_some() && !off
}

/// Sends spans in batches, from a thread of its own; what the collector does not take in time is lost, and holds nobody.
fn provider(service: &'static str) -> Result<SdkTracerProvider, ExporterBuildError> {
    let exporter = SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_http_client(post::Post::new()?)
        .build()?;
    let mut resource = Resource::builder()
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    if env::var_os("OTEL_SERVICE_NAME").is_none() {
        resource = resource.with_service_name(service);
    }
    if let Ok(pod) = env::var("HOSTNAME") {
        resource = resource.with_attribute(KeyValue::new("service.instance.id", pod));
    }
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource.build())
        .build())
}

/// Our own spans, down to those of each publication.
fn spans<S>(provider: &SdkTracerProvider) -> impl Layer<S> + use<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let ours = |of: &Metadata<'_>| {
        of.is_span() && of.target().starts_with("penstock") && *of.level() <= Level::DEBUG
    };
    tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("penstock"))
        .with_filter(FilterFn::new(ours).with_max_level_hint(Level::DEBUG))
}

#[cfg(test)]
mod tests;
