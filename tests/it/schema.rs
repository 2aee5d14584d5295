//! The schema as each engine tells it, for review.

use drover_kernel::db::Sql;
use drover_tests::{Engine, TestServer};

/// The statements that SQLite keeps, the queue's own left out.
pub(crate) async fn sqlite() -> String {
    let server = TestServer::start(Engine::Sqlite).await;
    let sql = Sql::literal(
        "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%' \
         AND tbl_name NOT IN ('Jobs', 'Workers', '_sqlx_migrations') ORDER BY tbl_name, type DESC, name",
    );
    let statements: Vec<String> = server.read().await.values(sql, vec![]).await.expect("the schema");
    statements.join(";\n\n") + ";\n"
}

/// Columns, constraints and indexes as PostgreSQL tells them.
pub(crate) async fn postgres() -> String {
    let server = TestServer::start(Engine::Postgres).await;
    let mut read = server.read().await;
    let columns = Sql::literal(
        "SELECT table_name || '.' || column_name || ' ' || data_type || CASE is_nullable WHEN 'NO' THEN ' NOT NULL' \
         ELSE '' END || CASE is_identity WHEN 'YES' THEN ' IDENTITY' ELSE '' END \
         || COALESCE(' COLLATE ' || collation_name, '') FROM information_schema.columns \
         WHERE table_schema = 'public' AND table_name NOT LIKE '\\_sqlx%' ORDER BY table_name, ordinal_position",
    );
    let constraints = Sql::literal(
        "SELECT conrelid::regclass::text || ' ' || pg_get_constraintdef(oid) FROM pg_constraint \
         WHERE connamespace = 'public'::regnamespace AND contype <> 'n' AND conrelid::regclass::text NOT LIKE '\\_sqlx%'",
    );
    let indexes =
        Sql::literal("SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename NOT LIKE '\\_sqlx%'");
    let mut text = String::new();
    for (sql, has_order) in [(columns, true), (constraints, false), (indexes, false)] {
        let mut lines: Vec<String> = read.values(sql, vec![]).await.expect("the schema");
        // Sorted here: the database's own order depends on its locale.
        if !has_order {
            lines.sort();
        }
        text.push_str(&lines.join("\n"));
        text.push_str("\n\n");
    }
    text.trim_end().to_owned() + "\n"
}
