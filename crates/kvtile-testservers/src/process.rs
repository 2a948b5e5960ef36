//! The process of a server.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// Between two tries whether a server answers.
const TRY_AFTER: Duration = Duration::from_millis(50);

/// Why a server does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// Its program is not installed. A test reports that and goes on.
    #[error("{what} is not installed: {remedy}")]
    NotInstalled {
        /// The program.
        what: &'static str,
        /// How to get it.
        remedy: String,
    },
    /// A file, a port or a process could not be had.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// The error of the system.
        source: io::Error,
    },
    /// It ended before it answered.
    #[error("{name} ended with {status} before it answered; the end of {}:\n{tail}", log.display())]
    Ended {
        /// The server.
        name: String,
        /// Its exit status.
        status: String,
        /// The file of its output.
        log: PathBuf,
        /// The last lines of its output.
        tail: String,
    },
    /// It did not answer in time.
    #[error("{name} did not answer within {within:?}; the end of {}:\n{tail}", log.display())]
    Silent {
        /// The server.
        name: String,
        /// The time that it had.
        within: Duration,
        /// The file of its output.
        log: PathBuf,
        /// The last lines of its output.
        tail: String,
    },
}

impl ServerError {
    pub(crate) fn system(what: impl Into<String>, source: impl Into<io::Error>) -> ServerError {
        ServerError::System {
            what: what.into(),
            source: source.into(),
        }
    }
}

/// How a server is started.
#[derive(Clone, Debug)]
pub struct ServerCommand {
    /// Its name, for messages.
    pub name: String,
    /// Its program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Further variables of its environment.
    pub variables: Vec<(&'static str, String)>,
    /// The file that gets its output.
    pub log: PathBuf,
    /// The time until it must answer.
    pub within: Duration,
}

/// A server that runs, or was killed. Dropped, it ends.
#[derive(Debug)]
pub struct ServerProcess {
    command: ServerCommand,
    answers: fn(u16) -> bool,
    port: u16,
    child: Option<Child>,
}

impl ServerProcess {
    /// Starts a server and waits until `answers` is true for `port`.
    ///
    /// The process must be started by a thread that lives as long as it is used: the server ends with
    /// this thread.
    ///
    /// # Errors
    /// A server that does not start, ends, or does not answer.
    pub fn start(
        command: ServerCommand,
        port: u16,
        answers: fn(u16) -> bool,
    ) -> Result<ServerProcess, ServerError> {
        let mut process = ServerProcess {
            command,
            answers,
            port,
            child: None,
        };
        process.begin()?;
        process.await_answer()?;
        Ok(process)
    }

    fn begin(&mut self) -> Result<(), ServerError> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.command.log)
            .map_err(|error| ServerError::system(show(&self.command.log), error))?;
        let again = log.try_clone();
        let again = again.map_err(|error| ServerError::system(show(&self.command.log), error))?;
        // The kernel kills the server when the thread that started it ends.
        let mut starts = Command::new("setpriv");
        starts
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&self.command.program)
            .args(&self.command.arguments)
            .envs(
                self.command
                    .variables
                    .iter()
                    .map(|(name, value)| (name, value)),
            )
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(again);
        let child = starts.spawn();
        let name = &self.command.name;
        let child = child.map_err(|error| ServerError::system(format!("start {name}"), error))?;
        self.child = Some(child);
        Ok(())
    }

    fn await_answer(&mut self) -> Result<(), ServerError> {
        let began = Instant::now();
        while !(self.answers)(self.port) {
            let ended = self.child.as_mut().map(Child::try_wait);
            if let Some(Ok(Some(status))) = ended {
                return Err(ServerError::Ended {
                    name: self.command.name.clone(),
                    status: status.to_string(),
                    log: self.command.log.clone(),
                    tail: tail(&self.command.log),
                });
            }
            if began.elapsed() > self.command.within {
                self.kill();
                return Err(ServerError::Silent {
                    name: self.command.name.clone(),
                    within: self.command.within,
                    log: self.command.log.clone(),
                    tail: tail(&self.command.log),
                });
            }
            thread::sleep(TRY_AFTER);
        }
        log::info!("{} answers after {:?}", self.command.name, began.elapsed());
        Ok(())
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.command.name
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its process; `None` if it was killed.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Stops it (`SIGSTOP`): its sockets stay open and nothing answers.
    ///
    /// # Errors
    /// It does not run.
    pub fn stop(&self) -> io::Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it run on after [`stop`](ServerProcess::stop).
    ///
    /// # Errors
    /// It does not run.
    pub fn resume(&self) -> io::Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        let pid = self.child.as_ref().map(Pid::from_child);
        let pid = pid.ok_or(io::ErrorKind::NotFound)?;
        Ok(kill_process(pid, signal)?)
    }

    /// Kills it (`SIGKILL`) and waits for its end.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again with the same port and data, without waiting for an answer. A running one is
    /// killed first.
    ///
    /// # Errors
    /// It does not start.
    pub fn restart(&mut self) -> Result<(), ServerError> {
        self.kill();
        self.begin()
    }

    /// Waits until it answers.
    ///
    /// # Errors
    /// It ended, or does not answer.
    pub fn await_start(&mut self) -> Result<(), ServerError> {
        self.await_answer()
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last lines of a file.
fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let last = lines.get(lines.len().saturating_sub(8)..);
    last.unwrap_or_default().join("\n")
}

pub(crate) fn show(path: &Path) -> String {
    path.display().to_string()
}
