//! Names of executions in the spool. Invariant: a key is a safe name of a folder.

/// Names one attempt of one execution.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// UUID of the execution.
    pub execution_id: String,
    /// Counted from 1.
    pub attempt: u32,
}

impl Key {
    /// The key of these two, if the id is a UUID in its usual form.
    #[must_use]
    pub fn new(execution_id: &str, attempt: u32) -> Option<Self> {
        is_uuid(execution_id).then(|| Self { execution_id: execution_id.to_owned(), attempt })
    }

    pub(super) fn parse(name: &str) -> Option<Self> {
        let (id, attempt) = name.split_once('.')?;
        Self::new(id, attempt.parse().ok()?)
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.execution_id, self.attempt)
    }
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
        })
}
