//! The dependency arrows: which crates may depend on which, and the allowed dependencies of pure
//! crates.

use crate::metadata::CargoPackage;

/// Every crate of the workspace, and the workspace crates that it may depend on.
const ARROWS: [(&str, &[&str]); 30] = [
    ("kvtile-layout", &[]),
    ("kvtile-kernels", &["kvtile-layout"]),
    ("kvtile-ptx", &[]),
    ("kvtile-memory", &[]),
    (
        "kvtile-transfer",
        &[
            "kvtile-device",
            "kvtile-kernels",
            "kvtile-layout",
            "kvtile-memory",
            "kvtile-random",
        ],
    ),
    ("kvtile-blocks", &[]),
    (
        "kvtile-tiers",
        &[
            "kvtile-blocks",
            "kvtile-daemon-wire",
            "kvtile-layout",
            "kvtile-memory",
            "kvtile-random",
            "kvtile-transfer",
        ],
    ),
    (
        "kvtile-shared",
        &[
            "kvtile-blocks",
            "kvtile-layout",
            "kvtile-memory",
            "kvtile-tiers",
            "kvtile-transfer",
        ],
    ),
    ("kvtile-shared-object", &["kvtile-shared"]),
    (
        "kvtile-shared-open",
        &[
            "kvtile-shared",
            "kvtile-shared-object",
            "kvtile-shared-redis",
        ],
    ),
    ("kvtile-shared-redis", &["kvtile-shared"]),
    ("kvtile-testservers", &[]),
    (
        "kvtile",
        &[
            "kvtile-blocks",
            "kvtile-device",
            "kvtile-layout",
            "kvtile-memory",
            "kvtile-shared",
            "kvtile-tiers",
            "kvtile-transfer",
        ],
    ),
    (
        "kvtile-daemon",
        &[
            "kvtile-blocks",
            "kvtile-daemon-wire",
            "kvtile-layout",
            "kvtile-memory",
            "kvtile-tiers",
            "kvtile-transfer",
        ],
    ),
    ("kvtile-daemon-wire", &[]),
    ("kvtile-demo", &["kvtile", "kvtile-random"]),
    ("kvtile-device", &["kvtile-memory"]),
    (
        "kvtile-standin",
        &["kvtile-device", "kvtile-ptx", "kvtile-random"],
    ),
    (
        "kvtile-bench",
        &["kvtile", "kvtile-blocks", "kvtile-random"],
    ),
    ("kvtile-rivals", &["kvtile-bench"]),
    (
        "kvtile-cli",
        &[
            "kvtile",
            "kvtile-daemon",
            "kvtile-events-publish",
            "kvtile-events-wire",
            "kvtile-http",
            "kvtile-shared-open",
        ],
    ),
    (
        "kvtile-events-publish",
        &["kvtile-blocks", "kvtile-events-wire", "kvtile-tiers"],
    ),
    ("kvtile-events-wire", &[]),
    (
        "kvtile-gpu-check",
        &[
            "kvtile-bench",
            "kvtile-device",
            "kvtile-kernels",
            "kvtile-layout",
            "kvtile-memory",
            "kvtile-ptx",
            "kvtile-random",
            "kvtile-testkit",
            "kvtile-transfer",
        ],
    ),
    ("kvtile-http", &["kvtile"]),
    (
        "kvtile-program",
        &[
            "kvtile",
            "kvtile-bench",
            "kvtile-cli",
            "kvtile-demo",
            "kvtile-rivals",
        ],
    ),
    (
        "kvtile-python",
        &[
            "kvtile",
            "kvtile-cli",
            "kvtile-events-publish",
            "kvtile-http",
            "kvtile-shared-open",
        ],
    ),
    ("kvtile-random", &[]),
    (
        "kvtile-testkit",
        &[
            "kvtile-blocks",
            "kvtile-layout",
            "kvtile-random",
            "kvtile-shared",
            "kvtile-tiers",
            "kvtile-transfer",
        ],
    ),
    ("xtask", &[]),
];

/// The allowed external dependencies of crates that do no I/O.
const PURE: [(&str, &[&str]); 6] = [
    ("kvtile-random", &[]),
    ("kvtile-kernels", &["thiserror", "zerocopy"]),
    ("kvtile-ptx", &["thiserror"]),
    ("kvtile-daemon-wire", &["thiserror"]),
    ("kvtile-layout", &["blake3", "serde", "thiserror", "toml"]),
    (
        "kvtile-blocks",
        &[
            "blake3",
            "loom",
            "parking_lot",
            "serde",
            "thiserror",
            "twox-hash",
        ],
    ),
];

/// The crate of the Python package.
const WHEEL: &str = "kvtile-python";

/// Crates that the Python package must not depend on, directly or through another crate: the model
/// of the demonstration and the rivals of the benchmark.
const NOT_IN_THE_WHEEL: [&str; 3] = ["kvtile-bench", "kvtile-demo", "kvtile-rivals"];

/// Block managers of other projects, which have many dependencies, and the only crate that may
/// depend on them.
const RIVALS: (&str, [&str; 1]) = ("kvtile-rivals", ["kvbm-logical"]);

/// Dev-dependencies that a crate may have although it refuses their kind, and why: a test of kvtile-device compares its
/// declarations of the driver with those that cudarc generates from the vendor's header. With its features there it
/// builds without a toolkit, and the test calls none of its functions.
const ONLY_IN_TESTS: [(&str, &str); 1] = [("kvtile-device", "cudarc")];

/// A kind of dependency that a crate may refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DependencyKind {
    /// Async runtimes: fine in a network crate, wrong where the caller brings its own threads.
    Runtime,
    /// Network and object store clients, and TLS.
    Network,
    /// Bindings to accelerators and network cards, which need their native libraries at build time.
    Hardware,
    /// Error types without typed facts.
    Untyped,
}

impl DependencyKind {
    const ALL: &[DependencyKind] = &[
        DependencyKind::Runtime,
        DependencyKind::Network,
        DependencyKind::Hardware,
        DependencyKind::Untyped,
    ];

    /// The crates of this kind.
    fn crates(self) -> &'static [&'static str] {
        match self {
            DependencyKind::Runtime => &["async-std", "compio", "monoio", "smol", "tokio"],
            DependencyKind::Network => &[
                "hyper",
                "native-tls",
                "object_store",
                "openssl",
                "redis",
                "reqwest",
                "rustls",
                "tonic",
                "ureq",
            ],
            DependencyKind::Hardware => &["cudarc", "cust", "nixl-sys", "rdma-sys"],
            DependencyKind::Untyped => &["anyhow", "color-eyre", "eyre"],
        }
    }
}

/// The kinds of dependencies that each crate refuses, dev-dependencies included. A network crate
/// has a row without [`DependencyKind::Runtime`] and [`DependencyKind::Network`].
const REFUSED: [(&str, &[DependencyKind]); 30] = [
    ("kvtile-layout", DependencyKind::ALL),
    ("kvtile-kernels", DependencyKind::ALL),
    ("kvtile-ptx", DependencyKind::ALL),
    ("kvtile-memory", DependencyKind::ALL),
    ("kvtile-transfer", DependencyKind::ALL),
    ("kvtile-blocks", DependencyKind::ALL),
    ("kvtile-tiers", DependencyKind::ALL),
    ("kvtile-shared", DependencyKind::ALL),
    (
        "kvtile-shared-object",
        &[DependencyKind::Hardware, DependencyKind::Untyped],
    ),
    ("kvtile-shared-open", DependencyKind::ALL),
    ("kvtile-shared-redis", DependencyKind::ALL),
    // Its benchmark drives an object store's own client beside kvtile's.
    (
        "kvtile-testservers",
        &[DependencyKind::Hardware, DependencyKind::Untyped],
    ),
    ("kvtile", DependencyKind::ALL),
    ("kvtile-daemon", DependencyKind::ALL),
    ("kvtile-daemon-wire", DependencyKind::ALL),
    ("kvtile-demo", DependencyKind::ALL),
    ("kvtile-device", DependencyKind::ALL),
    ("kvtile-standin", DependencyKind::ALL),
    ("kvtile-bench", DependencyKind::ALL),
    ("kvtile-rivals", DependencyKind::ALL),
    ("kvtile-cli", DependencyKind::ALL),
    ("kvtile-events-publish", DependencyKind::ALL),
    ("kvtile-events-wire", DependencyKind::ALL),
    ("kvtile-gpu-check", DependencyKind::ALL),
    ("kvtile-http", DependencyKind::ALL),
    ("kvtile-program", DependencyKind::ALL),
    ("kvtile-python", DependencyKind::ALL),
    ("kvtile-random", DependencyKind::ALL),
    ("kvtile-testkit", DependencyKind::ALL),
    ("xtask", DependencyKind::ALL),
];

pub(crate) fn check(packages: &[CargoPackage]) -> Vec<String> {
    let ours: Vec<&CargoPackage> = packages.iter().filter(|p| p.ours).collect();
    let names: Vec<&str> = ours.iter().map(|p| p.name.as_str()).collect();
    let mut broken = Vec::new();
    for package in &ours {
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == package.name) else {
            broken.push(format!(
                "{} has no row in the table of arrows",
                package.name
            ));
            continue;
        };
        for dependency in &package.normal {
            let inside = names.contains(&dependency.as_str());
            if inside && !allowed.contains(&dependency.as_str()) {
                broken.push(format!("{} may not depend on {dependency}", package.name));
            }
            let pure = PURE.iter().find(|(name, _)| *name == package.name);
            if let Some((_, light)) = pure
                && !inside
                && !light.contains(&dependency.as_str())
            {
                broken.push(format!(
                    "{} is pure and may not use {dependency}",
                    package.name
                ));
            }
        }
        broken.extend(refused(package, &REFUSED));
        broken.extend(rivals_of(package));
    }
    for (name, _) in ARROWS {
        if !names.contains(&name) {
            broken.push(format!(
                "the table of arrows has {name}, the workspace does not"
            ));
        }
    }
    broken.extend(of_the_wheel(&ours));
    broken.extend(minimum_versions(packages));
    broken
}

/// Complaints about rivals among the dependencies of `package`, unless it is their owner.
fn rivals_of(package: &CargoPackage) -> Vec<String> {
    let (owner, rivals) = RIVALS;
    let dependencies = package.normal.iter().chain(&package.dev);
    let others = dependencies
        .filter(|name| package.name != owner && rivals.contains(&name.as_str()))
        .map(|name| format!("{} may not use {name}: only {owner} may", package.name));
    others.collect()
}

/// The dependencies of `package` that its row of `table` refuses.
fn refused(package: &CargoPackage, table: &[(&str, &[DependencyKind])]) -> Vec<String> {
    let Some((_, kinds)) = table.iter().find(|(name, _)| *name == package.name) else {
        return vec![format!(
            "{} has no row in the table of what a crate refuses",
            package.name
        )];
    };
    let in_tests = package.dev.iter().filter(|name| {
        let pair = (package.name.as_str(), name.as_str());
        !ONLY_IN_TESTS.contains(&pair)
    });
    let dependencies = package.normal.iter().chain(in_tests);
    let refused = |name: &String| {
        let kind = kinds
            .iter()
            .find(|kind| kind.crates().contains(&name.as_str()));
        kind.map(|kind| format!("{} may not use {name} ({kind:?})", package.name))
    };
    dependencies.filter_map(refused).collect()
}

/// Checks that the Python package reaches no crate that its users do not need, regardless of
/// `ARROWS`.
fn of_the_wheel(ours: &[&CargoPackage]) -> Vec<String> {
    let mut reached = vec![WHEEL];
    let mut next = 0;
    while let Some(&name) = reached.get(next) {
        next += 1;
        let package = ours.iter().find(|package| package.name == name);
        for dependency in package.into_iter().flat_map(|package| &package.normal) {
            if !reached.contains(&dependency.as_str()) {
                reached.push(dependency);
            }
        }
    }
    let unwanted = NOT_IN_THE_WHEEL
        .iter()
        .filter(|name| reached.contains(name));
    unwanted
        .map(|name| format!("{WHEEL} is built with {name}, which its users do not use"))
        .collect()
}

/// Complaints about dependencies that need a newer Rust than the workspace states.
fn minimum_versions(packages: &[CargoPackage]) -> Vec<String> {
    let stated = packages
        .iter()
        .find(|p| p.ours)
        .and_then(|p| p.rust_version.clone());
    let Some(stated) = stated else {
        return vec!["the workspace states no rust-version".to_owned()];
    };
    let newer = |p: &&CargoPackage| {
        let needed = p.rust_version.as_deref();
        needed.is_some_and(|needed| numbers(needed) > numbers(&stated))
    };
    packages
        .iter()
        .filter(newer)
        .map(|p| {
            let needed = p.rust_version.as_deref().unwrap_or_default();
            format!(
                "{} {} needs Rust {needed}, we state {stated}",
                p.name, p.version
            )
        })
        .collect()
}

fn numbers(version: &str) -> (u64, u64, u64) {
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    (next(), next(), next())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, ours: bool, normal: &[&str]) -> CargoPackage {
        CargoPackage {
            name: name.into(),
            version: "0.1.0".into(),
            licence: None,
            rust_version: Some("1.95".into()),
            ours,
            normal: normal.iter().map(|&n| n.to_owned()).collect(),
            dev: Vec::new(),
        }
    }

    /// A workspace that matches the table.
    fn workspace() -> Vec<CargoPackage> {
        ARROWS
            .iter()
            .map(|(name, to)| package(name, true, to))
            .collect()
    }

    #[test]
    fn the_table_itself_is_in_order() {
        assert_eq!(check(&workspace()), [] as [String; 0]);
    }

    #[test]
    fn an_arrow_that_is_not_in_the_table_is_broken() {
        let mut packages = workspace();
        packages[0].normal.push("kvtile-memory".into());
        let broken = check(&packages);
        assert!(broken.contains(&"kvtile-layout may not depend on kvtile-memory".to_owned()));
    }

    #[test]
    fn the_wheel_does_not_reach_the_demonstration_by_any_way() {
        let mut packages = workspace();
        let cli = packages.iter_mut().find(|p| p.name == "kvtile-cli");
        cli.unwrap().normal.push("kvtile-program".into());
        let broken = check(&packages);
        for name in NOT_IN_THE_WHEEL {
            let line = format!("kvtile-python is built with {name}, which its users do not use");
            assert!(broken.contains(&line), "{broken:?}");
        }
    }

    #[test]
    fn a_heavy_dependency_of_a_pure_crate_is_broken() {
        let mut packages = workspace();
        packages[0].normal.push("rayon".into());
        assert_eq!(check(&packages).len(), 1);
    }

    #[test]
    fn what_a_crate_refuses_is_stated_per_crate() {
        let mut packages = workspace();
        for package in &mut packages {
            match package.name.as_str() {
                "kvtile-tiers" => package.normal.push("tokio".into()),
                "kvtile-demo" => package.dev.push("anyhow".into()),
                _ => {}
            }
        }
        assert_eq!(
            check(&packages),
            [
                "kvtile-tiers may not use tokio (Runtime)",
                "kvtile-demo may not use anyhow (Untyped)"
            ]
        );
        let table: [(&str, &[DependencyKind]); 1] = [(
            "kvtile-remote",
            &[DependencyKind::Hardware, DependencyKind::Untyped],
        )];
        let remote = package("kvtile-remote", true, &["tokio", "object_store", "cudarc"]);
        assert_eq!(
            refused(&remote, &table),
            ["kvtile-remote may not use cudarc (Hardware)"]
        );
        let unknown = package("kvtile-else", true, &[]);
        assert_eq!(refused(&unknown, &table).len(), 1);
    }

    #[test]
    fn what_is_allowed_in_tests_is_refused_elsewhere() {
        let mut device = package("kvtile-device", true, &["kvtile-memory"]);
        device.dev.push("cudarc".into());
        assert_eq!(refused(&device, &REFUSED), [] as [String; 0]);
        device.normal.push("cudarc".into());
        let complaint = "kvtile-device may not use cudarc (Hardware)";
        assert_eq!(refused(&device, &REFUSED), [complaint]);
        let mut standin = package("kvtile-standin", true, &[]);
        standin.dev.push("cudarc".into());
        assert_eq!(refused(&standin, &REFUSED).len(), 1);
    }

    #[test]
    fn a_rival_is_a_dependency_of_one_crate_alone() {
        assert_eq!(
            rivals_of(&package("kvtile-bench", true, &["kvbm-logical"])),
            ["kvtile-bench may not use kvbm-logical: only kvtile-rivals may"]
        );
        let owner = package("kvtile-rivals", true, &["kvbm-logical", "kvtile-bench"]);
        assert_eq!(rivals_of(&owner), [] as [String; 0]);
    }

    #[test]
    fn every_crate_has_a_row_in_both_tables() {
        let names: Vec<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
        assert_eq!(REFUSED.map(|(name, _)| name).to_vec(), names);
    }

    #[test]
    fn a_dependency_that_needs_a_newer_rust_is_named() {
        let mut packages = workspace();
        let mut newer = package("newer", false, &[]);
        newer.rust_version = Some("1.99".into());
        packages.push(newer);
        assert_eq!(
            check(&packages),
            ["newer 0.1.0 needs Rust 1.99, we state 1.95"]
        );
    }
}
