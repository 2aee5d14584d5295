//! The audit as administrators read it: five lists with their filters, newest first.

mod operations;
mod rights;

use drover_kernel::call::Administrator;
use drover_kernel::db::{Condition, Read};
use drover_kernel::fields::{Name, Text};
use drover_kernel::{AuditList, Call, Error, Kernel, Page, Paging, Reply, Result, Routes, Time, args, row, sql, when};

pub(crate) fn routes() -> Routes {
    operations::routes().merge(rights::routes())
}

row! {
    struct EntryRow {
        id: i64,
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
    }
}

/// One page of one list, shown by `show`.
async fn page<T>(
    call: &Call<Administrator>,
    paging: &Paging,
    list: AuditList,
    conditions: Vec<Condition>,
    show: fn(EntryRow, &Kernel) -> T,
) -> Result<Reply<Page<T>>> {
    let mut read = call.read().await?;
    let (count, rows) = entries(&mut read, paging, call.organisation_id(), list, &conditions).await?;
    let shown = rows.into_iter().map(|row| show(row, call.kernel())).collect();
    Ok(Reply::new(paging.page(count, shown)))
}

async fn entries(
    read: &mut Read,
    paging: &Paging,
    organisation_id: i64,
    list: AuditList,
    conditions: &[Condition],
) -> Result<(i64, Vec<EntryRow>)> {
    let count = sql!("SELECT COUNT(*) FROM audit_entries e WHERE e.organisation_id = $1 AND e.list = $2/* filters */");
    let rows = sql!(
        "SELECT e.id, e.action, e.object_type, e.object_id, e.object_name, e.detail, e.right_name, e.target_type, \
         e.target_name, e.operator, e.created_at FROM audit_entries e \
         WHERE e.organisation_id = $1 AND e.list = $2/* filters */ ORDER BY e.id DESC"
    );
    paging.read(read, count, rows, args![organisation_id, list], conditions).await
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
