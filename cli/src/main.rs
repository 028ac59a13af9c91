//! `tersor`: the command for people with a model file.
//!
//! A command is a module: its arguments, what it does, and the report that it prints as text or, with `--json`, as one
//! object. What commands share:
//!
//! - [`args`]: the command line as a whole
//! - [`context`]: configuration, logging, output
//! - [`failure`]: what can go wrong, and the exit codes
//! - [`models`]: opening a model, choosing a backend for it
//! - [`text`], [`memory`]: tables and numbers for people, peak memory
//!
//! Standard output carries results, standard error everything else; a reader that closes early (`tersor … | head`) ends the
//! command in silence.
#![forbid(unsafe_code)]

mod args;
mod backends;
mod bench;
mod config;
mod conform;
mod context;
mod doctor;
mod explain;
mod failure;
mod inspect;
mod many;
mod memory;
mod models;
mod plugins;
mod quantize;
mod run;
mod suspicion;
mod synth;
mod text;
mod tune;
mod verify;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use context::Context;
use failure::{Exit, Failure};

fn main() -> ExitCode {
    panic_without_backtrace();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(message) => {
            // Nobody is left to tell that printing failed.
            let _ = message.print();
            return if message.use_stderr() { Exit::Usage.into() } else { Exit::Done.into() };
        }
    };
    match run(cli) {
        Ok(exit) => exit.into(),
        Err(failure) => failure.report().into(),
    }
}

fn run(cli: Cli) -> Result<Exit, Failure> {
    // `config check` reads one file and must not stumble over the others.
    if let Command::Config(args) = &cli.command
        && let Some(exit) = config::check(args, cli.global.json)?
    {
        return Ok(exit);
    }
    // The probe of a plugin judges the plugin, whatever the configuration says.
    if let Command::Plugins(args) = &cli.command
        && let Some(exit) = plugins::probe_child(args)?
    {
        return Ok(exit);
    }
    let context = Context::new(&cli.global, cli.command.place())?;
    match cli.command {
        Command::Backends(args) => backends::run(&context, &args),
        Command::Quantize(args) => quantize::run(&context, &args),
        Command::Synth(args) => synth::run(&context, &args),
        Command::Inspect(args) => inspect::run(&context, &args),
        Command::Verify(args) => verify::run(&context, &args),
        Command::Run(args) => run::run(&context, &args),
        Command::Bench(args) => bench::run(&context, &args),
        Command::Tune(args) => tune::run(&context, &args),
        Command::Explain(args) => explain::run(&context, &args),
        Command::Doctor(args) => doctor::run(&context, &args),
        Command::Config(args) => config::show(&context, &args),
        Command::Plugins(args) => plugins::run(&context, &args),
        Command::Conform(args) => conform::run(&context, &args),
    }
}

/// A panic is a bug of ours: say so in one line. `RUST_BACKTRACE` asks for more and gets it.
fn panic_without_backtrace() {
    if std::env::var_os("RUST_BACKTRACE").is_some_and(|v| v != "0") {
        return;
    }
    std::panic::set_hook(Box::new(|panic| {
        let mut stderr = std::io::stderr().lock();
        let what = panic.payload_as_str().unwrap_or("unknown cause");
        let place = panic.location().map(|l| format!(" at {l}")).unwrap_or_default();
        let _ = writeln!(stderr, "error: internal error{place}: {what}");
        let _ = writeln!(stderr, "  hint: this is a bug in tersor; RUST_BACKTRACE=1 shows where it happened");
    }));
}
