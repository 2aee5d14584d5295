//! The output of a task as a file: downloaded, in parts if need be, and searched.
//!
//! What is given is what was there when the request came; who wants to follow uses the channel. Invariant: whoever may
//! see the task may see its output, the same right as at the channel, and it is asked for again while a download lasts.

mod download;
mod marked;
mod rules;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderMap;
use axum::response::Response;
use drover_kernel::at_once::blocking;
use drover_kernel::fields::{Flag, Name, Number, Words};
use drover_kernel::resources::{ResourceKind, Resources};
use drover_kernel::{Call, Error, Kernel, Path, Query, Reply, Result, Routes, Time, api_words, permission, sql};
use drover_shared::record::Stream;
use drover_shared::words::Word as _;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::channel::Viewers;
use crate::engine::Engine;
use crate::logs::{Bounds, Cursor, Format, Hit, Pattern, Search, Shown, Sources, TaskLog};
use crate::tasks::OUTPUT_SHOWN_BYTES;
use crate::tasks::store::{self as task_store, Speaker};
use download::{Producer, View};
use marked::Marked;

/// Matches in one answer, unless the call says otherwise, and at most.
const MATCHES_DEFAULT: i64 = 100;
const MATCHES_MAX: i64 = 1000;
/// Lines around each match at most.
const CONTEXT_MAX: i64 = 20;
/// Text that is searched for one answer, and at a time.
const SEARCHED_BYTES_MAX: u64 = 512 * 1024 * 1024;
const SEARCHED_AT_A_TIME_BYTES: u64 = 8 * 1024 * 1024;
/// How long a search waits for its turn.
const TURN: Duration = Duration::from_secs(10);

permission!(pub ReadOutput, "output.read", "Download and search the output of a task",
    Resource { kind: "task", right: "view_app" });

/// Routes of output.
pub fn routes() -> Routes {
    Routes::tagged("output")
        .get("/tasks/{id}/output/", "task-output-download", "Download a task's output.", download)
        .get("/tasks/{id}/output/search/", "task-output-search", "Search a task's output.", search)
}

/// A task stands for its application, plus what was delegated with its deploy task.
pub fn resources() -> Resources {
    Resources::default().with(ResourceKind {
        name: "task",
        noun: "task",
        governed_by: "application",
        find: sql!("SELECT application_id FROM tasks WHERE organisation_id = $1 AND id = $2"),
        further_rights: Some(sql!(
            "SELECT r.right_name FROM deploy_task_rights r JOIN tasks t ON t.deploy_task_id = r.deploy_task_id \
             WHERE t.organisation_id = $1 AND t.id = $2 AND r.user_id = $3"
        )),
        implied: crate::deploys::REVIEWERS_READ,
        text_key: false,
        instead: Some(crate::tasks::seen::BY_TASK),
    })
}

api_words! {
    /// A form of output.
    pub(crate) enum Form {
        /// The bytes as they were written.
        Text = "text",
        /// One record on each line.
        Json = "json",
    }
}

impl Form {
    /// The form that is asked for; text when none is.
    pub(crate) fn wanted(text: Option<&Name>) -> Result<Self> {
        let wrong = |_| Error::invalid("format", "must be text or json");
        text.map_or(Ok(Self::Text), |text| Self::parse(&text.0).map_err(wrong))
    }
}

/// How the output is wanted.
#[derive(Deserialize, JsonSchema)]
struct Wish {
    /// `text` (the default): the bytes as they were written, for which `Range` works. `json`: one record with execution,
    /// host, step, stream, time and offset on each line.
    #[serde(default)]
    #[schemars(with = "Option<Words<Form>>")]
    format: Option<Name>,
    /// With text: each line with time and host before it, and lines for steps.
    #[serde(default)]
    timestamps: Option<Flag>,
    /// Only what this host said.
    #[serde(default)]
    host: Option<Name>,
    /// Only the output of this execution.
    #[serde(default)]
    execution: Option<Name>,
    /// Byte of the task's text to begin at; with `format=json` or `timestamps` alone.
    #[serde(default)]
    from: Option<Number>,
}

async fn download(call: Call<ReadOutput>, id: Path<i64>, wish: Query<Wish>, headers: HeaderMap) -> Result<Response> {
    let wish = wish.0;
    let json = Form::wanted(wish.format.as_ref())? == Form::Json;
    let marked = wish.timestamps.is_some_and(|flag| flag.0);
    if json && marked {
        return Err(Error::invalid("timestamps", "is for text; JSON records have their time"));
    }
    if wish.from.is_some() && !json && !marked {
        return Err(Error::invalid("from", "is for format=json and timestamps; a Range header says it for plain text"));
    }
    let from = u64::try_from(wish.from.map_or(0, |from| from.0))
        .map_err(|_| Error::invalid("from", "must not be negative"))?;
    let (log, speakers, sources) = open(&call, id.0, wish.host, wish.execution).await?;
    let place = call.kernel().part::<Viewers>().enter_or_refuse()?;
    let name = format!("task-{}.{}", id.0, if json { "jsonl" } else { "log" });
    let view = if json {
        let names = crate::channel::names(&speakers);
        let describe = Arc::new(move |source| names.get(&source).cloned());
        let reader = log.reader(from, Format::Json(describe)).only(sources).until_now();
        View::whole(name, "application/x-ndjson", Producer::Frames(Box::new(reader)))
    } else if marked {
        let marked = Marked::new(log.scan(sources, from), hosts(&speakers), call.kernel().clone());
        View::whole(name, "text/plain; charset=utf-8", Producer::Marked(Some(Box::new(marked))))
    } else {
        match download::bytes(&log, sources, &headers, name).await? {
            Ok(view) => view,
            Err(refused) => return Ok(refused),
        }
    };
    Ok(view.respond(call.kernel(), call.permit(), place))
}

/// Opens the output of a task. It stays as long as it is open.
///
/// # Errors
/// Gone, with the time, when retention has removed it.
pub(crate) async fn kept(kernel: &Kernel, task_id: i64) -> Result<TaskLog> {
    let (log, removed_at) = opened(kernel, task_id).await?;
    match removed_at {
        None => Ok(log),
        Some(at) => {
            let at = kernel.show(at);
            Err(Error::coded(410, 10004, format!("the output of this task was removed by retention at {at}")))
        }
    }
}

/// The beginning and the end of the output, for a detail; none when retention has removed it.
pub(crate) async fn excerpt(kernel: &Kernel, task_id: i64) -> Result<Option<String>> {
    let (log, removed_at) = opened(kernel, task_id).await?;
    if removed_at.is_some() {
        return Ok(None);
    }
    Ok(Some(log.text(OUTPUT_SHOWN_BYTES).await.map_err(Error::internal)?.to_string()))
}

/// The log of a task, and when it was removed. Asked in this order: what is not removed once it is open stays open.
async fn opened(kernel: &Kernel, task_id: i64) -> Result<(TaskLog, Option<Time>)> {
    let log = kernel.part::<Engine>().logs.task(task_id).await.map_err(Error::internal)?;
    let task = task_store::find(&mut kernel.work().read().await?, task_id).await?;
    Ok((log, task.ok_or_else(|| Error::not_found("task"))?.output_removed_at))
}

/// The log of a task, who speaks in it, and who of them is wanted.
async fn open(
    call: &Call<ReadOutput>,
    task_id: i64,
    host: Option<Name>,
    execution: Option<Name>,
) -> Result<(TaskLog, Vec<Speaker>, Sources)> {
    let log = kept(call.kernel(), task_id).await?;
    let speakers = task_store::speakers(&mut call.read().await?, task_id).await?;
    let mut sources = Sources::all();
    if host.is_some() || execution.is_some() {
        let wanted = |speaker: &&Speaker| {
            host.as_ref().is_none_or(|host| host.0 == speaker.host_name)
                && execution.as_ref().is_none_or(|id| id.0 == speaker.id)
        };
        let found: Vec<u32> =
            speakers.iter().filter(wanted).filter_map(|speaker| u32::try_from(speaker.ordinal).ok()).collect();
        if found.is_empty() {
            let (field, what) =
                if execution.is_some() { ("execution", "of this id") } else { ("host", "on this host") };
            return Err(Error::invalid(field, format!("this task has no execution {what}")));
        }
        sources = Sources::these(found);
    }
    Ok((log, speakers, sources))
}

/// Name of the host of every source; the server's own lines are Drover's.
fn hosts(speakers: &[Speaker]) -> HashMap<u32, String> {
    let named = speakers.iter().filter_map(|speaker| Some((u32::try_from(speaker.ordinal).ok()?, &speaker.host_name)));
    named.map(|(source, host)| (source, host.clone())).chain([(0, "drover".to_owned())]).collect()
}

/// What is looked for.
#[derive(Deserialize, JsonSchema)]
struct SearchWish {
    /// Text, or regular expression; within a line. At most 1,000 bytes.
    q: String,
    /// Whether `q` is a regular expression, in the syntax of Rust's `regex` crate: no look-around, no references back.
    #[serde(default)]
    regex: Option<Flag>,
    /// Whether letters match whatever their case is.
    #[serde(default)]
    ignore_case: Option<Flag>,
    /// Lines before and after each match, 0 to 20; none when left out.
    #[serde(default)]
    context: Option<Number>,
    /// Matches in one answer, 1 to 1,000; 100 when left out.
    #[serde(default)]
    limit: Option<Number>,
    /// Where to begin: a byte of the task's text, or what `next` said.
    #[serde(default)]
    from: Option<Name>,
    /// Only what this host said.
    #[serde(default)]
    host: Option<Name>,
    /// Only the output of this execution.
    #[serde(default)]
    execution: Option<Name>,
}

/// What was found.
#[derive(Serialize, JsonSchema)]
struct Matches {
    /// In the order of the output.
    matches: Vec<Match>,
    /// For `from`, to go on: there may be more. Null when everything was searched.
    next: Option<String>,
    /// How far the task's text was read, in bytes.
    read_to: u64,
}

fn streams(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let words = [Stream::Output, Stream::Error, Stream::Notice].map(Stream::as_str);
    schemars::json_schema!({"type": "string", "enum": words})
}

/// A line that matches.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "OutputMatch")]
struct Match {
    #[serde(flatten)]
    line: LineOut,
    /// Lines before it, as people see them.
    before: Vec<LineOut>,
    /// Lines after it.
    after: Vec<LineOut>,
}

/// A line of output.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "OutputLine")]
struct LineOut {
    /// Where it begins in the task's text.
    offset: u64,
    /// Execution; null for the server's own lines.
    execution: Option<String>,
    /// Its host; null for the server's own lines.
    host: Option<String>,
    /// Index of the step.
    step: u16,
    /// Where it was written.
    #[schemars(schema_with = "streams")]
    stream: &'static str,
    /// When it was written, by the host's clock.
    time: String,
    /// The line without its end; a part of it when it is very long.
    text: String,
    /// Whether `text` is only a part.
    cut: bool,
}

async fn search(call: Call<ReadOutput>, id: Path<i64>, wish: Query<SearchWish>) -> Result<Reply<Matches>> {
    let wish = wish.0;
    let flag = |flag: Option<Flag>| flag.is_some_and(|flag| flag.0);
    let pattern = Pattern::new(&wish.q, flag(wish.regex), flag(wish.ignore_case));
    let pattern = pattern.map_err(|reason| Error::invalid("q", reason))?;
    let bounds = Bounds {
        matches: within("limit", wish.limit, MATCHES_DEFAULT, 1, MATCHES_MAX)?,
        context: within("context", wish.context, 0, 0, CONTEXT_MAX)?,
        text_bytes: SEARCHED_BYTES_MAX,
    };
    let begin: Cursor = match wish.from {
        Some(from) => from.0.parse().map_err(|reason: &str| Error::invalid("from", reason))?,
        None => Cursor::default(),
    };
    let (log, speakers, sources) = open(&call, id.0, wish.host, wish.execution).await?;
    let kernel = call.kernel();
    let viewers = kernel.part::<Viewers>();
    let busy = || Error::Unavailable("too many searches at a time".to_owned());
    let _turn = timeout(TURN, viewers.searches.acquire()).await.map_err(|_| busy())?.map_err(Error::internal)?;
    let mut search = Search::new(pattern, bounds, begin, log.scan(sources, begin.from));
    loop {
        let step = blocking(move || {
            let more = search.advance(SEARCHED_AT_A_TIME_BYTES);
            (search, more)
        });
        let more;
        (search, more) = step.await?;
        if !more.map_err(Error::internal)? {
            break;
        }
        if kernel.stopping().is_cancelled() {
            return Err(Error::Unavailable("the server stops".to_owned()));
        }
    }
    let read_to = search.text_offset();
    let (hits, next) = search.found();
    let speakers: HashMap<u32, &Speaker> =
        speakers.iter().filter_map(|speaker| Some((u32::try_from(speaker.ordinal).ok()?, speaker))).collect();
    let line = |shown: Shown| {
        let speaker = speakers.get(&shown.source);
        LineOut {
            offset: shown.offset,
            execution: speaker.map(|speaker| speaker.id.clone()),
            host: speaker.map(|speaker| speaker.host_name.clone()),
            step: shown.step,
            stream: shown.stream.as_str(),
            time: kernel.show_millis(Time::from_millis(shown.time_ms)),
            text: shown.text,
            cut: shown.cut,
        }
    };
    let shown = |hit: Hit| Match {
        line: line(hit.line),
        before: hit.before.into_iter().map(line).collect(),
        after: hit.after.into_iter().map(line).collect(),
    };
    let matches = hits.into_iter().map(shown).collect();
    Ok(Reply::new(Matches { matches, next: next.map(|cursor| cursor.to_string()), read_to }))
}

fn within(field: &str, number: Option<Number>, default: i64, least: i64, most: i64) -> Result<usize> {
    let number = number.map_or(default, |number| number.0);
    if !(least..=most).contains(&number) {
        return Err(Error::invalid(field, format!("must be {least} to {most}")));
    }
    usize::try_from(number).map_err(Error::internal)
}
