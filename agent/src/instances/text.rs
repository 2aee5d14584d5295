//! Pieces of a file as text: whole characters, whatever the file holds.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// Longest character, in bytes.
const CHARACTER_BYTES_MAX: usize = 4;

/// A piece of text and the offset after it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Text {
    pub(super) content: String,
    pub(super) from: u64,
    pub(super) position: u64,
}

/// As many bytes as there are, up to this number.
///
/// # Errors
/// Whatever the file system says.
pub(super) fn bytes_at(file: &File, from: u64, bytes: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; bytes];
    let mut length = 0;
    while length < bytes {
        match file.read_at(&mut buffer[length..], from + length as u64) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer.truncate(length);
    Ok(buffer)
}

/// Bytes at the end that begin a character and lack the rest of it.
pub(super) fn unfinished(bytes: &[u8]) -> usize {
    let first = bytes.len().saturating_sub(CHARACTER_BYTES_MAX - 1);
    let begins = |at: &usize| {
        std::str::from_utf8(&bytes[*at..]).is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
    };
    (first..bytes.len()).find(begins).map_or(0, |at| bytes.len() - at)
}

/// The first offset from this one on that is not inside a character.
///
/// # Errors
/// Whatever the file system says.
pub(super) fn character_start(file: &File, from: u64) -> io::Result<u64> {
    let low = from.saturating_sub(CHARACTER_BYTES_MAX as u64 - 1);
    let before = usize::try_from(from - low).unwrap_or(0);
    let around = bytes_at(file, low, before + CHARACTER_BYTES_MAX - 1)?;
    for at in 0..before.min(around.len()) {
        let rest = &around[at..];
        let valid = match std::str::from_utf8(rest) {
            Ok(text) => text,
            Err(error) => std::str::from_utf8(&rest[..error.valid_up_to()]).unwrap_or_default(),
        };
        if let Some(first) = valid.chars().next()
            && at + first.len_utf8() > before
        {
            return Ok(low + (at + first.len_utf8()) as u64);
        }
    }
    Ok(from)
}

/// At most so many bytes of text, but at least one character if there is one. What is left at the end of the file of a
/// character that lacks the rest is given only if the file is `over`, and nothing else is there to give.
///
/// # Errors
/// Whatever the file system says.
pub(super) fn text_at(file: &File, from: u64, bytes: usize, over: bool) -> io::Result<Text> {
    let from = character_start(file, from)?;
    let buffer = bytes_at(file, from, bytes + CHARACTER_BYTES_MAX - 1)?;
    let asked = bytes.min(buffer.len());
    let mut end = asked - unfinished(&buffer[..asked]);
    if end == 0 && asked > 0 {
        let whole = (asked..=buffer.len()).find(|length| unfinished(&buffer[..*length]) == 0);
        end = whole.unwrap_or(if over { buffer.len() } else { 0 });
    }
    let content = String::from_utf8_lossy(&buffer[..end]).into_owned();
    Ok(Text { content, from, position: from + end as u64 })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn characters_stay_whole_wherever_the_piece_is_cut() {
        let text = "aé€😀b";
        let file = file(text.as_bytes());
        for bytes in 1..=text.len() {
            let (mut position, mut all) = (0, String::new());
            while position < text.len() as u64 {
                let piece = text_at(&file, position, bytes, false).unwrap();
                assert!(piece.position > position, "{bytes} {position}");
                assert!(piece.content.len() <= bytes.max(4));
                position = piece.position;
                all.push_str(&piece.content);
            }
            assert_eq!(all, text, "{bytes} at a time");
        }
        let inside = text_at(&file, 4, 100, false).unwrap();
        assert_eq!((inside.content.as_str(), inside.from), ("😀b", 6), "from inside of € on");
    }

    #[test]
    fn what_is_no_text_is_shown_as_such_and_lost_nowhere() {
        let file = file(b"a\xff\x80b\xe2\x82");
        let piece = text_at(&file, 0, 100, false).unwrap();
        assert_eq!((piece.content.as_str(), piece.position), ("a\u{fffd}\u{fffd}b", 4));
        assert_eq!(text_at(&file, 4, 100, false).unwrap().position, 4, "the rest may come");
        let last = text_at(&file, 4, 100, true).unwrap();
        assert_eq!((last.content.as_str(), last.position), ("\u{fffd}", 6));
        assert_eq!(text_at(&file, 2, 1, false).unwrap().content, "\u{fffd}", "a loose byte is inside of nothing");
        assert_eq!(text_at(&file, 99, 10, true).unwrap(), Text { content: String::new(), from: 99, position: 99 });
    }
}
