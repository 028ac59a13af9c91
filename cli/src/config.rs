//! `tersor config`: what is set, who set it, and whether a file is right.

use std::io::Write;
use std::path::PathBuf;

use clap::Subcommand;
use serde::Serialize;
use tersor::Registry;
use tersor::registry::config::{Config, Entry, LoadOptions, Value};

use crate::args::Place;
use crate::context::{Context, note, print_json, stdout};
use crate::failure::{Exit, Failure};

/// Show the configuration and who set what, or check a file
///
/// A value comes from the first of these that has it: a flag, an environment variable, the file that --config or
/// TERSOR_CONFIG names, $XDG_CONFIG_HOME/tersor/tersor.toml (else ~/.config/tersor/tersor.toml), /etc/tersor/tersor.toml,
/// the default.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  tersor config show                        every key and its value, as TOML
  tersor config show --origin --threads 2   with who set it
  tersor config check tersor.toml           is this file right?")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Print every key with its value, as TOML
    #[command(after_long_help = "\
Examples:
  tersor config show > tersor.toml
  tersor config show --origin | grep -v default
  TERSOR_THREADS=2 tersor config show --json | jq '.entries[] | select(.origin != \"default\")'")]
    Show {
        /// Say who set each value: a flag, a variable, a line of a file, or the default
        #[arg(long)]
        origin: bool,

        #[command(flatten)]
        place: Place,
    },
    /// Check one file, without the environment and without other files
    #[command(after_long_help = "\
Examples:
  tersor config check tersor.toml
  tersor config check /etc/tersor/tersor.toml && systemctl restart my-service")]
    Check {
        /// The file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

impl Args {
    pub(crate) fn place(&self) -> Option<&Place> {
        match &self.command {
            What::Show { place, .. } => Some(place),
            What::Check { .. } => None,
        }
    }
}

#[derive(Debug, Serialize)]
struct Shown {
    entries: Vec<ShownEntry>,
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ShownEntry {
    key: &'static str,
    value: Value,
    /// `tersor.toml:3:9`, `TERSOR_THREADS`, `--threads` or `default`.
    origin: String,
    doc: &'static str,
    effective: bool,
}

impl From<Entry> for ShownEntry {
    fn from(entry: Entry) -> Self {
        let Entry { key, value, origin, doc, effective } = entry;
        ShownEntry { key, value, origin: origin.to_string(), doc, effective }
    }
}

#[derive(Debug, Serialize)]
struct Checked<'a> {
    file: &'a PathBuf,
    ok: bool,
    warnings: Vec<String>,
}

/// Prints the configuration. `check` has been served before.
pub(crate) fn show(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let What::Show { origin, .. } = args.command else { return Ok(Exit::Done) };
    let entries: Vec<ShownEntry> = context.config.entries().map(ShownEntry::from).collect();
    if context.json {
        let warnings = warnings(&context.config);
        context.print_json(&Shown { entries, warnings })?;
        return Ok(Exit::Done);
    }
    let mut out = stdout();
    for entry in &entries {
        let line = format!("{} = {}", entry.key, entry.value);
        if origin {
            writeln!(out, "{line:<40} # {}", entry.origin)?;
        } else {
            writeln!(out, "{line}")?;
        }
    }
    out.flush()?;
    Ok(Exit::Done)
}

/// Checks a file, if that is what is asked.
pub(crate) fn check(args: &Args, json: bool) -> Result<Option<Exit>, Failure> {
    let What::Check { file } = &args.command else { return Ok(None) };
    let config = Config::load(&LoadOptions::default().file(file))?;
    let warnings = warnings(&config);
    // Names of backends can be judged only where the backends are known.
    let registry = Registry::build(config)?;
    if let Some(id) = &registry.config().select.backend
        && registry.found().iter().all(|found| found.entry.id != id.as_str())
    {
        let known: Vec<_> = registry.found().iter().map(|found| found.entry.id).collect();
        let origin = registry.config().origin("select.backend").map(ToString::to_string).unwrap_or_default();
        return Err(tersor::Error::UnknownBackend {
            given: id.to_string(),
            asked_by: format!("select.backend ({origin})"),
            known: known.join(", "),
        }
        .into());
    }
    if json {
        print_json(&Checked { file, ok: true, warnings })?;
    } else {
        warnings.iter().for_each(|warning| note(format_args!("warning: {warning}")));
        let mut out = stdout();
        writeln!(out, "{}: no error", file.display())?;
        out.flush()?;
    }
    Ok(Some(Exit::Done))
}

fn warnings(config: &Config) -> Vec<String> {
    config.warnings().iter().map(ToString::to_string).collect()
}
