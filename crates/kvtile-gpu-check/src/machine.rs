//! The state of a device as `nvidia-smi` prints it: clocks, link, power, temperature.

use std::{
    io::Read,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// The fields of a device, as the program calls them.
const FIELDS: [&str; 15] = [
    "driver_version",
    "pstate",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "clocks.max.mem",
    "pcie.link.gen.current",
    "pcie.link.gen.max",
    "pcie.link.width.current",
    "power.draw",
    "power.limit",
    "temperature.gpu",
    "utilization.gpu",
    "memory.used",
    "mig.mode.current",
];

/// How long the program may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The state of the device with a UUID, by field; one entry with the reason where it is not known.
pub(crate) fn state(uuid: &str) -> Vec<(String, String)> {
    let mut program = Command::new("nvidia-smi");
    let fields_of = format!("--query-gpu={}", FIELDS.join(","));
    program.args([&fields_of, "--format=csv,noheader", "--id", uuid]);
    match first_line(program, PATIENCE) {
        Ok(line) => fields(&line),
        Err(reason) => vec![("nvidia-smi".to_owned(), reason)],
    }
}

fn fields(line: &str) -> Vec<(String, String)> {
    let values = line.split(',').map(|value| value.trim().to_owned());
    let names = FIELDS.iter().map(|&name| name.to_owned());
    names.zip(values).collect()
}

/// The first line that a program prints.
fn first_line(mut program: Command, patience: Duration) -> Result<String, String> {
    let mut child = program
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("not known: {error}"))?;
    let ended = wait(&mut child, patience);
    if !ended {
        // A program that does not end is killed, and its end awaited.
        let _killed = child.kill();
        let _reaped = child.wait();
        return Err(format!("not known: no answer in {} s", patience.as_secs()));
    }
    let mut text = String::new();
    if let Some(output) = child.stdout.take() {
        let limited = &mut output.take(1 << 16);
        let _read = limited.read_to_string(&mut text);
    }
    let status = child.wait();
    let line = text.lines().next().unwrap_or_default().trim();
    match status {
        Ok(status) if status.success() && !line.is_empty() => Ok(line.to_owned()),
        Ok(status) => Err(format!("not known: {status}, {line:?}")),
        Err(error) => Err(format!("not known: {error}")),
    }
}

/// Whether the program ends in time.
fn wait(child: &mut Child, patience: Duration) -> bool {
    let start = Instant::now();
    loop {
        match child.try_wait() {
            Ok(None) if start.elapsed() < patience => thread::sleep(Duration::from_millis(10)),
            Ok(None) => return false,
            Ok(Some(_)) | Err(_) => return true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_has_the_names_of_its_fields() {
        let state = fields("570.86, P0, 1980 MHz, 2619 MHz");
        let expected = [
            ("driver_version", "570.86"),
            ("pstate", "P0"),
            ("clocks.sm", "1980 MHz"),
            ("clocks.mem", "2619 MHz"),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(state, expected);
    }

    #[test]
    fn a_program_that_is_absent_fails_or_hangs_is_a_reason() {
        let reason = |program: &str, argument: &str, milliseconds| {
            let mut program = Command::new(program);
            program.arg(argument);
            first_line(program, Duration::from_millis(milliseconds)).unwrap_err()
        };
        assert!(reason("/nonexistent/nvidia-smi", "", 50).starts_with("not known: No such file"));
        assert!(reason("false", "", 60_000).starts_with("not known: exit status: 1"));
        assert_eq!(reason("sleep", "60", 50), "not known: no answer in 0 s");
    }
}
