//! Linking deploy settings to a template, and letting go of it.
//!
//! Invariant: linking and unlinking without `clean` leave what counts for deployment as the application's own values and
//! the template's make it: nothing that was set on the application is lost, and nothing is deployed otherwise afterwards.

use drover_kernel::fields::{Flag, Id, Patch};
use drover_kernel::{Audit, AuditEntry, Body, Call, Error, Message, Path, Query, Reply, Result, Routes, Tx};
use schemars::JsonSchema;
use serde::Deserialize;

use super::rules::Settings;
use super::{Asker, Edit, Values, change};
use crate::templates::store as template_store;

pub(super) fn routes() -> Routes {
    let path = "/applications/{id}/deploy-settings/template/";
    Routes::tagged("deploy-settings")
        .post(path, "deploy-settings-template-link", "Link a deploy template to an application's settings.", post)
        .delete(
            path,
            "deploy-settings-template-unlink",
            "Unlink the deploy template; with clean, reset the settings.",
            delete,
        )
}

/// The template to link.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "TemplateLink")]
struct Link {
    /// Template id.
    id: Id,
}

/// The template to unlink. Stands in the body, or in the query where an intermediary drops the body of a DELETE.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "TemplateUnlink")]
struct Unlink {
    /// Template id.
    id: Option<Id>,
    /// Whether the application's own deploy settings are reset as well; otherwise the template's values are copied.
    clean: Option<Flag>,
}

async fn post(call: Call<Edit>, Path(id): Path<i64>, Body(body): Body<Link>) -> Result<Reply<Message>> {
    let asker = Asker::new(call.caller()?);
    let mut tx = call.begin().await?;
    let entries = link(&mut tx, id, &asker, body.id.0).await?;
    tx.commit(Audit::all(entries), Message::success()).await
}

async fn delete(
    call: Call<Edit>,
    Path(id): Path<i64>,
    Query(query): Query<Unlink>,
    Body(body): Body<Unlink>,
) -> Result<Reply<Message>> {
    let template_id = body.id.or(query.id).ok_or_else(|| Error::invalid("id", "is missing"))?.0;
    let clean = body.clean.or(query.clean).is_some_and(|clean| clean.0);
    let asker = Asker::new(call.caller()?);
    let mut tx = call.begin().await?;
    let entries = unlink(&mut tx, id, &asker, template_id, clean).await?;
    tx.commit(Audit::all(entries), Message::success()).await
}

/// Links an application's settings to a template, in place of one that is linked already.
///
/// # Errors
/// Invalid when there is no such template, a conflict when it is disabled.
pub(crate) async fn link(tx: &mut Tx, application_id: i64, asker: &Asker, template_id: i64) -> Result<Vec<AuditEntry>> {
    let organisation_id = tx.organisation_id();
    let template = template_store::find(tx, organisation_id, template_id).await?;
    let template =
        template.ok_or_else(|| Error::invalid("id", format!("there is no deploy template {template_id}")))?;
    if !template.enabled {
        return Err(Error::conflict(format!("the deploy template {} is disabled", template.name)));
    }
    let link = |own: &Settings, _: &Values| Ok(Settings { template_id: Some(template_id), ..own.clone() });
    Ok(change(tx, application_id, asker, Patch::Absent, link).await?.0)
}

/// Unlinks an application's settings from the template that they are linked to.
///
/// # Errors
/// Invalid when they are not linked to it.
pub(crate) async fn unlink(
    tx: &mut Tx,
    application_id: i64,
    asker: &Asker,
    template_id: i64,
    clean: bool,
) -> Result<Vec<AuditEntry>> {
    let unlink = |own: &Settings, effective: &Values| {
        if own.template_id != Some(template_id) {
            let reason = format!("the deploy template {template_id} is not linked to this application");
            return Err(Error::invalid("id", reason));
        }
        Ok(if clean {
            Settings::default()
        } else {
            Settings { template_id: None, values: effective.clone(), ..own.clone() }
        })
    };
    Ok(change(tx, application_id, asker, Patch::Absent, unlink).await?.0)
}
