//! Spans that go on in another process: what one process says of its span is a W3C traceparent, and another makes a span of its own
//! a child of it.

use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The traceparent of a span: `00-<trace>-<span>-<flags>`. `None` where no spans are sent.
pub fn traceparent(span: &Span) -> Option<String> {
    let context = span.context();
    let of = context.span().span_context().clone();
    let flags = of.trace_flags().to_u8();
    of.is_valid()
        .then(|| format!("00-{}-{}-{flags:02x}", of.trace_id(), of.span_id()))
}

/// Makes a span that was not entered yet a child of another process's. What is no traceparent changes nothing.
pub fn child_of(span: &Span, traceparent: &str) {
    if let Some(parent) = parsed(traceparent) {
        // Where no spans are sent there is nobody to tell.
        let _ = span.set_parent(Context::new().with_remote_span_context(parent));
    }
}

fn parsed(text: &str) -> Option<SpanContext> {
    let mut parts = text.split('-');
    let [version, trace, span, flags] =
        [parts.next()?, parts.next()?, parts.next()?, parts.next()?];
    let of = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?),
        true,
        TraceState::NONE,
    );
    (version == "00" && of.is_valid()).then_some(of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_traceparent_names_a_parent() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let sound = format!("00-{trace}-00f067aa0ba902b7-01");
        let parent = parsed(&sound).expect("a traceparent");
        assert_eq!(parent.trace_id().to_string(), trace);
        assert!(parent.is_sampled() && parent.is_remote());
        for wrong in [
            "",
            "00",
            &sound[..40],
            &format!("00-{trace}-0000000000000000-01"),
        ] {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
        assert_eq!(traceparent(&Span::none()), None);
    }
}
