//! Accounts of the host: who the agent is and whom it may become.

use std::ffi::CString;

use nix::unistd::{Gid, Uid, User, geteuid, getgrouplist};

/// An account that scripts run as and files belong to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Name.
    pub name: String,
    /// User id.
    pub uid: Uid,
    /// Primary group.
    pub gid: Gid,
    /// All groups.
    pub groups: Vec<Gid>,
    /// Home folder.
    pub home: String,
    /// Login shell.
    pub shell: String,
    /// Whether becoming it needs a change of identity.
    pub changes: bool,
}

/// The account that the agent runs as.
#[must_use]
pub fn own() -> Account {
    let uid = geteuid();
    match User::from_uid(uid) {
        Ok(Some(user)) => account(user, false),
        _ => Account {
            name: uid.to_string(),
            uid,
            gid: nix::unistd::getegid(),
            groups: Vec::new(),
            home: "/".to_owned(),
            shell: "/bin/sh".to_owned(),
            changes: false,
        },
    }
}

/// The account named in an order; the agent's own when none is named.
///
/// # Errors
/// A sentence for people: it does not exist, or the agent may not become it.
pub fn find(name: Option<&str>) -> Result<Account, String> {
    let own = own();
    let Some(name) = name.filter(|name| !name.is_empty() && *name != own.name) else { return Ok(own) };
    let user = User::from_name(name).map_err(|error| format!("user `{name}` cannot be looked up: {error}"))?;
    let user = user.ok_or_else(|| format!("user `{name}` does not exist on this host"))?;
    if user.uid == own.uid {
        return Ok(account(user, false));
    }
    if !own.uid.is_root() {
        return Err(format!("the agent runs as `{}` and may not run scripts as `{name}`", own.name));
    }
    Ok(account(user, true))
}

fn account(user: User, changes: bool) -> Account {
    // Only who becomes somebody else needs their groups, and looking them up takes its time.
    let name = CString::new(user.name.clone()).ok().filter(|_| changes);
    let groups = name.and_then(|name| getgrouplist(&name, user.gid).ok()).unwrap_or_else(|| vec![user.gid]);
    Account {
        name: user.name,
        uid: user.uid,
        gid: user.gid,
        groups,
        home: user.dir.to_string_lossy().into_owned(),
        shell: user.shell.to_string_lossy().into_owned(),
        changes,
    }
}
