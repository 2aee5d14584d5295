//! What a search finds, compared with lines that were put together in another way.

use super::*;
use crate::logs::{Bounds, Cursor, Hit, Pattern, Search, Sources};

const WORDS: [&str; 6] = ["alpha", "beta", "needle", "Nadel", "\u{1f600}", ""];

/// Lines of two sources, cut anywhere and interleaved: the log, and each line with source, begin and end in the text.
async fn scene(store: &LogStore, seed: u64) -> (TaskLog, Vec<(u32, u64, u64, String)>) {
    let log = store.task(seed.cast_signed()).await.unwrap();
    let mut dice = Dice(seed);
    let mut whole = [String::new(), String::new()];
    for text in &mut whole {
        for _ in 0..300 {
            for _ in 0..dice.roll(6) {
                text.push_str(WORDS[usize::try_from(dice.roll(6)).unwrap()]);
                text.push(' ');
            }
            text.push('\n');
        }
        text.push_str("the end has no newline needle");
    }
    let mut lines = Vec::new();
    let (mut at, mut done, mut begun) = (0u64, [0usize; 2], [None, None]);
    while done[0] < whole[0].len() || done[1] < whole[1].len() {
        let who = usize::try_from(dice.roll(2)).unwrap();
        let rest = &whole[who].as_bytes()[done[who]..];
        let cut = rest.len().min(1 + usize::try_from(dice.roll(400)).unwrap());
        if rest.is_empty() {
            continue;
        }
        let source = u32::try_from(who + 1).unwrap();
        append(&log, source, log.durable(source), &output(&rest[..cut])).await.unwrap();
        for (index, byte) in rest[..cut].iter().enumerate() {
            let place = at + index as u64;
            let (begin, text) = begun[who].get_or_insert((place, Vec::new()));
            if *byte == b'\n' {
                lines.push((source, *begin, place + 1, String::from_utf8(text.clone()).unwrap()));
                begun[who] = None;
            } else {
                text.push(*byte);
            }
        }
        done[who] += cut;
        at += cut as u64;
        for (other, rest) in [0, 1].into_iter().zip(&whole) {
            if other == who && done[who] == rest.len() {
                // Its last line ends with the log.
                let (begin, text) = begun[who].clone().unwrap();
                lines.push((source, begin, u64::MAX, String::from_utf8(text).unwrap()));
            }
        }
    }
    let (last, mut ended): (Vec<_>, Vec<_>) = lines.into_iter().partition(|line| line.2 == u64::MAX);
    ended.extend(last);
    (log, ended)
}

fn all_at_once(
    log: &TaskLog,
    pattern: &Pattern,
    bounds: Bounds,
    sources: &Sources,
    from: Cursor,
) -> (Vec<Hit>, Option<Cursor>) {
    let mut search = Search::new(pattern.clone(), bounds, from, log.scan(sources.clone(), from.from));
    while search.advance(500).unwrap() {}
    search.found()
}

#[tokio::test]
async fn every_match_is_found_once_however_often_the_search_stops() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    for seed in [3, 5, 8] {
        let (log, lines) = scene(&store, seed).await;
        for (text, is_regex, fits) in [
            ("needle", false, (|line: &str| line.contains("needle")) as fn(&str) -> bool),
            ("^needle|Nadel $", true, |line| line.starts_with("needle") || line.ends_with("Nadel ")),
            (r"\Abeta", true, |line| line.starts_with("beta")),
            ("(?-m)^beta", true, |line| line.starts_with("beta")),
            ("(?:x|(?i-m:Beta $))", true, |line| line.ends_with("beta ")),
            ("(?i)^BETA", true, |line| line.starts_with("beta")),
            ("^$", true, str::is_empty),
            (r"alpha\s+beta", true, |line| line.contains("alpha beta") || line.contains("alpha  beta")),
        ] {
            let pattern = Pattern::new(text, is_regex, false).unwrap();
            for sources in [Sources::all(), Sources::these([2])] {
                let expected: Vec<(u32, u64)> = lines
                    .iter()
                    .filter(|line| sources.has(line.0) && fits(&line.3))
                    .map(|line| (line.0, line.1))
                    .collect();
                assert!(expected.len() > 3, "{text} is too rare");
                for (matches, text_bytes) in [(usize::MAX, u64::MAX), (1, u64::MAX), (7, u64::MAX), (1000, 100)] {
                    let bounds = Bounds { matches, context: 0, text_bytes };
                    let (mut found, mut from, mut turns) = (Vec::new(), Cursor::default(), 0);
                    loop {
                        let (hits, next) = all_at_once(&log, &pattern, bounds, &sources, from);
                        // The last lines of both sources end at one moment: with the log.
                        assert!(hits.len() <= matches.saturating_add(1));
                        found.extend(hits.into_iter().map(|hit| (hit.line.source, hit.line.offset)));
                        turns += 1;
                        assert!(turns < 5000, "{text} does not end at {from}");
                        let Some(next) = next else { break };
                        // As it goes over the API.
                        from = next.to_string().parse().unwrap();
                    }
                    let mut wanted = expected.clone();
                    if matches < usize::MAX {
                        // Unfinished lines end in another order when the log is read from another place.
                        found.sort_unstable();
                        wanted.sort_unstable();
                    }
                    assert_eq!(found, wanted, "{text}, {matches} matches and {text_bytes} bytes at a time");
                }
            }
        }
    }
}

#[tokio::test]
async fn lines_around_a_match_are_its_neighbours() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let (log, lines) = scene(&store, 13).await;
    let texts: Vec<&str> = lines.iter().map(|line| line.3.as_str()).collect();
    for (context, matches) in [(1, 1000), (3, 1000), (20, 1000), (2, 1)] {
        let bounds = Bounds { matches, context, text_bytes: u64::MAX };
        let pattern = Pattern::new("nadel", false, true).unwrap();
        let (hits, next) = all_at_once(&log, &pattern, bounds, &Sources::all(), Cursor::default());
        assert_eq!(next.is_some(), matches == 1);
        for hit in hits {
            let at = lines.iter().position(|line| (line.0, line.1) == (hit.line.source, hit.line.offset)).unwrap();
            let shown = |lines: &[crate::logs::Shown]| lines.iter().map(|line| line.text.clone()).collect::<Vec<_>>();
            assert_eq!(shown(&hit.before), &texts[at.saturating_sub(context)..at]);
            assert_eq!(shown(&hit.after), &texts[at + 1..(at + 1 + context).min(texts.len())]);
        }
    }
}

#[tokio::test]
async fn what_is_given_of_a_line_and_in_all_has_a_bound() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let log = store.task(1).await.unwrap();
    let line = format!("{}needle{}\n", "x".repeat(30_000), "y".repeat(10_000));
    for _ in 0..2000 {
        append(&log, 1, log.durable(1), &output(line.as_bytes())).await.unwrap();
    }
    let bounds = Bounds { matches: 100_000, context: 0, text_bytes: u64::MAX };
    let pattern = Pattern::new("needle", false, false).unwrap();
    let (hits, next) = all_at_once(&log, &pattern, bounds, &Sources::all(), Cursor::default());
    assert!(hits.iter().all(|hit| hit.line.cut && hit.line.text.len() <= 4096 && hit.line.text.contains("needle")));
    assert!(next.is_some() && hits.len() < 2000, "{} matches", hits.len());
}

#[test]
fn patterns_that_are_none_are_refused_with_the_reason() {
    let long = "x".repeat(1001);
    for (text, is_regex, reason) in [
        ("", false, "must not be empty"),
        (long.as_str(), false, "must have at most 1000 bytes"),
        ("a\nb", false, "must not span lines"),
        ("a(", true, "is no regular expression: unclosed group"),
        ("(((a{99}){99}){99})", true, "is too large a regular expression"),
        (r"(a)\1", true, "is no regular expression: backreferences are not supported"),
    ] {
        assert_eq!(Pattern::new(text, is_regex, false).unwrap_err(), reason);
    }
}
