//! Licences: every dependency's licence is compatible with Apache-2.0.

use crate::metadata::CargoPackage;

/// Licences that require only their text.
const ALLOWED: [&str; 14] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

pub(crate) fn check(packages: &[CargoPackage]) -> Vec<String> {
    packages
        .iter()
        .filter(|package| !package.licence.as_deref().is_some_and(is_allowed))
        .map(|package| {
            let licence = package.licence.as_deref().unwrap_or("no licence");
            format!("{} {}: licence {licence}", package.name, package.version)
        })
        .collect()
}

/// Whether an SPDX expression can be satisfied: one side of every OR, all sides of every AND.
fn is_allowed(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ");
    let flat = expression.replace(['(', ')'], " ");
    let flat = flat.split_whitespace().collect::<Vec<_>>().join(" ");
    // Parentheses occur around OR inside AND only, so each AND operand is an OR list.
    if expression.contains('(') {
        return flat
            .split(" AND ")
            .all(|part| part.split(" OR ").any(|one| ALLOWED.contains(&one.trim())));
    }
    flat.split(" OR ")
        .any(|part| part.split(" AND ").all(|one| ALLOWED.contains(&one.trim())))
}

#[cfg(test)]
mod tests {
    use super::is_allowed;

    #[test]
    fn expressions_are_read_as_spdx_means_them() {
        for allowed in [
            "MIT",
            "MIT/Apache-2.0",
            "GPL-3.0 OR MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR MIT",
        ] {
            assert!(is_allowed(allowed), "{allowed}");
        }
        for refused in ["GPL-3.0", "MIT AND GPL-3.0", "", "(MIT OR ISC) AND GPL-3.0"] {
            assert!(!is_allowed(refused), "{refused}");
        }
    }
}
