//! The command line as a whole.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use tersor::Format;
use tersor::model::source::I2sLayout;

use crate::{backends, bench, config, doctor, explain, inspect, quantize, run, synth, tune, verify};
use crate::{conform, plugins};

/// Ternary (1.58-bit) models: convert, check, run
///
/// Tersor quantizes, packs and multiplies ternary weights on whatever hardware it finds. It brings a small model along,
/// fable-26m, so that every command works without a file.
#[derive(Debug, Parser)]
#[command(version, after_long_help = AFTER_HELP, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const AFTER_HELP: &str = "\
Examples:
  tersor backends --why                              what can run here, and what would be chosen
  tersor run --prompt 'Once upon a time'             tell a story with the model that comes along
  tersor quantize model/ -o model.gguf --format i2_s convert a checkpoint
  tersor verify model/ model.gguf                    was anything lost?
  tersor inspect model.gguf | head                   what is in the file?

Results go to standard output, everything else to standard error. With --json, a command prints one JSON object.

Exit codes:
  0  done; verify: nothing differs
  1  failed: a file that cannot be read, a model that is damaged, a backend that gave up
  2  the command line, an environment variable or a configuration file is wrong
  3  verify: ternary values differ, or tensors are missing
  4  verify: ternary values are equal; scales differ, each only because f16 cannot hold it
  5  verify: ternary values are equal; scales differ otherwise, or something beside the ternary layers does
  6  no backend can do here what was asked";

#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Configuration file to read besides the user's and the system's (see `tersor config --help`)
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// What is logged to standard error: error, warn, info, debug, trace, or target=level parted by commas
    ///
    /// From debug on, spans (probe, select, load, pack, prefill, decode) are logged as they end, with the time they took.
    /// The same as the key log.filter and TERSOR_LOG; RUST_LOG is not read.
    #[arg(long, global = true, value_name = "FILTER")]
    pub(crate) log: Option<String>,

    /// Set a key of the configuration, such as tune.mode=off or select.deny=scalar,cuda; the value as in a TERSOR_* variable
    ///
    /// Every key can be set so; `tersor config show` lists them. May be given several times.
    #[arg(long, global = true, value_name = "KEY=VALUE", value_parser = assignment)]
    pub(crate) set: Vec<(String, String)>,

    /// Print one JSON object on standard output instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

fn assignment(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("KEY=VALUE is needed, such as threads.count=2")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Backends(backends::Args),
    Quantize(quantize::Args),
    Synth(synth::Args),
    Inspect(inspect::Args),
    Verify(verify::Args),
    Run(run::Args),
    Bench(bench::Args),
    Tune(tune::Args),
    Explain(explain::Args),
    Doctor(doctor::Args),
    Config(config::Args),
    Plugins(plugins::Args),
    Conform(conform::Args),
}

impl Command {
    /// The flags that say where a backend runs, for commands that use one.
    pub(crate) fn place(&self) -> Option<&Place> {
        match self {
            Command::Backends(args) => Some(&args.place),
            Command::Quantize(args) => Some(&args.place),
            Command::Run(args) => Some(&args.place),
            Command::Bench(args) => Some(&args.place),
            Command::Tune(args) => Some(&args.place),
            Command::Explain(args) => Some(&args.place),
            Command::Doctor(args) => Some(&args.place),
            Command::Config(args) => args.place(),
            Command::Synth(_)
            | Command::Inspect(_)
            | Command::Verify(_)
            | Command::Plugins(_)
            | Command::Conform(_) => None,
        }
    }
}

/// Where a backend runs. Each flag sets the configuration key of the same meaning, above files and environment.
#[derive(Debug, Args)]
#[command(next_help_heading = "Where it runs")]
pub(crate) struct Place {
    /// Use this backend or fail, such as scalar or cpu-avx2 (`tersor backends` lists them) [key: select.backend]
    #[arg(long, value_name = "ID")]
    backend: Option<String>,

    /// Use kernels of this instruction set tier or fail, such as avx2 or avx512-vnni [key: select.isa]
    #[arg(long, value_name = "ID")]
    isa: Option<String>,

    /// Number of threads; auto is one per core that the process may use [key: threads.count]
    #[arg(long, value_name = "N")]
    threads: Option<String>,

    /// auto, cpu, cuda, cuda:N or cuda-or-cpu; only the last may fall back [key: select.device]
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
}

impl Place {
    /// Flag, key and value of what was given.
    pub(crate) fn flags(&self) -> impl Iterator<Item = (&'static str, &'static str, &str)> {
        let all = [
            ("--backend", "select.backend", &self.backend),
            ("--isa", "select.isa", &self.isa),
            ("--threads", "threads.count", &self.threads),
            ("--device", "select.device", &self.device),
        ];
        all.into_iter().filter_map(|(flag, key, value)| Some((flag, key, value.as_deref()?)))
    }
}

/// What a model file does not say about itself.
#[derive(Debug, Args)]
#[command(next_help_heading = "Files of bitnet.cpp")]
pub(crate) struct Foreign {
    /// Layout of i2_s tensors in a file that bitnet.cpp wrote
    ///
    /// The files carry no mark of it, and it is never guessed: canonical is that of x86 builds with ACT_PARALLEL and of
    /// everything that tersor writes, arm64-block that of ARM builds, rows4 that of x86 builds without ACT_PARALLEL.
    #[arg(long, value_name = "LAYOUT", value_parser = layout_names())]
    pub(crate) from_layout: Option<I2sLayout>,

    /// bitnet.cpp's kernel_config.ini, for its tl1 and tl2 files: their tile sizes are in no other place
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel_config: Option<PathBuf>,
}

/// The names of layouts, for an error that lists them.
fn layout_names() -> impl TypedValueParser<Value = I2sLayout> {
    PossibleValuesParser::new(I2sLayout::NAMES.map(|(name, _)| name)).try_map(|name| name.parse::<I2sLayout>())
}

/// The names of the formats that a file can hold, for an error that lists them.
pub(crate) fn format_names() -> impl TypedValueParser<Value = Format> {
    PossibleValuesParser::new(Format::TERNARY.map(Format::id)).try_map(|id| id.parse::<Format>())
}

/// The names of the formats of embeddings and heads, likewise.
pub(crate) fn table_format_names() -> impl TypedValueParser<Value = Format> {
    PossibleValuesParser::new(Format::tables().map(Format::id)).try_map(|id| id.parse::<Format>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_of_place_is_a_key_of_the_configuration() {
        let text = || Some("x".to_owned());
        let place = Place { backend: text(), isa: text(), threads: text(), device: text() };
        for (flag, key, _) in place.flags() {
            assert!(tersor::registry::config::Key::find(key).is_some(), "{flag}: {key}");
        }
    }

    #[test]
    fn every_command_shows_an_example() {
        for command in Cli::command().get_subcommands_mut().filter(|c| c.get_name() != "help") {
            let name = command.get_name().to_owned();
            let help = command.render_long_help().to_string();
            assert!(help.contains("Examples:") && help.contains(&format!("tersor {name}")), "{help}");
        }
    }
}
