//! One line per event on stderr.
//!
//! JSON lines carry `ts`, `level`, `target`, `message`, then the event's own fields, then `span`: the fields of the
//! spans around it, inner ones winning. Text is for people. Ciphertext, tokens and message bodies are never fields.

use std::fmt::{self, Write as _};
use std::io::IsTerminal;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

/// How a process logs; a section of its configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// For a machine or for a person.
    pub format: Format,
    /// What is logged, in `tracing` directives: `info`, `info,chappe_node=debug`. The variable `RUST_LOG`, where it is
    /// set, is used instead: it is what people reach for in an emergency.
    pub filter: String,
}

/// The shape of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One JSON object per line.
    Json,
    /// Words, coloured on a terminal.
    #[default]
    Text,
}

/// Why logging could not begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directives do not parse.
    #[error("log filter {filter:?} from {from} is not understood")]
    Filter {
        /// What was given.
        filter: String,
        /// `configuration` or `RUST_LOG`.
        from: &'static str,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Something in this process has already begun to log.
    #[error("logging is already set up")]
    Taken,
}

/// Begins to log. Panics are events from here on, so that they too are one line with a place and a thread.
pub fn init(log: &Log) -> Result<(), Error> {
    let filter = log.filter_with(std::env::var("RUST_LOG").ok())?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // What cannot be written is lost. By default that is complained about on standard error, which panics when that is what cannot be
    // written: a log on a full disk ended the server.
    let builder = builder.log_internal_errors(false);
    let result = match log.format {
        Format::Json => builder.fmt_fields(JsonFields::new()).event_format(JsonLine).try_init(),
        Format::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
    };
    result.map_err(|_| Error::Taken)?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// Checks the filter, and the one that `RUST_LOG` puts in its place, without beginning to log; for `--check-config`.
pub fn check(log: &Log) -> Result<(), Error> {
    log.filter_with(None)?;
    log.filter_with(std::env::var("RUST_LOG").ok()).map(drop)
}

// === impl Log ===

impl Default for Log {
    fn default() -> Self {
        Self {
            format: Format::default(),
            filter: "info,fjall=warn,lsm_tree=warn,openraft=error,openraft::replication=off,scylla=warn,scylla::client::session_builder=error"
                .to_owned(),
        }
    }
}

impl Log {
    fn filter_with(&self, rust_log: Option<String>) -> Result<EnvFilter, Error> {
        let (filter, from) = match rust_log {
            Some(filter) if !filter.is_empty() => (filter, "RUST_LOG"),
            _ => (self.filter.clone(), "configuration"),
        };
        EnvFilter::try_new(&filter).map_err(|source| Error::Filter { filter, from, source })
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "json" => Ok(Format::Json),
            "text" => Ok(Format::Text),
            _ => Err(format!("expected json or text, found {text:?}")),
        }
    }
}

fn log_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let backtrace = std::backtrace::Backtrace::capture();
    let backtrace = match backtrace.status() {
        std::backtrace::BacktraceStatus::Captured => Some(backtrace.to_string()),
        _ => None,
    };
    tracing::error!(
        event = "process_panicked",
        location = panic.location().map(tracing::field::display),
        thread = std::thread::current().name(),
        backtrace,
        "{}",
        panic.payload_as_str().unwrap_or("a panic without a message"),
    );
}

// === JSON lines ===

/// Names that mean something in every line; a field that wants one of them gets an underscore.
const RESERVED: [&str; 4] = ["ts", "level", "target", "span"];

struct JsonLine;

impl<S, N> FormatEvent<S, N> for JsonLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut ts = String::with_capacity(32);
        SystemTime.format_time(&mut Writer::new(&mut ts))?;

        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut span = Map::new();
        for scope in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            let extensions = scope.extensions();
            if let Some(text) = extensions.get::<FormattedFields<N>>()
                && let Ok(Value::Object(own)) = serde_json::from_str(text)
            {
                span.extend(own);
            }
        }

        let meta = event.metadata();
        write!(
            writer,
            "{{\"ts\":\"{}\",\"level\":\"{}\",\"target\":{}",
            ts.trim_end(),
            meta.level(),
            quoted(meta.target())
        )?;
        if let Some(message) = fields.message {
            write!(writer, ",\"message\":{}", quoted(&message))?;
        }
        for (name, value) in fields.others {
            write!(writer, ",{}:{value}", quoted(&name))?;
        }
        if !span.is_empty() {
            write!(writer, ",\"span\":{}", Value::Object(span))?;
        }
        writer.write_str("}\n")
    }
}

fn quoted(text: &str) -> Value {
    Value::from(text)
}

/// The fields of one event, in the order in which they were written.
#[derive(Default)]
struct Fields {
    message: Option<String>,
    others: Vec<(String, Value)>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        let mut name = field.name().to_owned();
        if RESERVED.contains(&field.name()) {
            name.push('_');
        }
        self.others.push((name, value));
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, Value::from(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, Value::from(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, Value::from(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, Value::from(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message = Some(value.to_owned()),
            _ => self.put(field, Value::from(value)),
        }
    }

    /// The whole chain, once: the outermost error says what failed, the innermost why.
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut chain = value.to_string();
        let mut source = value.source();
        while let Some(cause) = source {
            // Writing to a string does not fail.
            let _ = write!(chain, ": {cause}");
            source = cause.source();
        }
        self.put(field, Value::from(chain));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        match field.name() {
            "message" => self.message = Some(text),
            _ => self.put(field, Value::from(text)),
        }
    }
}

/// A subscriber like that of [`init`] with [`Format::Json`], writing elsewhere: for tests that read what was logged.
pub fn json_to<W>(writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::fmt().fmt_fields(JsonFields::new()).event_format(JsonLine).with_writer(writer).finish()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io;
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(act: impl FnOnce()) -> Vec<Value> {
        let captured = Captured::default();
        let writer = captured.clone();
        tracing::subscriber::with_default(json_to(move || writer.clone()), act);
        let text = String::from_utf8(captured.0.lock().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_line_is_one_json_object_with_the_common_fields() {
        let lines = logged(|| {
            tracing::warn!(event = "store_write_failed", rows = 3, target = "x", slow = true, "a \"quoted\"\nmessage");
        });
        let line = &lines[0];
        assert_eq!(lines.len(), 1);
        assert_eq!(line["level"], "WARN");
        assert_eq!(line["target"], "chappe_cluster::process::log::tests");
        assert_eq!(line["message"], "a \"quoted\"\nmessage");
        assert_eq!(line["event"], "store_write_failed");
        assert_eq!(line["rows"], 3);
        assert_eq!(line["slow"], true);
        assert_eq!(line["target_"], "x");
        let ts = line["ts"].as_str().unwrap();
        assert!(ts.ends_with('Z') && ts.contains('T'), "{ts}");
    }

    #[test]
    fn the_spans_around_an_event_are_in_its_line() {
        let lines = logged(|| {
            let outer = tracing::info_span!("connection", connection = 7, device = "old").entered();
            let inner = tracing::info_span!("command", device = "new").entered();
            tracing::info!("inside");
            drop((inner, outer));
            tracing::info!("outside");
        });
        assert_eq!(lines[0]["span"], serde_json::json!({"connection": 7, "device": "new"}));
        assert_eq!(lines[1].get("span"), None);
    }

    #[test]
    fn an_error_is_logged_with_its_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot open the log")]
        struct Outer(#[source] io::Error);

        let error = Outer(io::Error::other("disk on fire"));
        let lines = logged(|| tracing::error!(error = &error as &dyn std::error::Error, "start failed"));
        assert_eq!(lines[0]["error"], "cannot open the log: disk on fire");
    }

    #[test]
    fn rust_log_is_used_instead_of_the_configured_filter() {
        let log = Log { filter: "warn".into(), ..Log::default() };
        assert_eq!(log.filter_with(None).unwrap().to_string(), "warn");
        assert_eq!(log.filter_with(Some(String::new())).unwrap().to_string(), "warn");
        assert_eq!(log.filter_with(Some("debug".into())).unwrap().to_string(), "debug");
        let error = Log { filter: "a=b=c".into(), ..log }.filter_with(None).unwrap_err().to_string();
        assert_eq!(error, "log filter \"a=b=c\" from configuration is not understood");
    }
}
