//! Running the program as a user does, and a saved cache to look into.

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use kvtile::{
    identity::{Identity, Rope},
    layout::{PhysicalLayout, Shape, Unit, Word},
    saved::{SaveOptions, save},
    transfer::{FillPattern, TransferManager},
};
use serde_json::Value;

/// What a run of the program left.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The program, without the terminal and the settings of the user that runs the tests.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvtile"));
    command.env_remove("NO_COLOR").env_remove("COLUMNS");
    command.env_remove("CLICOLOR_FORCE");
    command
}

/// Runs the program.
pub(crate) fn kvtile<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Ran {
    let output = program().args(args).output().unwrap();
    Ran {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

impl Ran {
    /// Standard output of a run that succeeded.
    pub(crate) fn ok(self) -> String {
        assert_eq!(
            (self.code, self.stderr.as_str()),
            (0, ""),
            "{}",
            self.stdout
        );
        self.stdout
    }

    /// The same as JSON.
    pub(crate) fn json(self) -> Value {
        serde_json::from_str(&self.ok()).unwrap()
    }

    /// Standard error of a run that ended with `code`: one error, printed once.
    pub(crate) fn fails(self, code: i32) -> String {
        assert_eq!(self.code, code, "{}{}", self.stdout, self.stderr);
        assert_eq!(self.stderr.matches("error:").count(), 1, "{}", self.stderr);
        self.stderr
    }
}

/// A saved cache of 6 blocks with the given base of the rotary embedding.
pub(crate) fn saved_cache(folder: &Path, name: &str, rope_base: f64) -> PathBuf {
    let shape = Shape::key_value(6, 3, 4, 2, 16, Unit::named("bf16").unwrap()).unwrap();
    let word: Word = "L|BH(kCN,vNC)".parse().unwrap();
    let rope = Rope::new("default", rope_base).unwrap();
    let identity = Identity::new("toy", "0123abc", &shape)
        .unwrap()
        .with_rope(rope);
    let layout = PhysicalLayout::builder()
        .with_shape(shape)
        .layout(word)
        .allocate_system()
        .build()
        .unwrap();
    let manager = TransferManager::new();
    let handle = manager.register(layout).unwrap();
    let ids: Vec<usize> = (0..6).collect();
    let pattern = FillPattern::Distinct { seed: 3 };
    manager.fill(handle, &ids, pattern).unwrap();
    let mut options = SaveOptions::new(identity, 23).unwrap();
    options
        .notes
        .insert("prompt".to_owned(), "a digest".to_owned());
    let path = folder.join(name);
    save(&manager, handle, &ids, &path, &options).unwrap();
    path
}
