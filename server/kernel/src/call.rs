//! Calls: who asks, for what, and the only way from a request to the database.
//!
//! Owns [`Call`], the required first argument of every handler. Its extractor is its only source, and checks sign-in,
//! organisation and permission before the handler sees anything. Invariants: a handler whose first argument is not a
//! `Call<P>` does not compile as a route; a call begins at most one transaction, because beginning consumes it; a
//! transaction is finished with an audit.

use std::collections::{BTreeSet, HashMap};
use std::marker::PhantomData;

use async_trait::async_trait;
use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};
use axum::response::{IntoResponse, Response};

use crate::clock::Time;
use crate::db::Read;
use crate::idempotency::{self, Idempotency, RequestKey};
use crate::kernel::Kernel;
use crate::tx::{Actor, Tx};
use crate::{DEFAULT_ORGANISATION, Error, Result};

/// What a route asks of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing: for signing in and what must work before.
    Public,
    /// To be signed in; lists then show what the caller may see.
    SignedIn,
    /// To be an administrator.
    Administrator,
    /// To be the user of the path's `{id}`, or an administrator.
    SelfOrAdministrator,
    /// A right on a module.
    Module {
        /// Which module.
        module: &'static str,
        /// Which right of it.
        right: &'static str,
    },
    /// A right on the object of the path's `{id}` (or `{channel}`).
    Resource {
        /// Kind of object.
        kind: &'static str,
        /// Which right.
        right: &'static str,
    },
    /// A right on an object that the body names: the handler asks [`Call::require`].
    Named {
        /// Kind of object.
        kind: &'static str,
        /// Which right.
        right: &'static str,
    },
}

/// A permission; declared by [`permission!`](crate::permission!).
pub trait Permission: Send + Sync + 'static {
    /// Name, such as `hosts.read`.
    const NAME: &'static str;
    /// What it is for, in a few words.
    const SUMMARY: &'static str;
    /// What it asks.
    const NEED: Need;
}

/// Declares a permission: `permission!(pub Read, "hosts.read", "See a host", Need::…);`.
#[macro_export]
macro_rules! permission {
    ($vis:vis $type:ident, $name:literal, $summary:literal, $need:expr) => {
        #[doc = $summary]
        $vis struct $type;
        impl $crate::call::Permission for $type {
            const NAME: &'static str = $name;
            const SUMMARY: &'static str = $summary;
            const NEED: $crate::call::Need = {
                use $crate::call::Need::*;
                $need
            };
        }
    };
}

permission!(pub Public, "public", "Works without signing in", Public);
permission!(pub SignedIn, "signed_in", "Works for everyone who is signed in", SignedIn);
permission!(pub Administrator, "administrator", "Administrators only", Administrator);
permission!(pub SelfOrAdministrator, "self_or_administrator", "The user concerned, or an administrator", SelfOrAdministrator);

/// What a request shows to prove who sends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// The value of an `Authorization` header, scheme removed.
    Token(String),
    /// The session cookie; `csrf` is the header that must go with it on requests that change something.
    Cookie {
        /// The cookie's value.
        value: String,
        /// The CSRF header's value.
        csrf: Option<String>,
        /// Whether the request may change something, so that the header is needed.
        unsafe_method: bool,
    },
}

/// Name of the session cookie.
pub const SESSION_COOKIE: &str = "drover_session";
/// Name of the header that must go with the cookie on requests that change something.
pub const CSRF_HEADER: &str = "x-csrf-token";
/// Name of the header that makes a repeated request give the first answer.
pub const IDEMPOTENCY_HEADER: &str = "idempotency-key";

/// Who calls.
#[derive(Debug, Clone)]
pub struct Caller {
    /// User.
    pub user_id: i64,
    /// Login name.
    pub username: String,
    /// Organisation that everything of this call is in.
    pub organisation_id: i64,
    /// Whether everything is allowed within the organisation.
    pub administrator: bool,
    /// Roles held.
    pub role_ids: Vec<i64>,
    /// Effective rights on modules, as `module.right`.
    pub module_rights: BTreeSet<String>,
    /// Session or token that the caller came with, so that it can be ended.
    pub session_id: Option<i64>,
}

impl Caller {
    /// Whether the caller holds a right on a module, the module being switched on for them.
    #[must_use]
    pub fn has_module_right(&self, module: &str, right: &str) -> bool {
        self.administrator || self.module_rights.contains(&format!("{module}.{right}"))
    }
}

/// Who may do what: the identity area answers.
#[async_trait]
pub trait Authority: Send + Sync {
    /// The caller that a credential stands for, if it is valid now.
    async fn authenticate(&self, read: &mut Read, credential: &Credential, now: Time) -> Result<Option<Caller>>;

    /// Effective rights of a caller on one object; an empty set means that the caller may not even see it.
    async fn rights(&self, read: &mut Read, caller: &Caller, kind: &str, id: i64) -> Result<BTreeSet<String>>;

    /// The rights that a caller has on each of these objects; of none, what an administrator has.
    async fn rights_on_all(
        &self,
        read: &mut Read,
        caller: &Caller,
        kind: &str,
        ids: &[i64],
    ) -> Result<BTreeSet<String>>;
}

/// A permitted request. The only source of a database connection within a handler.
pub struct Call<P> {
    kernel: Kernel,
    caller: Option<Caller>,
    rights: BTreeSet<String>,
    idempotency: Option<Idempotency>,
    client: Client,
    permit: Permit,
    permission: PhantomData<P>,
}

/// What a call was let in with, for answers that last: a websocket asks again from time to time.
#[derive(Clone)]
pub struct Permit {
    kernel: Kernel,
    credential: Option<Credential>,
    path: HashMap<String, String>,
    need: Need,
}

impl Permit {
    /// Whether the same call would be let in now. A database that does not answer changes nothing.
    pub async fn still_holds(&self) -> bool {
        match admit(&self.kernel, self.credential.as_ref(), &self.path, self.need).await {
            Ok(_) | Err(Error::Unavailable(_) | Error::Internal(_)) => true,
            Err(_) => false,
        }
    }
}

/// What is known of the other end.
#[derive(Debug, Clone, Default)]
pub struct Client {
    /// Address of the peer, for throttling; none in process.
    pub address: Option<std::net::IpAddr>,
    /// `Host` header: what the client calls this server.
    pub host: Option<String>,
}

impl<P: Permission> Call<P> {
    /// The kernel.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// The present time.
    pub fn now(&self) -> Time {
        self.kernel.clock().now()
    }

    /// Who calls.
    ///
    /// # Errors
    /// On a public route that nobody signed in for.
    pub fn caller(&self) -> Result<&Caller> {
        self.caller.as_ref().ok_or_else(|| Error::Unauthenticated("this needs a user".to_owned()))
    }

    /// Organisation of the caller.
    pub fn organisation_id(&self) -> i64 {
        self.caller.as_ref().map_or(DEFAULT_ORGANISATION, |caller| caller.organisation_id)
    }

    /// What this call was let in with.
    pub fn permit(&self) -> Permit {
        self.permit.clone()
    }

    /// The other end.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Effective rights on the object of the path, for a permission that needs one.
    pub fn rights(&self) -> &BTreeSet<String> {
        &self.rights
    }

    /// A connection for reading.
    ///
    /// # Errors
    /// When the database is not available.
    pub async fn read(&self) -> Result<Read> {
        Ok(self.kernel.db().read().await?)
    }

    /// The write transaction of this request.
    ///
    /// # Errors
    /// When the database is not available.
    pub async fn begin(self) -> Result<Tx> {
        let organisation_id = self.organisation_id();
        let actor = match self.caller {
            Some(caller) => Actor::User { id: caller.user_id, username: caller.username },
            None => Actor::Anonymous,
        };
        Tx::begin(&self.kernel, organisation_id, actor, self.idempotency).await
    }

    /// Checks a right on an object that the body names: [`Need::Named`].
    ///
    /// # Errors
    /// Not found when the caller may not see it, forbidden when the right is missing.
    pub async fn require(&self, read: &mut Read, kind: &'static str, id: i64, right: &str) -> Result<()> {
        check_resource(&self.kernel, read, self.caller()?, kind, &id.to_string(), right).await.map(drop)
    }

    /// Effective rights of the caller on one object, for `available_actions`.
    ///
    /// # Errors
    /// When the database is not available.
    pub async fn rights_on(&self, read: &mut Read, kind: &str, id: i64) -> Result<BTreeSet<String>> {
        self.kernel.authority().rights(read, self.caller()?, kind, id).await
    }
}

async fn check_resource(
    kernel: &Kernel,
    read: &mut Read,
    caller: &Caller,
    kind: &'static str,
    key: &str,
    right: &str,
) -> Result<BTreeSet<String>> {
    let resource = kernel.resources().find(read, caller.organisation_id, kind, key, caller.user_id).await?;
    let mut rights = kernel.authority().rights_on_all(read, caller, resource.kind, &resource.ids).await?;
    rights.extend(resource.further_rights);
    for (held, given) in resource.implied {
        if rights.contains(*held) {
            rights.insert((*given).to_owned());
        }
    }
    if rights.is_empty() {
        return Err(Error::not_found(kernel.resources().noun(kind)));
    }
    if !rights.contains(right) {
        return Err(Error::Forbidden(format!("this needs the right {right} on the {}", resource.kind)));
    }
    Ok(rights)
}

/// Checks a right on an object for somebody in whose name the server acts by itself.
///
/// # Errors
/// Not found when they may not see it, forbidden when the right is missing.
pub async fn require_right(
    kernel: &Kernel,
    read: &mut Read,
    caller: &Caller,
    (kind, id, right): (&'static str, i64, &str),
) -> Result<()> {
    check_resource(kernel, read, caller, kind, &id.to_string(), right).await.map(drop)
}

/// Why a call was not handed to its handler.
pub enum Refusal {
    /// An error.
    Error(Error),
    /// This request was carried out before: here is the answer it got.
    Replay(Response),
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Self::Error(error) => error.into_response(),
            Self::Replay(response) => response,
        }
    }
}

impl<E: Into<Error>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

impl<P: Permission> FromRequestParts<Kernel> for Call<P> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, kernel: &Kernel) -> Result<Self, Refusal> {
        let path = RawPathParams::from_request_parts(parts, kernel).await.map_err(Error::internal)?;
        let path: HashMap<String, String> =
            path.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let request = parts.extensions.get::<RequestKey>().cloned();
        let client = parts.extensions.get::<Client>().cloned().unwrap_or_default();
        let client = Client { host: header_text(&parts.headers, &header::HOST), ..client };
        // The permission's work is in a function that is compiled once.
        let credential = credential(&parts.method, &parts.headers);
        let found = admit(kernel, credential.as_ref(), &path, P::NEED).await?;
        let idempotency = match (&found.caller, request) {
            (Some(caller), Some(request)) => Some(idempotency::replay(kernel, caller, &request).await?),
            _ => None,
        };
        Ok(Self {
            kernel: kernel.clone(),
            caller: found.caller,
            rights: found.rights,
            idempotency,
            client,
            permit: Permit { kernel: kernel.clone(), credential, path, need: P::NEED },
            permission: PhantomData,
        })
    }
}

struct Admitted {
    caller: Option<Caller>,
    rights: BTreeSet<String>,
}

async fn admit(
    kernel: &Kernel,
    credential: Option<&Credential>,
    path: &HashMap<String, String>,
    need: Need,
) -> Result<Admitted> {
    if need == Need::Public && credential.is_none() {
        return Ok(Admitted { caller: None, rights: BTreeSet::new() });
    }
    let mut read = kernel.db().read().await?;
    let caller = match credential {
        Some(credential) => kernel.authority().authenticate(&mut read, credential, kernel.clock().now()).await,
        None => Err(Error::Unauthenticated("send a token or sign in".to_owned())),
    };
    if need == Need::Public {
        return Ok(Admitted { caller: caller.unwrap_or(None), rights: BTreeSet::new() });
    }
    let caller = caller?.ok_or_else(|| Error::Unauthenticated("the token or session is not valid".to_owned()))?;
    let mut rights = BTreeSet::new();
    match need {
        Need::Public | Need::SignedIn | Need::Named { .. } => {}
        Need::Administrator if caller.administrator => {}
        Need::Administrator => return Err(Error::Forbidden("administrators only".to_owned())),
        Need::SelfOrAdministrator => {
            let own = path.get("id").and_then(|id| id.parse::<i64>().ok()) == Some(caller.user_id);
            if !(own || caller.administrator) {
                // Whether such a user exists is nobody else's business.
                return Err(Error::not_found("user"));
            }
        }
        Need::Module { module, right } => {
            if !caller.has_module_right(module, right) {
                return Err(Error::Forbidden(format!("this needs the right {right} on the module {module}")));
            }
        }
        Need::Resource { kind, right } => {
            let key = path.get("id").or_else(|| path.get("channel")).map_or("", String::as_str);
            rights = check_resource(kernel, &mut read, &caller, kind, key, right).await?;
        }
    }
    Ok(Admitted { caller: Some(caller), rights })
}

fn header_text(headers: &HeaderMap, name: &header::HeaderName) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// What the request shows; the header wins over the cookie.
fn credential(method: &Method, headers: &HeaderMap) -> Option<Credential> {
    if let Some(value) = header_text(headers, &header::AUTHORIZATION) {
        let (scheme, token) = value.split_once(' ').unwrap_or(("", &value));
        let known = scheme.eq_ignore_ascii_case("token") || scheme.eq_ignore_ascii_case("bearer");
        return Some(Credential::Token(if known { token.trim().to_owned() } else { String::new() }));
    }
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let value = cookies.flat_map(|cookies| cookies.split(';')).find_map(|cookie| {
        cookie.trim().strip_prefix(SESSION_COOKIE).and_then(|rest| rest.strip_prefix('=')).map(str::to_owned)
    })?;
    let csrf = headers.get(CSRF_HEADER).and_then(|value| value.to_str().ok()).map(str::to_owned);
    Some(Credential::Cookie { value, csrf, unsafe_method: !method.is_safe() })
}

/// The address as the client wrote it, before aliases were settled.
#[derive(Debug, Clone)]
pub struct OriginalUri(pub axum::http::Uri);
