//! Figures: what was measured, in how many runs, against which limit and target; as a table and as JSON.

use serde_json::{Value, json};

/// What is good enough.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Target {
    AtMost(f64),
    AtLeast(f64),
}

/// One line of the table.
#[derive(Debug, Clone)]
pub(crate) struct Figure {
    what: String,
    unit: &'static str,
    runs: Vec<f64>,
    target: Option<Target>,
    limit: Option<(String, Vec<f64>)>,
}

impl Figure {
    pub(crate) fn new(what: impl Into<String>, unit: &'static str, mut runs: Vec<f64>) -> Self {
        runs.sort_by(f64::total_cmp);
        Self { what: what.into(), unit, runs, target: None, limit: None }
    }

    pub(crate) fn at_most(self, most: f64) -> Self {
        Self { target: Some(Target::AtMost(most)), ..self }
    }

    pub(crate) fn at_least(self, least: f64) -> Self {
        Self { target: Some(Target::AtLeast(least)), ..self }
    }

    /// What the machine can do at best, measured in the same run, in the same unit.
    pub(crate) fn beside(self, what: impl Into<String>, mut runs: Vec<f64>) -> Self {
        runs.sort_by(f64::total_cmp);
        Self { limit: Some((what.into(), runs)), ..self }
    }

    fn met(&self) -> Option<bool> {
        let middle = middle(&self.runs)?;
        self.target.map(|target| match target {
            Target::AtMost(most) => middle <= most,
            Target::AtLeast(least) => middle >= least,
        })
    }
}

/// All figures, printed as they come.
#[derive(Debug, Default)]
pub(crate) struct Report(Vec<Figure>);

impl Report {
    #[expect(clippy::print_stdout, reason = "a program for people at a terminal")]
    pub(crate) fn add(&mut self, figure: Figure) {
        println!("{}", line(&figure));
        self.0.push(figure);
    }

    pub(crate) fn json(&self) -> Value {
        let figure = |figure: &Figure| {
            let target = figure.target.map(|target| match target {
                Target::AtMost(most) => json!({"at_most": most}),
                Target::AtLeast(least) => json!({"at_least": least}),
            });
            let limit = figure.limit.as_ref().map(|(what, runs)| json!({"what": what, "median": middle(runs), "least": runs.first(), "most": runs.last()}));
            json!({
                "what": figure.what,
                "unit": figure.unit,
                "median": middle(&figure.runs),
                "least": figure.runs.first(),
                "most": figure.runs.last(),
                "runs": figure.runs.len(),
                "target": target,
                "met": figure.met(),
                "limit": limit,
            })
        };
        self.0.iter().map(figure).collect()
    }
}

fn line(figure: &Figure) -> String {
    let unit = figure.unit;
    let value = match &figure.runs[..] {
        [] => "nothing".to_owned(),
        [one] => format!("{} {unit}", number(*one)),
        [least, .., most] => {
            let middle = middle(&figure.runs).unwrap_or(0.0);
            format!("{} {unit} ({} to {})", number(middle), number(*least), number(*most))
        }
    };
    let target = match figure.target {
        Some(Target::AtMost(most)) => format!("<= {}", number(most)),
        Some(Target::AtLeast(least)) => format!(">= {}", number(least)),
        None => String::new(),
    };
    let met = match figure.met() {
        Some(true) => "met",
        Some(false) => "MISSED",
        None => "",
    };
    let limit = figure.limit.as_ref().and_then(|(what, runs)| Some(format!("{what}: {}", number(middle(runs)?))));
    format!("{:58} {value:34} {target:10} {met:7} {}", figure.what, limit.unwrap_or_default())
}

fn number(value: f64) -> String {
    let digits = match value.abs() {
        at if at >= 100.0 => 0,
        at if at >= 10.0 => 1,
        at if at >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

/// The middle of sorted values.
pub(crate) fn middle(sorted: &[f64]) -> Option<f64> {
    sorted.get(sorted.len() / 2).copied()
}

/// The value below which so many percent of the values are.
pub(crate) fn percentile(values: &mut [f64], percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get((values.len() * percent / 100).min(values.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

/// A count as a number to calculate with.
pub(crate) fn float(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}
