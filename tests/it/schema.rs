//! The schema as each engine tells it, for review.

use drover_kernel::args;
use drover_kernel::db::{MIGRATIONS, Sql, for_sqlite};
use drover_tests::{Engine, TestServer, both_engines};
use serde_json::json;

use crate::deploys::Shop;
use crate::tasks::{detail, references, upgrade, upgrades};

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

/// The part of a migration that makes tables anew, which leaves them as they are when it is done once more.
fn made_anew(engine: Engine, migration: &str, first: &str) -> Vec<&'static str> {
    let (_, text) = MIGRATIONS.iter().find(|(name, _)| *name == migration).expect("the migration");
    let text = if engine == Engine::Sqlite { for_sqlite(text) } else { (*text).to_owned() };
    let from = text.find(first).expect("the first table");
    let text: &'static str = Box::leak(text[from..].to_owned().into_boxed_str());
    text.split(";\n").map(str::trim).filter(|statement| !statement.is_empty()).collect()
}

both_engines! {
    async fn tables_that_are_made_anew_keep_their_rows(server: TestServer) {
        let shop = Shop::new(&server, 2).await;
        let deploy_task = shop.started().await;
        let first = upgrade(&shop, deploy_task, &shop.instances[..1]).await;
        let after = json!({"instances": references(&shop.instances[1..]), "rollout": {"after_tasks": [first]}});
        let receipt = shop.admin.post(&upgrades(deploy_task), after).await.expect(200);
        let second: i64 = receipt["task_id"].as_str().expect("text").parse().expect("digits");
        let told = async || {
            let mut told = Vec::new();
            for task in [first, second] {
                let task = detail(&shop, deploy_task, task).await;
                told.push(["task_id", "version", "instances", "after", "creator", "created_time", "task_output", "priority"]
                    .map(|member| task[member].clone()));
            }
            told
        };
        let before = told().await;
        assert_eq!(before[1][3][0]["task_id"], first.to_string());
        // It came later, and points to what is made anew.
        server.run(Sql::literal("DROP TABLE schedule_runs"), args![]).await;
        for statement in made_anew(server.engine(), "0020_scripts", "CREATE TABLE tasks_new") {
            server.run(Sql::literal(statement), args![]).await;
        }
        // So did this column.
        server.run(Sql::literal("ALTER TABLE executions ADD COLUMN cancel_reason TEXT"), args![]).await;
        assert_eq!(told().await, before);
        let next = json!({"instances": references(&shop.instances[..1]), "if_busy": "wait"});
        let next = shop.admin.post(&upgrades(deploy_task), next).await.expect(200);
        assert_eq!(next["task_id"], (second + 1).to_string(), "numbers go on");
    }

    async fn schedules_that_are_made_anew_keep_their_moments(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let body = |name: &str| json!({"name": name, "cron": "@daily", "jitter": 7, "missed": "all", "overlap": "cancel_old",
            "what": {"kind": "restart", "application_id": shop.application, "instances": shop.instances}});
        let id = crate::deploys::id(&shop.admin.post("/schedules/", body("nightly")).await.expect(200));
        shop.admin.post(&format!("/schedules/{id}/actions/run/"), json!({})).await.expect(200);
        shop.admin.post(&format!("/schedules/{id}/actions/pause/"), json!({})).await.expect(200);
        let told = async || {
            let schedule = shop.admin.get(&format!("/schedules/{id}/")).await.expect(200);
            (schedule, shop.admin.get(&format!("/schedules/{id}/runs/")).await.expect(200))
        };
        let before = told().await;
        assert_eq!(before.1["count"], 1);
        // They came with it.
        server.run(Sql::literal("DROP VIEW schedule_hosts"), args![]).await;
        server.run(Sql::literal("DROP TABLE schedule_targets"), args![]).await;
        let anew = made_anew(server.engine(), "0022_scheduled_scripts", "CREATE TABLE schedules_new");
        // What came to these tables later.
        for statement in anew.into_iter().chain(made_anew(server.engine(), "0027_moments", "ALTER TABLE")) {
            server.run(Sql::literal(statement), args![]).await;
        }
        assert_eq!(told().await, before);
        let next = shop.admin.post("/schedules/", body("next")).await.expect(200);
        assert_eq!(crate::deploys::id(&next), id + 1, "numbers go on");
        server.run(Sql::literal("DELETE FROM schedules WHERE id = $1"), args![id]).await;
        assert_eq!(server.count(Sql::literal("SELECT COUNT(*) FROM schedule_runs"), args![]).await, 0, "they go with it");
    }
}
