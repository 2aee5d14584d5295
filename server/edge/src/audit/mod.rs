//! The audit as administrators read it: six lists with their filters, newest first.

mod entries;
mod operations;
mod rights;

use drover_kernel::call::Administrator;
use drover_kernel::db::{Condition, Read};
use drover_kernel::fields::{Line, Name, Text};
use drover_kernel::{AuditList, Call, Error, Kernel, Page, Paging, Reply, Result, Routes, Time, args, row, sql, when};
use drover_shared::words::Word;

pub(crate) fn routes() -> Routes {
    operations::routes().merge(rights::routes()).merge(entries::routes())
}

row! {
    struct EntryRow {
        id: i64,
        list: String,
        action: String,
        object_type: String,
        object_id: Option<i64>,
        object_name: String,
        detail: String,
        right_name: Option<String>,
        target_type: Option<String>,
        target_name: Option<String>,
        operator: String,
        created_at: Time,
        request_id: Option<String>,
    }
}

/// One page of one list, shown by `show`.
async fn page<T>(
    call: &Call<Administrator>,
    paging: &Paging,
    list: AuditList,
    mut conditions: Vec<Condition>,
    show: fn(EntryRow, &Kernel) -> T,
) -> Result<Reply<Page<T>>> {
    conditions.push(when!("e.list = $1", list));
    page_of_all(call, paging, conditions, show).await
}

/// One page of the entries of all lists, shown by `show`.
async fn page_of_all<T>(
    call: &Call<Administrator>,
    paging: &Paging,
    conditions: Vec<Condition>,
    show: fn(EntryRow, &Kernel) -> T,
) -> Result<Reply<Page<T>>> {
    let mut read = call.read().await?;
    let (count, rows) = entries(&mut read, paging, call.organisation_id(), &conditions).await?;
    let shown = rows.into_iter().map(|row| show(row, call.kernel())).collect();
    Ok(Reply::new(paging.page(count, shown)))
}

async fn entries(
    read: &mut Read,
    paging: &Paging,
    organisation_id: i64,
    conditions: &[Condition],
) -> Result<(i64, Vec<EntryRow>)> {
    let count = sql!("SELECT COUNT(*) FROM audit_entries e WHERE e.organisation_id = $1/* filters */");
    let rows = sql!(
        "SELECT e.id, e.list, e.action, e.object_type, e.object_id, e.object_name, e.detail, e.right_name, e.target_type, \
         e.target_name, e.operator, e.created_at, e.request_id FROM audit_entries e \
         WHERE e.organisation_id = $1/* filters */ ORDER BY e.id DESC"
    );
    paging.read(read, count, rows, args![organisation_id], conditions).await
}

/// A time in a query.
type TimeText = Text<64>;

/// Conditions that every list knows: who, and between which moments, both included.
fn conditions(
    kernel: &Kernel,
    operator: Option<Name>,
    from: Option<TimeText>,
    until: Option<TimeText>,
) -> Result<Vec<Condition>> {
    let zone = kernel.settings().zone;
    let read = |field: &str, text: TimeText| Time::parse(&text.0, zone).map_err(|reason| Error::invalid(field, reason));
    let mut conditions = Vec::new();
    conditions.extend(operator.map(|operator| when!("lower(e.operator) = lower($1)", operator.0)));
    if let Some(from) = from {
        conditions.push(when!("e.created_at >= $1", read("op_time__gt", from)?));
    }
    if let Some(until) = until {
        // Times are shown to the second, so the whole second of the limit is within it.
        let until = read("op_time__lt", until)?.millis();
        conditions.push(when!("e.created_at < $1", until.saturating_add(1000)));
    }
    Ok(conditions)
}

fn part_of_detail(detail: &Line) -> Condition {
    when!(r"lower(e.detail) LIKE $1 ESCAPE '\'", Condition::pattern(&detail.0))
}

/// Reads a word of which another spelling is accepted as well.
fn word<W: Word>(field: &str, text: &Name, aliases: &[(&str, &str)]) -> Result<W> {
    let alias = aliases.iter().find(|(alias, _)| *alias == text.0).map(|(_, word)| *word);
    W::parse(alias.unwrap_or(&text.0)).map_err(|error| Error::invalid(field, error.to_string()))
}

fn part_of_name(name: &Name) -> Condition {
    when!(r"lower(e.object_name) LIKE $1 ESCAPE '\'", Condition::pattern(&name.0))
}
