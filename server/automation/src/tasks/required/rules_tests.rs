//! No task starts before all that it goes after ended well, none waits for ever, and every circle is found.

use proptest::prelude::*;

use super::*;

fn required(standings: &[Standing]) -> Vec<Required> {
    standings.iter().zip(1..).map(|(standing, task_id)| Required { task_id, standing: *standing }).collect()
}

#[test]
fn what_goes_first_decides() {
    use Standing::{Cancelled, Failed, Gone, Open, Well};
    let told = |standings: &[Standing]| next(&required(standings), None, false);
    assert_eq!(told(&[]), Move::Go);
    assert_eq!(told(&[Well, Well]), Move::Go);
    assert_eq!(told(&[Well, Open]), Move::Wait);
    let stop = |text: &str| Move::Stop(text.to_owned());
    assert_eq!(told(&[Open, Failed]), stop("task 2, which had to go first, failed"));
    assert_eq!(told(&[Cancelled]), stop("task 1, which had to go first, was cancelled"));
    assert_eq!(told(&[Well, Gone]), stop("task 2, which had to go first, was deleted"));
    assert_eq!(next(&required(&[Well, Open]), None, true), stop("it waited for task 2 for a week"));
    assert_eq!(next(&required(&[Well]), None, true), Move::Go, "there is nothing left to wait for");
    assert_eq!(next(&required(&[Well]), Some("cancelled by ann"), false), stop("cancelled by ann"));
}

#[test]
fn an_order_or_a_circle_is_found() {
    assert_eq!(order(1, &[]), Ok(vec![]));
    assert_eq!(order(1, &[(1, 2), (2, 3), (1, 3), (4, 1)]), Ok(vec![3, 2]));
    assert_eq!(order(1, &[(1, 2), (2, 3), (3, 2)]), Err(vec![2, 3]));
    assert_eq!(order(1, &[(1, 2), (2, 1)]), Err(vec![1, 2]));
    let long: Vec<(i64, i64)> = (1..20_000).map(|one| (one, one + 1)).collect();
    assert_eq!(order(1, &long).map(|order| order.len()), Ok(19_999), "no deep graph is too deep");
}

/// A task in the play: what it goes after, and how far it is.
#[derive(Debug, Clone)]
struct Player {
    after: Vec<usize>,
    state: Standing,
    started: bool,
}

proptest! {
    /// Tasks that go after older ones, which end one after the other in any way.
    #[test]
    fn nothing_starts_too_early_and_nothing_waits_for_ever(
        links in prop::collection::vec(prop::collection::vec(any::<prop::sample::Index>(), 0..4), 1..12),
        endings in prop::collection::vec((any::<prop::sample::Index>(), 0..4_u8), 200),
    ) {
        let after = |(at, picks): (usize, &Vec<prop::sample::Index>)| Player {
            after: if at == 0 { vec![] } else { picks.iter().map(|pick| pick.index(at)).collect() },
            state: Standing::Open,
            started: false,
        };
        let mut play: Vec<Player> = links.iter().enumerate().map(after).collect();
        let mut endings = endings.into_iter();
        for _ in 0..100 {
            for at in 0..play.len() {
                if play[at].started || play[at].state != Standing::Open {
                    continue;
                }
                let facts: Vec<Required> = play[at].after.iter()
                    .map(|one| Required { task_id: i64::try_from(*one).unwrap(), standing: play[*one].state }).collect();
                match next(&facts, None, false) {
                    Move::Wait => prop_assert!(facts.iter().any(|one| one.standing == Standing::Open)),
                    Move::Go => {
                        prop_assert!(facts.iter().all(|one| one.standing == Standing::Well), "too early: {facts:?}");
                        play[at].started = true;
                    }
                    Move::Stop(_) => {
                        prop_assert!(facts.iter().any(|one| one.standing.misfortune().is_some()));
                        play[at].state = Standing::Failed;
                    }
                }
            }
            // One that is at work ends somehow.
            let at_work: Vec<usize> =
                (0..play.len()).filter(|at| play[*at].started && play[*at].state == Standing::Open).collect();
            if at_work.is_empty() {
                break;
            }
            let (pick, how) = endings.next().expect("enough");
            let how = [Standing::Well, Standing::Well, Standing::Failed, Standing::Cancelled][usize::from(how)];
            play[at_work[pick.index(at_work.len())]].state = how;
        }
        for one in &play {
            prop_assert!(one.state != Standing::Open, "somebody waits for ever: {play:?}");
            prop_assert!(!one.started || one.after.iter().all(|other| play[*other].state == Standing::Well));
        }
    }

    #[test]
    fn everything_comes_after_what_it_requires(edges in prop::collection::vec((0..9_i64, 0..9_i64), 0..20)) {
        match order(0, &edges) {
            Ok(ordered) => {
                let mut seen = BTreeSet::new();
                for one in ordered.iter().chain([&0]) {
                    prop_assert!(edges.iter().filter(|edge| edge.0 == *one).all(|edge| seen.contains(&edge.1)));
                    prop_assert!(seen.insert(*one), "each once");
                }
            }
            Err(circle) => {
                for (at, one) in circle.iter().enumerate() {
                    let next = circle[(at + 1) % circle.len()];
                    prop_assert!(edges.contains(&(*one, next)), "{circle:?}");
                }
            }
        }
    }
}
