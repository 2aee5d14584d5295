//! How git gets into a repository: what a fetch needs to log in and to know whom it talks to.
//!
//! Keys, known hosts and certificates lie in a folder of their own that this account alone can open, for as long as one
//! fetch; passwords are in the environment of the programs that ask for them. Invariant: no secret is in an argument, an
//! address or a message, and none is offered to another place than the repository's own.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD as BASE64, STANDARD_NO_PAD};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use zeroize::Zeroizing;

use super::check::{self, Address};
use super::{Access, Credential, SourceError};

/// Beginning of the names of such folders, by which those that a killed server left are found.
const PREFIX: &str = "login-";

/// Seconds to wait for a host, and between signs of life.
const CONNECT_S: u32 = 20;

/// Prints the words that git's protocol for credentials wants, from the environment.
const HELPER: &str = "!f() { test \"$1\" = get && printf 'username=%s\\npassword=%s\\n' \
    \"$DROVER_USERNAME\" \"$DROVER_PASSWORD\"; }; f";
/// What ssh runs to be told the password.
const ASK_PASS: &str = "#!/bin/sh\nprintf '%s\\n' \"$DROVER_PASSWORD\"\n";

/// What git is run with to get into one repository. Dropping it removes what lies on the disk.
pub(super) struct Login {
    folder: Option<TempDir>,
    /// Variables of git's environment.
    pub(super) environment: Vec<(String, Zeroizing<String>)>,
    /// Settings of git: name and value.
    pub(super) settings: Vec<(String, String)>,
    /// Texts that must not be shown.
    pub(super) secrets: Vec<Zeroizing<String>>,
    /// Name under which the host is known to ssh, when nothing says yet which key it has.
    trusts: Option<String>,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// Removes what a server that was killed has left.
pub(super) fn clean(home: &Path) -> io::Result<()> {
    for item in fs::read_dir(home)? {
        let item = item?;
        if item.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            fs::remove_dir_all(item.path())?;
        }
    }
    Ok(())
}

impl Login {
    /// Prepares for one fetch. Blocks on the disk.
    pub(super) fn prepare(home: &Path, url: &str, address: &Address, access: &Access) -> Result<Self, SourceError> {
        let mut login = Self { folder: None, environment: vec![], settings: vec![], secrets: vec![], trusts: None };
        match address {
            Address::Local => {}
            Address::Http { secure } => login.web(home, url, *secure, access)?,
            Address::Ssh { user, host, port } => login.shell(home, user.as_deref(), host, *port, access)?,
        }
        Ok(login)
    }

    fn web(&mut self, home: &Path, url: &str, secure: bool, access: &Access) -> Result<(), SourceError> {
        let origin = url::Url::parse(url).map_err(|_| refused("is not a valid address"))?;
        let origin = origin.origin().ascii_serialization();
        if let (Some(certificates), true) = (&access.ca_certificate, secure) {
            let path = self.write(home, "ca.pem", certificates.as_bytes(), 0o600)?;
            self.settings.push(("http.sslCAInfo".to_owned(), path));
        }
        match &access.credential {
            None => Ok(()),
            Some(Credential::PrivateKey { .. }) => Err(SourceError::Invalid {
                field: "repository.credential",
                reason: "is a private key, which opens no repository over https or http",
            }),
            Some(Credential::Password { username, password }) => {
                // Bound to this origin: a redirect elsewhere gets nothing.
                self.settings.push((format!("credential.{origin}.helper"), HELPER.to_owned()));
                self.environment.push(("DROVER_USERNAME".to_owned(), Zeroizing::new(username.clone())));
                self.environment.push(("DROVER_PASSWORD".to_owned(), password.clone()));
                let pair = Zeroizing::new(format!("{username}:{}", password.as_str()));
                self.hide(password.clone());
                self.hide(Zeroizing::new(BASE64.encode(pair.as_bytes())));
                Ok(())
            }
        }
    }

    fn shell(
        &mut self,
        home: &Path,
        user: Option<&str>,
        host: &str,
        port: u16,
        access: &Access,
    ) -> Result<(), SourceError> {
        let known_as = if port == 22 { host.to_owned() } else { format!("[{host}]:{port}") };
        let mut known = String::new();
        for (kind, key) in access.host_key.iter().flat_map(|text| check::host_keys(text)) {
            known.push_str(&format!("{known_as} {kind} {key}\n"));
        }
        let known_hosts = self.write(home, "known_hosts", known.as_bytes(), 0o600)?;
        let strict = if known.is_empty() { "accept-new" } else { "yes" };
        let mut lines = vec![
            "Host *".to_owned(),
            format!("UserKnownHostsFile {}", quoted(&known_hosts)?),
            format!("StrictHostKeyChecking {strict}"),
            format!("ConnectTimeout {CONNECT_S}"),
            format!("ServerAliveInterval {CONNECT_S}"),
        ];
        let fixed = "GlobalKnownHostsFile /dev/null\nHashKnownHosts no\nUpdateHostKeys no\nCheckHostIP no\n\
            IdentitiesOnly yes\nIdentityAgent none\nServerAliveCountMax 3\nClearAllForwardings yes\nForwardAgent no\n\
            ControlMaster no\nControlPath none\nPermitLocalCommand no\nLogLevel ERROR";
        lines.extend(fixed.lines().map(str::to_owned));
        let username = match &access.credential {
            None => {
                lines
                    .extend(["BatchMode yes", "PreferredAuthentications none", "IdentityFile none"].map(str::to_owned));
                ""
            }
            Some(Credential::PrivateKey { username, private_key }) => {
                let text = Zeroizing::new(format!("{}\n", private_key.trim().replace("\r\n", "\n")));
                let path = self.write(home, "key", text.as_bytes(), 0o600)?;
                lines.extend(["BatchMode yes", "PreferredAuthentications publickey"].map(str::to_owned));
                lines.push(format!("IdentityFile {}", quoted(&path)?));
                for line in text.lines().filter(|line| !line.contains("-----")) {
                    self.hide(Zeroizing::new(line.trim().to_owned()));
                }
                username
            }
            Some(Credential::Password { username, password }) => {
                let path = self.write(home, "ask", ASK_PASS.as_bytes(), 0o700)?;
                self.environment.push(("SSH_ASKPASS".to_owned(), Zeroizing::new(path)));
                self.environment.push(("SSH_ASKPASS_REQUIRE".to_owned(), Zeroizing::new("force".to_owned())));
                self.environment.push(("DROVER_PASSWORD".to_owned(), password.clone()));
                self.hide(password.clone());
                let fixed = ["NumberOfPasswordPrompts 1", "PreferredAuthentications password,keyboard-interactive"];
                lines.extend(fixed.map(str::to_owned));
                lines.extend(["PubkeyAuthentication no".to_owned(), "IdentityFile none".to_owned()]);
                username
            }
        };
        if user.is_none() && !username.is_empty() {
            check::account(username)
                .map_err(|reason| SourceError::Invalid { field: "repository.credential", reason })?;
            lines.push(format!("User {username}"));
        }
        let configuration = self.write(home, "config", (lines.join("\n") + "\n").as_bytes(), 0o600)?;
        // git has a shell read this.
        let command = format!("ssh -F '{}'", configuration.replace('\'', r"'\''"));
        self.environment.push(("GIT_SSH_COMMAND".to_owned(), Zeroizing::new(command)));
        self.environment.push(("GIT_SSH_VARIANT".to_owned(), Zeroizing::new("ssh".to_owned())));
        self.trusts = known.is_empty().then_some(known_as);
        Ok(())
    }

    fn hide(&mut self, secret: Zeroizing<String>) {
        if !secret.is_empty() {
            self.secrets.push(secret);
        }
    }

    /// Writes a file that only this account can open, and gives its path.
    fn write(&mut self, home: &Path, name: &str, content: &[u8], mode: u32) -> Result<String, SourceError> {
        let failed = |error: io::Error| SourceError::Storage(format!("cannot prepare to log in: {error}"));
        if self.folder.is_none() {
            self.folder = Some(tempfile::Builder::new().prefix(PREFIX).tempdir_in(home).map_err(failed)?);
        }
        let folder = self.folder.as_ref().map_or(home, TempDir::path);
        let path = folder.join(name);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&path).map_err(failed)?;
        file.write_all(content).map_err(failed)?;
        path.into_os_string()
            .into_string()
            .map_err(|_| SourceError::Storage("the data directory's name is not text".to_owned()))
    }

    /// The keys that the host showed and that are trusted from now on, when nothing said before which it has. Blocks.
    pub(super) fn trusted(&self) -> Option<String> {
        let known_as = self.trusts.as_deref()?;
        let known = fs::read_to_string(self.folder.as_ref()?.path().join("known_hosts")).ok()?;
        let keys = known.lines().filter_map(|line| line.strip_prefix(known_as)?.strip_prefix(' '));
        let keys = keys.collect::<Vec<_>>().join("\n");
        check::host_key(&keys).is_ok().then_some(keys)
    }
}

fn refused(reason: &'static str) -> SourceError {
    SourceError::Invalid { field: "repository.url", reason }
}

/// A path as ssh's configuration takes it.
fn quoted(path: &str) -> Result<String, SourceError> {
    if path.contains(['"', '\n', '\\']) {
        return Err(SourceError::Storage("the data directory's name has characters that ssh cannot take".to_owned()));
    }
    Ok(format!("\"{}\"", path.replace('%', "%%")))
}

/// The fingerprints of keys as ssh shows them, one word each.
pub(crate) fn fingerprints(keys: &str) -> String {
    let fingerprint = |(kind, key): (&str, &str)| {
        let blob = BASE64.decode(key).unwrap_or_default();
        format!("SHA256:{} ({kind})", STANDARD_NO_PAD.encode(Sha256::digest(blob)))
    };
    check::host_keys(keys).map(fingerprint).collect::<Vec<_>>().join(", ")
}
