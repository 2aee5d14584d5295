//! The direction of dependencies between the packages, and who may name the database's libraries.

use super::{RustFile, Violation};
use crate::scan::words;
use crate::sources::Source;

/// Each package's manifest, and which packages of the project it may depend on.
const LAYERS: &[(&str, &[&str])] = &[
    ("shared/Cargo.toml", &[]),
    ("agent/Cargo.toml", &["drover-shared"]),
    ("cli/Cargo.toml", &["drover-shared"]),
    ("server/kernel/Cargo.toml", &["drover-shared"]),
    ("server/identity/Cargo.toml", &["drover-shared", "drover-kernel"]),
    ("server/inventory/Cargo.toml", &["drover-shared", "drover-kernel", "drover-identity"]),
    ("server/requests/Cargo.toml", AREA),
    ("server/edge/Cargo.toml", AREA),
    ("server/automation/Cargo.toml", AREA),
    ("server/Cargo.toml", SERVER),
    ("tests/Cargo.toml", TESTS),
    (
        "simulation/Cargo.toml",
        &["drover-shared", "drover-kernel", "drover-identity", "drover-automation", "drover-server", "drover-agent"],
    ),
    ("bench/Cargo.toml", &["drover-shared"]),
    ("xtask/Cargo.toml", &[]),
];
const AREA: &[&str] = &["drover-shared", "drover-kernel", "drover-identity", "drover-inventory"];
const SERVER: &[&str] = &[
    "drover-shared",
    "drover-kernel",
    "drover-identity",
    "drover-inventory",
    "drover-requests",
    "drover-edge",
    "drover-automation",
];
/// The tests see everything, and the sources through `xtask`.
const TESTS: &[&str] = &[
    "drover-shared",
    "drover-kernel",
    "drover-identity",
    "drover-inventory",
    "drover-requests",
    "drover-edge",
    "drover-automation",
    "drover-server",
    "drover-agent",
    "drover",
    "xtask",
];

/// Libraries that only the kernel names, so that nothing passes by its transactions.
const KERNEL_ONLY: &[&str] =
    &["sqlx", "apalis", "apalis_sqlite", "apalis_postgres", "apalis-sqlite", "apalis-postgres"];

/// Folders that may name them: the kernel, and what looks at it from outside.
const MAY_NAME_THEM: &[&str] = &["server/kernel/", "tests/", "xtask/"];

pub(super) fn violations(sources: &[Source], rust: &[RustFile<'_>]) -> Vec<Violation> {
    let manifests = sources.iter().filter(|source| source.path != "Cargo.toml" && source.file_name() == "Cargo.toml");
    let mut found: Vec<Violation> = manifests.flat_map(manifest).collect();
    for file in rust.iter().filter(|file| !MAY_NAME_THEM.iter().any(|folder| file.source.path.starts_with(folder))) {
        for library in KERNEL_ONLY {
            found.extend(words(&file.code, library).map(|at| file.violation(at, kernel_only(library))));
        }
    }
    found
}

fn kernel_only(library: &str) -> String {
    format!("`{library}` is the kernel's: use the kernel's words")
}

fn manifest(source: &Source) -> Vec<Violation> {
    let violation = |line: usize, rule: String| Violation { file: source.path.clone(), line, rule };
    let Some((_, allowed)) = LAYERS.iter().find(|(path, _)| *path == source.path) else {
        return vec![violation(
            1,
            "package without a place: name what it may depend on in xtask's `LAYERS`".to_owned(),
        )];
    };
    let may_name_them = MAY_NAME_THEM.iter().any(|folder| source.path.starts_with(folder));
    let mut found = Vec::new();
    for (line, name) in dependencies(&source.text) {
        if (name == "drover" || name == "xtask" || name.starts_with("drover-")) && !allowed.contains(&name) {
            found.push(violation(line, format!("dependency on `{name}` against the direction of the layers")));
        }
        if KERNEL_ONLY.contains(&name) && !may_name_them {
            found.push(violation(line, kernel_only(name)));
        }
    }
    found
}

/// Line and name of every dependency in a manifest, of all kinds.
fn dependencies(manifest: &str) -> Vec<(usize, &str)> {
    let mut inside = false;
    let mut found = Vec::new();
    for (index, line) in manifest.lines().enumerate() {
        let line = line.trim();
        if let Some(header) = line.strip_prefix('[') {
            let header = header.trim_end_matches(']');
            inside = header.ends_with("dependencies");
            if let Some((_, name)) = header.split_once("dependencies.") {
                found.push((index + 1, name));
            }
        } else if inside && !line.starts_with('#') {
            let name = line.split(['=', '.', ' ']).next().unwrap_or_default();
            if !name.is_empty() {
                found.push((index + 1, name));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::tests::broken;

    #[test]
    fn dependencies_point_one_way() {
        let text = "[package]\nname = \"drover-kernel\"\n[dependencies]\ndrover-shared.workspace = true\n# none\n\n[dev-dependencies]\ndrover-identity = { path = \"x\" }\n[build-dependencies.drover-edge]\n";
        assert_eq!(
            broken(&[("server/kernel/Cargo.toml", text)]),
            [
                "server/kernel/Cargo.toml:8: dependency on `drover-identity` against the direction of the layers",
                "server/kernel/Cargo.toml:9: dependency on `drover-edge` against the direction of the layers",
            ]
        );
    }

    #[test]
    fn new_packages_need_a_place() {
        assert_eq!(broken(&[("extra/Cargo.toml", "")]).len(), 1);
        assert_eq!(broken(&[("Cargo.toml", "[workspace.dependencies]\nsqlx = \"1\"\n")]), [""; 0]);
    }

    #[test]
    fn only_the_kernel_names_the_database() {
        let text = "//! About sqlx.\nuse sqlx::Row;\nfn not_sqlx_at_all() {}\n";
        assert_eq!(
            broken(&[("server/edge/src/lib.rs", text)]),
            ["server/edge/src/lib.rs:2: `sqlx` is the kernel's: use the kernel's words"]
        );
        assert_eq!(broken(&[("server/kernel/src/lib.rs", text)]), [""; 0]);
        assert_eq!(broken(&[("server/edge/Cargo.toml", "[dependencies]\nsqlx.workspace = true\n")]).len(), 1);
    }
}
