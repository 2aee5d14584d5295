//! The rights there are: names, other spellings, and what follows from what. Pure tables and functions.
//!
//! Invariants: a right on a module has effect only beside the flag that switches its part of the platform on; a right
//! on one resource stands on its own; every other spelling leads to one stored name.

use std::collections::BTreeSet;

/// A right on one resource.
#[derive(Debug, Clone, Copy)]
pub struct Right {
    /// Name, as stored and sent.
    pub name: &'static str,
    /// Other spellings that are accepted.
    pub aliases: &'static [&'static str],
}

const fn right(name: &'static str, aliases: &'static [&'static str]) -> Right {
    Right { name, aliases }
}

/// Rights on one application.
pub const APPLICATION_RIGHTS: &[Right] = &[
    right("view_app", &["view"]),
    right("edit_app", &["edit"]),
    right("delete_app", &["delete"]),
    right("deploy_app", &["deploy"]),
    right("review_app_deploy_task", &["check_deploy_task"]),
    right("restart_app", &["reboot"]),
    right("view_app_log", &["view_log"]),
    right("view_app_monitor", &["view_monitor"]),
];

/// Rights on one host.
pub const HOST_RIGHTS: &[Right] = &[
    right("view_host", &[]),
    right("edit_host", &[]),
    right("delete_host", &[]),
    right("init_host", &[]),
    right("restart_host", &[]),
    right("login_host", &["login"]),
    right("deactivate_host", &[]),
];

/// A right on a module.
#[derive(Debug, Clone, Copy)]
pub struct ModuleRight {
    /// Name, as stored and sent.
    pub name: &'static str,
    /// Other spellings that are accepted.
    pub aliases: &'static [&'static str],
    /// The flag without which the right has no effect; a flag names itself.
    pub enabled_by: &'static str,
    /// Module and right that are meant in truth.
    pub same_as: Option<(&'static str, &'static str)>,
}

/// A part of the platform that rights switch on as a whole.
#[derive(Debug, Clone, Copy)]
pub struct Module {
    /// Key, as stored and sent.
    pub name: &'static str,
    /// Other spellings that are accepted.
    pub aliases: &'static [&'static str],
    /// Its rights, flags included.
    pub rights: &'static [ModuleRight],
}

const fn of(enabled_by: &'static str, name: &'static str, aliases: &'static [&'static str]) -> ModuleRight {
    ModuleRight { name, aliases, enabled_by, same_as: None }
}

const fn copied(name: &'static str) -> ModuleRight {
    ModuleRight { name, aliases: &[], enabled_by: "enable_common_tools", same_as: Some(("common_tools", name)) }
}

/// Spelling under which the rights on production lines, which belong to the module `host`, are accepted as well.
pub const BUSINESS: &str = "business";
const BUSINESS_FLAG: &str = "enable_business_mgmt";

/// The seven modules.
pub const MODULES: &[Module] = &[
    Module {
        name: "application",
        aliases: &["应用管理"],
        rights: &[
            of("enable_app_mgmt", "enable_app_mgmt", &[]),
            of("enable_app_mgmt", "view_app", &[]),
            of("enable_app_mgmt", "create_app", &["add_app"]),
            of("enable_app_mgmt", "delete_app", &["delte_app"]),
            of("enable_app_mgmt", "edit_app", &["manage_app"]),
        ],
    },
    Module {
        name: "resource_request",
        aliases: &[],
        rights: &[
            of("enable_resource_req", "enable_resource_req", &[]),
            of("enable_resource_req", "create_resource_req", &[]),
            of("enable_resource_req", "approve_host_req", &[]),
            of("enable_resource_req", "approve_domain_req", &[]),
            of("enable_resource_req", "approve_ssl_cert_req", &[]),
        ],
    },
    Module {
        name: "dns",
        aliases: &[],
        rights: &[of("enable_dns_mgmt", "enable_dns_mgmt", &[]), of("enable_dns_mgmt", "manage_dns_server", &[])],
    },
    Module {
        name: "host",
        aliases: &[],
        rights: &[
            of("enable_host_mgmt", "enable_host_mgmt", &[]),
            of("enable_host_mgmt", "add_host", &[]),
            of("enable_host_mgmt", "edit_host", &[]),
            of("enable_host_mgmt", "delete_host", &[]),
            of("enable_host_mgmt", "manage_host", &[]),
            of(BUSINESS_FLAG, BUSINESS_FLAG, &[]),
            of(BUSINESS_FLAG, "view_business", &[]),
            of(BUSINESS_FLAG, "add_business", &[]),
            of(BUSINESS_FLAG, "delete_business", &[]),
        ],
    },
    Module {
        name: "navigator",
        aliases: &[],
        rights: &[
            of("enable_navigator", "enable_navigator", &[]),
            of("enable_navigator", "view_navigator", &[]),
            of("enable_navigator", "manage_navigator", &[]),
        ],
    },
    Module {
        name: "common_tools",
        aliases: &[],
        rights: &[
            of("enable_common_tools", "enable_common_tools", &[]),
            of("enable_common_tools", "enable_cdn_refresher", &[]),
            of("enable_common_tools", "enable_jumpserver_log_mgmt", &[]),
        ],
    },
    Module {
        name: "deploy_template",
        aliases: &[],
        rights: &[
            of("enable_deploy_template_mgmt", "enable_deploy_template_mgmt", &[]),
            copied("enable_cdn_refresher"),
            copied("enable_jumpserver_log_mgmt"),
        ],
    },
];

/// What follows from rights on modules for every single resource: kind, module and its right, rights on the resource.
const IMPLIED: &[(&str, &str, &[&str])] = &[
    ("application", "application.view_app", &["view_app"]),
    ("application", "application.edit_app", &["edit_app", "view_app"]),
    ("application", "application.delete_app", &["delete_app", "view_app"]),
    ("host", "host.edit_host", &["edit_host", "view_host"]),
    ("host", "host.delete_host", &["delete_host", "view_host"]),
    ("host", "host.manage_host", &["init_host", "restart_host", "deactivate_host", "view_host"]),
];

/// Rights on one resource of a kind; none for a kind that carries no rights.
#[must_use]
pub fn of_kind(kind: &str) -> Option<&'static [Right]> {
    match kind {
        "application" => Some(APPLICATION_RIGHTS),
        "host" => Some(HOST_RIGHTS),
        _ => None,
    }
}

/// The stored name of a right on one resource of a kind, from any spelling.
#[must_use]
pub fn find(kind: &str, spelling: &str) -> Option<&'static str> {
    let spelling = spelling.trim();
    let known = of_kind(kind)?.iter().find(|right| right.name == spelling || right.aliases.contains(&spelling))?;
    Some(known.name)
}

/// The module of this spelling.
#[must_use]
pub fn module(spelling: &str) -> Option<&'static Module> {
    let spelling = spelling.trim();
    let name = if spelling == BUSINESS { "host" } else { spelling };
    MODULES.iter().find(|module| module.name == name || module.aliases.contains(&name))
}

/// Stands for the name of a module in the description of the API.
pub struct ModuleName;

impl schemars::JsonSchema for ModuleName {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ModuleName".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let names: Vec<&str> = MODULES.iter().map(|module| module.name).collect();
        schemars::json_schema!({"type": "string", "enum": names})
    }
}

/// Module and right as stored, from any spelling of both.
#[must_use]
pub fn find_in_module(module_spelling: &str, spelling: &str) -> Option<(&'static str, &'static str)> {
    let (module, spelling) = (module(module_spelling)?, spelling.trim());
    let known = module.rights.iter().find(|right| right.name == spelling || right.aliases.contains(&spelling))?;
    if module_spelling.trim() == BUSINESS && known.enabled_by != BUSINESS_FLAG {
        return None;
    }
    Some(known.same_as.unwrap_or((module.name, known.name)))
}

/// The rights on modules that have effect, as `module.right`, of those that are held.
#[must_use]
pub fn effective(held: &BTreeSet<(String, String)>) -> BTreeSet<String> {
    let holds = |module: &str, right: &str| held.contains(&(module.to_owned(), right.to_owned()));
    let mut effective = BTreeSet::new();
    for module in MODULES {
        for right in module.rights.iter().filter(|right| right.same_as.is_none()) {
            if holds(module.name, right.name) && holds(module.name, right.enabled_by) {
                effective.insert(format!("{}.{}", module.name, right.name));
            }
        }
    }
    effective
}

/// The rights that rights on modules give on every resource of a kind.
#[must_use]
pub fn implied(kind: &str, module_rights: &BTreeSet<String>) -> BTreeSet<String> {
    IMPLIED
        .iter()
        .filter(|(of_kind, by, _)| *of_kind == kind && module_rights.contains(*by))
        .flat_map(|(_, _, rights)| rights.iter().map(|right| (*right).to_owned()))
        .collect()
}

/// Every right on one resource of a kind.
#[must_use]
pub fn every(kind: &str) -> BTreeSet<String> {
    of_kind(kind).unwrap_or_default().iter().map(|right| right.name.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_leads_to_one_name() {
        for (kind, spelling, expected) in [
            ("application", "view", Some("view_app")),
            ("application", "check_deploy_task", Some("review_app_deploy_task")),
            ("application", " reboot ", Some("restart_app")),
            ("application", "view_host", None),
            ("host", "login", Some("login_host")),
            ("host", "view", None),
            ("production", "view", None),
        ] {
            assert_eq!(find(kind, spelling), expected, "{kind} {spelling}");
        }
        for (module, spelling, expected) in [
            ("application", "add_app", Some(("application", "create_app"))),
            ("application", "delte_app", Some(("application", "delete_app"))),
            ("应用管理", "manage_app", Some(("application", "edit_app"))),
            ("business", "view_business", Some(("host", "view_business"))),
            ("business", "add_host", None),
            ("host", "view_business", Some(("host", "view_business"))),
            ("deploy_template", "enable_cdn_refresher", Some(("common_tools", "enable_cdn_refresher"))),
            ("dns", "add_app", None),
            ("none", "add_app", None),
        ] {
            assert_eq!(find_in_module(module, spelling), expected, "{module} {spelling}");
        }
    }

    #[test]
    fn flags_switch_their_own_part_on() {
        let check = |held: &[(&str, &str)], expected: &[&str]| {
            let held = held.iter().map(|(module, right)| ((*module).to_owned(), (*right).to_owned())).collect();
            let found: Vec<String> = effective(&held).into_iter().collect();
            assert_eq!(found, expected, "{held:?}");
        };
        check(&[("application", "edit_app")], &[]);
        check(&[("application", "edit_app"), ("host", "enable_host_mgmt")], &["host.enable_host_mgmt"]);
        check(
            &[("application", "edit_app"), ("application", "enable_app_mgmt")],
            &["application.edit_app", "application.enable_app_mgmt"],
        );
        check(
            &[("host", "add_host"), ("host", "view_business"), ("host", "enable_business_mgmt")],
            &["host.enable_business_mgmt", "host.view_business"],
        );
        check(&[("common_tools", "enable_cdn_refresher")], &[]);
    }

    #[test]
    fn module_rights_reach_every_resource() {
        for (kind, by, expected) in [
            ("application", "application.view_app", &["view_app"][..]),
            ("application", "application.edit_app", &["edit_app", "view_app"]),
            ("application", "application.delete_app", &["delete_app", "view_app"]),
            ("application", "application.create_app", &[]),
            ("application", "host.edit_host", &[]),
            ("host", "host.edit_host", &["edit_host", "view_host"]),
            ("host", "host.delete_host", &["delete_host", "view_host"]),
            ("host", "host.manage_host", &["deactivate_host", "init_host", "restart_host", "view_host"]),
            ("host", "host.add_host", &[]),
        ] {
            let found: Vec<String> = implied(kind, &BTreeSet::from([by.to_owned()])).into_iter().collect();
            assert_eq!(found, expected, "{kind} {by}");
        }
    }

    #[test]
    fn what_follows_is_defined() {
        for (kind, by, rights) in IMPLIED {
            let (module, right) = by.split_once('.').expect("module and right");
            assert_eq!(find_in_module(module, right), Some((module, right)));
            assert!(rights.iter().all(|right| find(kind, right) == Some(right)), "{by}");
        }
        assert_eq!((MODULES.len(), every("application").len(), every("host").len()), (7, 8, 7));
        assert!(every("production").is_empty());
    }
}
