//! The protocol of the two processes: JSON lines.
//!
//! ```text
//! standard input of the second    the request, one JSON object
//! standard output of the second   {"event": …} for each event, then {"done": …}
//!                                 or {"failed": {"message": …}}
//! ```

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};

use serde::{Deserialize, Serialize};

use super::{DemoEvent, ResumeReport, ResumeRequest, resume};
use crate::DemoError;

/// Most bytes of the second process's standard error to keep.
const COMPLAINTS_BYTES_MAX: u64 = 4096;

/// One line of the second process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ProcessMessage {
    Event(DemoEvent),
    Done(Box<ResumeReport>),
    Failed { message: String },
}

/// The second process: reads a request from `input`, answers it, and writes lines for the first
/// process to `output`.
///
/// # Errors
/// Those of [`resume`], which the first process receives too; input that is not a request; a closed
/// output.
pub fn serve(input: impl Read, mut output: impl Write) -> Result<(), DemoError> {
    let request: ResumeRequest = serde_json::from_reader(input).map_err(DemoError::exchange)?;
    let mut unheard = None;
    let outcome = resume(&request, &mut |event| {
        if let Err(error) = write(&mut output, &ProcessMessage::Event(event)) {
            unheard.get_or_insert(error);
        }
    });
    if let Some(error) = unheard {
        return Err(error);
    }
    match outcome {
        Ok(report) => write(&mut output, &ProcessMessage::Done(Box::new(report))),
        Err(error) => {
            let message = error.to_string();
            write(&mut output, &ProcessMessage::Failed { message })?;
            Err(error)
        }
    }
}

fn write(output: &mut impl Write, line: &ProcessMessage) -> Result<(), DemoError> {
    let mut text = serde_json::to_vec(line).map_err(DemoError::exchange)?;
    text.push(b'\n');
    let written = output.write_all(&text).and_then(|()| output.flush());
    written.map_err(DemoError::exchange)
}

/// Starts the second process, forwards its events, and returns its report.
pub(super) fn start(
    mut command: Command,
    request: &ResumeRequest,
    events: &mut dyn FnMut(DemoEvent),
) -> Result<ResumeReport, DemoError> {
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let child = pipes.stderr(Stdio::piped()).spawn();
    let mut running = SecondChild(child.map_err(|source| DemoError::Io {
        action: "run",
        path: command.get_program().into(),
        source,
    })?);
    let id = running.0.id();
    events(DemoEvent::SecondProcess { id });
    let complaints = running.0.stderr.take().map(|pipe| {
        // On a separate thread, so that a process with much error output does not block.
        std::thread::spawn(move || complaints(pipe))
    });
    let request = serde_json::to_vec(request).map_err(DemoError::exchange)?;
    if let Some(mut input) = running.0.stdin.take() {
        // A process that closes its input ends with an error of its own.
        let _ = input.write_all(&request);
    }
    let outcome = match running.0.stdout.take() {
        Some(output) => listen(output, events)?,
        None => None,
    };
    let status = running.wait()?;
    let message = match outcome {
        Some(Ok(report)) if status.success() => return Ok(*report),
        Some(Err(message)) => message,
        _ => {
            let said = complaints.and_then(|thread| thread.join().ok());
            let said = said.filter(|said| !said.is_empty());
            said.unwrap_or_else(|| "it ended without a result".to_owned())
        }
    };
    Err(DemoError::SecondProcess {
        status: status.to_string(),
        message,
    })
}

/// Reads the report or the error of the second process and forwards its events.
fn listen(
    output: impl Read,
    events: &mut dyn FnMut(DemoEvent),
) -> Result<Option<Result<Box<ResumeReport>, String>>, DemoError> {
    let mut outcome = None;
    for line in BufReader::new(output).lines() {
        let line = line.map_err(DemoError::exchange)?;
        match serde_json::from_str(&line).map_err(DemoError::exchange)? {
            ProcessMessage::Event(event) => events(event),
            ProcessMessage::Done(report) => outcome = Some(Ok(report)),
            ProcessMessage::Failed { message } => outcome = Some(Err(message)),
        }
    }
    Ok(outcome)
}

/// The beginning of a process's standard error. It reads the stream to the end.
fn complaints(mut pipe: impl Read) -> String {
    let mut said = Vec::new();
    // A read error loses only an explanation of a failure.
    let _ = pipe
        .by_ref()
        .take(COMPLAINTS_BYTES_MAX)
        .read_to_end(&mut said);
    let _ = std::io::copy(&mut pipe, &mut std::io::sink());
    String::from_utf8_lossy(&said).trim().to_owned()
}

/// A child process that is killed when its handle is dropped.
struct SecondChild(Child);

impl SecondChild {
    fn wait(&mut self) -> Result<ExitStatus, DemoError> {
        self.0.wait().map_err(DemoError::exchange)
    }
}

impl Drop for SecondChild {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            // It may have ended already; the kill and the wait are safe in both cases.
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}
