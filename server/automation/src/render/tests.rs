//! Rendering, its errors and its limits.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use drover_shared::words::Action;

use super::*;

fn context() -> Context {
    Context {
        action: Action::Upgrade,
        task: Task { creator: "ada".to_owned() },
        deploy_task: Some(DeployTask {
            id: 12,
            version: "2.0".to_owned(),
            level: "minor".to_owned(),
            description: "it's <new> & shiny".to_owned(),
            creator: "ada".to_owned(),
        }),
        application: Some(Application {
            id: 3,
            name: "shop".to_owned(),
            full_name: "web.shop".to_owned(),
            kind: "web".to_owned(),
            directory: "/srv/shop".to_owned(),
            run_user: "shop".to_owned(),
            startup_cmd: "bin/start".to_owned(),
            stop_cmd: "bin/stop".to_owned(),
            stdout_path: "/var/log/shop.out".to_owned(),
            stderr_path: "/var/log/shop.err".to_owned(),
            pid_path: "/run/shop.pid".to_owned(),
        }),
        version: "2.0".to_owned(),
        previous_version: None,
        deploy_path: Some("/srv/shop".to_owned()),
        release_path: Some("/srv/shop/releases/2.0-0123456789ab".to_owned()),
        host: Host {
            id: 5,
            name: "web-1".to_owned(),
            ip_addresses: vec!["10.0.0.1".to_owned(), "10.0.0.2".to_owned()],
            os_type: "linux".to_owned(),
            location: "here".to_owned(),
            environment: Some("staging".to_owned()),
            kind: "vm".to_owned(),
        },
        instance: Some(Instance { id: 9, version: Some("1.0".to_owned()) }),
        instances: [Target { id: 9, host: "web-1".to_owned(), version: Some("1.0".to_owned()) }].into_iter().collect(),
        hook: "before_switch".to_owned(),
        running_user: "shop".to_owned(),
        keep_backups: 5,
        source: Source {
            kind: "GIT".to_owned(),
            url: "https://git.example.com/shop.git".to_owned(),
            branch: "main".to_owned(),
            path: "dist".to_owned(),
        },
        vars: BTreeMap::from([("NAME".to_owned(), serde_json::json!("value"))]),
        params: BTreeMap::from([("NAME".to_owned(), serde_json::json!("given"))]),
        secrets: ["NAME".to_owned(), "OTHER".to_owned()].into_iter().collect(),
    }
}

fn rendered(text: &str) -> Result<String, RenderError> {
    render("before.sh", text, &context(), &Limits::default())
}

#[test]
fn variables_filters_and_newlines() {
    let cases = [
        ("", ""),
        ("#!/bin/sh\necho done\n\n", "#!/bin/sh\necho done\n\n"),
        ("{{ action }} {{ application.type }} {{ deploy_task.id + 1 }}\n", "upgrade web 13\n"),
        ("{{ deploy_task.description }}", "it's <new> & shiny"),
        ("{{ deploy_task.description | shell_quote }}", r"'it'\''s <new> & shiny'"),
        ("{{ host.ip_addresses | shell_quote }}", "'10.0.0.1' '10.0.0.2'"),
        ("{{ keep_backups | shell_quote }}", "'5'"),
        ("{{ host.ip_addresses | tojson }}", r#"["10.0.0.1", "10.0.0.2"]"#),
        ("{% for one in instances %}{{ one.host }}={{ one.version }};{% endfor %}", "web-1=1.0;"),
        ("{{ previous_version or 'none' }}{% if previous_version %}x{% endif %}", "none"),
        ("{% if instance %}{{ instance.id }}{% endif %}", "9"),
        ("{{ extra | default('nothing') }}{% if extra is defined %}x{% endif %}", "nothing"),
        ("{{ secrets.NAME }}", "@@drover-secret:NAME@@"),
        ("{{ secrets.NAME | shell_quote }}", "\"${DROVER_SECRET_NAME}\""),
        ("{{ (\"it's \" ~ secrets.NAME ~ '!') | shell_quote }}", r#"'it'\''s '"${DROVER_SECRET_NAME}"'!'"#),
        ("{% if secrets.NOPE is defined %}x{% endif %}{% if secrets.NAME is defined %}y{% endif %}", "y"),
        ("{% raw %}{{ kept }}{% endraw %}", "{{ kept }}"),
        ("${HOME} $(( 1 + 2 )) # {a,b}", "${HOME} $(( 1 + 2 )) # {a,b}"),
        ("{% raw %}${#a[@]}{% endraw %}{# unseen #}", "${#a[@]}"),
    ];
    for (text, expected) in cases {
        assert_eq!(rendered(text).as_deref(), Ok(expected), "{text}");
    }
}

#[test]
fn an_error_names_script_line_and_column() {
    let cases = [
        ("echo\n  é {{ hots }}\n", 2, 8, "`hots` is not defined"),
        ("{{ host.nmae }}", 1, 4, "`host.nmae` is not defined"),
        ("{{ host.nmae.first }}", 1, 4, "`host.nmae.first` is not defined"),
        ("a\nb {{ 'x' ~ nothing }}", 2, 6, "`'x' ~ nothing` is not defined"),
        ("\n{% if nothing %}x{% endif %}", 2, 7, "`nothing` is not defined"),
        (
            "{{ secrets.NOPE }}",
            1,
            4,
            "there is no secret `NOPE`, neither of the instance, its host, its environment and the application nor of the organisation",
        ),
        ("{{ nothing | shell_quote }}", 1, 4, "`nothing | shell_quote` is not defined"),
        (
            "x\n{{ previous_version }}",
            2,
            4,
            "`previous_version`: it has no value here; test it first or give another, as in `x or \"y\"`",
        ),
        ("{{ host | shell_quote }}", 1, 4, "`host | shell_quote`: a map cannot be a shell word"),
        ("{{ 1 / 0 }}", 1, 4, "unable to calculate 1 / 0"),
        ("{% include 'other' %}", 1, 4, "a script cannot include another"),
    ];
    for (text, line, column, reason) in cases {
        let expected = RenderError { script: "before.sh".to_owned(), line, column, reason: reason.to_owned() };
        assert_eq!(rendered(text), Err(expected), "{text}");
    }
    for (text, line, column) in [
        ("a\n  {{ host.name }", 2, 16),
        ("a\n{% if host %}\n", 2, 14),
        ("{% nonsense %}", 1, 4),
        ("\n\n {{ 1 + }}", 3, 9),
        ("{{ host | now }}", 1, 4),
        ("{# a #}\necho ${#a}\n", 2, 7),
        ("{{ random() }}", 1, 4),
        ("{{ debug() }}", 1, 4),
    ] {
        let error = rendered(text).unwrap_err();
        assert_eq!((error.line, error.column), (line, column), "{text}: {error}");
    }
    let shown = rendered("{{ hots }}").unwrap_err().to_string();
    assert_eq!(shown, "before.sh, line 1, column 4: `hots` is not defined");
}

#[test]
fn endless_and_enormous_scripts_stop() {
    let cases = [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "rendering takes more than"),
        ("{% for a in range(9999) %}{{ 'xxxxxxxxxx' * 100 }}{% endfor %}", "the rendered script is longer than"),
        ("{{ 'x' * 1000000000 }}", "rendering takes more than"),
        ("{{ 'x' * 600000 }}", "the rendered script is longer than"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion limit"),
        ("{% macro m(a) %}{{ m(a ~ a) }}{% endmacro %}{{ m('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa') }}", ""),
        ("{{ range(1000000000) | list | length }}", ""),
        ("{{ [[1] * 100000] * 100000 | string }}", ""),
    ];
    for (text, expected) in cases {
        let error = rendered(text).unwrap_err();
        assert!(error.reason.contains(expected), "{text}: {error}");
    }
    let deep = format!("{{{{ {}1{} }}}}", "(".repeat(5000), ")".repeat(5000));
    assert!(rendered(&deep).is_err());
    let long = rendered(&"x".repeat(300_000)).unwrap_err();
    assert_eq!(long.to_string(), "before.sh, line 1, column 1: the script is longer than 262144 bytes");
}

#[test]
fn a_quoted_word_is_the_same_word_in_a_shell() {
    let mut words: Vec<String> = vec![
        String::new(),
        " ".to_owned(),
        "it's".to_owned(),
        "''".to_owned(),
        "'\"'\"'".to_owned(),
        "$(id) `id` ${HOME} $HOME !! \\".to_owned(),
        "\\n\n\t\r".to_owned(),
        "-n".to_owned(),
        "*?[a]{b,c}~#&|;<>()".to_owned(),
        "\u{1f600} é €".to_owned(),
        (1..128).map(char::from).collect(),
    ];
    // Every short mixture of the characters that matter most.
    let special = ['\'', '"', '\\', '$', '`', ' ', '\n', 'a'];
    for first in special {
        for second in special {
            words.extend(special.map(|third| [first, second, third].iter().collect()));
        }
    }
    let mut context = context();
    context.host.ip_addresses = words.clone();
    let script = "printf '%s\\0' {{ host.ip_addresses | shell_quote }}";
    let script = render("quote.sh", script, &context, &Limits::default()).unwrap();
    let output = Command::new("bash").args(["-c", &script]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    let seen: Vec<&str> = said.split_terminator('\0').collect();
    assert_eq!(seen, words);
    context.version = "a\0b".to_owned();
    let error = render("quote.sh", "{{ version | shell_quote }}", &context, &Limits::default()).unwrap_err();
    assert!(error.reason.contains("number zero"), "{error}");
}

/// Dotted names of everything in a value; items of lists as `name[].member`.
fn names(prefix: &str, value: &serde_json::Value, into: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Object(members) => {
            for (name, member) in members {
                let separator = if prefix.is_empty() { "" } else { "." };
                names(&format!("{prefix}{separator}{name}"), member, into);
            }
        }
        serde_json::Value::Array(items) if items.iter().all(serde_json::Value::is_object) => {
            items.iter().for_each(|item| names(&format!("{prefix}[]"), item, into));
        }
        _ => {
            into.insert(prefix.to_owned());
        }
    }
}

#[test]
fn the_page_describes_every_variable_and_nothing_else() {
    let page = include_str!("../../../../docs/templates.md");
    let mut context = serde_json::to_value(context()).unwrap();
    // Shared among contexts, and therefore not among the members.
    context["instances"] = serde_json::to_value([Target { id: 9, host: String::new(), version: None }]).unwrap();
    context["secrets"] = serde_json::json!({"NAME": ""});
    let mut expected = BTreeSet::new();
    names("", &context, &mut expected);
    let section = page.split("## Variables").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
    let described: BTreeSet<String> = rows.map(|(name, _)| name.to_owned()).collect();
    assert_eq!(described, expected);
}

#[test]
fn the_examples_of_the_page_render() {
    let page = include_str!("../../../../docs/templates.md");
    let examples: Vec<&str> = page.split("```bash\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(!examples.is_empty());
    for example in examples {
        rendered(example).unwrap();
    }
}

#[test]
fn the_scripts_of_a_request_share_their_work() {
    let work = Work::of("the scripts of all targets", 100_000);
    let script = "{% for i in range(1000) %}{{ i }}{% endfor %}";
    let mut rendered = 0;
    let error = loop {
        match render_within("loop.sh", script, &context(), &work) {
            Ok(_) => rendered += 1,
            Err(error) => break error,
        }
        assert!(rendered < 1_000, "it does not end");
    };
    assert!(rendered > 3, "{rendered}");
    assert_eq!(error.reason, "rendering the scripts of all targets takes more than 100000 steps together");
    // One that is too much by itself is told so, and many that do nothing come to an end, too.
    let endless = "{% for i in range(10000) %}{% for j in range(1000) %}{% endfor %}{% endfor %}";
    let alone = render_within("loop.sh", endless, &context(), &Work::default()).unwrap_err();
    assert_eq!(alone.reason, "rendering takes more than 500000 steps");
    let little = Work::of("the scripts of all targets", 10);
    assert!((0..20).any(|_| render_within("empty.sh", "", &context(), &little).is_err()));
}
