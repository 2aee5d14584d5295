//! `deploy --with`: several applications, each after those of them that it requires.
//!
//! Invariants: nothing is made before every application was found and their order is known; each goes after the very tasks
//! that this command made, so that one which fails at once keeps the next from starting as well.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::rollout::{self, Application, Instance, NewTask};
use crate::api::Server;
use crate::arguments::Deploy;
use crate::failure::{Failure, Result, TIMED_OUT};
use crate::follow::{self, Kind, SubTask};
use crate::output;

/// Applications to look at for their dependencies.
const APPLICATIONS_MAX: usize = 1_000;

/// What an application requires, and how it is called.
type Graph = BTreeMap<u64, (String, Vec<u64>)>;

/// One application to deploy.
struct Part {
    application: Application,
    version: String,
    instances: Vec<Instance>,
    /// Places of those that go first, among all parts.
    after: Vec<usize>,
}

pub(super) fn run(server: &Server, deploy: &Deploy, json: bool) -> Result<()> {
    let parts = parts(server, deploy)?;
    say_order(&parts, json)?;
    let names: Vec<String> =
        parts.iter().map(|part| format!("{} {}", part.application.full_name, part.version)).collect();
    rollout::confirm(&format!("Deploy {}, in this order?", names.join(", then ")), deploy.following.yes, json)?;
    let mut tasks = Vec::with_capacity(parts.len());
    for part in &parts {
        let new = NewTask {
            application: part.application.id,
            version: &part.version,
            source: "",
            level: deploy.level.as_str(),
            description: &deploy.description,
            plan: None,
            at: None,
        };
        tasks.push(rollout::make_task(server, &new)?);
    }
    // Nothing runs before all of them may.
    for action in ["approve", "start"] {
        for task in &tasks {
            rollout::act(server, *task, action)?;
        }
    }
    let mut made: Vec<SubTask> = Vec::with_capacity(parts.len());
    let mut refused = None;
    for (part, task) in parts.iter().zip(tasks) {
        match make(server, deploy, (part, task), &made) {
            Ok(sub_task) => made.push(sub_task),
            Err(failure) => {
                let message = format!("{} is not deployed: {}", part.application.full_name, failure.message);
                refused = Some(Failure { message, ..failure });
                break;
            }
        }
    }
    watch(server, deploy, (&parts, &made), json)?;
    refused.map_or(Ok(()), Err)
}

/// Finds every application, its instances, and the order.
fn parts(server: &Server, deploy: &Deploy) -> Result<Vec<Part>> {
    let (Some(application), Some(version)) = (&deploy.application, &deploy.version) else {
        return Err(Failure::usage("which application and which --version?"));
    };
    let mut wanted = vec![(Application::find(server, application)?, version.clone())];
    for with in &deploy.with {
        let (name, own) = with.split_once('=').unwrap_or((with, version));
        let application = Application::find(server, name)?;
        if wanted.iter().any(|(one, _)| *one == application) {
            return Err(Failure::usage(format!("{} is named twice", application.full_name)));
        }
        wanted.push((application, own.to_owned()));
    }
    let ids: Vec<u64> = wanted.iter().map(|(application, _)| application.id).collect();
    let graph = graph(server, &ids)?;
    let order = order(&ids, &graph).map_err(|circle| {
        let names: Vec<&str> = circle.iter().map(|id| graph.get(id).map_or("?", |one| one.0.as_str())).collect();
        Failure::usage(format!("these applications require each other in a circle: {}", names.join(" → ")))
    })?;
    let mut parts: Vec<Part> = Vec::with_capacity(order.len());
    for (id, first) in order {
        let Some((application, version)) = wanted.iter().find(|(application, _)| application.id == id).cloned() else {
            continue;
        };
        let instances = application.instances(server, &deploy.targets)?;
        let after = (0..parts.len()).filter(|at| first.contains(&parts[*at].application.id)).collect();
        parts.push(Part { application, version, instances, after });
    }
    Ok(parts)
}

/// What these applications require, directly or not, as far as the caller may see it.
fn graph(server: &Server, ids: &[u64]) -> Result<Graph> {
    let mut graph = Graph::new();
    let mut left: Vec<u64> = ids.to_vec();
    while let Some(id) = left.pop() {
        if graph.contains_key(&id) {
            continue;
        }
        if graph.len() == APPLICATIONS_MAX {
            return Err(Failure::usage(format!("they require more than {APPLICATIONS_MAX} applications")));
        }
        let application = server.get(&format!("/applications/{id}/"))?;
        let required: Vec<u64> =
            application["required_apps"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
        left.extend(&required);
        graph.insert(id, (output::cell(&application, "full_name"), required));
    }
    Ok(graph)
}

/// The wanted ones in an order in which each comes after those that it requires, each with all that it requires. The error
/// is a circle, with its first one at both ends.
fn order(wanted: &[u64], graph: &Graph) -> std::result::Result<Vec<(u64, BTreeSet<u64>)>, Vec<u64>> {
    let required = |id: u64| graph.get(&id).map_or(&[][..], |one| one.1.as_slice()).iter();
    let mut all: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    let mut ordered = Vec::new();
    for start in wanted {
        let mut way = vec![(*start, required(*start))];
        while let Some((id, left)) = way.last_mut() {
            let id = *id;
            match left.next() {
                _ if all.contains_key(&id) => drop(way.pop()),
                Some(next) => {
                    if let Some(from) = way.iter().position(|(on_the_way, _)| on_the_way == next) {
                        let circle = way[from..].iter().map(|(on_the_way, _)| *on_the_way);
                        return Err(circle.chain([*next]).collect());
                    }
                    way.push((*next, required(*next)));
                }
                None => {
                    let mut before: BTreeSet<u64> = required(id).copied().collect();
                    before.extend(required(id).filter_map(|one| all.get(one)).flatten());
                    all.insert(id, before);
                    ordered.push(id);
                    way.pop();
                }
            }
        }
    }
    ordered.retain(|id| wanted.contains(id));
    Ok(ordered.into_iter().map(|id| (id, all.remove(&id).unwrap_or_default())).collect())
}

fn say_order(parts: &[Part], json: bool) -> Result<()> {
    let names =
        |part: &Part| -> Vec<&str> { part.after.iter().map(|at| parts[*at].application.full_name.as_str()).collect() };
    if json {
        let order: Vec<Value> = parts
            .iter()
            .map(|part| {
                json!({ "application": part.application.full_name, "version": part.version, "after": names(part) })
            })
            .collect();
        return output::json(&json!({ "type": "order", "order": order }));
    }
    for (part, number) in parts.iter().zip(1..) {
        let after = names(part);
        let after = if after.is_empty() { String::new() } else { format!(", after {}", after.join(", ")) };
        let hosts = rollout::hosts(&part.instances);
        eprintln!("{number}. {} {} on {hosts}{after}", part.application.full_name, part.version);
    }
    Ok(())
}

/// Makes the update of one application, which waits for those before it.
fn make(server: &Server, deploy: &Deploy, (part, task): (&Part, u64), made: &[SubTask]) -> Result<SubTask> {
    let mut rule = deploy.rollout.as_json();
    if !part.after.is_empty() {
        let mut ids: Vec<Value> =
            rule.as_ref().and_then(|rule| rule["after_tasks"].as_array().cloned()).unwrap_or_default();
        ids.extend(part.after.iter().filter_map(|at| made.get(*at)).map(|sub_task| json!(sub_task.id)));
        rule.get_or_insert_with(|| json!({}))["after_tasks"] = ids.into();
    }
    let of = (Kind::Upgrade, task);
    let manner = (deploy.following.timeout, rule, &deploy.following.place);
    rollout::make_sub_task(server, of, &part.instances, &part.version, Some(""), manner)
}

/// Follows one after the other, in their order. Fails as the first one did that failed.
fn watch(server: &Server, deploy: &Deploy, (parts, made): (&[Part], &[SubTask]), json: bool) -> Result<()> {
    if deploy.following.no_follow {
        for sub_task in made {
            if json { output::json(&sub_task.as_json())? } else { output::line(&sub_task.name())? }
        }
        return Ok(());
    }
    let end = deploy.following.wait.map(|seconds| Instant::now() + Duration::from_secs(u64::from(seconds)));
    let mut failed: Vec<Failure> = Vec::new();
    for (part, sub_task) in parts.iter().zip(made) {
        if !json {
            eprintln!("Task {} deploys {} {}.", sub_task.name(), part.application.full_name, part.version);
        }
        let left = end.map(|end| end.saturating_duration_since(Instant::now()).as_secs().max(1));
        let left = left.map(|seconds| u32::try_from(seconds).unwrap_or(u32::MAX));
        match follow::follow(server, sub_task, 0, left, json) {
            Ok(()) => {}
            Err(failure) if failure.code == TIMED_OUT || failure.is_unreachable() => return Err(failure),
            Err(failure) => {
                let message = format!("{}: {}", part.application.full_name, failure.message);
                failed.push(Failure { message, ..failure });
            }
        }
    }
    let messages: Vec<String> = failed.iter().map(|failure| failure.message.clone()).collect();
    let first = failed.into_iter().next();
    first.map_or(Ok(()), |first| Err(Failure { message: messages.join("\nerror: "), ..first }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(edges: &[(u64, &[u64])]) -> Graph {
        edges.iter().map(|(id, required)| (*id, (format!("app-{id}"), required.to_vec()))).collect()
    }

    fn ids(wanted: &[u64], graph: &Graph) -> std::result::Result<Vec<(u64, Vec<u64>)>, Vec<u64>> {
        order(wanted, graph).map(|order| {
            order
                .into_iter()
                .map(|(id, before)| (id, before.into_iter().filter(|one| wanted.contains(one)).collect()))
                .collect()
        })
    }

    #[test]
    fn each_goes_after_what_it_requires() {
        let chain = graph(&[(1, &[2]), (2, &[3]), (3, &[])]);
        assert_eq!(ids(&[1, 2, 3], &chain), Ok(vec![(3, vec![]), (2, vec![3]), (1, vec![2, 3])]));
        assert_eq!(ids(&[1, 3], &chain), Ok(vec![(3, vec![]), (1, vec![3])]), "also through one that is not deployed");
        let diamond = graph(&[(1, &[2, 3]), (2, &[4]), (3, &[4]), (4, &[])]);
        assert_eq!(ids(&[4, 3, 2, 1], &diamond), Ok(vec![(4, vec![]), (3, vec![4]), (2, vec![4]), (1, vec![2, 3, 4])]));
        let apart = graph(&[(1, &[]), (2, &[])]);
        assert_eq!(ids(&[2, 1], &apart), Ok(vec![(2, vec![]), (1, vec![])]), "as they were named");
    }

    #[test]
    fn a_circle_is_named() {
        let circle = graph(&[(1, &[2]), (2, &[3]), (3, &[2])]);
        assert_eq!(ids(&[1], &circle), Err(vec![2, 3, 2]));
    }
}
