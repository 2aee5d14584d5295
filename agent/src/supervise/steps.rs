//! What each kind of step does.

use drover_shared::order::Step;

use crate::accounts;
use crate::release::{Layout, check_path, unpack, verify};
use crate::supervise::health;
use crate::supervise::script::{self, Script};
use crate::supervise::{Context, StepEnd};

/// Carries out one step.
pub(crate) fn carry_out(context: &mut Context, index: u16, step: &Step) -> StepEnd {
    let outcome = match step {
        Step::Script { name, language, content, running_user, timeout_ms } => {
            let (language, running_user, timeout_ms) = (*language, running_user.as_deref(), *timeout_ms);
            let script = Script { index, name, language, content, running_user, limit_s: None, timeout_ms };
            return script::run(context, script);
        }
        Step::Health { .. } => return health::check(context, index, step),
        Step::Fetch { digest, .. } => {
            let cached = context.folder.artifact(digest).is_file();
            if cached { Ok(Vec::new()) } else { Err("the artifact is not on this host".to_owned()) }
        }
        Step::Unpack { digest, release } => unpack_step(context, digest, release, |layout, order, stop| {
            unpack::unpack(layout, order, stop).map(|line| vec![line])
        }),
        Step::Verify { release, tree_digest } => {
            let layout = layout(context);
            let mut stop = || context.watch.stop().is_some();
            layout.and_then(|layout| verify::verify(&layout, release, *tree_digest, &mut stop)).map(|line| vec![line])
        }
        Step::Switch { release } => layout(context).and_then(|layout| {
            let folder = layout.folder_of(&context.entry);
            layout.switch(folder.as_deref().unwrap_or(release)).map(|line| vec![line])
        }),
        Step::Prune { keep } => layout(context).and_then(|layout| {
            let folder = context.folder.clone();
            let own = context.statement.execution_id.clone();
            let lives = |execution: &str| execution != own && lives(&folder, execution);
            let mut lines = Vec::new();
            let pruned = layout.prune(*keep, &lives, &mut || context.watch.stop().is_some(), &mut lines);
            // What went is told of one that is stopped or fails too.
            tell(context, index, step, lines);
            pruned.map(|()| Vec::new())
        }),
    };
    if let Some(stop) = context.watch.stop()
        && outcome.is_err()
    {
        return StepEnd::Stopped(stop);
    }
    match outcome {
        Ok(lines) => {
            tell(context, index, step, lines);
            StepEnd::Succeeded { exit_code: None }
        }
        Err(error) => StepEnd::failed(error),
    }
}

fn tell(context: &mut Context, index: u16, step: &Step, lines: Vec<String>) {
    for line in lines {
        let _ = context.log.notice(index, &format!("{}: {line}", step.name()));
    }
}

fn layout(context: &Context) -> Result<Layout, String> {
    let path = context.entry.deploy_path.as_deref().ok_or("the order names no deploy path")?;
    check_path(path)?;
    Ok(Layout::new(path))
}

/// Before a script may stop anything for it: the release that is unpacked behind the script will have room.
///
/// # Errors
/// A sentence for people; nothing was changed.
pub(crate) fn check_room(context: &mut Context, index: usize) -> Result<(), String> {
    let later = context.entry.steps.get(index + 1..).unwrap_or_default();
    let unpack = later.iter().position(|step| matches!(step, Step::Unpack { .. })).filter(|at| *at > 0);
    // One that follows at once looks by itself.
    let Some(Step::Unpack { digest, release }) = unpack.and_then(|at| later.get(at)).cloned() else { return Ok(()) };
    unpack_step(context, &digest, &release, |layout, order, stop| {
        unpack::check(layout, order, stop).map(|()| Vec::new())
    })
    .map(drop)
}

fn unpack_step(
    context: &mut Context,
    digest: &drover_shared::Digest,
    release: &str,
    what: impl FnOnce(&Layout, &unpack::Order<'_>, &mut dyn FnMut() -> bool) -> Result<Vec<String>, String>,
) -> Result<Vec<String>, String> {
    let layout = layout(context)?;
    let owner = accounts::find(context.entry.run_user.as_deref())?;
    let archive = context.folder.artifact(digest);
    let watch = &mut context.watch;
    let order = unpack::Order {
        archive: &archive,
        digest: *digest,
        release,
        version: &context.entry.version,
        execution_id: &context.statement.execution_id,
        shared_paths: &context.entry.shared_paths,
        owner: &owner,
    };
    what(&layout, &order, &mut || watch.stop().is_some())
}

/// Whether a supervisor of this execution lives on this host, or may: nothing of it is touched then.
fn lives(folder: &crate::spool::Folder, execution_id: &str) -> bool {
    let Some(spool) = folder.path().parent() else { return false };
    let items = std::fs::read_dir(spool).into_iter().flatten().flatten();
    items
        .filter(|item| item.file_name().to_string_lossy().starts_with(execution_id))
        .any(|item| crate::spool::Folder::at(&item.path()).supervised().unwrap_or(true))
}
