//! The forms in which the value of a secret may stand in output.
//!
//! As it is, line by line, in base64 (any place in a longer text, and any eight characters of it, since a text may be
//! wrapped anywhere), URL-encoded, JSON-escaped and quoted for a shell. Invariant: the number of forms besides those of
//! base64 is bounded, whatever the value, and equal ones are kept once.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use drover_shared::secret::MASKED_BYTES_MIN;

/// Lines of a value that are shorter than this are not patterns of their own, in bytes.
const LINE_BYTES_MIN: usize = 8;
/// Columns at which programs wrap base64.
pub(super) const WRAPS: [usize; 2] = [64, 76];
/// Bytes of a value whose base64 is a pattern of its own: eight characters, between any two line breaks.
const WINDOW_BYTES: usize = 6;
/// A window with fewer different bytes is too common to be a pattern.
const WINDOW_VARIETY_MIN: usize = 3;
/// The digits of a number in hexadecimal.
type Digits = &'static [u8; 16];
const LOWER: Digits = b"0123456789abcdef";
const UPPER: Digits = b"0123456789ABCDEF";

/// What encoders leave as it is in a URL, besides ASCII letters and digits.
const KEPT_IN_URLS: [&str; 10] = [
    // RFC 3986, Go's QueryEscape.
    "-._~",
    // Python's `quote`.
    "-._~/",
    // Java's URLEncoder, URLSearchParams, Ruby.
    "-._*",
    // PHP's `urlencode`.
    "-._",
    // JavaScript's `encodeURIComponent` and `encodeURI`.
    "-._~!'()*",
    "-._~!'()*;/?:@&=+$,#",
    // Go: a segment of a path, a path, name and password.
    "-._~$&+:=@",
    "-._~$&+,/:;=@",
    "-._~$&+,;=",
    // Name and password by the WHATWG's standard.
    "-._~!$%&'()*+,",
];

/// What encoders of JSON escape by its number besides what they have to, and how its digits are written.
const ESCAPED_IN_JSON: [(&str, Digits); 8] = [
    ("", LOWER),
    // Go, Rails; Gson; Newtonsoft.
    ("<>&", LOWER),
    ("<>&'=", LOWER),
    ("<>&'\"", LOWER),
    // PHP with some and with all of JSON_HEX_*.
    ("<>", UPPER),
    ("<>&'", UPPER),
    ("<>&'\"", UPPER),
    // System.Text.Json.
    ("<>&'\"+`", UPPER),
];

/// Adds the forms of a value; some may be too short to be looked for.
pub(super) fn add(value: &str, all: &mut BTreeSet<Vec<u8>>) {
    if value.len() < MASKED_BYTES_MIN {
        return;
    }
    let mut keep = |form: String| {
        all.insert(form.into_bytes());
    };
    keep(value.to_owned());
    for line in value.lines().map(str::trim) {
        // The frame of a key is no secret.
        if line.len() >= LINE_BYTES_MIN && !line.starts_with("-----") {
            keep(line.to_owned());
        }
    }
    for form in [base64_within, url_encoded, json_escaped, quoted] {
        form(value).into_iter().for_each(&mut keep);
    }
}

/// What is certain of the base64 of any text that contains the value, and the lines of the value's own base64.
fn base64_within(value: &str) -> Vec<String> {
    let mut forms = Vec::new();
    for engine in [&STANDARD, &URL_SAFE] {
        for before in 0..3 {
            let whole = [&[0; 2][..before], value.as_bytes()].concat();
            // A character of base64 is six bits: the first ones and the last one are shared with what is around.
            let certain = (before * 8).div_ceil(6)..whole.len() * 8 / 6;
            forms.push(engine.encode(&whole)[certain].to_owned());
        }
        let own = engine.encode(value);
        for columns in WRAPS {
            let lines = own.as_bytes().chunks(columns).filter(|line| line.len() >= LINE_BYTES_MIN);
            forms.extend(lines.map(|line| String::from_utf8_lossy(line).into_owned()));
        }
        forms.extend(windows(value).map(|window| engine.encode(window)));
    }
    forms
}

/// What is found wherever a line of base64 breaks: neighbours overlap, so that a line is covered from end to end.
fn windows(value: &str) -> impl Iterator<Item = &[u8]> {
    let starts = value.split_inclusive('\n').scan(0, |next, line| {
        let start = *next;
        *next += line.len();
        Some((start, line))
    });
    let frames: Vec<_> = starts
        // The frame of a key is no secret.
        .filter(|(_, line)| line.starts_with("-----"))
        .map(|(start, line)| start..start + line.len())
        .collect();
    let is_framed = move |at: usize| frames.iter().any(|frame| frame.start <= at && at + WINDOW_BYTES <= frame.end);
    let windows = value.as_bytes().windows(WINDOW_BYTES).enumerate();
    windows
        .filter(move |(at, window)| {
            let kinds = window.iter().enumerate().filter(|(index, byte)| !window[..*index].contains(byte)).count();
            kinds >= WINDOW_VARIETY_MIN && !is_framed(*at)
        })
        .map(|(_, window)| window)
}

fn hex(digits: &[u8; 16], byte: u8) -> [char; 2] {
    [byte >> 4, byte & 15].map(|half| char::from(digits[usize::from(half)]))
}

fn url_encoded(value: &str) -> Vec<String> {
    let mut forms = Vec::new();
    for kept in KEPT_IN_URLS {
        for digits in [UPPER, LOWER] {
            for blank in ["%20", "+"] {
                let mut form = String::new();
                for byte in value.bytes() {
                    if byte.is_ascii_alphanumeric() || kept.as_bytes().contains(&byte) {
                        form.push(char::from(byte));
                    } else if byte == b' ' {
                        form.push_str(blank);
                    } else {
                        form.push('%');
                        form.extend(hex(digits, byte));
                    }
                }
                forms.push(form);
            }
        }
    }
    forms
}

/// Inside the quotes of JSON, as its encoders differ.
fn json_escaped(value: &str) -> Vec<String> {
    let mut forms = Vec::new();
    for (special, digits) in ESCAPED_IN_JSON {
        for letters in [None, Some(LOWER), Some(UPPER)] {
            let form = json(value, (special, digits), letters);
            forms.push(form.replace('/', "\\/"));
            forms.push(form);
        }
    }
    forms
}

/// `special` is escaped by number with its digits, and so is what is no printable ASCII, if there are digits for it.
fn json(value: &str, (special, digits): (&str, Digits), letters: Option<Digits>) -> String {
    let mut form = String::with_capacity(value.len());
    let unit = |form: &mut String, unit: u16, digits: Digits| {
        form.push_str("\\u");
        form.extend(unit.to_be_bytes().into_iter().flat_map(|byte| hex(digits, byte)));
    };
    for letter in value.chars() {
        match letter {
            _ if special.contains(letter) => unit(&mut form, u16::try_from(u32::from(letter)).unwrap_or(0), digits),
            '"' | '\\' => form.extend(['\\', letter]),
            '\n' => form.push_str("\\n"),
            '\r' => form.push_str("\\r"),
            '\t' => form.push_str("\\t"),
            '\u{8}' => form.push_str("\\b"),
            '\u{c}' => form.push_str("\\f"),
            ' '..='~' => form.push(letter),
            '\0'..='\u{1f}' => unit(&mut form, u16::try_from(u32::from(letter)).unwrap_or(0), letters.unwrap_or(LOWER)),
            _ => match letters {
                None => form.push(letter),
                Some(digits) => letter.encode_utf16(&mut [0; 2]).iter().for_each(|half| unit(&mut form, *half, digits)),
            },
        }
    }
    form
}

/// Inside the quotes of a shell.
fn quoted(value: &str) -> Vec<String> {
    vec![
        value.replace('\'', "'\\''"),
        value.replace('\'', "'\"'\"'"),
        behind_backslashes(value, "\\\"$`"),
        // As `printf %q` of bash does.
        behind_backslashes(value, " \t'\"\\|&;()<>!{}*[]?^$`,"),
        behind_backslashes(value, " \t'\"\\|&;()<>!{}*[]?^$`"),
        value.replace('\\', "\\\\").replace('\'', "\\'"),
    ]
}

fn behind_backslashes(value: &str, special: &str) -> String {
    let mut form = String::with_capacity(value.len());
    for letter in value.chars() {
        if special.contains(letter) {
            form.push('\\');
        }
        form.push(letter);
    }
    form
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_few_and_differ() {
        let forms = |value: &str| {
            let of_base64: BTreeSet<Vec<u8>> = base64_within(value).into_iter().map(String::into_bytes).collect();
            let mut all = BTreeSet::new();
            add(value, &mut all);
            all.difference(&of_base64).count()
        };
        assert_eq!(forms("s3cret-and-plain"), 1);
        assert!(forms("p\u{e4}ss/w<o>rd&\"x'? 100%+=~*@;,:$(y)`\\\u{1f}") <= 100);
    }
}
