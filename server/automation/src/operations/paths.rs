//! Where an instance keeps its pid file and its logs: the application's paths, rendered for one instance. Pure.
//!
//! Invariants: a path is absolute, and what the host reads below it, it reads as the account that the instance runs as;
//! however a path is made, it costs so little that all those of a host keep nobody waiting.

use std::sync::Arc;

use drover_kernel::Result;
use drover_kernel::db::Read;
use drover_shared::instance::PATH_BYTES_MAX;
use drover_shared::words::Action;

use super::make;
use crate::render;
use crate::tasks::plan::{self, Input};
use crate::tasks::premises::Target;

/// One of the application's paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PathOf {
    PidFile,
    Output,
    Error,
}

impl PathOf {
    /// Name of the application's member.
    pub(crate) fn member(self) -> &'static str {
        match self {
            Self::PidFile => "pid_path",
            Self::Output => "stdout_path",
            Self::Error => "stderr_path",
        }
    }
}

/// A file on a host, and as whom it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub path: String,
    /// The agent's own account when none is named.
    pub running_user: Option<String>,
}

/// Work that the path of one instance may take, with the deploy path that it may name, see [`render::Limits::fuel`]. An
/// ordinary one takes about twenty.
const WORK_MAX: u64 = 2_000;

/// What the path of one instance is rendered from.
///
/// # Errors
/// When there is no such application, or the database is not available.
pub(crate) async fn input(read: &mut Read, application_id: i64, instance_id: i64) -> Result<Input> {
    let input = make::input(read, application_id, "", (Action::Start, &[instance_id])).await?;
    Ok(Input { work: Arc::new(render::Work::of("the paths of an instance", WORK_MAX)), ..input })
}

/// The path of an instance; none when the application has none.
///
/// # Errors
/// For people: the text does not render, or not to an absolute path.
pub(crate) fn place(input: &Input, target: &Target, path: PathOf) -> std::result::Result<Option<Place>, String> {
    let application = &input.application;
    let text = match path {
        PathOf::PidFile => &application.pid_path,
        PathOf::Output => &application.stdout_path,
        PathOf::Error => &application.stderr_path,
    };
    if text.trim().is_empty() {
        return Ok(None);
    }
    let running_user = plan::running_user(input);
    let deploy_path = plan::deploy_path(input, target).map_err(|error| error.to_string())?;
    // A path is no script: it is shown, and has no secrets.
    let context = plan::context(input, target, "", deploy_path.as_deref(), running_user.as_deref());
    let member = path.member();
    let rendered = render::render_within(member, text.trim(), &context, &input.work)
        .map_err(|error| format!("{member}: {error}"))?;
    let rendered = rendered.trim();
    if !rendered.starts_with('/') || rendered.contains(['\n', '\0']) {
        let shown: String = rendered.chars().filter(|letter| !letter.is_control()).take(200).collect();
        return Err(format!("{member} must be an absolute path; on {} it is `{shown}`", target.host_name));
    }
    if rendered.len() > PATH_BYTES_MAX {
        return Err(format!("{member} is longer than {PATH_BYTES_MAX} bytes on {}", target.host_name));
    }
    Ok(Some(Place { path: rendered.to_owned(), running_user }))
}
