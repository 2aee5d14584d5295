//! Debian's own servers in front of one repository: sshd, and lighttpd with git's http-backend.
//!
//! Both answer through a script that first writes down the command lines of all processes, while git waits for it.

use std::fs;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use drover_tests::wait_until;
use tempfile::TempDir;

/// Another program may take a port between our look and our use.
const ATTEMPTS: usize = 5;

/// The password that opens the servers.
pub(super) const PASSWORD: &str = "s3cret pass%word";

/// A repository, and what its servers need.
pub(super) struct Place {
    folder: TempDir,
}

/// A running server; it ends with this.
pub(super) struct Server {
    child: Child,
    pub(super) port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

/// The full name of a program that a test needs.
fn program(name: &str) -> PathBuf {
    let folders = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let found = folders.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("there is no {name}: `cargo xtask test` installs what the tests need"))
}

impl Place {
    /// A repository with one commit, whose only file is `index.html`.
    pub(super) fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().expect("a folder") };
        fs::create_dir_all(place.repository()).expect("a folder");
        place.git(&["init", "--quiet", "--initial-branch=main"]);
        fs::write(place.repository().join("index.html"), "hello\n").expect("a file");
        place.git(&["add", "."]);
        place.git(&["commit", "--quiet", "-m", "one"]);
        place.write("snapshot", SNAPSHOT, 0o755);
        place
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn repository(&self) -> PathBuf {
        self.path("git/shop")
    }

    pub(super) fn git(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("git");
        command.current_dir(self.repository()).env("GIT_CONFIG_GLOBAL", "/dev/null");
        command.args(["-c", "user.name=Ada", "-c", "user.email=ada@example.com", "-c", "commit.gpgSign=false"]);
        run(command.args(arguments))
    }

    pub(super) fn commit(&self) -> String {
        self.git(&["rev-parse", "HEAD"])
    }

    fn write(&self, name: &str, content: &str, mode: u32) {
        let mut file = fs::OpenOptions::new();
        let mut file = file.write(true).create(true).truncate(true).mode(mode).open(self.path(name)).expect("a file");
        file.write_all(content.as_bytes()).expect("room");
        file.set_permissions(fs::Permissions::from_mode(mode)).expect("a mode");
    }

    pub(super) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// The command lines of all processes, as they were while git talked to a server.
    pub(super) fn processes(&self) -> String {
        let seen = self.read("processes");
        assert!(seen.contains("git fetch"), "nobody fetched: {seen}");
        seen
    }

    /// A new pair of keys; the public one is what it answers, the private one is in the file of that name.
    pub(super) fn key(&self, name: &str, options: &[&str]) -> String {
        let mut command = Command::new(program("ssh-keygen"));
        command.args(["-q", "-N", "", "-C", "test", "-f"]).arg(self.path(name)).args(options);
        run(&mut command);
        let public = self.read(&format!("{name}.pub"));
        public.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
    }

    /// An sshd that has this host key and lets those in whose keys are in `authorized`.
    pub(super) async fn sshd(&self, host_key: &str) -> Server {
        self.sshd_with(host_key, "UsePAM no", &[]).await
    }

    /// The same that lets this account in with [`PASSWORD`]. Debian's wrapper stands between sshd and the system's own
    /// accounts, whose passwords nobody knows.
    pub(super) async fn sshd_with_password(&self, host_key: &str, account: &str) -> Server {
        let wrapper = PathBuf::from(format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH));
        let library = wrapper.join("libpam_wrapper.so").display().to_string();
        assert!(
            Path::new(&library).is_file(),
            "there is no {library}: `cargo xtask test` installs what the tests need"
        );
        let check = format!(
            "{} passdb={}",
            wrapper.join("pam_wrapper/pam_matrix.so").display(),
            self.path("accounts").display()
        );
        fs::create_dir_all(self.path("pam")).expect("a folder");
        let service: String = ["auth", "account", "session"].map(|part| format!("{part} required {check}\n")).concat();
        self.write("pam/sshd", &service, 0o600);
        self.write("accounts", &format!("{account}:{PASSWORD}:sshd\n"), 0o600);
        let folder = self.path("pam").display().to_string();
        let wrapped = [("LD_PRELOAD", library), ("PAM_WRAPPER", "1".to_owned()), ("PAM_WRAPPER_SERVICE_DIR", folder)];
        self.sshd_with(host_key, "UsePAM yes", &wrapped).await
    }

    async fn sshd_with(&self, host_key: &str, accounts: &str, environment: &[(&str, String)]) -> Server {
        if nix::unistd::Uid::effective().is_root() {
            fs::create_dir_all("/run/sshd").expect("sshd's own folder");
        }
        self.start("sshd", |port| {
            let folder = self.folder.path().display();
            let configuration = format!(
                "Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/{host_key}\nPidFile none\nStrictModes no\n\
                 AuthorizedKeysFile {folder}/authorized\n{accounts}\nPasswordAuthentication yes\n\
                 KbdInteractiveAuthentication no\nPermitRootLogin yes\nForceCommand {folder}/snapshot\n"
            );
            self.write("sshd.conf", &configuration, 0o600);
            let mut command = Command::new(program("sshd"));
            command.args(["-D", "-e", "-f"]).arg(self.path("sshd.conf"));
            command.envs(environment.iter().map(|(name, value)| (name, value)));
            command
        })
        .await
    }

    /// A web server that wants `ada` and [`PASSWORD`]; with TLS when `tls.pem` and `tls.key` are there.
    pub(super) async fn web(&self, further: &str) -> Server {
        fs::create_dir_all(self.path("cgi")).expect("a folder");
        fs::copy(self.path("snapshot"), self.path("cgi/backend")).expect("a copy");
        self.write("users", &format!("ada:{PASSWORD}\n"), 0o600);
        self.start("lighttpd", |port| {
            let folder = self.folder.path().display();
            let mut configuration = format!(
                "server.document-root = \"{folder}/git\"\nserver.bind = \"127.0.0.1\"\nserver.port = {port}\n\
                 server.errorlog = \"{folder}/lighttpd.log\"\n\
                 server.modules = (\"mod_auth\", \"mod_authn_file\", \"mod_setenv\", \"mod_redirect\", \"mod_alias\", \
                 \"mod_cgi\", \"mod_openssl\")\n\
                 auth.backend = \"plain\"\nauth.backend.plain.userfile = \"{folder}/users\"\n\
                 auth.require = (\"/git/\" => (\"method\" => \"basic\", \"realm\" => \"git\", \"require\" => \"valid-user\"))\n\
                 alias.url = (\"/git/\" => \"{folder}/cgi/backend/\")\ncgi.assign = (\"\" => \"\")\n\
                 setenv.add-environment = (\"GIT_PROJECT_ROOT\" => \"{folder}/git\", \"GIT_HTTP_EXPORT_ALL\" => \"1\", \
                 \"BACKEND\" => \"{}/git-http-backend\")\n{further}\n",
                run(Command::new("git").arg("--exec-path"))
            );
            if self.path("tls.pem").is_file() {
                configuration.push_str(&format!(
                    "ssl.engine = \"enable\"\nssl.pemfile = \"{folder}/tls.pem\"\nssl.privkey = \"{folder}/tls.key\"\n"
                ));
            }
            self.write("lighttpd.conf", &configuration, 0o600);
            let mut command = Command::new(program("lighttpd"));
            command.args(["-D", "-f"]).arg(self.path("lighttpd.conf"));
            command
        })
        .await
    }

    /// A certificate for `localhost` that is its own authority; in `<name>.pem` and `<name>.key`.
    pub(super) fn certificate(&self, name: &str) -> String {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
        self.write(&format!("{name}.pem"), &made.cert.pem(), 0o600);
        self.write(&format!("{name}.key"), &made.signing_key.serialize_pem(), 0o600);
        made.cert.pem()
    }

    async fn start(&self, name: &str, command: impl Fn(u16) -> Command) -> Server {
        for _ in 0..ATTEMPTS {
            let port =
                TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
            let log = fs::File::create(self.path("log")).expect("a file");
            let mut command = command(port);
            let child =
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("the server starts");
            let mut server = Server { child, port };
            let mut has_ended = false;
            wait_until(name, async || {
                has_ended = server.child.try_wait().expect("a child").is_some();
                has_ended || TcpStream::connect(("127.0.0.1", port)).is_ok()
            })
            .await;
            if !has_ended {
                return server;
            }
        }
        panic!("{name} does not start: {}", self.read("log"));
    }
}

/// Writes down who runs with which arguments, then does what was asked for: over SSH what the client wants, else git's
/// http-backend.
const SNAPSHOT: &str = r#"#!/bin/sh
folder=$(dirname "$0")
test -n "$BACKEND" && folder=$(dirname "$folder")
for file in /proc/[0-9]*/cmdline; do
    tr '\0' ' ' < "$file"
    echo
done >> "$folder/processes" 2> /dev/null
if test -n "$BACKEND"; then exec "$BACKEND"; fi
exec sh -c "$SSH_ORIGINAL_COMMAND"
"#;
