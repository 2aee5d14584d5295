//! What a script takes: names with types and defaults, and values for them. Pure.
//!
//! Invariants: a script that runs has a value of the right type for every parameter, and none that it does not know; whoever
//! gives a value can ask for no secret by it but one that the parameter offers.

use std::collections::{BTreeMap, BTreeSet};

use drover_kernel::{Error, Result, api_words};
use drover_shared::secret;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Parameters of a script.
const PARAMETERS_MAX: usize = 50;
/// Choices of a parameter.
const CHOICES_MAX: usize = 100;
/// Characters of a value, and of a description.
const TEXT_CHARACTERS_MAX: usize = 10_000;
/// Characters of a name.
const NAME_CHARACTERS_MAX: usize = 60;

api_words! {
    /// Type of a parameter.
    pub enum Kind {
        /// Any text.
        Text = "text",
        /// A whole number.
        Number = "number",
        /// True or false.
        Boolean = "boolean",
        /// One of its choices.
        Choice = "choice",
        /// The secret of one of the names that are its choices. Its value is put in place on the host.
        Secret = "secret",
    }
}

/// Something that a script takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ScriptParameter")]
#[serde(deny_unknown_fields)]
pub struct Parameter {
    /// Name: small letters, digits and `_`. The script finds it as `params.NAME`, and in its environment as `PARAM_NAME`.
    pub name: String,
    /// Type; a `secret` is in no environment under the parameter's name.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// What it is for.
    #[serde(default)]
    pub description: String,
    /// Value when none is given; without one it has to be given.
    #[serde(default)]
    pub default: Option<Value>,
    /// What may be chosen, for the type `choice`; for the type `secret` names of secrets.
    #[serde(default)]
    pub choices: Vec<String>,
}

impl Parameter {
    /// A value of this parameter's type; the command line gives everything as a text.
    fn value(&self, given: &Value) -> std::result::Result<Value, String> {
        match (self.kind, given) {
            (Kind::Text, Value::String(text)) if asks(text) => {
                Err("must not ask for a secret: the type secret does".to_owned())
            }
            (Kind::Text, Value::String(text)) => checked_text(text).map(Value::from),
            (Kind::Text, Value::Number(number)) => Ok(number.to_string().into()),
            (Kind::Number, Value::Number(number)) if number.is_i64() => Ok(given.clone()),
            (Kind::Number, Value::String(text)) => {
                text.trim().parse::<i64>().map(Value::from).map_err(|_| "must be a whole number".to_owned())
            }
            (Kind::Boolean, Value::Bool(_)) => Ok(given.clone()),
            (Kind::Boolean, Value::String(text)) => match text.as_str() {
                "true" => Ok(true.into()),
                "false" => Ok(false.into()),
                _ => Err("must be true or false".to_owned()),
            },
            (Kind::Choice | Kind::Secret, Value::String(text)) if self.choices.contains(text) => Ok(given.clone()),
            (Kind::Text, _) => Err("must be text".to_owned()),
            (Kind::Number, _) => Err("must be a whole number".to_owned()),
            (Kind::Boolean, _) => Err("must be true or false".to_owned()),
            (Kind::Choice | Kind::Secret, _) => Err(format!("must be one of: {}", self.choices.join(", "))),
        }
    }

    fn check(&self) -> std::result::Result<(), (&'static str, String)> {
        let good = |character: char| character.is_ascii_lowercase() || character.is_ascii_digit() || character == '_';
        let begins = self.name.starts_with(|character: char| character.is_ascii_lowercase());
        if !begins || !self.name.chars().all(good) || self.name.len() > NAME_CHARACTERS_MAX {
            let text = "must be small letters, digits and `_`, a letter first, 60 characters at most";
            return Err(("name", text.to_owned()));
        }
        checked_text(&self.description).map_err(|why| ("description", why))?;
        match (self.kind, self.choices.len()) {
            (Kind::Choice | Kind::Secret, 1..=CHOICES_MAX) => {}
            (Kind::Choice | Kind::Secret, _) => return Err(("choices", format!("give 1 to {CHOICES_MAX}"))),
            (_, 0) => {}
            _ => return Err(("choices", "are for the types choice and secret".to_owned())),
        }
        if self.kind == Kind::Secret && !self.choices.iter().all(|name| secret::is_name(name)) {
            return Err(("choices", "must be names of secrets".to_owned()));
        }
        for choice in &self.choices {
            checked_text(choice).map_err(|why| ("choices", why))?;
        }
        let Some(default) = &self.default else { return Ok(()) };
        match self.value(default) {
            Ok(value) if value == *default => Ok(()),
            Ok(_) => Err(("default", format!("must be of the type {}", self.kind))),
            Err(why) => Err(("default", why)),
        }
    }
}

/// Whether a script with this text in it, or with a part of it, would ask for a secret.
fn asks(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    lower.contains("drover-secret") || lower.contains("drover_secret")
}

fn checked_text(text: &str) -> std::result::Result<String, String> {
    if text.chars().count() > TEXT_CHARACTERS_MAX {
        return Err(format!("must have at most {TEXT_CHARACTERS_MAX} characters"));
    }
    if text.contains('\0') { Err("must not contain the character NUL".to_owned()) } else { Ok(text.to_owned()) }
}

/// Checks what a script is said to take.
///
/// # Errors
/// Names the member of the parameter that is wrong.
pub fn check(parameters: &[Parameter]) -> Result<()> {
    if parameters.len() > PARAMETERS_MAX {
        return Err(Error::invalid("parameters", format!("must have at most {PARAMETERS_MAX} elements")));
    }
    let mut names = BTreeSet::new();
    for (index, parameter) in parameters.iter().enumerate() {
        let invalid = |(member, why): (&str, String)| Error::invalid(format!("parameters[{index}].{member}"), why);
        parameter.check().map_err(invalid)?;
        if !names.insert(parameter.name.as_str()) {
            return Err(invalid(("name", "is there twice".to_owned())));
        }
    }
    Ok(())
}

/// The value of every parameter, of what is given and of defaults; of a secret what stands for its value.
///
/// # Errors
/// Names the parameter that is missing, wrong or unknown.
pub fn values(parameters: &[Parameter], given: &serde_json::Map<String, Value>) -> Result<BTreeMap<String, Value>> {
    let invalid = |name: &str, why: &str| Error::invalid(format!("parameters.{name}"), why);
    if let Some(stranger) = given.keys().find(|name| !parameters.iter().any(|one| one.name == **name)) {
        let stranger: String = stranger.chars().take(NAME_CHARACTERS_MAX).collect();
        return Err(invalid(&stranger, "the script has no such parameter"));
    }
    let mut values = BTreeMap::new();
    for parameter in parameters {
        let value = match (given.get(&parameter.name), &parameter.default) {
            (Some(given), _) => parameter.value(given).map_err(|why| invalid(&parameter.name, &why))?,
            (None, Some(default)) => default.clone(),
            (None, None) => return Err(invalid(&parameter.name, "has to be given")),
        };
        let value = match (parameter.kind, &value) {
            (Kind::Secret, Value::String(name)) => secret::placeholder(name).into(),
            _ => value,
        };
        values.insert(parameter.name.clone(), value);
    }
    Ok(values)
}

/// The values as variables of the environment, which no text can break out of. A secret has a variable of its own.
#[must_use]
pub fn environment(parameters: &[Parameter], values: &BTreeMap<String, Value>) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let open = parameters.iter().filter(|parameter| parameter.kind != Kind::Secret);
    open.filter_map(|parameter| {
        Some((format!("PARAM_{}", parameter.name.to_uppercase()), text(values.get(&parameter.name)?)))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parameters(described: Value) -> Vec<Parameter> {
        serde_json::from_value(described).expect("parameters")
    }

    fn four() -> Vec<Parameter> {
        parameters(json!([{"name": "who", "type": "text"}, {"name": "times", "type": "number", "default": 1},
            {"name": "loud", "type": "boolean", "default": false},
            {"name": "how", "type": "choice", "choices": ["soft", "hard"], "default": "soft"}]))
    }

    fn given(values: Value) -> Result<BTreeMap<String, Value>> {
        let Value::Object(given) = values else { panic!("an object") };
        super::values(&four(), &given)
    }

    #[test]
    fn defaults_fill_what_is_not_given() {
        let values = given(json!({"who": "a b"})).expect("good values");
        assert_eq!(json!(values), json!({"who": "a b", "times": 1, "loud": false, "how": "soft"}));
        let values = given(json!({"who": "$(x)", "times": "3", "loud": "true", "how": "hard"})).expect("good values");
        assert_eq!(json!(values), json!({"who": "$(x)", "times": 3, "loud": true, "how": "hard"}));
        let environment = environment(&four(), &values);
        let expected = [("PARAM_HOW", "hard"), ("PARAM_LOUD", "true"), ("PARAM_TIMES", "3"), ("PARAM_WHO", "$(x)")];
        assert_eq!(environment, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    }

    #[test]
    fn wrong_values_name_their_parameter() {
        for (values, field) in [
            (json!({}), "who"),
            (json!({"who": null}), "who"),
            (json!({"who": "a\0"}), "who"),
            (json!({"who": "a", "times": 1.5}), "times"),
            (json!({"who": "a", "times": "many"}), "times"),
            (json!({"who": "a", "loud": 1}), "loud"),
            (json!({"who": "a", "how": "other"}), "how"),
            (json!({"who": "a", "what": 1}), "what"),
            (json!({"who": "a @@drover-secret:TOKEN@@"}), "who"),
            (json!({"who": "@@Drover-Secret"}), "who"),
            (json!({"who": "$DROVER_SECRET_TOKEN"}), "who"),
        ] {
            let error = given(values).expect_err(field).to_string();
            assert!(error.starts_with(&format!("parameters.{field}: ")), "{error}");
        }
    }

    #[test]
    fn a_secret_is_one_that_is_offered_and_never_a_value() {
        let takes =
            parameters(json!([{"name": "password", "type": "secret", "choices": ["DB", "DB_2"], "default": "DB"}]));
        check(&takes).expect("good parameters");
        let given = |name: &str| values(&takes, &serde_json::Map::from_iter([("password".to_owned(), name.into())]));
        let chosen = given("DB_2").expect("one that is offered");
        assert_eq!(json!(chosen), json!({"password": "@@drover-secret:DB_2@@"}));
        assert_eq!(environment(&takes, &chosen), BTreeMap::new());
        assert_eq!(
            json!(values(&takes, &serde_json::Map::new()).expect("the default")),
            json!({"password": "@@drover-secret:DB@@"})
        );
        for other in ["TOKEN", "hunter2", "@@drover-secret:DB@@"] {
            assert_eq!(given(other).expect_err(other).to_string(), "parameters.password: must be one of: DB, DB_2");
        }
    }

    #[test]
    fn wrong_descriptions_name_their_member() {
        check(&four()).expect("good parameters");
        for (described, field) in [
            (json!([{"name": "A", "type": "text"}]), "[0].name"),
            (json!([{"name": "1", "type": "text"}]), "[0].name"),
            (json!([{"name": "a", "type": "text"}, {"name": "a", "type": "text"}]), "[1].name"),
            (json!([{"name": "a", "type": "choice"}]), "[0].choices"),
            (json!([{"name": "a", "type": "secret"}]), "[0].choices"),
            (json!([{"name": "a", "type": "secret", "choices": ["lower"]}]), "[0].choices"),
            (json!([{"name": "a", "type": "secret", "choices": ["DB"], "default": "X"}]), "[0].default"),
            (json!([{"name": "a", "type": "text", "choices": ["x"]}]), "[0].choices"),
            (json!([{"name": "a", "type": "number", "default": "3"}]), "[0].default"),
            (json!([{"name": "a", "type": "choice", "choices": ["x"], "default": "y"}]), "[0].default"),
        ] {
            let error = check(&parameters(described)).expect_err(field).to_string();
            assert!(error.starts_with(&format!("parameters{field}: ")), "{error}");
        }
    }
}
