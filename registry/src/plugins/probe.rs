//! The probe in a process of its own: whatever a plugin does there, this process lives on.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tersor_core::{HostContext, Probe};

use super::{Vetted, known};

/// Begins the line on standard output that carries the child's answer.
const MARK: &str = "tersor-probe-child: ";
/// Bytes of output that are read of a child.
const OUTPUT: u64 = 1 << 20;

/// The child's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Answer {
    /// Every usable backend gave the known answers.
    Passed {
        /// Backends that cannot be used here, and were not tried.
        unusable: Vec<String>,
    },
    /// A clean refusal: nothing is held against the file.
    Refused {
        /// Why.
        reason: String,
    },
    /// A wrong answer.
    Wrong {
        /// What is wrong.
        reason: String,
    },
}

impl Answer {
    /// The line for standard output.
    pub fn line(&self) -> String {
        let json = serde_json::to_string(self).unwrap_or_default();
        format!("{MARK}{json}")
    }
}

/// What the child does: load, probe, open, compute.
pub(super) fn answer(vetted: &Vetted) -> Answer {
    let plugin = match vetted.open() {
        Ok(plugin) => plugin,
        Err(e) => return Answer::Refused { reason: format!("{}: {}", e.stage, e.reason) },
    };
    let mut unusable = Vec::new();
    for backend in &plugin.backends {
        if let Probe::Unusable { reason } = backend.probe() {
            unusable.push(format!("{}: {reason}", backend.id));
            continue;
        }
        let judged = backend.open(&HostContext::inline()).map_err(|e| e.to_string()).and_then(|b| known::check(&*b));
        if let Err(reason) = judged {
            return Answer::Wrong { reason: format!("{}: {reason}", backend.id) };
        }
    }
    Answer::Passed { unusable }
}

/// How a probe ended, seen from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ended {
    /// The child answered.
    Answered(Answer),
    /// It crashed or hung.
    Died(String),
    /// It could not be started: nothing is known.
    NotStarted(String),
}

/// Runs `helper plugins probe-child MANIFEST` and waits for it, at most so long.
pub(super) fn in_child(helper: &Path, manifest: &Path, limit: Duration) -> Ended {
    let mut command = Command::new(helper);
    command.args(["plugins", "probe-child"]).arg(manifest);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(e) => return Ended::NotStarted(format!("the probe helper {} does not start: {e}", helper.display())),
    };
    // Read aside, so that a child that writes much is not held up, nor are we by one that keeps silent.
    let out = child.stdout.take().map(|out| std::thread::spawn(move || last_answer(out)));
    let err = child.stderr.take().map(|err| std::thread::spawn(move || tail(err)));
    let ended = wait(&mut child, limit);
    // A grandchild may hold the pipes open after a kill; then nobody waits for them.
    let Some(status) = ended else {
        return Ended::Died(format!("it did not end within {} s and was killed", limit.as_secs_f32()));
    };
    let answer = out.and_then(|reader| reader.join().ok()).flatten();
    let told = err.and_then(|reader| reader.join().ok()).unwrap_or_default();
    match answer {
        Some(answer) if status.success() => Ended::Answered(answer),
        _ => Ended::Died(format!("it {}{}", manner(status), if told.is_empty() { told } else { format!(": {told}") })),
    }
}

fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let start = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if start.elapsed() < limit => std::thread::sleep(Duration::from_millis(2)),
            _ => {
                // Already gone is as good.
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    }
}

fn last_answer(mut out: impl Read) -> Option<Answer> {
    let lines = BufReader::new(out.by_ref().take(OUTPUT)).lines().map_while(Result::ok);
    let answer = lines.filter_map(|line| serde_json::from_str(line.strip_prefix(MARK)?).ok()).last();
    drain(out);
    answer
}

/// A child whose output nobody takes would wait for ever.
fn drain(mut rest: impl Read) {
    // An error is the end of it too.
    let _ = std::io::copy(&mut rest, &mut std::io::sink());
}

/// The last line with something in it.
fn tail(mut err: impl Read) -> String {
    let lines = BufReader::new(err.by_ref().take(OUTPUT)).lines().map_while(Result::ok);
    let last = lines.filter(|line| !line.trim().is_empty()).last().unwrap_or_default();
    drain(err);
    last
}

#[cfg(unix)]
fn manner(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match status.signal() {
        Some(signal) => format!("was killed by signal {signal}{}", signal_name(signal)),
        None => format!("ended with {status} and without an answer"),
    }
}

#[cfg(not(unix))]
fn manner(status: ExitStatus) -> String {
    format!("ended with {status} and without an answer")
}

#[cfg(unix)]
fn signal_name(signal: i32) -> &'static str {
    match signal {
        4 => " (illegal instruction)",
        6 => " (abort)",
        8 => " (arithmetic error)",
        7 | 11 => " (invalid memory access)",
        _ => "",
    }
}
