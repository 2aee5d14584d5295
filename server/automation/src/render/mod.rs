//! Rendering of hook scripts: minijinja, strict and bounded.
//!
//! Invariant: the same script and [`Context`] give the same text everywhere and always; nothing that is undefined or
//! without a value ends up in a script; and no script, however made, takes more than its limits of time and memory.
//! The variables are described in `docs/templates.md`, and a test keeps that page complete.

mod context;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use drover_shared::secret::{self, Piece};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State, UndefinedBehavior};

pub use context::{Application, Context, DeployTask, Host, Instance, SecretNames, Source, Target, Targets, Task};

/// Characters of an expression that an error shows.
const SHOWN_CHARACTERS_MAX: usize = 80;

const COMMENT_HINT: &str = "; `{#` begins a comment: write {% raw %}${#name}{% endraw %} for the length of a variable";

/// Bounds of one rendering.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Length of the script before rendering.
    pub source_bytes_max: usize,
    /// Length of the rendered script.
    pub output_bytes_max: usize,
    /// Work: about one for each instruction and for each 64 bytes that are made or looked at.
    pub fuel: u64,
    /// Depth of nested calls and blocks.
    pub recursion_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { source_bytes_max: 256 * 1024, output_bytes_max: 512 * 1024, fuel: 500_000, recursion_max: 100 }
    }
}

/// Work that several renderings may take together, see [`Limits::fuel`]. When nothing else is said those of one request:
/// four hundred of the largest, or the ordinary ones of ten thousand targets.
#[derive(Debug)]
pub struct Work {
    of_what: &'static str,
    most: u64,
    done: AtomicU64,
}

impl Default for Work {
    fn default() -> Self {
        Self::of("the scripts of all targets", 200_000_000)
    }
}

impl Work {
    /// So much and no more for what is named so in an error.
    #[must_use]
    pub fn of(of_what: &'static str, most: u64) -> Self {
        Self { of_what, most, done: AtomicU64::new(0) }
    }

    fn left(&self) -> u64 {
        self.most.saturating_sub(self.done.load(Ordering::Relaxed))
    }
}

/// Why a script cannot be rendered, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{script}, line {line}, column {column}: {reason}")]
pub struct RenderError {
    /// Name of the script as it was given.
    pub script: String,
    /// Counted from 1.
    pub line: usize,
    /// In characters, counted from 1.
    pub column: usize,
    /// For people.
    pub reason: String,
}

/// Renders a script for one target, as one of the renderings that share this work.
///
/// # Errors
/// As [`render`]; and when the work is used up.
pub fn render_within(script_name: &str, text: &str, context: &Context, work: &Work) -> Result<String, RenderError> {
    let limits = Limits::default();
    let left = work.left();
    let result = rendered(script_name, text, context, &Limits { fuel: limits.fuel.min(left), ..limits });
    match result {
        Ok((text, done)) => {
            // Even an empty script takes time.
            work.done.fetch_add(done.max(1), Ordering::Relaxed);
            Ok(text)
        }
        Err((error, true)) if left < limits.fuel => {
            let reason = format!("rendering {} takes more than {} steps together", work.of_what, work.most);
            Err(RenderError { reason, ..error })
        }
        Err((error, _)) => Err(error),
    }
}

/// Renders a script for one target.
///
/// # Errors
/// [`RenderError`] for a syntax error, an undefined variable, a value that is none, a failing filter, and every limit.
pub fn render(script_name: &str, text: &str, context: &Context, limits: &Limits) -> Result<String, RenderError> {
    rendered(script_name, text, context, limits).map(|(text, _)| text).map_err(|(error, _)| error)
}

/// The text and the work that it took; or the error, and whether it is that the work was too much.
fn rendered(
    script_name: &str,
    text: &str,
    context: &Context,
    limits: &Limits,
) -> Result<(String, u64), (RenderError, bool)> {
    let located = |error: &Error| (locate(script_name, text, limits, error), error.kind() == ErrorKind::OutOfFuel);
    if text.len() > limits.source_bytes_max {
        let reason = format!("the script is longer than {} bytes", limits.source_bytes_max);
        return Err((RenderError { script: script_name.to_owned(), line: 1, column: 1, reason }, false));
    }
    let environment = environment(limits);
    let template = environment.template_from_named_str(script_name, text).map_err(|error| located(&error))?;
    let values = values(context).map_err(|error| {
        let reason = format!("the variables cannot be given: {error}");
        (RenderError { script: script_name.to_owned(), line: 1, column: 1, reason }, false)
    })?;
    let mut output = Bounded { bytes: Vec::new(), bytes_max: limits.output_bytes_max };
    let captured = template.render_captured_to(values, &mut output).map_err(|error| located(&error))?;
    let done = captured.state().fuel_levels().map_or(0, |(done, _)| done);
    drop(captured);
    let text = String::from_utf8(output.bytes);
    Ok((text.unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()), done))
}

fn environment(limits: &Limits) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    if let Ok(syntax) = SyntaxConfig::builder().keep_trailing_newline(true).build() {
        environment.set_syntax(syntax);
    }
    environment.set_debug(true);
    environment.set_fuel(Some(limits.fuel));
    environment.set_recursion_limit(limits.recursion_max);
    environment.set_formatter(format_value);
    environment.remove_global("debug");
    environment.add_filter("shell_quote", shell_quote);
    environment
}

/// Writes a value; a missing one is refused, because `rm -r {{ path }}/*` must not become `rm -r none/*` or worse.
fn format_value(output: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    if value.is_none() {
        return Err(no_value());
    }
    minijinja::escape_formatter(output, state, value)
}

fn no_value() -> Error {
    Error::new(ErrorKind::InvalidOperation, "it has no value here; test it first or give another, as in `x or \"y\"`")
}

/// Quotes for a POSIX shell: one word for a value, a word for each item of a list.
fn shell_quote(state: &State<'_, '_>, value: Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::Undefined => Err(Error::from(ErrorKind::UndefinedError)),
        ValueKind::None => Err(no_value()),
        ValueKind::Seq | ValueKind::Iterable => {
            let mut words = Vec::new();
            for item in value.try_iter()? {
                state.consume_fuel(1)?;
                words.push(shell_quote(state, item)?);
            }
            Ok(words.join(" "))
        }
        ValueKind::String | ValueKind::Number | ValueKind::Bool => {
            let text = value.to_string();
            if text.contains('\0') {
                let reason = "a shell word cannot hold the character with the number zero";
                return Err(Error::new(ErrorKind::InvalidOperation, reason));
            }
            Ok(secret::pieces(&text).map(quoted).reduce(|all, one| all + &one).unwrap_or_else(|| "''".to_owned()))
        }
        kind => Err(Error::new(ErrorKind::InvalidOperation, format!("a {kind} cannot be a shell word"))),
    }
}

/// A part of a shell word. A secret is read from its variable there, whatever characters its value has.
fn quoted(piece: Piece<'_>) -> String {
    match piece {
        Piece::Text(text) => format!("'{}'", text.replace('\'', r"'\''")),
        Piece::Secret(name) => format!("\"${{{}}}\"", secret::variable(name)),
    }
}

/// The variables by name.
fn values(context: &Context) -> serde_json::Result<Value> {
    let serde_json::Value::Object(members) = serde_json::to_value(context)? else { return Ok(Value::from(())) };
    let members = members.into_iter().map(|(name, member)| (name, value(member)));
    let shared =
        [("instances".to_owned(), context.instances.0.clone()), ("secrets".to_owned(), context.secrets.values.clone())];
    Ok(Value::from_pairs(members.chain(shared)))
}

fn value(json: serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match json {
        Json::Null => Value::from(()),
        Json::Bool(truth) => Value::from(truth),
        Json::Number(number) => match number.as_i64() {
            Some(whole) => Value::from(whole),
            None => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text),
        Json::Array(items) => items.into_iter().map(value).collect(),
        Json::Object(members) => Value::from_pairs(members.into_iter().map(|(name, member)| (name, value(member)))),
    }
}

fn locate(script: &str, text: &str, limits: &Limits, error: &Error) -> RenderError {
    let range = error.range().filter(|range| text.is_char_boundary(range.start) && text.is_char_boundary(range.end));
    let range = match is_open_comment(error) {
        true => open_comment(text),
        false => range.map(|range| begin_of_expression(text, range.start)..range.end),
    };
    let (line, column) = match &range {
        Some(range) => {
            let before = &text[..range.start];
            let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
            (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
        }
        None => (error.line().unwrap_or(1), 1),
    };
    let expression = range.map(|range| text[range].trim()).filter(|expression| !expression.contains('\n'));
    let shown: Option<String> = expression.map(|text| text.chars().take(SHOWN_CHARACTERS_MAX).collect());
    let reason = reason(error, shown.as_deref(), limits);
    RenderError { script: script.to_owned(), line, column, reason }
}

/// The engine points at `.member` or at a filter alone when these fail: goes back to the name that they belong to.
fn begin_of_expression(text: &str, start: usize) -> usize {
    let before = &text[..start];
    let name = match before.trim_end().strip_suffix('|') {
        Some(filtered) => filtered.trim_end(),
        None if text[start..].starts_with(['.', '[']) => before,
        None => return start,
    };
    let part = |character: char| character.is_alphanumeric() || "_.[]".contains(character);
    name.trim_end_matches(part).len()
}

fn is_open_comment(error: &Error) -> bool {
    error.kind() == ErrorKind::SyntaxError && error.detail().is_some_and(|detail| detail.contains("end of comment"))
}

/// The first comment that nothing ends; the engine points at the end of the script.
fn open_comment(text: &str) -> Option<std::ops::Range<usize>> {
    let closed = text.rfind("#}").map_or(0, |end| end + 2);
    let begin = closed + text[closed..].find("{#")?;
    Some(begin..begin + 2)
}

/// What went wrong, with the expression it is about where that helps.
fn reason(error: &Error, expression: Option<&str>, limits: &Limits) -> String {
    let said = match error.detail() {
        Some(detail) if error.kind() == ErrorKind::SyntaxError => {
            let comment = if is_open_comment(error) { COMMENT_HINT } else { "" };
            format!("syntax error: {detail}{comment}")
        }
        Some(detail) => detail.to_owned(),
        None => error.kind().to_string(),
    };
    match error.kind() {
        ErrorKind::OutOfFuel => format!("rendering takes more than {} steps", limits.fuel),
        ErrorKind::WriteFailure => format!("the rendered script is longer than {} bytes", limits.output_bytes_max),
        ErrorKind::UndefinedError => match expression {
            Some(expression) => match expression.strip_prefix("secrets.") {
                Some(name) => {
                    format!(
                        "there is no secret `{name}`, neither of the instance, its host, its environment and the application nor of the organisation"
                    )
                }
                None => format!("`{expression}` is not defined"),
            },
            None => said,
        },
        ErrorKind::TemplateNotFound | ErrorKind::BadInclude => "a script cannot include another".to_owned(),
        ErrorKind::SyntaxError => said,
        _ => match expression {
            Some(expression) if !said.contains(expression) => format!("`{expression}`: {said}"),
            _ => said,
        },
    }
}

/// Collects output up to a limit.
struct Bounded {
    bytes: Vec<u8>,
    bytes_max: usize,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.bytes_max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
