//! What a host really keeps of an application: its releases, their size, and how they differ from what was installed.
//!
//! The host is asked each time; the database says no more than where to look. Invariants: only a folder that an order of
//! this server named is looked at; nothing is changed there; the wait for the host has an end, and holds nothing.

mod store;

use std::time::Duration;

use drover_inventory::instances;
use drover_kernel::fields::{Flag, Name, Number};
use drover_kernel::{Call, Error, Kernel, Path, Query, Reply, Result, Routes, Time, permission};
use drover_shared::message::{Drift, Inspected, InspectedRelease};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::engine::Engine;

/// Seconds that a host may take, unless the call says otherwise, and at most.
const TIMEOUT_S_DEFAULT: i64 = 30;
const TIMEOUT_S_MAX: i64 = 300;

/// Stands for the release in use.
const CURRENT: &str = "current";

permission!(
    pub View,
    "releases.view",
    "See what hosts keep of an application",
    Resource { kind: "application", right: "view_app" }
);

/// Routes of releases.
pub fn routes() -> Routes {
    Routes::tagged("instances").get(
        "/applications/{id}/instances/{instance_id}/releases/",
        "instance-releases-list",
        "Ask an instance's host which releases it keeps, and how they differ from what was installed.",
        list,
    )
}

/// What to look at.
#[derive(Deserialize, JsonSchema)]
struct Wish {
    /// Only the release of this name; `current` is the one in use.
    #[serde(default)]
    release: Option<Name>,
    /// Whether to compare every file with what was installed, which reads all of them.
    #[serde(default)]
    compare: Option<Flag>,
    /// Seconds that the host may take, 30 unless said otherwise, at most 300; what is not done by then is left out.
    #[serde(default)]
    timeout: Option<Number>,
}

/// What a host keeps of an application.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "InstanceReleases")]
struct ReleasesOut {
    /// Instance.
    instance: i64,
    /// Its host.
    hostname: String,
    /// Folder that was looked at; null as long as nothing was ever deployed into one.
    deploy_path: Option<String>,
    /// Space that is free on the file system of the folder, in bytes.
    free_bytes: Option<u64>,
    /// Space that the releases below take, in bytes.
    used_bytes: u64,
    /// Whether everything that was asked for was looked at.
    complete: bool,
    /// Why not.
    reason: Option<String>,
    /// The releases, the newest first.
    releases: Vec<ReleaseOut>,
}

/// A release that a host keeps.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "InstanceRelease")]
struct ReleaseOut {
    /// Name of its folder.
    name: String,
    version: String,
    /// SHA-256 of the archive that it came from.
    artifact_digest: String,
    /// Digest of what was installed, member by member.
    tree_digest: String,
    /// When it was installed, by the host's clock.
    installed_time: String,
    /// Whether it is in use.
    current: bool,
    /// Whether it was in use before the one that is.
    previous: bool,
    /// Files, folders and links in it.
    members: u64,
    /// Space that it takes on disk, in bytes.
    used_bytes: u64,
    /// How it differs from what was installed; null when it was not compared.
    drift: Option<DriftOut>,
}

/// How a release differs from what was installed.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Drift")]
struct DriftOut {
    /// How many differences there are; 0 when it is as it was installed.
    count: u64,
    /// Members that are not as they were installed.
    changed: Vec<ChangedOut>,
    /// Members that are gone.
    missing: Vec<String>,
    /// Members that came later.
    extra: Vec<String>,
    /// Differences that are not listed, because there are too many.
    unlisted: u64,
    /// Whether the host's own list of what was installed is damaged, so that the others may be wrong.
    manifest_damaged: bool,
}

/// A member that is not as it was installed.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DriftedMember")]
struct ChangedOut {
    path: String,
    /// What is different.
    difference: String,
}

async fn list(
    call: Call<View>,
    Path((id, instance_id)): Path<(i64, i64)>,
    Query(wish): Query<Wish>,
) -> Result<Reply<ReleasesOut>> {
    let seconds = wish.timeout.map_or(TIMEOUT_S_DEFAULT, |timeout| timeout.0);
    let allowed = u64::try_from(seconds).ok().filter(|_| (1..=TIMEOUT_S_MAX).contains(&seconds));
    let allowed = allowed.ok_or_else(|| Error::invalid("timeout", format!("must be 1 to {TIMEOUT_S_MAX} seconds")))?;
    let compare = wish.compare.is_some_and(|compare| compare.0);
    let mut read = call.read().await?;
    let instance = instances::store::load_many(&mut read, id, &[instance_id]).await?.pop();
    let instance = instance.ok_or_else(|| Error::not_found("instance"))?;
    let mut release = wish.release.map(|name| name.0);
    if release.as_deref() == Some(CURRENT) {
        release = Some(store::current(&mut read, instance_id).await?.ok_or_else(|| Error::not_found("release"))?);
    }
    let place = store::place(&mut read, instance_id).await?;
    // Whoever waits for a host holds nothing.
    drop(read);
    let mut told = ReleasesOut {
        instance: instance_id,
        hostname: instance.host_name,
        deploy_path: place.clone(),
        free_bytes: None,
        used_bytes: 0,
        complete: true,
        reason: None,
        releases: Vec::new(),
    };
    let Some(place) = place else {
        return if release.is_some() { Err(Error::not_found("release")) } else { Ok(Reply::new(told)) };
    };
    let host = told.hostname.as_str();
    let session = call.kernel().part::<Engine>().hub.find(instance.host_id);
    let session = session
        .ok_or_else(|| Error::Unavailable(format!("the agent of {host} is not connected: it cannot be asked now")))?;
    let answer = session.inspect(place, release, compare, Duration::from_secs(allowed)).await;
    let answer = answer.map_err(|why| why.told(host, "releases"))?;
    fill(&mut told, call.kernel(), answer)?;
    Ok(Reply::new(told))
}

fn fill(told: &mut ReleasesOut, kernel: &Kernel, answer: Inspected) -> Result<()> {
    if let (Some(reason), true, None) = (&answer.reason, answer.releases.is_empty(), answer.free_bytes) {
        return Err(Error::conflict(format!("{}: {reason}", told.hostname)));
    }
    told.free_bytes = answer.free_bytes;
    told.complete = answer.reason.is_none();
    told.reason = answer.reason;
    told.used_bytes = answer.releases.iter().map(|release| release.disk_bytes).fold(0, u64::saturating_add);
    told.releases = answer.releases.into_iter().map(|release| shown(kernel, release)).collect();
    Ok(())
}

fn shown(kernel: &Kernel, inspected: InspectedRelease) -> ReleaseOut {
    let InspectedRelease { release, previous, members, disk_bytes, drift } = inspected;
    ReleaseOut {
        name: release.name,
        version: release.version,
        artifact_digest: release.artifact_digest.to_string(),
        tree_digest: release.tree_digest.to_string(),
        installed_time: kernel.show(Time::from_millis(release.installed_ms)),
        current: release.current,
        previous,
        members,
        used_bytes: disk_bytes,
        drift: drift.map(drifted),
    }
}

fn drifted(drift: Drift) -> DriftOut {
    let Drift { manifest_damaged, changed, missing, added, more } = drift;
    let listed = changed.len() + missing.len() + added.len() + usize::from(manifest_damaged);
    DriftOut {
        count: more.saturating_add(listed as u64),
        changed: changed.into_iter().map(|(path, difference)| ChangedOut { path, difference }).collect(),
        missing,
        extra: added,
        unlisted: more,
        manifest_damaged,
    }
}
