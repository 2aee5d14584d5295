//! Kinds of objects that rights are spoken about, and how a path's id leads to one.
//!
//! A deploy task has no rights of its own: it stands for its application. Areas register their kinds here, so that
//! the guard can check any path without knowing any area.

use std::collections::BTreeMap;

use crate::db::{Read, Sql};
use crate::{Error, Result, args};

/// One kind of object.
#[derive(Debug, Clone)]
pub struct ResourceKind {
    /// Name in permissions, such as `deploy_task`.
    pub name: &'static str,
    /// Noun for messages, such as `deploy task`.
    pub noun: &'static str,
    /// Kind whose rights count: itself, or what it stands for.
    pub governed_by: &'static str,
    /// Gives the id of the governing object from organisation (`$1`) and key (`$2`); no row means there is none.
    pub find: Sql,
    /// Gives names of further rights from organisation (`$1`), key (`$2`) and user (`$3`), as delegation does.
    pub further_rights: Option<Sql>,
    /// Rights that on this kind give another one as well: who has the first has the second.
    pub implied: &'static [(&'static str, &'static str)],
    /// Whether the key is a text; a number otherwise.
    pub text_key: bool,
    /// What counts when the object stands for none of that kind, and `find` gives no value.
    pub instead: Option<Instead>,
}

/// Objects of another kind that something stands for, all together.
#[derive(Debug, Clone)]
pub struct Instead {
    /// Their kind.
    pub governed_by: &'static str,
    /// Gives their ids from organisation (`$1`) and key (`$2`).
    pub find: Sql,
    /// Rights that on all of them give another one as well.
    pub implied: &'static [(&'static str, &'static str)],
}

/// Every kind there is.
#[derive(Debug, Clone, Default)]
pub struct Resources(BTreeMap<&'static str, ResourceKind>);

/// An object that was found.
#[derive(Debug, Clone)]
pub struct Resource {
    /// Kind whose rights count.
    pub kind: &'static str,
    /// Ids of the objects of that kind: a right counts that is held on all of them.
    pub ids: Vec<i64>,
    /// Rights that the user has on top, by delegation.
    pub further_rights: Vec<String>,
    /// Rights that give another one as well.
    pub implied: &'static [(&'static str, &'static str)],
}

impl Resources {
    /// Adds a kind.
    #[must_use]
    pub fn with(mut self, kind: ResourceKind) -> Self {
        self.0.insert(kind.name, kind);
        self
    }

    /// Adds another area's kinds.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    pub(crate) fn noun(&self, kind: &str) -> &'static str {
        self.0.get(kind).map_or("thing", |kind| kind.noun)
    }

    /// The object that a key leads to, or that there is none.
    pub(crate) async fn find(
        &self,
        read: &mut Read,
        organisation_id: i64,
        kind: &str,
        key: &str,
        user_id: i64,
    ) -> Result<Resource> {
        let kind = self.0.get(kind).ok_or_else(|| Error::internal(format!("no kind of object named {kind}")))?;
        let missing = || Error::not_found(kind.noun);
        // PostgreSQL knows no NUL in a text.
        if key.contains('\0') {
            return Err(missing());
        }
        let key: crate::db::Value =
            if kind.text_key { key.into() } else { key.parse::<i64>().map_err(|_| missing())?.into() };
        let id = read.opt::<(Option<i64>,)>(kind.find.clone(), vec![organisation_id.into(), key.clone()]).await?;
        let (id,) = id.ok_or_else(missing)?;
        let (governed_by, implied, ids) = match (id, &kind.instead) {
            (Some(id), _) => (kind.governed_by, kind.implied, vec![id]),
            (None, None) => return Err(missing()),
            (None, Some(instead)) => {
                let ids = read.values(instead.find.clone(), vec![organisation_id.into(), key.clone()]).await?;
                (instead.governed_by, instead.implied, ids)
            }
        };
        let further_rights = match &kind.further_rights {
            Some(sql) => {
                let mut arguments = args![organisation_id];
                arguments.push(key);
                arguments.push(user_id.into());
                read.values(sql.clone(), arguments).await?
            }
            None => Vec::new(),
        };
        Ok(Resource { kind: governed_by, ids, further_rights, implied })
    }
}
