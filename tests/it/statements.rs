//! Every SQL text of the project, read by both engines.

use std::collections::BTreeSet;
use std::path::Path;

use drover_kernel::db::Sql;
use drover_kernel::{args, row};
use drover_tests::{Engine, TestServer, both_engines};

row! {
    /// A line of SQLite's query plan.
    struct PlanLine {
        detail: String,
    }
}

/// The statements that read a whole table or a whole index on SQLite, each with what it reads: what is done for every
/// order must not be among them.
pub(crate) async fn scans() -> String {
    let server = TestServer::start(Engine::Sqlite).await;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut read = server.read().await;
    let mut scans = BTreeSet::new();
    for literal in xtask::scan::sql_literals(&root).expect("the sources") {
        if !literal.file.starts_with("server/") || literal.text.starts_with("CREATE ") {
            continue;
        }
        // Without arguments each is NULL, which the plan does not depend on.
        let text = format!("EXPLAIN QUERY PLAN {}", literal.text.replace('$', "?"));
        let plan: Vec<PlanLine> = read.all(Sql::literal(text.leak()), args![]).await.expect(&literal.text);
        let whole = plan.iter().filter(|line| line.detail.starts_with("SCAN ") && line.detail != "SCAN CONSTANT ROW");
        scans.extend(whole.map(|line| format!("{}: {}\n    {}\n", literal.file, line.detail, literal.text)));
    }
    scans.into_iter().collect()
}

both_engines! {
    async fn every_sql_text_is_valid(server: TestServer) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let literals = xtask::scan::sql_literals(&root).expect("the sources");
        assert!(literals.len() > 50, "the scanner finds the statements");
        let mut read = server.read().await;
        let mut wrong = Vec::new();
        for literal in literals.iter().filter(|literal| !literal.file.starts_with("xtask/")) {
            if let Err(error) = read.prepare(&literal.text).await {
                wrong.push(format!("{}:{}: {error}\n  {}", literal.file, literal.line, literal.text));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
