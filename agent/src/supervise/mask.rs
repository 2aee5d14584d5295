//! Masking: known secret values are taken out of a hook's output before it is kept.
//!
//! A value is looked for in all its [forms]. Values shorter than [`MASKED_BYTES_MIN`] are left alone.
//! Invariant: whatever the pieces in which output comes, what leaves a [`Masker`] is the same, and contains no pattern
//! as a whole; what may still become one is held back until it is decided.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use drover_shared::secret::{MASK, MASKED_BYTES_MIN, Secrets};

use super::forms;

/// Bytes that lead to the patterns that begin with them.
const PREFIX: usize = MASKED_BYTES_MIN;

/// What is looked for.
#[derive(Debug)]
pub(crate) struct Patterns {
    /// Patterns by their first bytes, the longest first.
    by_prefix: HashMap<[u8; PREFIX], Vec<Vec<u8>>>,
    /// The first two bytes of every pattern, as a set of bits: most places are told by it alone.
    starts: Vec<u64>,
    longest: usize,
}

impl Patterns {
    /// The patterns of these secrets; none if there is nothing to mask.
    #[must_use]
    pub(crate) fn new(secrets: &Secrets) -> Option<Arc<Self>> {
        let mut all = BTreeSet::new();
        for value in secrets.0.values() {
            forms::add(value.trim_end_matches(['\r', '\n']), &mut all);
        }
        all.retain(|pattern| pattern.len() >= MASKED_BYTES_MIN);
        let longest = all.iter().map(Vec::len).max()?;
        let mut by_prefix: HashMap<[u8; PREFIX], Vec<Vec<u8>>> = HashMap::new();
        let mut starts = vec![0; 65_536 / 64];
        for pattern in all {
            if let Some(prefix) = pattern.first_chunk::<PREFIX>() {
                let (word, bit) = place(prefix[0], prefix[1]);
                starts[word] |= bit;
                by_prefix.entry(*prefix).or_default().push(pattern);
            }
        }
        for patterns in by_prefix.values_mut() {
            patterns.sort_by_key(|pattern| std::cmp::Reverse(pattern.len()));
        }
        Some(Arc::new(Self { by_prefix, starts, longest }))
    }

    /// Length of the longest pattern that `text` begins with, and whether `text` may be the beginning of a longer one.
    fn at(&self, text: &[u8]) -> (usize, bool) {
        if let [first, second, ..] = text {
            let (word, bit) = place(*first, *second);
            if self.starts[word] & bit == 0 {
                return (0, false);
            }
        }
        let Some(prefix) = text.first_chunk::<PREFIX>() else {
            return (0, self.by_prefix.keys().any(|prefix| prefix.starts_with(text)));
        };
        let mut open = false;
        for pattern in self.by_prefix.get(prefix).into_iter().flatten() {
            if text.starts_with(pattern) {
                return (pattern.len(), open);
            }
            open |= pattern.starts_with(text);
        }
        (0, open)
    }
}

fn place(first: u8, second: u8) -> (usize, u64) {
    let index = usize::from(first) << 8 | usize::from(second);
    (index / 64, 1 << (index % 64))
}

/// Masks one stream of output.
#[derive(Debug)]
pub(crate) struct Masker {
    patterns: Arc<Patterns>,
    /// What is not decided yet.
    held: Vec<u8>,
    /// Bytes at the start of `held` that belong to a value whose mask has left already.
    covered: usize,
}

impl Masker {
    /// At the start of a stream.
    #[must_use]
    pub(crate) fn new(patterns: Arc<Patterns>) -> Self {
        Self { patterns, held: Vec::new(), covered: 0 }
    }

    /// Takes a piece of the stream and gives what can be told of it.
    #[must_use]
    pub(crate) fn pass(&mut self, piece: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(piece);
        self.decide(false)
    }

    /// The stream is over: gives the rest.
    #[must_use]
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        self.decide(true)
    }

    fn decide(&mut self, last: bool) -> Vec<u8> {
        let text = &self.held;
        let mut out = Vec::with_capacity(text.len());
        // Up to here a value reaches whose mask is in `out` or has left before.
        let mut masked = self.covered;
        let mut at = 0;
        while at < text.len() {
            let tail = &text[at..];
            let (length, open) = self.patterns.at(tail);
            if open && !last && tail.len() < self.patterns.longest {
                break;
            }
            if length > 0 {
                if at >= masked {
                    out.extend_from_slice(MASK.as_bytes());
                }
                masked = masked.max(at + length);
            }
            if at >= masked {
                out.push(text[at]);
            }
            at += 1;
        }
        self.covered = masked.saturating_sub(at);
        self.held.drain(..at);
        out
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};

    use super::*;
    use forms::WRAPS;

    fn patterns(values: &[&str]) -> Arc<Patterns> {
        let named = values.iter().enumerate().map(|(index, value)| (format!("S{index}"), (*value).to_owned()));
        Patterns::new(&Secrets(named.collect())).expect("patterns")
    }

    fn at_once(patterns: &Arc<Patterns>, text: &[u8]) -> Vec<u8> {
        let mut masker = Masker::new(Arc::clone(patterns));
        let mut out = masker.pass(text);
        out.extend(masker.finish());
        out
    }

    fn masked(values: &[&str], text: &str) -> String {
        String::from_utf8(at_once(&patterns(values), text.as_bytes())).expect("text")
    }

    #[test]
    fn a_value_is_masked_in_all_its_forms() {
        let secret = "p\u{e4}ss/w<o>rd&\"x'? 100%";
        assert_eq!(masked(&[secret], &format!("[{secret}]")), "[******]");
        let json = serde_json::to_string(secret).expect("JSON");
        assert_eq!(masked(&[secret], &json), "\"******\"");
        let php = json.replace('/', "\\/").replace('\u{e4}', "\\u00e4");
        assert_eq!(masked(&[secret], &php), "\"******\"");
        for url in [
            "p%C3%A4ss%2Fw%3Co%3Erd%26%22x%27%3F%20100%25",
            "p%c3%a4ss%2fw%3co%3erd%26%22x%27%3f%20100%25",
            "p%C3%A4ss%2Fw%3Co%3Erd%26%22x%27%3F+100%25",
            "p%C3%A4ss%2Fw%3Co%3Erd%26%22x'%3F%20100%25",
        ] {
            assert_eq!(masked(&[secret], &format!("?q={url}&")), "?q=******&");
        }
        assert_eq!(masked(&[secret], "'p\u{e4}ss/w<o>rd&\"x'\"'\"'? 100%'"), "'******'");
        assert_eq!(masked(&[secret], "P=\"p\u{e4}ss/w<o>rd&\\\"x'? 100%\""), "P=\"******\"");
        assert_eq!(masked(&[secret], "p\u{e4}ss/w\\<o\\>rd\\&\\\"x\\'\\?\\ 100%"), "******");
        assert_eq!(masked(&[secret], "+ echo 'p\u{e4}ss/w<o>rd&\"x'\\''? 100%'"), "+ echo '******'");
    }

    /// What the encoders of other languages made of it, as they printed it.
    #[test]
    fn every_languages_way_into_a_url_is_masked() {
        let secret = "p\u{e4}ss/w<o>rd&\"x'? 100%+=~*@;,:$(y)`";
        for url in [
            // Python: quote(v), quote_plus(v, safe="/"), quote(v, safe="").
            "p%C3%A4ss/w%3Co%3Erd%26%22x%27%3F%20100%25%2B%3D~%2A%40%3B%2C%3A%24%28y%29%60",
            "p%C3%A4ss/w%3Co%3Erd%26%22x%27%3F+100%25%2B%3D~%2A%40%3B%2C%3A%24%28y%29%60",
            "p%C3%A4ss%2Fw%3Co%3Erd%26%22x%27%3F%20100%25%2B%3D~%2A%40%3B%2C%3A%24%28y%29%60",
            // Java's URLEncoder, URLSearchParams, Ruby's encode_www_form_component.
            "p%C3%A4ss%2Fw%3Co%3Erd%26%22x%27%3F+100%25%2B%3D%7E*%40%3B%2C%3A%24%28y%29%60",
            // PHP's urlencode.
            "p%C3%A4ss%2Fw%3Co%3Erd%26%22x%27%3F+100%25%2B%3D%7E%2A%40%3B%2C%3A%24%28y%29%60",
            // Go: QueryEscape, PathEscape, a URL's path, a URL's password.
            "p%C3%A4ss%2Fw%3Co%3Erd%26%22x%27%3F+100%25%2B%3D~%2A%40%3B%2C%3A%24%28y%29%60",
            "p%C3%A4ss%2Fw%3Co%3Erd&%22x%27%3F%20100%25+=~%2A@%3B%2C:$%28y%29%60",
            "p%C3%A4ss/w%3Co%3Erd&%22x%27%3F%20100%25+=~%2A@;,:$%28y%29%60",
            "p%C3%A4ss%2Fw%3Co%3Erd&%22x%27%3F%20100%25+=~%2A%40;,%3A$%28y%29%60",
            // new URL(...).password = v.
            "p%C3%A4ss%2Fw%3Co%3Erd&%22x'%3F%20100%+%3D~*%40%3B,%3A$(y)%60",
        ] {
            assert_eq!(masked(&[secret], &format!("/{url}#")), "/******#");
        }
        assert_eq!(masked(&["abc/def+ghi=jkl"], "https://h/?t=abc/def%2Bghi%3Djkl"), "https://h/?t=******");
    }

    #[test]
    fn every_languages_way_into_json_is_masked() {
        let secret = "p\u{e4}\u{1f680}s/w<o>rd&\"x'=+`\\\u{1f}";
        for json in [
            // Python, jq -a; jq, JavaScript; Jackson with ESCAPE_NON_ASCII.
            r#"p\u00e4\ud83d\ude80s/w<o>rd&\"x'=+`\\\u001f"#,
            "p\u{e4}\u{1f680}s/w<o>rd&\\\"x'=+`\\\\\\u001f",
            r#"p\u00E4\uD83D\uDE80s/w<o>rd&\"x'=+`\\\u001F"#,
            // System.Text.Json.
            r"p\u00E4\uD83D\uDE80s/w\u003Co\u003Erd\u0026\u0022x\u0027=\u002B\u0060\\\u001F",
            // PHP: json_encode, with all of JSON_HEX_*, with JSON_UNESCAPED_SLASHES, with JSON_HEX_TAG.
            r#"p\u00e4\ud83d\ude80s\/w<o>rd&\"x'=+`\\\u001f"#,
            r"p\u00e4\ud83d\ude80s\/w\u003Co\u003Erd\u0026\u0022x\u0027=+`\\\u001f",
            r"p\u00e4\ud83d\ude80s/w\u003Co\u003Erd\u0026\u0022x\u0027=+`\\\u001f",
            r#"p\u00e4\ud83d\ude80s\/w\u003Co\u003Erd&\"x'=+`\\\u001f"#,
            // Gson; Go and Rails; Newtonsoft with EscapeHtml.
            "p\u{e4}\u{1f680}s/w\\u003co\\u003erd\\u0026\\\"x\\u0027\\u003d+`\\\\\\u001f",
            "p\u{e4}\u{1f680}s/w\\u003co\\u003erd\\u0026\\\"x'=+`\\\\\\u001f",
            "p\u{e4}\u{1f680}s/w\\u003co\\u003erd\\u0026\\u0022x\\u0027=+`\\\\\\u001f",
        ] {
            assert_eq!(masked(&[secret], &format!("{{\"k\":\"{json}\"}}")), "{\"k\":\"******\"}");
        }
    }

    #[test]
    fn base64_is_masked_wherever_the_value_lies_in_it() {
        for secret in ["abcd", "s3cret", "hunter2!", "\u{1f680}-token-\u{ff}\u{fe}-0123456789"] {
            for before in 0..7 {
                for after in 0..5 {
                    let text = format!("{}{secret}{}", "x".repeat(before), "y".repeat(after));
                    for encoded in [STANDARD.encode(&text), URL_SAFE.encode(&text)] {
                        let out = masked(&[secret], &encoded);
                        assert!(out.contains(MASK), "{encoded} of {text} became {out}");
                        let left: usize = out.len() - MASK.len();
                        // At most what is around it, and a character on each side.
                        assert!(left <= (before + after) * 4 / 3 + 8, "{encoded} of {text} became {out}");
                    }
                }
            }
        }
        let key = "0123456789abcdef".repeat(20);
        let encoded = STANDARD.encode(&key);
        for columns in WRAPS {
            let lines: Vec<&str> =
                encoded.as_bytes().chunks(columns).map(|line| std::str::from_utf8(line).expect("ASCII")).collect();
            let out = masked(&[&key], &lines.join("\n"));
            assert!(out.lines().all(|line| line == MASK), "{out}");
        }
    }

    #[test]
    fn wrapped_base64_is_masked_wherever_the_value_begins_in_it() {
        for length in [30, 93] {
            let token: String = (0..length).map(|at: u8| char::from(b'a' + (at % 26) * 7 % 26)).collect();
            for before in 0..60 {
                let encoded = STANDARD.encode(format!("{}{token}:end", "-".repeat(before)));
                for columns in [64, 70, 76] {
                    let lines: Vec<&[u8]> = encoded.as_bytes().chunks(columns).collect();
                    let out = at_once(&patterns(&[&token]), &lines.join(&b'\n'));
                    let out = String::from_utf8(out).expect("text");
                    // What is left of it in a line is less than a window and what its neighbours share with it.
                    for line in out.lines() {
                        for window in token.as_bytes().windows(10) {
                            let phases = (0..3).map(|phase| STANDARD.encode(&window[phase..phase + 6]));
                            assert!(phases.into_iter().all(|part| !line.contains(&part)), "{columns} {before}: {out}");
                        }
                    }
                    assert!(out.contains(MASK), "{columns} {before}: {out}");
                }
            }
        }
        // What every key begins with tells nothing.
        let key = "-----BEGIN KEY-----\nQUJDREVGR0hJSktMTU5P\n-----END KEY-----\n";
        let other = STANDARD.encode("-----BEGIN KEY-----");
        assert_eq!(masked(&[key], &other), other);
    }

    #[test]
    fn lines_overlaps_and_short_values() {
        let key = "-----BEGIN KEY-----\nAAAABBBBCCCC\nDDDDEEEEFFFF\nxy\n-----END KEY-----\n";
        assert_eq!(masked(&[key], &format!("<{}>", key.trim_end())), "<******>");
        assert_eq!(masked(&[key], "  DDDDEEEEFFFF\n-----END KEY-----\n"), "  ******\n-----END KEY-----\n");
        assert_eq!(masked(&["abcdef", "defghi"], "-abcdefghi-"), "-******-");
        assert_eq!(masked(&["abcdef", "ghijkl"], "-abcdefghijkl-"), "-************-");
        assert_eq!(masked(&["abcd", "abcdefgh"], "abcdefg abcdefgh"), "******efg ******");
        assert_eq!(masked(&["aaaa"], &"a".repeat(100_000)), "******");
        assert!(Patterns::new(&Secrets([("S".to_owned(), "abc".to_owned())].into())).is_none());
        assert_eq!(masked(&["abc", "wxyz"], "abc wxyz"), "abc ******");
    }

    #[test]
    fn every_way_to_cut_the_stream_gives_the_same() {
        let values = ["abcabcabd", "cabd-tail", "aaaa", "\u{e4}\u{f6}\u{fc}", "line one of it\nline two of it"];
        let patterns = patterns(&values);
        let texts = [
            "xabcabcabcabd-tailaaaaaab\u{e4}\u{f6}\u{fc}abcab",
            "line one of it\nline two of it line one of it\nline two",
            &format!("{} {}", STANDARD.encode("key=abcabcabd;"), STANDARD.encode("a\u{e4}\u{f6}\u{fc}")),
            "aaaaaaaaaaaaaaaabcabcabdcabd-tai",
        ];
        for text in texts {
            let text = text.as_bytes();
            let whole = at_once(&patterns, text);
            for first in 0..=text.len() {
                for second in first..=text.len() {
                    let mut masker = Masker::new(Arc::clone(&patterns));
                    let mut out = masker.pass(&text[..first]);
                    out.extend(masker.pass(&text[first..second]));
                    out.extend(masker.pass(&text[second..]));
                    out.extend(masker.finish());
                    assert!(out == whole, "cut at {first} and {second}: {}", String::from_utf8_lossy(&out));
                }
            }
            let mut masker = Masker::new(Arc::clone(&patterns));
            let mut bytewise: Vec<u8> = text.iter().flat_map(|byte| masker.pass(&[*byte])).collect();
            bytewise.extend(masker.finish());
            assert!(bytewise == whole);
            for value in values {
                assert!(!whole.windows(value.len()).any(|window| window == value.as_bytes()), "{value} is left");
            }
        }
    }

    /// Streams of few letters, so that patterns meet and overlap, against the plain rule: what any pattern covers goes,
    /// and each stretch of it becomes one mask.
    #[test]
    fn random_streams_agree_with_the_plain_rule() {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        for _ in 0..2_000 {
            let mut letters =
                |length: u64| -> String { (0..length).map(|_| if random(2) == 0 { 'a' } else { 'b' }).collect() };
            let values = [letters(4), letters(5), letters(9)];
            let text = letters(60);
            let patterns = patterns(&values.each_ref().map(String::as_str));
            let mut covers = vec![None; text.len()];
            let mut group = 0;
            let mut end = 0;
            for (at, cover) in covers.iter_mut().enumerate() {
                let (length, _) = patterns.at(&text.as_bytes()[at..]);
                if length > 0 {
                    if at >= end {
                        group += 1;
                    }
                    end = end.max(at + length);
                }
                *cover = (at < end).then_some(group);
            }
            let mut expected = String::new();
            for (at, letter) in text.char_indices() {
                match covers[at] {
                    None => expected.push(letter),
                    Some(group) if at == 0 || covers[at - 1] != Some(group) => expected.push_str(MASK),
                    Some(_) => {}
                }
            }
            let mut masker = Masker::new(patterns);
            let mut out = Vec::new();
            let mut rest = text.as_bytes();
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(usize::try_from(random(8)).unwrap_or(0).min(rest.len()));
                out.extend(masker.pass(piece));
                rest = after;
            }
            out.extend(masker.finish());
            assert_eq!(String::from_utf8_lossy(&out), expected, "{values:?} in {text}");
        }
    }
}
