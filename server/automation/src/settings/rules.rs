//! What an application's deploy settings may say.

use std::collections::BTreeMap;

use drover_inventory::applications::rules::check_account;
use drover_kernel::{Error, Result, api_words};

use super::shared;
use crate::source::check::{self, Address};

api_words! {
    /// Kind of a repository.
    pub enum RepositoryType {
        /// Sources in a git repository.
        Git = "GIT",
        /// Sources on an FTP server.
        Ftp = "FTP",
        /// Archives that are uploaded, one for each version.
        Archive = "ARCHIVE",
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
    /// How to log in.
    pub credential_id: Option<i64>,
    /// Keys that the host of a repository over SSH may show, one a line.
    pub host_key: Option<String>,
    /// Certificates that a repository over https is checked with, in PEM; the system's when there are none.
    pub ca_certificate: Option<String>,
}

/// One hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// Script to run.
    pub script_id: i64,
    /// Account for this script alone.
    pub running_user: Option<String>,
    /// Seconds that it may take by itself.
    pub timeout_s: Option<i64>,
}

/// What a template can say as well. What is left out was never set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Values {
    /// Where the sources come from.
    pub repository: Option<Repository>,
    /// Folder to deploy into; may hold template expressions.
    pub deploy_path: Option<String>,
    /// Seconds a deploy task may take.
    pub timeout_s: Option<i64>,
    /// Versions that are kept.
    pub keep_backups: Option<i64>,
    /// Paths of a release that lead to `shared/`.
    pub shared_paths: Option<Vec<String>>,
    /// Account for hooks that name none.
    pub running_user: Option<String>,
    /// The hooks that there are.
    pub hooks: BTreeMap<HookName, Hook>,
}

impl Values {
    /// These values, and those of a template for what was never set here.
    #[must_use]
    pub fn over(&self, template: &Self) -> Self {
        let mut hooks = template.hooks.clone();
        hooks.extend(self.hooks.clone());
        Self {
            repository: self.repository.clone().or_else(|| template.repository.clone()),
            deploy_path: self.deploy_path.clone().or_else(|| template.deploy_path.clone()),
            timeout_s: self.timeout_s.or(template.timeout_s),
            keep_backups: self.keep_backups.or(template.keep_backups),
            shared_paths: self.shared_paths.clone().or_else(|| template.shared_paths.clone()),
            running_user: self.running_user.clone().or_else(|| template.running_user.clone()),
            hooks,
        }
    }

    /// Names of the values that come from a template when these lie over it, in the interface's words.
    #[must_use]
    pub fn inherited(&self, template: &Self) -> Vec<String> {
        let values = [
            ("repository", self.repository.is_none() && template.repository.is_some()),
            ("deploy_path", self.deploy_path.is_none() && template.deploy_path.is_some()),
            ("timeout", self.timeout_s.is_none() && template.timeout_s.is_some()),
            ("keep_backups", self.keep_backups.is_none() && template.keep_backups.is_some()),
            ("shared_paths", self.shared_paths.is_none() && template.shared_paths.is_some()),
            ("lifecycle_hooks.running_user", self.running_user.is_none() && template.running_user.is_some()),
        ];
        let values = values.into_iter().filter(|(_, inherited)| *inherited).map(|(name, _)| name.to_owned());
        let hooks = template.hooks.keys().filter(|name| !self.hooks.contains_key(name));
        values.chain(hooks.map(|name| format!("lifecycle_hooks.{name}"))).collect()
    }

    /// Seconds a deploy task may take, by default if nobody said.
    #[must_use]
    pub fn timeout_s(&self) -> i64 {
        self.timeout_s.unwrap_or(TIMEOUT_S_DEFAULT)
    }

    /// Versions that are kept, by default if nobody said.
    #[must_use]
    pub fn keep_backups(&self) -> i64 {
        self.keep_backups.unwrap_or(KEEP_BACKUPS_DEFAULT)
    }
}

/// Everything that an application's own settings say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Whether the application may be deployed.
    pub enabled: bool,
    /// Whether a deploy task's reviewer must be another person than its creator.
    pub four_eyes: bool,
    /// Template that the values come from which are not set here.
    pub template_id: Option<i64>,
    /// What is set here.
    pub values: Values,
}

/// Checks everything that can be checked without looking elsewhere.
///
/// # Errors
/// Names the first field that is wrong, as a caller spells it.
pub fn check(values: &Values) -> Result<()> {
    for (field, value, least, most) in [
        ("timeout", values.timeout_s(), 1, TIMEOUT_S_MAX),
        ("keep_backups", values.keep_backups(), 0, KEEP_BACKUPS_MAX),
    ] {
        if !(least..=most).contains(&value) {
            return Err(Error::invalid(field, format!("must be a number from {least} to {most}")));
        }
    }
    if let Some(repository) = &values.repository {
        check_repository(repository)?;
    }
    if let Some(path) = &values.deploy_path {
        check_path(path).map_err(|reason| Error::invalid("deploy_path", reason))?;
    }
    if let Some(paths) = &values.shared_paths {
        shared::check(paths).map_err(|(field, reason)| Error::invalid(field, reason))?;
    }
    if let Some(account) = &values.running_user {
        check_account("lifecycle_hooks.running_user", account)?;
    }
    for (name, hook) in &values.hooks {
        if let Some(account) = &hook.running_user {
            check_account(&format!("lifecycle_hooks.{name}.running_user"), account)?;
        }
        if hook.timeout_s.is_some_and(|seconds| !(1..=TIMEOUT_S_MAX).contains(&seconds)) {
            let reason = format!("must be a number from 1 to {TIMEOUT_S_MAX}");
            return Err(Error::invalid(format!("lifecycle_hooks.{name}.timeout"), reason));
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
    if repository.repository_type == RepositoryType::Ftp {
        return Err(Error::invalid("repository.type", "FTP is not supported, only GIT and ARCHIVE are"));
    }
    if repository.repository_type == RepositoryType::Archive {
        return check_archive(repository);
    }
    let invalid = |(field, reason): (&'static str, &'static str)| Error::invalid(format!("repository.{field}"), reason);
    let address = check::address(&repository.url).map_err(|reason| invalid(("url", reason)))?;
    check::branch(&repository.branch).map_err(|reason| invalid(("branch", reason)))?;
    if let Some(host_key) = &repository.host_key {
        if !matches!(address, Address::Ssh { .. }) {
            return Err(invalid(("host_key", "is for repositories over SSH alone")));
        }
        check::host_key(host_key).map_err(|reason| invalid(("host_key", reason)))?;
    }
    if let Some(certificates) = &repository.ca_certificate {
        if !matches!(address, Address::Http { secure: true, .. }) {
            return Err(invalid(("ca_certificate", "is for repositories over https alone")));
        }
        check::certificates(certificates).map_err(|reason| invalid(("ca_certificate", reason)))?;
    }
    Ok(())
}

/// Archives are uploaded to the application itself: there is nothing to reach.
fn check_archive(repository: &Repository) -> Result<()> {
    let said = [
        ("url", !repository.url.is_empty()),
        ("host_key", repository.host_key.is_some()),
        ("ca_certificate", repository.ca_certificate.is_some()),
    ];
    match said.into_iter().find(|(_, is_said)| *is_said) {
        Some((field, _)) => {
            Err(Error::invalid(format!("repository.{field}"), "is for a repository elsewhere, and not for ARCHIVE"))
        }
        None => Ok(()),
    }
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

    fn with(change: impl FnOnce(&mut Values)) -> Values {
        let mut settings = Values::default();
        change(&mut settings);
        settings
    }

    fn at(url: &str, branch: &str) -> Repository {
        Repository {
            repository_type: guess_type(url),
            url: url.to_owned(),
            branch: branch.to_owned(),
            credential_id: None,
            host_key: None,
            ca_certificate: None,
        }
    }

    /// The field that is refused, or nothing.
    fn refused(settings: &Values) -> String {
        match check(settings) {
            Ok(()) => String::new(),
            Err(Error::Invalid { field, .. }) => field,
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn numbers_and_accounts() {
        assert_eq!(refused(&Values::default()), "");
        for (timeout_s, keep_backups, expected) in
            [(1, 0, ""), (86_400, 100, ""), (0, 5, "timeout"), (86_401, 5, "timeout"), (9, -1, "keep_backups")]
        {
            let settings =
                with(|settings| (settings.timeout_s, settings.keep_backups) = (Some(timeout_s), Some(keep_backups)));
            assert_eq!(refused(&settings), expected, "{timeout_s} {keep_backups}");
        }
        let settings = with(|settings| settings.running_user = Some("a b".to_owned()));
        assert_eq!(refused(&settings), "lifecycle_hooks.running_user");
        let hook = Hook { script_id: 1, running_user: Some("Root".to_owned()), timeout_s: None };
        let settings = with(|settings| _ = settings.hooks.insert(HookName::PreExec, hook));
        assert_eq!(refused(&settings), "lifecycle_hooks.pre_exec.running_user");
        for (seconds, expected) in [(1, ""), (86_400, ""), (0, "lifecycle_hooks.post_exec.timeout")] {
            let hook = Hook { script_id: 1, running_user: None, timeout_s: Some(seconds) };
            let settings = with(|settings| _ = settings.hooks.insert(HookName::PostExec, hook));
            assert_eq!(refused(&settings), expected, "{seconds}");
        }
    }

    #[test]
    fn repositories() {
        let check = |url: &str, branch: &str, expected: &str| {
            let repository = at(url, branch);
            assert_eq!(refused(&with(|settings| settings.repository = Some(repository))), expected, "{url} {branch}");
        };
        for url in ["/srv/git/shop.git", "https://git.example.com:8443/a.git", "ssh://git@h/x", "git@h:x.git"] {
            check(url, "main", "");
        }
        for url in ["", "shop.git", "https://u:p@h/x", "//h/x", "ssh://h:x/y"] {
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
    fn what_is_set_wins_and_the_rest_comes_from_the_template() {
        let hook = |script_id| Hook { script_id, running_user: None, timeout_s: None };
        let template = with(|values| {
            values.repository = Some(at("/srv/a", "main"));
            values.timeout_s = Some(600);
            values.hooks.extend([(HookName::PreExec, hook(1)), (HookName::PostExec, hook(2))]);
        });
        let own = with(|values| {
            values.keep_backups = Some(1);
            values.deploy_path = Some("/srv/own".to_owned());
            values.hooks.insert(HookName::PostExec, hook(3));
        });
        let both = own.over(&template);
        assert_eq!((both.timeout_s(), both.keep_backups(), both.deploy_path.as_deref()), (600, 1, Some("/srv/own")));
        assert_eq!(both.repository, template.repository);
        assert_eq!((both.hooks[&HookName::PreExec].script_id, both.hooks[&HookName::PostExec].script_id), (1, 3));
        assert_eq!(own.inherited(&template), ["repository", "timeout", "lifecycle_hooks.pre_exec"]);
        assert!(own.inherited(&Values::default()).is_empty());
        assert_eq!(own.over(&Values::default()), own);
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
