//! Which bytes of an output are asked for. Pure.

/// What a `Range` header asks of so many bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Everything: there is no header, or none that is understood.
    Whole,
    /// From the first of these up to before the second; never empty.
    Part(u64, u64),
    /// Nothing that is there.
    Nothing,
}

/// Reads a `Range` header as RFC 9110 has it. Several ranges at once are answered with everything.
pub(crate) fn wanted(header: Option<&str>, length: u64) -> Wanted {
    let Some(range) = header.and_then(|header| header.trim().strip_prefix("bytes=")) else { return Wanted::Whole };
    let Some((first, last)) = range.trim().split_once('-') else { return Wanted::Whole };
    let number =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    let (from, to) = match (number(first), number(last)) {
        (Some(from), Some(last)) if from <= last => (from, last.saturating_add(1).min(length)),
        (Some(from), None) if last.is_empty() => (from, length),
        (None, Some(count)) if first.is_empty() => (length.saturating_sub(count), length),
        _ => return Wanted::Whole,
    };
    if from < to { Wanted::Part(from, to) } else { Wanted::Nothing }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_standard_says() {
        for (header, expected) in [
            ("bytes=0-9", Wanted::Part(0, 10)),
            ("bytes=10-", Wanted::Part(10, 100)),
            ("bytes=-30", Wanted::Part(70, 100)),
            ("bytes=-300", Wanted::Part(0, 100)),
            ("bytes=90-300", Wanted::Part(90, 100)),
            (" bytes=99-99", Wanted::Part(99, 100)),
            ("bytes=100-", Wanted::Nothing),
            ("bytes=-0", Wanted::Nothing),
            ("bytes=9-8", Wanted::Whole),
            ("bytes=0-1,5-6", Wanted::Whole),
            ("bytes=+1-2", Wanted::Whole),
            ("bytes=-", Wanted::Whole),
            ("bytes=99999999999999999999-", Wanted::Whole),
            ("lines=1-2", Wanted::Whole),
        ] {
            assert_eq!(wanted(Some(header), 100), expected, "{header}");
        }
        assert_eq!(wanted(None, 100), Wanted::Whole);
        assert_eq!(wanted(Some("bytes=0-"), 0), Wanted::Nothing);
    }
}
