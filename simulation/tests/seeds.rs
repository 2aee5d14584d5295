//! A fixed number of seeds, and that a seed gives the same run twice.

use drover_simulation::simulate;

/// Runs of each test: the tests run beside each other.
const SEEDS: u64 = 9;

fn hold(first: u64) {
    for seed in first..first + SEEDS {
        let outcome = simulate(seed, None, false);
        if let Err((promise, why)) = outcome.promises {
            panic!("{promise} is broken, see it with `cargo xtask simulate --seed {seed}`: {why}\n{}", outcome.tail);
        }
    }
}

#[test]
fn the_promises_hold_1() {
    hold(1);
}

#[test]
fn the_promises_hold_2() {
    hold(1_001);
}

#[test]
fn the_promises_hold_3() {
    hold(2_001);
}

#[test]
fn the_promises_hold_4() {
    hold(3_001);
}

/// What a seed finds it finds again.
#[test]
fn a_seed_gives_the_same_run_twice() {
    for seed in [2, 24, 28] {
        let (first, second) = (simulate(seed, None, false), simulate(seed, None, false));
        let different = first.lines.iter().zip(&second.lines).position(|(one, other)| one != other);
        assert_eq!(first.trace, second.trace, "seed {seed}, from line {different:?} on");
    }
}
