//! `tersor plugins`: what was found, whether it may be loaded, what is held against it.

use std::io::Write;
use std::path::PathBuf;

use clap::Subcommand;
use serde::Serialize;
use tersor::registry::config::Config;
use tersor::registry::plugins::{Answer, Loader, PluginError, Record, Verdict, manifests, places};

use crate::context::{Context, note, print_json, stdout};
use crate::failure::{Exit, Failure};

/// Backends from shared libraries: list them, check one, allow one, see and lift quarantine
///
/// A plugin is native code with the rights of this program. Plugins are off until the configuration says plugins.enabled = true.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  tersor plugins list                        which are found, and what is known of them; runs none
  tersor plugins check ./acme.toml           all checks, the probe in a process of its own included
  tersor plugins allow ./acme.toml           the lines of the configuration that allow exactly this file
  tersor plugins quarantine --clear LIBRARY  forget what is held against a library")]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Every manifest that is found, in order; nothing of a plugin runs
    List,
    /// Makes every check of one plugin, its probe included, and loads it
    Check {
        /// Its manifest
        manifest: PathBuf,
    },
    /// Prints the lines of the configuration that allow this plugin with this hash
    Allow {
        /// Its manifest
        manifest: PathBuf,
    },
    /// Which libraries are quarantined, and why
    Quarantine {
        /// Forget what is held against this library
        #[arg(long, value_name = "LIBRARY")]
        clear: Option<PathBuf>,
    },
    /// What the probe runs in a process of its own
    #[command(hide = true)]
    ProbeChild {
        /// The manifest
        manifest: PathBuf,
    },
}

/// The probe's child, which reads no configuration: whatever that says, the answer is about the plugin.
pub(crate) fn probe_child(args: &Args) -> Result<Option<Exit>, Failure> {
    let What::ProbeChild { manifest } = &args.what else { return Ok(None) };
    let refused = |e: PluginError| Answer::Refused { reason: format!("{}: {}", e.stage, e.reason) };
    let answer = Loader::new(&Config::default()).vet(manifest).map_or_else(refused, |vetted| vetted.answer());
    let mut out = stdout();
    // On a line of its own, whatever the plugin wrote before.
    writeln!(out, "\n{}", answer.line())?;
    out.flush()?;
    Ok(Some(Exit::Done))
}

pub(crate) fn run(context: &Context, args: &Args) -> Result<Exit, Failure> {
    match &args.what {
        What::List => list(context),
        What::Check { manifest } => check(context, manifest),
        What::Allow { manifest } => allow(context, manifest),
        What::Quarantine { clear } => quarantine(context, clear.as_ref()),
        What::ProbeChild { .. } => Err(Failure::Usage("probe-child runs without a configuration".into())),
    }
}

#[derive(Debug, Serialize)]
struct Listed {
    manifest: PathBuf,
    name: String,
    version: String,
    backends: Vec<String>,
    library: PathBuf,
    sha256: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<Verdict>,
}

#[derive(Debug, Serialize)]
struct Listing {
    enabled: bool,
    found: Vec<Listed>,
    refused: Vec<PluginError>,
}

fn list(context: &Context) -> Result<Exit, Failure> {
    let loader = Loader::new(&context.config);
    let (files, mut refused) = manifests(&places(&context.config, |name| std::env::var_os(name)));
    let mut found = Vec::new();
    for file in files {
        match loader.vet(&file) {
            Ok(vetted) => found.push(Listed {
                verdict: loader.state.verdict(&vetted.library).cloned(),
                manifest: file,
                name: vetted.manifest.plugin.name,
                version: vetted.manifest.plugin.version,
                backends: vetted.manifest.provides.backends,
                library: vetted.library.path,
                sha256: vetted.library.sha256,
            }),
            Err(e) => refused.push(e),
        }
    }
    let listing = Listing { enabled: context.config.plugins.enabled, found, refused };
    if context.json {
        print_json(&listing)?;
        return Ok(Exit::Done);
    }
    let mut out = stdout();
    if !listing.enabled {
        writeln!(out, "plugins are off: plugins.enabled = true in the configuration turns them on")?;
    }
    for p in &listing.found {
        writeln!(out, "{} {} ({})\n  {}", p.name, p.version, p.backends.join(", "), p.manifest.display())?;
        writeln!(out, "  {} sha256 {}", p.library.display(), p.sha256)?;
        match &p.verdict {
            None => writeln!(out, "  not probed yet")?,
            Some(Verdict::Passed) => writeln!(out, "  passed its probe")?,
            Some(Verdict::Quarantined { reason }) => writeln!(out, "  quarantined: {reason}")?,
        }
    }
    listing.refused.iter().try_for_each(|e| writeln!(out, "{e}"))?;
    out.flush()?;
    Ok(Exit::Done)
}

fn check(context: &Context, manifest: &PathBuf) -> Result<Exit, Failure> {
    let file = manifest.canonicalize().map_err(Failure::file("open", manifest))?;
    match Loader::new(&context.config).load(&file) {
        Ok(loaded) => {
            let ids: Vec<_> = loaded.backends.iter().map(|b| b.id).collect();
            if context.json {
                print_json(
                    &serde_json::json!({ "loads": true, "plugin": loaded.about, "backends": ids, "sha256": loaded.sha256 }),
                )?;
            } else {
                let mut out = stdout();
                writeln!(out, "{} {} loads; backends: {}", loaded.about.name, loaded.about.version, ids.join(", "))?;
                out.flush()?;
            }
            Ok(Exit::Done)
        }
        Err(e) => refused(context, &e),
    }
}

/// Tells why a plugin is not loaded.
pub(crate) fn refused(context: &Context, e: &PluginError) -> Result<Exit, Failure> {
    if context.json {
        print_json(&serde_json::json!({ "loads": false, "error": e }))?;
    }
    note(format_args!("error: {e}"));
    Ok(Exit::Failed)
}

fn allow(context: &Context, manifest: &PathBuf) -> Result<Exit, Failure> {
    let file = manifest.canonicalize().map_err(Failure::file("open", manifest))?;
    let mut loader = Loader::new(&context.config);
    // What is being allowed need not be allowed yet.
    loader.allow.clear();
    match loader.vet(&file) {
        Ok(vetted) => {
            let mut out = stdout();
            let (name, hash) = (&vetted.manifest.plugin.name, &vetted.library.sha256);
            writeln!(out, "[[plugins.allow]]\nname = \"{name}\"\nsha256 = \"{hash}\"")?;
            out.flush()?;
            Ok(Exit::Done)
        }
        Err(e) => refused(context, &e),
    }
}

fn quarantine(context: &Context, clear: Option<&PathBuf>) -> Result<Exit, Failure> {
    let mut state = Loader::new(&context.config).state;
    if let Some(library) = clear {
        let path = library.canonicalize().unwrap_or_else(|_| library.clone());
        if !state.forget(&path) {
            return Err(Failure::Usage(format!("nothing is known of {}", path.display())));
        }
    }
    let held: Vec<&Record> =
        state.records.iter().filter(|r| matches!(r.verdict, Verdict::Quarantined { .. })).collect();
    if context.json {
        print_json(&serde_json::json!({ "quarantined": held }))?;
        return Ok(Exit::Done);
    }
    let mut out = stdout();
    for record in &held {
        if let Verdict::Quarantined { reason } = &record.verdict {
            writeln!(out, "{}: {reason}", record.path.display())?;
        }
    }
    if held.is_empty() {
        writeln!(out, "nothing is quarantined")?;
    }
    out.flush()?;
    Ok(Exit::Done)
}
