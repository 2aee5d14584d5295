//! Rules for tables: each has one package that writes it, and an organisation that its rows belong to.

use std::collections::{BTreeMap, BTreeSet};

use super::{RustFile, Violation};
use crate::scan::is_word;
use crate::sources::Source;

/// Tables that belong to the installation as a whole, so that their rows have no organisation. One line for each.
const INSTALLATION_TABLES: &[&str] = &["organisations", "attendance"];

/// Folders whose statements do not make them a table's owner.
const NO_OWNERS: &[&str] = &["tests", "xtask"];

pub(super) fn violations(sources: &[Source], rust: &[RustFile<'_>]) -> Vec<Violation> {
    let mut found = owners(sources, rust);
    found.extend(tenants(sources));
    found
}

/// Finds tables that are written from more than one package.
fn owners(sources: &[Source], rust: &[RustFile<'_>]) -> Vec<Violation> {
    let packages: Vec<&str> = sources.iter().filter_map(|source| source.path.strip_suffix("/Cargo.toml")).collect();
    let mut writers: BTreeMap<String, BTreeMap<&str, Violation>> = BTreeMap::new();
    for file in rust.iter().filter(|file| !file.source.is_in("tests")) {
        let Some(package) = package(&packages, &file.source.path).filter(|package| !NO_OWNERS.contains(package)) else {
            continue;
        };
        let tests_line = file.scanned.line(file.tests_from);
        for (line, statement) in file.scanned.macro_literals("sql") {
            if line >= tests_line && file.tests_from < file.code.len() {
                continue;
            }
            for table in written(&statement) {
                let place = Violation { file: file.source.path.clone(), line, rule: String::new() };
                writers.entry(table).or_default().entry(package).or_insert(place);
            }
        }
    }
    let shared = writers.into_iter().filter(|(_, by)| by.len() > 1);
    shared
        .flat_map(|(table, by)| {
            let names = by.keys().copied().collect::<Vec<_>>().join(", ");
            let rule = format!("table `{table}` is written from {names}: one package owns a table");
            by.into_values().map(move |place| Violation { rule: rule.clone(), ..place })
        })
        .collect()
}

/// The innermost package that holds `path`.
fn package<'a>(packages: &[&'a str], path: &str) -> Option<&'a str> {
    let holds = |package: &&&str| path.strip_prefix(**package).is_some_and(|rest| rest.starts_with('/'));
    packages.iter().filter(holds).max_by_key(|package| package.len()).copied()
}

/// Tables that a statement inserts into, updates or deletes from.
fn written(statement: &str) -> BTreeSet<String> {
    let words: Vec<String> = statement
        .split(|next: char| !(next.is_ascii() && is_word(next as u8)))
        .filter(|word| !word.is_empty())
        .map(str::to_ascii_lowercase)
        .collect();
    let mut tables = BTreeSet::new();
    for (index, word) in words.iter().enumerate() {
        let before = index.checked_sub(1).map_or("", |before| words[before].as_str());
        let table = match (before, word.as_str()) {
            ("insert" | "replace" | "ignore", "into") | ("delete", "from") => words.get(index + 1),
            // `ON CONFLICT … DO UPDATE SET` names no table of its own, `FOR UPDATE` none at all.
            ("do" | "for", "update") => None,
            (_, "update") => words.get(index + 1).filter(|next| *next != "set"),
            _ => None,
        };
        tables.extend(table.cloned());
    }
    tables
}

/// Finds tables of organisations that do not say whose their rows are.
fn tenants(sources: &[Source]) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut listed: BTreeSet<&str> = INSTALLATION_TABLES.iter().copied().collect();
    let migrations = sources.iter().filter(|source| source.is_in("migrations") && source.is("sql"));
    let mut any = false;
    for source in migrations {
        any = true;
        for (line, table, body) in created(&source.text) {
            let excused = listed.remove(table.as_str()) || INSTALLATION_TABLES.contains(&table.as_str());
            let has = crate::scan::words(&body, "organisation_id").next().is_some();
            let rule = match (excused, has) {
                (false, false) => "has no `organisation_id`; if it belongs to the installation, say so in xtask's list",
                (true, true) => "has `organisation_id`: take it off xtask's list of the installation's tables",
                _ => continue,
            };
            found.push(Violation { file: source.path.clone(), line, rule: format!("table `{table}` {rule}") });
        }
    }
    for table in listed.into_iter().filter(|_| any) {
        let rule = format!("no migration makes `{table}`: take it off the list of the installation's tables");
        found.push(Violation { file: "xtask/src/tidy/tables.rs".to_owned(), line: 1, rule });
    }
    found
}

/// Line, name and body of every `CREATE TABLE`.
fn created(sql: &str) -> Vec<(usize, String, String)> {
    let plain: String = sql.lines().map(|line| line.split("--").next().unwrap_or_default().to_owned() + "\n").collect();
    let lower = plain.to_ascii_lowercase();
    let mut found = Vec::new();
    for (at, _) in lower.match_indices("create table") {
        let rest = lower[at + "create table".len()..].trim_start();
        let rest = rest.strip_prefix("if not exists").unwrap_or(rest).trim_start();
        let name: String = rest.chars().take_while(|next| next.is_ascii_alphanumeric() || *next == '_').collect();
        let mut depth = 0;
        let mut body = String::new();
        for next in rest[name.len()..].chars() {
            depth += match next {
                '(' => 1,
                ')' => -1,
                _ => 0,
            };
            body.push(next);
            if next == ')' && depth == 0 {
                break;
            }
        }
        found.push((plain[..at].matches('\n').count() + 1, name, body));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::tests::broken;
    use super::*;

    #[test]
    fn writes_are_found() {
        let tables = |statement| written(statement).into_iter().collect::<Vec<_>>();
        assert_eq!(tables("INSERT INTO a (x) SELECT 1 FROM b ON CONFLICT (x) DO UPDATE SET y = 1"), ["a"]);
        assert_eq!(tables("UPDATE\n  a SET x = 1 FROM c"), ["a"]);
        assert_eq!(tables("WITH gone AS (DELETE FROM a RETURNING id) INSERT INTO b SELECT id FROM gone"), ["a", "b"]);
        assert_eq!(tables("SELECT updated_at FROM a"), [""; 0]);
    }

    #[test]
    fn a_table_has_one_owner() {
        let write = "//! Doc.\nfn f() { sql!(\"UPDATE hosts SET a = 1\") }\n";
        let read = "//! Doc.\nfn f() { sql!(\"SELECT 1 FROM hosts\") }\n#[cfg(test)]\nmod tests { fn f() { sql!(\"DELETE FROM hosts\") } }\n";
        let manifest = |package: &str| format!("server/{package}/Cargo.toml");
        let found = |edge: &str, path: &str| {
            broken(&[
                (&manifest("inventory"), ""),
                (&manifest("edge"), ""),
                ("server/inventory/src/hosts/store.rs", write),
                (path, edge),
            ])
        };
        assert_eq!(found(read, "server/edge/src/lib.rs"), [""; 0]);
        assert_eq!(found(write, "server/edge/tests/it.rs"), [""; 0]);
        let rule = "table `hosts` is written from server/edge, server/inventory: one package owns a table";
        assert_eq!(
            found(write, "server/edge/src/lib.rs"),
            [format!("server/edge/src/lib.rs:2: {rule}"), format!("server/inventory/src/hosts/store.rs:2: {rule}")]
        );
    }

    #[test]
    fn rows_belong_to_an_organisation() {
        let sql = "CREATE TABLE organisations (id BIGINT);\n-- CREATE TABLE old (id)\nCREATE TABLE IF NOT EXISTS hosts (\n  organisation_id BIGINT REFERENCES organisations (id),\n  name TEXT CHECK (name <> '')\n);\ncreate table apps (id BIGINT, organisation_id_old BIGINT);\nCREATE TABLE attendance (seen_at BIGINT);\n";
        assert_eq!(
            broken(&[("migrations/0001_a.sql", sql)]),
            [
                "migrations/0001_a.sql:7: table `apps` has no `organisation_id`; if it belongs to the installation, say so in xtask's list"
            ]
        );
    }
}
