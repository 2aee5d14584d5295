//! Every SQL text of the project, read by both engines.

use std::path::Path;

use drover_tests::both_engines;

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
