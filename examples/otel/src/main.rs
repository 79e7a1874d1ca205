//! How do calls, attempts and breakers reach OpenTelemetry?
//!
//! ```sh
//! cd examples/otel && cargo run
//! ```
//!
//! Mainstay speaks to `tracing` and to the `metrics` facade and knows no exporter: the bridges of those
//! two do the rest. Here both write to the terminal; with `opentelemetry-otlp` in the place of
//! `opentelemetry-stdout` the same goes to a collector. It exits non-zero if a span or a metric is
//! missing.

use mainstay::{Kind, Policy};
use metrics_opentelemetry::{OpenTelemetryMetrics, OpenTelemetryRecorder};
use opentelemetry::{metrics::MeterProvider as _, trace::TracerProvider as _};
use opentelemetry_sdk::{
    metrics::{InMemoryMetricExporter, PeriodicReader, SdkMeterProvider},
    trace::{InMemorySpanExporter, SdkTracerProvider},
};
use std::{
    error::Error,
    io,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};
use tracing_subscriber::layer::SubscriberExt;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    // Traces: spans of `tracing` become spans of OpenTelemetry.
    let kept_spans = InMemorySpanExporter::default();
    let tracers = SdkTracerProvider::builder()
        .with_simple_exporter(opentelemetry_stdout::SpanExporter::default())
        .with_simple_exporter(kept_spans.clone())
        .build();
    let bridge = tracing_opentelemetry::layer().with_tracer(tracers.tracer("mainstay"));
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(bridge))?;

    // Metrics: the recorder of the `metrics` facade is OpenTelemetry's.
    let kept_metrics = InMemoryMetricExporter::default();
    let every = Duration::from_secs(30);
    let to_terminal = opentelemetry_stdout::MetricExporter::default();
    let meters = SdkMeterProvider::builder()
        .with_reader(PeriodicReader::builder(to_terminal).with_interval(every).build())
        .with_reader(PeriodicReader::builder(kept_metrics.clone()).with_interval(every).build())
        .build();
    let recorder = OpenTelemetryRecorder::new(OpenTelemetryMetrics::new(meters.meter("mainstay")));
    metrics::set_global_recorder(recorder).map_err(|_| "there is a recorder already")?;
    mainstay::describe_metrics();

    // A call whose first attempt is refused: one span, two children, a retry that is counted. A payment
    // is repeated only where it certainly was not made.
    let policy = Policy::builder(Kind::Api, "payments").base_delay(Duration::from_millis(5));
    let policy = policy.build()?;
    let attempts = AtomicU32::new(0);
    let pay = || async {
        match attempts.fetch_add(1, Relaxed) {
            0 => Err(io::Error::from(io::ErrorKind::ConnectionRefused)),
            _ => Ok("paid"),
        }
    };
    println!("{}", policy.operation("pay").idempotent(false).call(pay).await?);

    tracers.force_flush()?;
    meters.force_flush()?;
    let names: Vec<_> =
        kept_spans.get_finished_spans()?.into_iter().map(|span| span.name.to_string()).collect();
    check(names.iter().filter(|name| *name == "attempt").count() == 2, "two spans of attempts")?;
    check(names.iter().filter(|name| *name == "call").count() == 1, "one span of the call")?;
    let metrics = format!("{:?}", kept_metrics.get_finished_metrics()?);
    for name in ["mainstay.call.duration", "mainstay.attempt.duration", "mainstay.policy.decisions"]
    {
        check(metrics.contains(name), name)?;
    }
    meters.shutdown()?;
    tracers.shutdown()?;
    Ok(())
}

fn check(is_so: bool, what: &str) -> Result<(), Box<dyn Error>> {
    if is_so { Ok(()) } else { Err(format!("missing: {what}").into()) }
}
