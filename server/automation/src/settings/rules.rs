//! What an application's deploy settings may say.

use std::collections::BTreeMap;

use drover_inventory::applications::rules::check_account;
use drover_kernel::{Error, Result, api_words};
use url::Url;

api_words! {
    /// Kind of a repository.
    pub enum RepositoryType {
        /// Sources in a git repository.
        Git = "GIT",
        /// Sources on an FTP server.
        Ftp = "FTP",
    }
}

api_words! {
    /// The scripts that run around an update, in their order.
    pub enum HookName {
        /// Once, before any instance is touched.
        GlobalPreExec = "global_pre_exec",
        /// On each instance before its update.
        PreExec = "pre_exec",
        /// On each instance after its update.
        PostExec = "post_exec",
        /// Once, after all instances.
        GlobalPostExec = "global_post_exec",
    }
}

/// Seconds that a deploy task may take when nobody says.
pub const TIMEOUT_S_DEFAULT: i64 = 120;
/// Seconds that a deploy task may take at most.
pub const TIMEOUT_S_MAX: i64 = 86_400;
/// Versions that are kept when nobody says.
pub const KEEP_BACKUPS_DEFAULT: i64 = 5;
/// Versions that may be kept.
pub const KEEP_BACKUPS_MAX: i64 = 100;
/// Branch that is taken when nobody says.
pub const BRANCH_DEFAULT: &str = "main";

/// Where the sources come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    /// Kind.
    pub repository_type: RepositoryType,
    /// Address.
    pub url: String,
    /// Branch to take.
    pub branch: String,
}

/// One hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// Script to run.
    pub script_id: i64,
    /// Account for this script alone.
    pub running_user: Option<String>,
}

/// Everything that the settings say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Whether the application may be deployed.
    pub enabled: bool,
    /// Whether a deploy task's reviewer must be another person than its creator.
    pub four_eyes: bool,
    /// Where the sources come from.
    pub repository: Option<Repository>,
    /// Folder to deploy into; may hold template expressions.
    pub deploy_path: Option<String>,
    /// Seconds a deploy task may take.
    pub timeout_s: i64,
    /// Versions that are kept.
    pub keep_backups: i64,
    /// Account for hooks that name none.
    pub running_user: Option<String>,
    /// The hooks that there are.
    pub hooks: BTreeMap<HookName, Hook>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            enabled: false,
            four_eyes: false,
            repository: None,
            deploy_path: None,
            timeout_s: TIMEOUT_S_DEFAULT,
            keep_backups: KEEP_BACKUPS_DEFAULT,
            running_user: None,
            hooks: BTreeMap::new(),
        }
    }
}

/// Checks everything that can be checked without looking elsewhere.
///
/// # Errors
/// Names the first field that is wrong, as a caller spells it.
pub fn check(settings: &Settings) -> Result<()> {
    for (field, value, least, most) in [
        ("timeout", settings.timeout_s, 1, TIMEOUT_S_MAX),
        ("keep_backups", settings.keep_backups, 0, KEEP_BACKUPS_MAX),
    ] {
        if !(least..=most).contains(&value) {
            return Err(Error::invalid(field, format!("must be a number from {least} to {most}")));
        }
    }
    if let Some(repository) = &settings.repository {
        check_repository(repository)?;
    }
    if let Some(path) = &settings.deploy_path {
        check_path(path).map_err(|reason| Error::invalid("deploy_path", reason))?;
    }
    if let Some(account) = &settings.running_user {
        check_account("lifecycle_hooks.running_user", account)?;
    }
    for (name, hook) in &settings.hooks {
        if let Some(account) = &hook.running_user {
            check_account(&format!("lifecycle_hooks.{name}.running_user"), account)?;
        }
    }
    Ok(())
}

/// Kind of the repository at an address, when nobody says.
#[must_use]
pub fn guess_type(url: &str) -> RepositoryType {
    let ftp = ["ftp://", "ftps://", "sftp://"].iter().any(|scheme| url.to_ascii_lowercase().starts_with(scheme));
    if ftp { RepositoryType::Ftp } else { RepositoryType::Git }
}

fn check_repository(repository: &Repository) -> Result<()> {
    match repository.repository_type {
        RepositoryType::Ftp => Err(Error::invalid("repository.type", "FTP is not supported, only GIT is")),
        RepositoryType::Git => {
            check_url(&repository.url).map_err(|reason| Error::invalid("repository.url", reason))?;
            check_branch(&repository.branch).map_err(|reason| Error::invalid("repository.branch", reason))
        }
    }
}

fn check_url(text: &str) -> Result<(), &'static str> {
    const FORMS: &str = "must begin with https://, http://, file:/// or /";
    let lower = text.to_ascii_lowercase();
    let scp = text.split_once(':').is_some_and(|(host, rest)| host.contains('@') && !rest.starts_with("//"));
    if text.is_empty() {
        return Err("must not be empty");
    }
    if text.chars().any(|character| character.is_control() || character.is_whitespace()) {
        return Err("must not contain blanks or control characters");
    }
    if lower.starts_with("ssh://") || lower.starts_with("git@") || scp {
        return Err("git over SSH is not supported, only over https, http and file paths");
    }
    let local = text.strip_prefix("file://").unwrap_or(text);
    if local.starts_with('/') {
        // Two slashes would name a host on some systems.
        return if local.starts_with("//") { Err(FORMS) } else { Ok(()) };
    }
    if !text.starts_with("http://") && !text.starts_with("https://") {
        return Err(FORMS);
    }
    let parsed = Url::parse(text).map_err(|_| "is not a valid address")?;
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err("must not hold a user name or password");
    }
    if parsed.host_str().is_none_or(str::is_empty) {
        return Err("names no host");
    }
    if parsed.fragment().is_some() {
        return Err("must not hold a fragment");
    }
    Ok(())
}

/// What git itself asks of a branch's name.
fn check_branch(text: &str) -> Result<(), &'static str> {
    let forbidden = |character: char| character.is_control() || " ~^:?*[\\".contains(character);
    let part = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
    let good = !text.starts_with('-')
        && !text.contains(forbidden)
        && !text.contains("..")
        && !text.contains("@{")
        && text != "@"
        && !text.ends_with('.')
        && text.split('/').all(part);
    if good { Ok(()) } else { Err("is not a name that a branch may have") }
}

/// A folder to deploy into. Expressions are rendered for each host later, and the result is checked again there.
fn check_path(text: &str) -> Result<(), &'static str> {
    if text.chars().any(char::is_control) {
        return Err("must not contain control characters");
    }
    if !text.starts_with('/') && !text.starts_with("{{") {
        return Err("must be an absolute path");
    }
    if text.trim_end_matches('/').is_empty() {
        return Err("must not be the root of the file system");
    }
    if text.split('/').any(|part| part == "..") {
        return Err("must not contain `..`");
    }
    if text.matches("{{").count() != text.matches("}}").count() {
        return Err("has a template expression that is not closed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(change: impl FnOnce(&mut Settings)) -> Settings {
        let mut settings = Settings::default();
        change(&mut settings);
        settings
    }

    /// The field that is refused, or nothing.
    fn refused(settings: &Settings) -> String {
        match check(settings) {
            Ok(()) => String::new(),
            Err(Error::Invalid { field, .. }) => field,
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn numbers_and_accounts() {
        assert_eq!(refused(&Settings::default()), "");
        for (timeout_s, keep_backups, expected) in
            [(1, 0, ""), (86_400, 100, ""), (0, 5, "timeout"), (86_401, 5, "timeout"), (9, -1, "keep_backups")]
        {
            let settings = with(|settings| (settings.timeout_s, settings.keep_backups) = (timeout_s, keep_backups));
            assert_eq!(refused(&settings), expected, "{timeout_s} {keep_backups}");
        }
        let settings = with(|settings| settings.running_user = Some("a b".to_owned()));
        assert_eq!(refused(&settings), "lifecycle_hooks.running_user");
        let hook = Hook { script_id: 1, running_user: Some("Root".to_owned()) };
        let settings = with(|settings| _ = settings.hooks.insert(HookName::PreExec, hook));
        assert_eq!(refused(&settings), "lifecycle_hooks.pre_exec.running_user");
    }

    #[test]
    fn repositories() {
        let check = |url: &str, branch: &str, expected: &str| {
            let repository =
                Repository { repository_type: guess_type(url), url: url.to_owned(), branch: branch.to_owned() };
            assert_eq!(refused(&with(|settings| settings.repository = Some(repository))), expected, "{url} {branch}");
        };
        for url in ["/srv/git/shop.git", "file:///srv/shop", "https://git.example.com:8443/a.git", "http://h/x"] {
            check(url, "main", "");
        }
        for url in
            ["", "shop.git", "../shop", "ssh://git@h/x", "git@h:x.git", "https://u:p@h/x", "//h/x", "https://h/x#y"]
        {
            check(url, "main", "repository.url");
        }
        check("ftp://h/x", "main", "repository.type");
        for branch in ["feature/a", "v1.2", "a-b"] {
            check("/x", branch, "");
        }
        for branch in ["", "-x", "a b", "a..b", "a/", "x.lock", "@"] {
            check("/x", branch, "repository.branch");
        }
    }

    #[test]
    fn paths() {
        for (path, good) in [
            ("/srv/app", true),
            ("/srv/{{ application.name }}/", true),
            ("{{ application.directory }}/x", true),
            ("srv", false),
            ("/", false),
            ("/a/../b", false),
            ("/a\n", false),
            ("/a/{{ x", false),
        ] {
            let settings = with(|settings| settings.deploy_path = Some(path.to_owned()));
            assert_eq!(refused(&settings).is_empty(), good, "{path:?}");
        }
    }
}
