//! Rules for single Rust files: what each kind of module may hold.

use super::{RustFile, Violation};
use crate::scan::words;

/// What `rules.rs` may not name: it decides, it does not act.
const IMPURE: &[&str] = &[
    "async",
    "await",
    "Tx",
    "Clock",
    "SystemTime",
    "Instant",
    "Utc",
    "tokio",
    "File",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "ToSocketAddrs",
    "Command",
];

/// Modules of the standard library that act.
const IMPURE_PATHS: &[&str] = &["std::fs", "std::io", "std::env", "std::process", "std::thread"];

/// What `store.rs` may not do: its caller owns the transaction, and nobody waits for the network in one.
const BEYOND_STORE: &[&str] = &[".begin(", ".commit(", ".rollback(", "TcpStream", "ureq::", "hyper::", "reqwest::"];

/// How a request would come to a transaction besides its own, and who may: attempts to sign in are counted whether or not
/// the rest of the request is carried out.
const SECOND_TRANSACTION: &str = "call.kernel().work()";
const COUNTS_ATTEMPTS: &[&str] = &["server/identity/src/sign_in.rs", "server/identity/src/account.rs"];

/// Marks of work that was left undone.
const STUBS: &[&str] = &["todo!", "unimplemented!"];
const STUB_WORD: &str = concat!("FIX", "ME");
const IGNORED: &str = concat!("#[ign", "ore");

pub(super) fn violations(file: &RustFile<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    found.extend(opening(file));
    found.extend(globs(file));
    found.extend(stubs(file));
    found.extend(sleeps(file));
    found.extend(second_transactions(file));
    match file.source.file_name() {
        "rules.rs" => found.extend(impure(file)),
        "store.rs" => found.extend(beyond_store(file)),
        _ => {}
    }
    found
}

fn opening(file: &RustFile<'_>) -> Option<Violation> {
    let opens = file.source.text.trim_start().starts_with("//!");
    (!opens).then(|| file.violation(0, "a module opens with `//!`: what it owns, and its invariant"))
}

fn globs(file: &RustFile<'_>) -> Vec<Violation> {
    words(&file.code, "pub")
        .filter(|at| {
            let rest = &file.code[at + 3..];
            let rest = match rest.strip_prefix('(') {
                Some(scope) => scope.split_once(')').map_or("", |(_, rest)| rest),
                None => rest,
            };
            let statement = rest.trim_start().split(';').next().unwrap_or_default();
            statement.starts_with("use ") && statement.contains('*')
        })
        .map(|at| file.violation(at, "glob re-export: name what is passed on"))
        .collect()
}

fn stubs(file: &RustFile<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for stub in STUBS {
        found.extend(words(&file.code, stub).map(|at| file.violation(at, format!("`{stub}` is a stub"))));
    }
    found.extend(words(&file.comments, STUB_WORD).map(|at| file.violation(at, "unfinished work is a stub")));
    for (at, attribute) in file.code.match_indices(IGNORED) {
        found.push(file.violation(at, format!("`{attribute}]`: a test that does not run is none")));
    }
    found
}

/// Tests wait for what they need, with a deadline, in one function that says so.
fn sleeps(file: &RustFile<'_>) -> Vec<Violation> {
    // Blows fall by chance, whatever anybody waits for.
    let is_test = file.source.is_in("tests") && !file.source.is_in("torture");
    let from = if is_test { 0 } else { file.tests_from };
    words(&file.code, "sleep")
        .filter(|at| *at >= from && file.code[at + "sleep".len()..].trim_start().starts_with('('))
        .filter(|at| !matches!(enclosing_function(&file.code[..*at]), Some("wait_until" | "wait_within")))
        .map(|at| file.violation(at, "tests do not sleep: wait for the condition with `wait_until`"))
        .collect()
}

/// Name of the last function that begins in `code`.
fn enclosing_function(code: &str) -> Option<&str> {
    let at = words(code, "fn").last()?;
    let name = code[at + 2..].trim_start();
    name.split(|next: char| !next.is_alphanumeric() && next != '_').next()
}

fn second_transactions(file: &RustFile<'_>) -> Vec<Violation> {
    let code = &file.code[..file.tests_from];
    if COUNTS_ATTEMPTS.contains(&file.source.path.as_str()) {
        return Vec::new();
    }
    let rule = format!("`{SECOND_TRANSACTION}`: a request reads and writes through its call");
    code.match_indices(SECOND_TRANSACTION).map(|(at, _)| file.violation(at, rule.clone())).collect()
}

fn impure(file: &RustFile<'_>) -> Vec<Violation> {
    let code = &file.code[..file.tests_from];
    let named = IMPURE.iter().chain(IMPURE_PATHS);
    named
        .flat_map(|word| words(code, word).map(move |at| (at, word)))
        .map(|(at, word)| file.violation(at, format!("`{word}`: rules are pure; pass in what they need")))
        .collect()
}

fn beyond_store(file: &RustFile<'_>) -> Vec<Violation> {
    let code = &file.code[..file.tests_from];
    BEYOND_STORE
        .iter()
        .flat_map(|call| code.match_indices(call))
        .map(|(at, call)| {
            file.violation(at, format!("`{call}`: a store neither ends transactions nor leaves the house"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::broken;

    /// The lines on which `text` in `path` breaks a rule.
    fn lines(path: &str, text: &str) -> Vec<String> {
        let text = format!("//! Doc.\n{text}");
        broken(&[(path, &text)]).iter().filter_map(|line| line.split(':').nth(1).map(str::to_owned)).collect()
    }

    #[test]
    fn modules_open_with_their_purpose() {
        assert_eq!(broken(&[("a.rs", "fn f() {}\n")]).len(), 1);
        assert_eq!(broken(&[("a.rs", "\n//! Doc.\n")]), [""; 0]);
    }

    #[test]
    fn glob_re_exports_are_seen() {
        let text =
            "pub use a::*;\npub(crate) use b::{c,\n d::*};\nuse e::*;\npub fn f() -> *const u8 {}\npub use g::h;\n";
        assert_eq!(lines("a.rs", text), ["2", "3"]);
    }

    #[test]
    fn stubs_are_seen_in_code_and_comments() {
        let text = format!("fn a() {{ todo!{} }}\n// {} later\nfn b() {{ \"todo!\" }}\n", "()", super::STUB_WORD);
        assert_eq!(lines("a.rs", &text), ["2", "3"]);
        assert_eq!(lines("a.rs", &format!("#[test]\n{}]\nfn a() {{}}\n", super::IGNORED)), ["3"]);
    }

    #[test]
    fn tests_sleep_only_while_they_wait() {
        let text = "fn wait_until() { sleep(1) }\nfn other() { thread::sleep (1); \"sleep(1)\" }\n";
        assert_eq!(lines("tests/it/a.rs", text), ["3"]);
        assert_eq!(lines("a/src/a.rs", text), [""; 0]);
        assert_eq!(lines("a/src/a.rs", &format!("fn f() {{ sleep(2) }}\n#[cfg(test)]\nmod tests {{\n{text}}}")), ["6"]);
    }

    #[test]
    fn a_request_has_one_transaction() {
        let text = "async fn f(call: Call<P>) { call.kernel().work().begin(1); }\n";
        assert_eq!(lines("server/edge/src/a.rs", text), ["2"]);
        assert_eq!(lines("server/identity/src/account.rs", text), [""; 0]);
    }

    #[test]
    fn rules_are_pure_and_stores_stay_inside() {
        let rules =
            "use std::fs;\nfn f(tx: &mut Tx) {}\nfn g(txt: Txt) {}\n#[cfg(test)]\nmod tests { async fn a() {} }\n";
        assert_eq!(lines("a/src/x/rules.rs", rules), ["2", "3"]);
        assert_eq!(lines("a/src/x/store.rs", "fn f() { tx.commit(a); }\n"), ["2"]);
        assert_eq!(lines("a/src/x/mod.rs", "fn f() { tx.commit(a); }\n"), [""; 0]);
    }
}
