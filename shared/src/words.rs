//! Enumerations that are stored as text, sent as text and shown as text, each with one spelling.

use std::fmt;

/// A text that is none of an enumeration's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseWordError {
    /// What was given.
    pub given: String,
    /// What would have been allowed, separated by commas.
    pub allowed: String,
}

impl fmt::Display for ParseWordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is not one of: {}", self.given, self.allowed)
    }
}

impl std::error::Error for ParseWordError {}

/// An enumeration with one text for each variant; made by [`words!`](crate::words!).
pub trait Word: Copy + Sized + 'static {
    /// Every variant, in the order of declaration.
    const ALL: &'static [Self];

    /// The text of this variant.
    fn as_str(&self) -> &'static str;

    /// The variant with this text.
    ///
    /// # Errors
    /// [`ParseWordError`] names what was given and what is allowed.
    fn parse(text: &str) -> Result<Self, ParseWordError> {
        Self::ALL.iter().find(|word| word.as_str() == text).copied().ok_or_else(|| ParseWordError {
            given: text.chars().take(64).collect(),
            allowed: Self::ALL.iter().map(Word::as_str).collect::<Vec<_>>().join(", "),
        })
    }
}

/// Declares an enumeration whose variants each have one text, in database, wire and API alike.
#[macro_export]
macro_rules! words {
    ($(#[$meta:meta])* $vis:vis enum $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        $vis enum $name { $($(#[$variant_meta])* $variant),+ }

        impl $crate::words::Word for $name {
            const ALL: &'static [Self] = &[$(Self::$variant),+];
            fn as_str(&self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str($crate::words::Word::as_str(self))
            }
        }

        impl ::std::str::FromStr for $name {
            type Err = $crate::ParseWordError;
            fn from_str(text: &str) -> ::std::result::Result<Self, Self::Err> {
                <Self as $crate::words::Word>::parse(text)
            }
        }

        impl ::serde::Serialize for $name {
            fn serialize<S: ::serde::Serializer>(&self, serializer: S) -> ::std::result::Result<S::Ok, S::Error> {
                serializer.serialize_str($crate::words::Word::as_str(self))
            }
        }

        impl<'de> ::serde::Deserialize<'de> for $name {
            fn deserialize<D: ::serde::Deserializer<'de>>(deserializer: D) -> ::std::result::Result<Self, D::Error> {
                let text = <::std::string::String as ::serde::Deserialize>::deserialize(deserializer)?;
                <Self as $crate::words::Word>::parse(text.trim()).map_err(::serde::de::Error::custom)
            }
        }
    };
}

words! {
    /// Where an execution stands; see `golden/transitions/execution.txt` for how it moves.
    pub enum ExecutionState {
        /// Waits for its turn or for its host.
        Queued = "queued",
        /// Sent to the agent, which has not yet said that it holds the order.
        Dispatched = "dispatched",
        /// The agent holds the order; hooks may have started.
        Running = "running",
        /// Every step succeeded.
        Succeeded = "succeeded",
        /// A step failed.
        Failed = "failed",
        /// The time allowed ran out.
        TimedOut = "timed_out",
        /// A person or a rule stopped it.
        Cancelled = "cancelled",
        /// The host cannot say how it ended: a person decides.
        Lost = "lost",
    }
}

impl ExecutionState {
    /// Whether nothing moves any more without a person.
    #[must_use]
    pub fn is_over(self) -> bool {
        match self {
            Self::Queued | Self::Dispatched | Self::Running => false,
            Self::Succeeded | Self::Failed | Self::TimedOut | Self::Cancelled | Self::Lost => true,
        }
    }
}

words! {
    /// Where one step of an execution stands.
    pub enum StepState {
        /// Its turn has not come.
        Pending = "pending",
        /// At work.
        Running = "running",
        /// Done.
        Succeeded = "succeeded",
        /// Went wrong; its error says why.
        Failed = "failed",
        /// An earlier step failed, so this one never started.
        Skipped = "skipped",
    }
}

words! {
    /// Language of a script.
    pub enum Language {
        /// Run by `bash`.
        Bash = "bash",
        /// Run by `python3`.
        Python = "python",
    }
}

words! {
    /// What an execution is for, as hooks and templates see it.
    pub enum Action {
        /// A new version is installed.
        Upgrade = "upgrade",
        /// A kept version is switched back to.
        Revert = "revert",
        /// What is there is started.
        Start = "start",
        /// What runs is stopped.
        Stop = "stop",
        /// What runs is stopped and started again.
        Restart = "restart",
        /// A stored script is run, for nothing but itself.
        Script = "script",
    }
}
