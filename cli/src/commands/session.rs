//! `login`, `logout`, `whoami`.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::PathBuf;

use console::Term;
use serde_json::{Value, json};

use crate::api::Server;
use crate::arguments::{Global, Login};
use crate::failure::{Failure, NOT_ALLOWED, NOT_FOUND, Result};
use crate::output;
use crate::settings::{self, Kept, Target};

/// Signs in with a password and keeps an API token in its place.
pub(crate) fn login(global: &Global, login: &Login) -> Result<()> {
    let file = settings::file()?;
    let kept = settings::load(&file)?;
    let mut target = Target { token: None, ..settings::target(global, kept.as_ref())? };
    target.ca = target.ca.map(absolute).transpose()?;
    let username = match &login.username {
        Some(name) => name.clone(),
        None => ask_name()?,
    };
    let password = if login.password_stdin { first_line()? } else { ask_password(&username)? };
    let server = Server::new(&target)?;
    let session = server.post("/users/actions/login/", &json!({ "username": username, "password": password }))?;
    let Some(session_token) = session["token"].as_str() else {
        return Err(Failure::failed("the server let us in without a token"));
    };
    let server = server.with_token(session_token);
    let machine = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned());
    let name = format!("drover@{}", machine.as_deref().unwrap_or("unknown"));
    let description = "Made by `drover login`";
    let made = server.post("/auth-tokens/", &json!({ "name": name, "description": description }))?;
    let Some(token) = made["value"].as_str() else {
        return Err(Failure::failed("the server made a token and did not say which"));
    };
    let new = Kept {
        url: target.url.as_str().trim_end_matches('/').to_owned(),
        token: token.to_owned(),
        token_id: made["id"].as_i64(),
        ca: target.ca.clone(),
    };
    settings::save(&file, &new)?;
    if let Some(old) = kept.filter(|old| old.url == new.url).and_then(|old| old.token_id) {
        // The former token of this machine; somebody may have revoked it, or it was another user's.
        let _ = server.delete(&format!("/auth-tokens/{old}/"));
    }
    // The session has done its duty; it would end by itself, too.
    let _ = server.act("/users/actions/logout/");
    let user = session["user"]["username"].as_str().unwrap_or(&username);
    if global.json {
        return output::json(&json!({ "url": new.url, "username": user, "token_name": name, "config": file }));
    }
    eprintln!("Signed in to {} as {user}; the token `{name}` is kept in {}.", new.url, file.display());
    Ok(())
}

/// Revokes the kept token and forgets it.
pub(crate) fn logout(global: &Global) -> Result<()> {
    let file = settings::file()?;
    let Some(kept) = settings::load(&file)? else {
        return Err(Failure::not_allowed("not signed in: nothing to sign out from"));
    };
    let global_here = Global { url: Some(kept.url.clone()), token: None, ..global.clone() };
    let server = Server::new(&settings::target(&global_here, Some(&kept))?)?;
    let revoked = match kept.token_id.map(|id| server.delete(&format!("/auth-tokens/{id}/"))) {
        Some(Ok(_)) => true,
        // The token is gone already, which is what is wanted.
        Some(Err(failure)) if matches!(failure.code, NOT_ALLOWED | NOT_FOUND) => false,
        Some(Err(failure)) => return Err(failure),
        None => false,
    };
    settings::forget(&file)?;
    if global.json {
        return output::json(&json!({ "url": kept.url, "revoked": revoked }));
    }
    let what = if revoked { "its token is revoked" } else { "its token was not valid any more" };
    eprintln!("Signed out from {}: {what}.", kept.url);
    Ok(())
}

/// Shows who the server takes the caller for.
pub(crate) fn whoami(server: &Server, json: bool) -> Result<()> {
    let user = server.get("/users/me/")?;
    if json {
        return output::json(&user);
    }
    let roles: Vec<String> = match user["roles"].as_array() {
        Some(roles) => roles.iter().map(|role| output::cell(role, "name")).collect(),
        None => Vec::new(),
    };
    output::line(&format!("{} at {}", output::cell(&user, "username"), server.url()))?;
    for (heading, value) in
        [("name", user["name"].clone()), ("email", user["email"].clone()), ("roles", Value::String(roles.join(", ")))]
    {
        if let Some(text) = value.as_str().filter(|text| !text.is_empty()) {
            output::line(&format!("{heading:<6} {text}"))?;
        }
    }
    Ok(())
}

fn absolute(file: PathBuf) -> Result<PathBuf> {
    std::path::absolute(&file).map_err(|error| Failure::usage(format!("--ca {}: {error}", file.display())))
}

fn ask_name() -> Result<String> {
    if !io::stdin().is_terminal() {
        return Err(Failure::usage("who signs in? Give --username"));
    }
    eprint!("Username: ");
    io::stderr().flush()?;
    first_line()
}

fn ask_password(username: &str) -> Result<String> {
    let terminal = Term::stderr();
    if !io::stdin().is_terminal() || !terminal.is_term() {
        return Err(Failure::usage("no terminal to ask for the password at: give it with --password-stdin"));
    }
    eprint!("Password of {username}: ");
    io::stderr().flush()?;
    let read = terminal.read_secure_line();
    read.map_err(|error| Failure::usage(format!("cannot read the password: {error}")))
}

fn first_line() -> Result<String> {
    let mut line = String::new();
    let read = io::stdin().lock().read_line(&mut line);
    read.map_err(|error| Failure::usage(format!("cannot read standard input: {error}")))?;
    let line = line.trim_end_matches(['\n', '\r']);
    if line.is_empty() {
        return Err(Failure::usage("standard input is empty"));
    }
    Ok(line.to_owned())
}
