//! Which server, with which token: from options, the environment, or what `drover login` kept.
//!
//! Invariant: the kept token goes to the server that it was made by and to no other, and its file is readable by its
//! owner alone.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::{env, process};

use serde::{Deserialize, Serialize};
use url::Url;

use crate::arguments::Global;
use crate::failure::{Failure, Result};

/// What `drover login` keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kept {
    /// Address of the server.
    pub(crate) url: String,
    /// The token's value.
    pub(crate) token: String,
    /// The token's id, by which it is revoked.
    pub(crate) token_id: Option<i64>,
    /// Certificates to trust.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca: Option<PathBuf>,
}

/// Where to go, and as whom.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// Address of the server, without a final slash.
    pub(crate) url: Url,
    /// Absent while nobody is signed in.
    pub(crate) token: Option<String>,
    /// Certificates to trust in place of the public ones.
    pub(crate) ca: Option<PathBuf>,
}

/// Puts the options over what was kept.
pub(crate) fn target(global: &Global, kept: Option<&Kept>) -> Result<Target> {
    // A variable that is set and empty is as good as none.
    let given = |option: &Option<String>| option.clone().filter(|text| !text.trim().is_empty());
    let url = given(&global.url).or_else(|| kept.map(|kept| kept.url.clone()));
    let url =
        url.ok_or_else(|| Failure::usage("which server? Give --url or DROVER_URL, or sign in with `drover login`"))?;
    let url = address(&url)?;
    let kept = kept.filter(|kept| address(&kept.url).is_ok_and(|kept| kept == url));
    let token = given(&global.token).or_else(|| kept.map(|kept| kept.token.clone()));
    let ca =
        global.ca.clone().filter(|ca| !ca.as_os_str().is_empty()).or_else(|| kept.and_then(|kept| kept.ca.clone()));
    Ok(Target { url, token: token.map(|token| token.trim().to_owned()), ca })
}

/// Reads an address of a server.
pub(crate) fn address(text: &str) -> Result<Url> {
    let wrong = |why: &str| Failure::usage(format!("`{text}` is no address of a server: {why}"));
    let mut url = Url::parse(text.trim()).map_err(|_| wrong("write it as https://HOST or http://HOST:PORT"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(wrong("it begins with http:// or https://"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("it holds a user or password; sign in with `drover login`"));
    }
    url.set_query(None);
    url.set_fragment(None);
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(path.strip_suffix("/api/v1").unwrap_or(&path));
    Ok(url)
}

/// Where the settings are kept.
pub(crate) fn file() -> Result<PathBuf> {
    if let Some(file) = env::var_os("DROVER_CLI_CONFIG").filter(|file| !file.is_empty()) {
        return Ok(file.into());
    }
    let folder = env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|folder| folder.is_absolute());
    let folder = folder.or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")));
    let folder = folder.ok_or_else(|| Failure::usage("HOME is not set, so there is no place for settings"))?;
    Ok(folder.join("drover/config.toml"))
}

/// Reads what was kept; none when nothing was.
pub(crate) fn load(file: &Path) -> Result<Option<Kept>> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Failure::usage(format!("cannot read {}: {error}", file.display()))),
    };
    if fs::metadata(file).is_ok_and(|about| about.permissions().mode() & 0o077 != 0) {
        eprintln!("warning: {} holds a token and others may read it: chmod 600 it", file.display());
    }
    let kept = toml::from_str(&text).map_err(|error| {
        // The text around the mistake may be the token: say where, not what.
        Failure::usage(format!("{} is damaged: {}", file.display(), error.message()))
    })?;
    Ok(Some(kept))
}

/// Writes the file whole or not at all.
pub(crate) fn save(file: &Path, kept: &Kept) -> Result<()> {
    let failed = |error: std::io::Error| Failure::failed(format!("cannot write {}: {error}", file.display()));
    let text = toml::to_string(kept).map_err(|error| Failure::failed(format!("cannot write settings: {error}")))?;
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    let new = file.with_extension(format!("toml.{}", process::id()));
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .and_then(|mut to| to.write_all(text.as_bytes()).and_then(|()| to.sync_all()))
        .and_then(|()| fs::rename(&new, file));
    written.map_err(|error| {
        // What is left of a failed attempt; it may not even exist.
        let _ = fs::remove_file(&new);
        failed(error)
    })
}

/// Forgets what was kept.
pub(crate) fn forget(file: &Path) -> Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Failure::failed(format!("cannot remove {}: {error}", file.display())))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn global(url: Option<&str>, token: Option<&str>) -> Global {
        Global { url: url.map(str::to_owned), token: token.map(str::to_owned), ca: None, json: false }
    }

    fn kept() -> Kept {
        Kept { url: "https://a/".to_owned(), token: "kept".to_owned(), token_id: Some(4), ca: Some("ca.pem".into()) }
    }

    #[test]
    fn the_kept_token_goes_to_its_own_server_only() {
        let token = |url, token| target(&global(url, token), Some(&kept())).map(|target| target.token);
        assert_eq!(token(None, None), Ok(Some("kept".to_owned())));
        assert_eq!(token(Some("https://a"), None), Ok(Some("kept".to_owned())));
        assert_eq!(token(Some("https://b"), None), Ok(None));
        assert_eq!(token(Some("http://a"), None), Ok(None));
        assert_eq!(token(Some(" "), Some("")), Ok(Some("kept".to_owned())));
        assert_eq!(token(Some("https://b"), Some("given")), Ok(Some("given".to_owned())));
    }

    #[test]
    fn addresses_are_read_or_refused() {
        assert_eq!(address("https://a.b/x/api/v1/").unwrap().as_str(), "https://a.b/x");
        assert_eq!(address(" http://127.0.0.1:8440 ").unwrap().as_str(), "http://127.0.0.1:8440/");
        for wrong in ["", "a.b", "ftp://a", "https://u:p@a", "http://"] {
            assert_eq!(address(wrong).expect_err(wrong).code, 2, "{wrong}");
        }
    }

    #[test]
    fn settings_come_back_and_are_private() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("drover/config.toml");
        assert_eq!(load(&file), Ok(None));
        save(&file, &kept()).unwrap();
        assert_eq!(load(&file), Ok(Some(kept())));
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&file, "token = 'secret'\nother = 1\n").unwrap();
        let failure = load(&file).expect_err("unknown members are refused");
        assert!(!failure.message.contains("secret"), "{}", failure.message);
        forget(&file).unwrap();
        forget(&file).unwrap();
        assert_eq!(load(&file), Ok(None));
    }
}
