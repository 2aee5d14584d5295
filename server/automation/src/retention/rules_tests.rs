//! The rules played with histories of every kind.

use proptest::prelude::*;

use super::*;

const DAY: Duration = Duration::from_hours(24);

fn day(days: u32) -> Time {
    Time::from_seconds(0).after(days * DAY)
}

fn ended(id: i64, on: u32) -> Ended {
    Ended { id, finished_at: day(on), lost: false, awaited: false }
}

fn kept_for(days: u32) -> Retention {
    let kept = Some(days * DAY);
    Retention { output: kept, artifacts: kept, tasks: kept, ..Retention::for_ever() }
}

fn had(instance_id: i64, last_turn: i64, update_task_id: Option<i64>) -> Had {
    Had { instance_id, last_turn, update_task_id }
}

#[test]
fn the_newest_tasks_and_the_last_versions_of_every_instance_are_needed() {
    let newest = [Newest { task_id: 90, sent_task_id: Some(80) }, Newest { task_id: 7, sent_task_id: None }];
    let mut versions: Vec<Had> = (1..=9).map(|id| had(1, id, Some(id))).collect();
    // The oldest version was reverted to: it is the present one.
    versions[0] = had(1, 20, Some(1));
    // A version that was never installed by an update has none to be looked for, and takes its place all the same.
    versions.push(had(2, 30, None));
    versions.push(had(2, 29, Some(25)));
    let found: Vec<i64> = needed(&newest, &versions).into_iter().collect();
    assert_eq!(found, [1, 6, 7, 8, 9, 25, 80, 90]);
}

#[test]
fn tasks_go_by_age_unless_something_wants_them() {
    let table = [
        (ended(1, 10), true, "old"),
        (ended(2, 70), false, "not old"),
        (Ended { lost: true, ..ended(3, 10) }, false, "nobody knows how it ended"),
        (Ended { awaited: true, ..ended(4, 10) }, false, "another one waits for it"),
        (ended(5, 10), false, "needed for a revert"),
        (ended(6, 10), false, "a task that stays was made from it"),
        (ended(7, 10), true, "what was made from it goes as well"),
        (ended(8, 11), true, "made from 7"),
        (ended(9, 60), true, "to the day"),
    ];
    let tasks_ended: Vec<Ended> = table.iter().map(|(task, ..)| *task).collect();
    // 100 is none of those that are looked at: it is among the newest.
    let made_from = [(100, 6), (8, 7)];
    let going = tasks(&tasks_ended, &BTreeSet::from([5]), &made_from, &kept_for(40), day(100));
    for (task, goes, why) in table {
        assert_eq!(going.contains(&task.id), goes, "{}: {why}", task.id);
    }
    assert!(tasks(&tasks_ended, &BTreeSet::new(), &[], &Retention::for_ever(), day(10_000)).is_empty());
}

#[test]
fn artifacts_stay_for_reverts_and_for_what_nobody_knows() {
    let tasks_ended = [ended(1, 10), ended(2, 99), ended(3, 10), Ended { lost: true, ..ended(4, 10) }];
    let going = artifacts(&tasks_ended, &BTreeSet::from([3]), &kept_for(40), day(100));
    assert_eq!(going, BTreeSet::from([1]));
    assert!(artifacts(&tasks_ended, &BTreeSet::new(), &Retention::for_ever(), day(100)).is_empty());
}

/// Ids of the tasks whose output goes; each has as many bytes as said.
fn silent(tasks_ended: &[(Ended, u64)], retention: &Retention, now: Time) -> Vec<i64> {
    let mut outputs = Outputs::new(retention, now, tasks_ended.iter().map(|(_, bytes)| bytes).sum());
    let goes = |(task, bytes): &&(Ended, u64)| outputs.goes(task, *bytes);
    tasks_ended.iter().filter(goes).map(|(task, _)| task.id).collect()
}

#[test]
fn output_goes_by_age_and_the_oldest_first_when_there_is_too_much() {
    let all =
        [(ended(1, 10), 100), (Ended { lost: true, ..ended(2, 11) }, 100), (ended(3, 50), 100), (ended(4, 90), 100)];
    let limited = |most| Retention { output_bytes: Some(most), ..kept_for(60) };
    assert_eq!(silent(&all, &kept_for(60), day(100)), [1]);
    assert_eq!(silent(&all, &limited(400), day(100)), [1]);
    assert_eq!(silent(&all, &limited(299), day(100)), [1, 3]);
    assert_eq!(silent(&all, &limited(0), day(100)), [1, 3, 4]);
    assert_eq!(silent(&all, &Retention { output: None, ..limited(350) }, day(100)), [1]);
    assert!(silent(&all, &Retention::for_ever(), day(10_000)).is_empty());
    let fresh = [(ended(1, 100), 100)];
    assert!(silent(&fresh, &limited(0), day(100)).is_empty(), "what ended just now may not be all there yet");
}

prop_compose! {
    fn history()(
        days in proptest::collection::vec((0_u32..200, any::<bool>(), any::<bool>(), 0_u64..100), 0..40),
    ) -> Vec<(Ended, u64)> {
        let mut days = days;
        days.sort_by_key(|day| day.0);
        let tasks = days.into_iter().zip(1_i64..);
        tasks.map(|((on, lost, awaited, bytes), id)| (Ended { lost, awaited, ..ended(id, on) }, bytes)).collect()
    }
}

proptest! {
    #[test]
    fn nothing_goes_that_something_wants(
        history in history(),
        needed in proptest::collection::btree_set(1_i64..40, 0..10),
        origins in proptest::collection::vec((2_i64..45, 1_i64..40), 0..30),
        kept in 0_u32..200,
    ) {
        let made_from: Vec<(i64, i64)> = origins.into_iter().filter(|(id, origin)| origin < id).collect();
        let tasks_ended: Vec<Ended> = history.iter().map(|(task, _)| *task).collect();
        let going = tasks(&tasks_ended, &needed, &made_from, &kept_for(kept), day(200));
        for task in &tasks_ended {
            let wanted = task.lost || task.awaited || needed.contains(&task.id)
                || made_from.iter().any(|(id, origin)| *origin == task.id && !going.contains(id));
            let old = task.finished_at <= day(200 - kept);
            prop_assert_eq!(going.contains(&task.id), old && !wanted);
        }
        // What is decided once more decides nothing else.
        let left: Vec<Ended> = tasks_ended.iter().filter(|task| !going.contains(&task.id)).copied().collect();
        let still: Vec<(i64, i64)> = made_from.iter().filter(|(id, _)| !going.contains(id)).copied().collect();
        prop_assert!(tasks(&left, &needed, &still, &kept_for(kept), day(200)).is_empty());
    }

    #[test]
    fn output_is_held_to_its_bytes_and_no_younger_one_goes_before_an_older(history in history(), most in 0_u64..2_000) {
        let retention = Retention { output_bytes: Some(most), ..Retention::for_ever() };
        let going = silent(&history, &retention, day(201));
        let stays = |task: &Ended| !going.contains(&task.id);
        let bytes: u64 = history.iter().filter(|(task, _)| stays(task)).map(|(_, bytes)| bytes).sum();
        prop_assert!(bytes <= most || history.iter().all(|(task, _)| task.lost || !stays(task)));
        let first_kept = history.iter().find(|(task, _)| stays(task) && !task.lost).map(|(task, _)| task.id);
        prop_assert!(going.iter().all(|id| first_kept.is_none_or(|first| *id < first)));
    }
}

#[test]
fn deploy_tasks_go_when_none_of_their_sub_tasks_stays() {
    let old = [(1, 0), (2, 2), (3, 2), (4, 1)].map(|(id, tasks)| Carried { id, tasks });
    assert_eq!(deploy_tasks(&old, &[(2, 2), (3, 1)].into()), [1, 2].into());
}

#[test]
fn a_repository_is_wanted_as_long_as_a_task_that_was_fetched_from_it_stays() {
    let tasks = [("a".to_owned(), 2), ("b".to_owned(), 1)];
    assert_eq!(fetched_from(&tasks, &BTreeMap::new()), ["a", "b"]);
    assert_eq!(fetched_from(&tasks, &[("a".to_owned(), 1), ("b".to_owned(), 1)].into()), ["a"]);
}
