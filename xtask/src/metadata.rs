//! The output of `cargo metadata` about the workspace and its dependencies.

use serde_json::Value;

use crate::step::{CargoStep, StepFailure};

/// A package of the workspace, or a dependency.
pub(crate) struct CargoPackage {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) licence: Option<String>,
    pub(crate) rust_version: Option<String>,
    /// Whether it is a member of the workspace.
    pub(crate) ours: bool,
    /// Names of its normal and build dependencies: no dev-dependencies.
    pub(crate) normal: Vec<String>,
    /// Names of its dev-dependencies.
    pub(crate) dev: Vec<String>,
}

/// All packages in the lock file.
pub(crate) fn read() -> Result<Vec<CargoPackage>, StepFailure> {
    let json = CargoStep::cargo(["metadata", "--format-version", "1", "--locked"]).output()?;
    let json: Value = serde_json::from_slice(&json)
        .map_err(|error| StepFailure::Tool(format!("cargo metadata: {error}")))?;
    let members: Vec<&str> = strings(json.get("workspace_members"));
    let packages = json.get("packages").and_then(Value::as_array);
    let packages =
        packages.ok_or_else(|| StepFailure::Tool("cargo metadata: no packages".into()))?;
    Ok(packages
        .iter()
        .map(|package| parse(package, &members))
        .collect())
}

fn parse(package: &Value, members: &[&str]) -> CargoPackage {
    let text = |field: &str| {
        package
            .get(field)
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    let dependencies = package.get("dependencies").and_then(Value::as_array);
    let of_kind = |dev: bool| {
        dependencies
            .into_iter()
            .flatten()
            .filter(|d| (d.get("kind").and_then(Value::as_str) == Some("dev")) == dev)
            .filter_map(|d| d.get("name").and_then(Value::as_str))
            .map(str::to_owned)
            .collect()
    };
    CargoPackage {
        name: text("name").unwrap_or_default(),
        version: text("version").unwrap_or_default(),
        licence: text("license"),
        rust_version: text("rust_version"),
        ours: text("id").is_some_and(|id| members.contains(&id.as_str())),
        normal: of_kind(false),
        dev: of_kind(true),
    }
}

fn strings(value: Option<&Value>) -> Vec<&str> {
    let values = value.and_then(Value::as_array).into_iter().flatten();
    values.filter_map(Value::as_str).collect()
}
