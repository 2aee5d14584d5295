//! Uploading archives, over HTTP: what tus clients rely on, what is refused, and what can be deployed then.

mod deploying;
mod interrupted;
mod refused;
mod removing;

use axum::http::Method;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use drover_shared::Digest;
use drover_tests::{Answer, Client, wait_until};
use serde_json::{Value, json};

use crate::deploys::Shop;

/// A tar stream of files.
fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *content).expect("a member");
    }
    builder.into_inner().expect("a stream")
}

/// An archive that is uploaded to the shop.
struct Uploading {
    client: Client,
    path: String,
}

fn metadata(version: &str, sha256: &str) -> String {
    let value = |text: &str| BASE64.encode(text);
    format!("version {},filename {},sha256 {}", value(version), value("shop.tar"), value(sha256))
}

/// Announces an archive.
async fn announce(shop: &Shop, length: usize, metadata: &str) -> Answer {
    let path = format!("/applications/{}/archives/", shop.application);
    let client = shop.admin.with_header("tus-resumable", "1.0.0").with_header("upload-length", &length.to_string());
    client.with_header("upload-metadata", metadata).send_bytes(Method::POST, &path, Vec::new()).await
}

impl Uploading {
    async fn begin(shop: &Shop, version: &str, content: &[u8]) -> Self {
        let answer = announce(shop, content.len(), &metadata(version, &Digest::of(content).to_string())).await;
        let place = answer.header("location");
        assert_eq!((answer.header("upload-offset"), answer.header("tus-resumable")), ("0".into(), "1.0.0".into()));
        answer.expect(201);
        let path = place.strip_prefix("/api/v1").expect("an address of the API").to_owned();
        Self { client: shop.admin.with_header("tus-resumable", "1.0.0"), path }
    }

    fn at(&self, offset: usize) -> Client {
        let client = self.client.with_header("upload-offset", &offset.to_string());
        client.with_header("content-type", "application/offset+octet-stream")
    }

    async fn send(&self, offset: usize, bytes: &[u8]) -> Answer {
        self.at(offset).send_bytes(Method::PATCH, &self.path, bytes.to_vec()).await
    }

    /// How far it is, as HEAD says.
    async fn offset(&self) -> String {
        let answer = self.client.send_bytes(Method::HEAD, &self.path, Vec::new()).await;
        assert_eq!((answer.status, &answer.body), (200, &Value::Null));
        answer.header("upload-offset")
    }

    async fn read(&self) -> Value {
        self.client.get(&self.path).await.expect(200)
    }

    /// What became of it.
    async fn end(&self) -> Value {
        let busy = [json!("receiving"), json!("checking")];
        wait_until("the archive to be checked", async || !busy.contains(&self.read().await["state"])).await;
        self.read().await
    }
}

/// Waits until no uploaded file is kept: an archive is told as checked just before its file goes.
async fn no_upload_is_kept(server: &drover_tests::TestServer) {
    let folder = server.data_directory().join("uploads");
    let is_empty = async || std::fs::read_dir(&folder).expect("a folder").next().is_none();
    wait_until("the uploaded files to be gone", is_empty).await;
}

/// Uploads an archive at once, and gives what became of it.
async fn uploaded(shop: &Shop, version: &str, content: &[u8]) -> Value {
    let uploading = Uploading::begin(shop, version, content).await;
    uploading.send(0, content).await.expect(204);
    uploading.end().await
}
