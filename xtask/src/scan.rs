//! A small scanner for Rust sources: tells code from comments and string literals.
//!
//! Owns the knowledge of Rust's tokens that the rules and the SQL check need; it is no parser. Invariant: every byte
//! of a file has exactly one class, and lines are counted as editors count them, from 1.

use std::io;
use std::path::Path;

use crate::sources;

/// What a byte of a Rust file belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Code, whitespace included.
    Code,
    /// A comment of any kind.
    Comment,
    /// A string or character literal with its quotes.
    Literal,
}

/// A Rust file, classified.
#[derive(Debug)]
pub struct Scanned<'a> {
    text: &'a str,
    classes: Vec<Class>,
    strings: Vec<StringLiteral>,
}

#[derive(Debug)]
struct StringLiteral {
    start: usize,
    value: String,
}

/// An SQL statement written as `sql!("…")`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqlLiteral {
    /// Path of the file below the project's root.
    pub file: String,
    /// Line on which the literal begins.
    pub line: usize,
    /// The statement, escapes resolved.
    pub text: String,
}

/// Every `sql!` literal in the Rust files below `root`, in order of file and line. Tests' own files count as well;
/// test modules inside a file do not, since their statements may be about tables that do not exist.
///
/// # Errors
/// When a folder or file cannot be read.
pub fn sql_literals(root: &Path) -> io::Result<Vec<SqlLiteral>> {
    let mut found = Vec::new();
    for source in sources::read(root)?.iter().filter(|source| source.is("rs")) {
        let text = source.text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for (line, text) in Scanned::new(text).macro_literals("sql") {
            found.push(SqlLiteral { file: source.path.clone(), line, text });
        }
    }
    Ok(found)
}

impl<'a> Scanned<'a> {
    /// Classifies `text`.
    #[must_use]
    pub fn new(text: &'a str) -> Self {
        let mut scanner = Self { text, classes: vec![Class::Code; text.len()], strings: Vec::new() };
        let mut at = 0;
        while at < text.len() {
            at = scanner.token(at);
        }
        scanner
    }

    /// The text with every byte outside `class` blanked; lines and offsets stay.
    #[must_use]
    pub fn only(&self, class: Class) -> String {
        let keep = |(byte, of): (u8, &Class)| if *of == class || byte == b'\n' { byte } else { b' ' };
        String::from_utf8_lossy(&self.text.bytes().zip(&self.classes).map(keep).collect::<Vec<_>>()).into_owned()
    }

    /// The line of a byte offset.
    #[must_use]
    pub fn line(&self, offset: usize) -> usize {
        self.text.as_bytes()[..offset.min(self.text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
    }

    /// Line and value of the string that each call of the macro `name` begins with.
    #[must_use]
    pub fn macro_literals(&self, name: &str) -> Vec<(usize, String)> {
        let code = self.only(Class::Code);
        let call = format!("{name}!");
        let mut found = Vec::new();
        for (at, _) in code.match_indices(&call) {
            if code.as_bytes()[..at].last().is_some_and(|byte| is_word(*byte)) {
                continue;
            }
            let after = &code.as_bytes()[at + call.len()..];
            let Some(open) = after.iter().position(|byte| !byte.is_ascii_whitespace()) else { continue };
            if !matches!(after[open], b'(' | b'[' | b'{') {
                continue;
            }
            let from = at + call.len() + open + 1;
            let Some(string) = self.strings.iter().find(|string| string.start >= from) else { continue };
            if code[from..string.start].trim().is_empty() {
                found.push((self.line(string.start), string.value.clone()));
            }
        }
        found
    }

    /// Classifies the token at `at` and gives the offset after it.
    fn token(&mut self, at: usize) -> usize {
        let rest = &self.text.as_bytes()[at..];
        match rest {
            [b'/', b'/', ..] => {
                let end = at + rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
                self.mark(at, end, Class::Comment)
            }
            [b'/', b'*', ..] => self.mark(at, at + block_comment(rest), Class::Comment),
            [b'"', ..] => self.string(at, at + 1),
            [b'\'', ..] => {
                let length = character(rest).unwrap_or(0);
                if length == 0 { at + 1 } else { self.mark(at, at + length, Class::Literal) }
            }
            [byte, ..] if is_word(*byte) => self.word(at),
            _ => at + 1,
        }
    }

    /// A word, or a string with a prefix such as `r#"`, `b"` or `br"`.
    fn word(&mut self, at: usize) -> usize {
        let bytes = self.text.as_bytes();
        let end = at + bytes[at..].iter().position(|byte| !is_word(*byte)).unwrap_or(bytes.len() - at);
        let prefix = &self.text[at..end];
        let hashes = bytes[end..].iter().take_while(|byte| **byte == b'#').count();
        let quoted = bytes.get(end + hashes) == Some(&b'"');
        match prefix {
            "r" | "br" | "cr" if quoted => self.raw_string(at, end + hashes + 1, hashes),
            "b" | "c" if quoted && hashes == 0 => self.string(at, end + 1),
            _ => end,
        }
    }

    fn raw_string(&mut self, start: usize, body: usize, hashes: usize) -> usize {
        let close = format!("\"{}", "#".repeat(hashes));
        let length = self.text[body..].find(&close).unwrap_or(self.text.len() - body);
        self.strings.push(StringLiteral { start, value: self.text[body..body + length].to_owned() });
        self.mark(start, (body + length + close.len()).min(self.text.len()), Class::Literal)
    }

    fn string(&mut self, start: usize, body: usize) -> usize {
        let bytes = self.text.as_bytes();
        let mut end = body;
        while end < bytes.len() && bytes[end] != b'"' {
            end += if bytes[end] == b'\\' { 2 } else { 1 };
        }
        let end = end.min(bytes.len());
        self.strings.push(StringLiteral { start, value: unescape(&self.text[body..end]) });
        self.mark(start, (end + 1).min(bytes.len()), Class::Literal)
    }

    fn mark(&mut self, start: usize, end: usize, class: Class) -> usize {
        self.classes[start..end].fill(class);
        end
    }
}

/// Whether a byte may be part of an identifier.
#[must_use]
pub fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// Offsets at which `word` stands in `text` as a whole word.
pub fn words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    text.match_indices(word).map(|(at, _)| at).filter(move |at| {
        let before = text.as_bytes()[..*at].last().is_none_or(|byte| !is_word(*byte));
        before && text.as_bytes().get(at + word.len()).is_none_or(|byte| !is_word(*byte))
    })
}

/// Length of the possibly nested comment at the start.
fn block_comment(bytes: &[u8]) -> usize {
    let (mut at, mut depth) = (0, 0);
    while at < bytes.len() {
        match &bytes[at..] {
            [b'/', b'*', ..] => (at, depth) = (at + 2, depth + 1),
            [b'*', b'/', ..] => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    bytes.len()
}

/// Length of the character literal at the start; none when it is a lifetime.
fn character(bytes: &[u8]) -> Option<usize> {
    if bytes.get(1) == Some(&b'\\') {
        return bytes.iter().skip(3).position(|byte| *byte == b'\'').map(|length| length + 4);
    }
    let width = match bytes.get(1)? {
        0..0x80 => 1,
        0x80..0xe0 => 2,
        0xe0..0xf0 => 3,
        _ => 4,
    };
    (bytes.get(1 + width) == Some(&b'\'')).then_some(width + 2)
}

/// Resolves the escapes of a string literal, line continuations included.
fn unescape(body: &str) -> String {
    let mut value = String::with_capacity(body.len());
    let mut rest = body.chars();
    while let Some(next) = rest.next() {
        if next != '\\' {
            value.push(next);
            continue;
        }
        match rest.next() {
            Some('n') => value.push('\n'),
            Some('t') => value.push('\t'),
            Some('r') => value.push('\r'),
            Some('0') => value.push('\0'),
            Some('\n') => rest = rest.as_str().trim_start().chars(),
            Some('x') => value.extend(code_point(&rest.by_ref().take(2).collect::<String>())),
            Some('u') => {
                let digits: String = rest.by_ref().skip(1).take_while(|digit| *digit != '}').collect();
                value.extend(code_point(&digits));
            }
            Some(other) => value.push(other),
            None => {}
        }
    }
    value
}

fn code_point(digits: &str) -> Option<char> {
    u32::from_str_radix(&digits.replace('_', ""), 16).ok().and_then(char::from_u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sql(source: &str) -> Vec<(usize, String)> {
        Scanned::new(source).macro_literals("sql")
    }

    #[test]
    fn every_spelling_of_a_statement_is_found() {
        let source = "let a = sql!(\"SELECT 1\");\nlet b = sql!( r#\"SELECT \"x\"\nFROM t\"# , 5);\nkernel::sql! {\n  // why\n  \"SELECT \\\n      2 \\\"y\\\" \\u{41}\\x42\\n\"\n}";
        let expected =
            [(1, "SELECT 1"), (2, "SELECT \"x\"\nFROM t"), (6, "SELECT 2 \"y\" AB\n")].map(|(l, t)| (l, t.to_owned()));
        assert_eq!(sql(source), expected);
    }

    #[test]
    fn what_only_looks_like_a_statement_is_not() {
        for source in [
            "// sql!(\"SELECT 1\")",
            "/* a /* b */ sql!(\"SELECT 1\") */",
            "\"sql!(\\\"SELECT 1\\\")\"",
            "mysql!(\"SELECT 1\")",
            "sql!($text); f(\"SELECT 1\")",
            "macro_rules! sql { () => {} }",
            "sql!(name, \"SELECT 1\")",
        ] {
            assert_eq!(sql(source), [], "{source}");
        }
    }

    #[test]
    fn lifetimes_and_characters_do_not_confuse() {
        let source =
            "fn f<'a>(x: &'a str) { let c = '\"'; let d = '\\''; let e = 'é'; let u = '\\u{1F600}'; sql!(\"X\") }";
        assert_eq!(sql(source), [(1, "X".to_owned())]);
    }

    #[test]
    fn comments_and_literals_are_blanked() {
        let scanned = Scanned::new("a(\"b\"); // c\nd");
        assert_eq!(scanned.only(Class::Code), "a(   );     \nd");
        assert_eq!(scanned.only(Class::Comment), "        // c\n ");
        assert_eq!(scanned.line(14), 2);
    }

    #[test]
    fn unfinished_sources_end() {
        for source in ["\"open", "r#\"open", "/* open", "'", "'\\", "b\"\\", "sql!(", "sql!"] {
            assert_eq!(sql(source), [], "{source}");
        }
    }

    #[test]
    fn words_are_whole() {
        assert_eq!(words("tx Tx Txn a.Tx(", "Tx").collect::<Vec<_>>(), [3, 12]);
    }
}
