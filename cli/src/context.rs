//! What every command starts with: configuration, logging, a place to print to.

use std::io::{self, BufWriter, StdoutLock, Write};

use serde::Serialize;
use tersor::registry::config::{Config, LoadOptions};
use tersor::{Registry, Result as RegistryResult};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::args::{Global, Place};
use crate::failure::Failure;

/// The configuration of this call and how it prints.
pub(crate) struct Context {
    pub(crate) config: Config,
    pub(crate) json: bool,
}

impl Context {
    /// Loads the configuration, tells its warnings and starts logging.
    pub(crate) fn new(global: &Global, place: Option<&Place>) -> Result<Self, Failure> {
        let mut options = LoadOptions::from_process();
        if let Some(file) = &global.config {
            options = options.file(file);
        }
        for (key, value) in &global.set {
            options = options.flag("--set", key, value);
        }
        for (flag, key, value) in place.into_iter().flat_map(Place::flags) {
            options = options.flag(flag, key, value);
        }
        if let Some(filter) = &global.log {
            options = options.flag("--log", "log.filter", filter);
        }
        let mut config = Config::load(&options)?;
        // This program can probe plugins itself.
        if config.plugins.probe_helper.is_none() {
            config.plugins.probe_helper = std::env::current_exe().ok();
        }
        config.warnings().iter().for_each(|warning| note(format_args!("warning: {warning}")));
        start_logging(&config)?;
        Ok(Context { config, json: global.json })
    }

    /// Probes the backends.
    pub(crate) fn registry(&self) -> RegistryResult<Registry> {
        Registry::build(self.config.clone())
    }

    /// Prints one JSON object.
    pub(crate) fn print_json(&self, report: &impl Serialize) -> Result<(), Failure> {
        print_json(report)
    }
}

/// Prints one JSON object and a newline.
pub(crate) fn print_json(report: &impl Serialize) -> Result<(), Failure> {
    let mut out = stdout();
    serde_json::to_writer(&mut out, report)?;
    writeln!(out)?;
    Ok(out.flush()?)
}

/// Standard output. Whoever writes flushes, and passes errors on.
pub(crate) fn stdout() -> BufWriter<StdoutLock<'static>> {
    BufWriter::new(io::stdout().lock())
}

/// A line on standard error. Where that is closed, nobody wants to know.
pub(crate) fn note(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

fn start_logging(config: &Config) -> Result<(), Failure> {
    let filter: EnvFilter = EnvFilter::builder().parse(&config.log.filter).map_err(|error| {
        let origin = config.origin("log.filter").map(ToString::to_string).unwrap_or_default();
        let given = &config.log.filter;
        Failure::Usage(format!(
            "{origin}: `log.filter` is {given:?} ({error}); expected a level (error, warn, info, debug, trace, off) or \
             target=level parted by commas, such as tersor=debug"
        ))
    })?;
    let detailed = filter.max_level_hint().is_none_or(|level| level >= LevelFilter::DEBUG);
    let spans = if detailed { FmtSpan::CLOSE } else { FmtSpan::NONE };
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_span_events(spans)
        .with_writer(io::stderr)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
        .log_internal_errors(false);
    log.try_init().map_err(|error| Failure::Usage(format!("logging does not start: {error}")))
}
