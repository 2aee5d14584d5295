//! The server's command line.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use drover_automation::engine::{self, Engine, Restored};
use drover_automation::link::enrol::JoinTokenOptions;
use drover_automation::link::keys::{Keys, certificate_names};
use drover_automation::link::{self, create_join_token};
use drover_automation::retention;
use drover_kernel::db::{Db, DbOptions};
use drover_kernel::secrets::KeyText;
use drover_kernel::{Clock, Kernel, Settings, pulse, serve};
use drover_server::config::{Config, DataArgs, ServeArgs};
use drover_server::keeping::KeepArgs;
use drover_server::{VERSION, backup, bare_kernel, gc, http, jobs, kernel};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tracing_subscriber::EnvFilter;

/// Time that requests, sockets and background work have to end; closing the stores comes on top.
const STOP: Duration = Duration::from_secs(7);

/// Files and connections that the server has open besides one for each agent.
const OPEN_BESIDES_AGENTS: u64 = 1_000;

/// Deploys applications and operates hosts.
#[derive(Parser)]
#[command(name = "drover-server", version = VERSION)]
struct Arguments {
    #[command(flatten)]
    data: DataArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve API, console and agents
    Serve(Box<ServeArgs>),
    /// Write database and data directory into one file, while the server works
    Backup {
        /// The file; it holds keys, and only this account can read it
        file: PathBuf,
    },
    /// Fill an empty database and a new data directory from a backup, while no server works with them
    Restore {
        /// The file
        file: PathBuf,
    },
    /// Remove what is older than it is kept, as the server does every hour
    Gc {
        /// Only say what would be removed
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        keep: KeepArgs,
    },
    /// API tokens
    #[command(subcommand)]
    Token(TokenCommand),
    /// Tokens with which agents join
    #[command(subcommand)]
    JoinToken(JoinTokenCommand),
}

#[derive(Subcommand)]
enum TokenCommand {
    /// Make an API token and print it
    Create {
        /// Login name of the user that the token acts as
        #[arg(long)]
        user: String,
        /// What the token is called
        #[arg(long)]
        name: String,
    },
}

#[derive(Subcommand)]
enum JoinTokenCommand {
    /// Make a join token and print it
    Create {
        /// The one host that may use it
        #[arg(long)]
        host: Option<String>,
        /// How long it works, such as 30m, 1h or 7d
        #[arg(long, default_value = "1h", value_parser = duration)]
        ttl: Duration,
        /// How many hosts may use it
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        uses: u32,
    },
}

fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let seconds = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err("a duration is a number with s, m, h or d, such as 1h".to_owned()),
    };
    match number.parse::<u64>().ok().and_then(|number| number.checked_mul(seconds)) {
        Some(seconds @ 1..=31_536_000) => Ok(Duration::from_secs(seconds)),
        _ => Err("a duration is between 1 s and 365 d".to_owned()),
    }
}

fn main() -> Result<()> {
    // A write beyond a file size limit then fails as one on a full disk does.
    SigSet::from_iter([Signal::SIGXFSZ]).thread_block().context("signals")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no runtime")?;
    runtime.block_on(carry_out())
}

async fn carry_out() -> Result<()> {
    let filter = EnvFilter::try_from_env("DROVER_LOG").unwrap_or_else(|_| EnvFilter::new("info,sqlx=warn,apalis=warn"));
    // A log that cannot be written, because it lies on a full disk for example, ends nothing.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    log.log_internal_errors(false).init();
    let arguments = Arguments::parse();
    match arguments.command {
        Command::Serve(serve_arguments) => run(Config::settle(arguments.data, *serve_arguments)?).await,
        Command::Backup { file } => {
            let config = Config::settle(arguments.data, ServeArgs::default())?;
            let written = backup::backup(&config, &file).await?;
            let megabytes = |bytes: u64| bytes.div_ceil(1_000_000);
            let (files, bytes, packed) = (written.files, megabytes(written.bytes), megabytes(written.packed_bytes));
            print(&format!("{} holds {files} files of {bytes} MB in {packed} MB", file.display()));
            Ok(())
        }
        Command::Restore { file } => {
            let config = Config::settle(arguments.data, ServeArgs::default())?;
            let Restored { under_way, held } = backup::restore(&config, &file).await?;
            print(&format!("Restored to {}", config.data_directory.display()));
            if under_way > 0 {
                print(&format!(
                    "{under_way} executions were under way: how they ended their hosts say, or nobody knows"
                ));
            }
            if held > 0 {
                print(&format!(
                    "{held} tasks are held, because part of them may have run since: resume or cancel them"
                ));
            }
            Ok(())
        }
        Command::Gc { dry_run, keep } => {
            let config = Config::settle(arguments.data, keep.into())?;
            let settings = Settings { secret_key: secret_key(), ..Settings::default() };
            let db = open(&config).await?;
            print(&gc::gc(&config, db, settings, dry_run).await?.to_string());
            Ok(())
        }
        Command::Token(TokenCommand::Create { user, name }) => {
            let config = Config::settle(arguments.data, ServeArgs::default())?;
            let kernel = bare(&config).await?;
            print(&drover_identity::create_token(&kernel.work(), &user, &name).await?);
            kernel.stop(STOP).await;
            Ok(())
        }
        Command::JoinToken(JoinTokenCommand::Create { host, ttl, uses }) => {
            let config = Config::settle(arguments.data, ServeArgs::default())?;
            let kernel = bare(&config).await?;
            let keys = Keys::open(&config.data_directory)?;
            // The running server may have chosen its port itself.
            let url = match std::fs::read_to_string(config.data_directory.join(AGENT_ADDRESS)) {
                Ok(url) if config.agent_url.is_none() => url.trim().to_owned(),
                _ => config.dialled(config.agent_listen)?,
            };
            let options = JoinTokenOptions { url, host_name: host, ttl, uses };
            print(&create_join_token(&kernel.work(), &keys, options).await?);
            kernel.stop(STOP).await;
            Ok(())
        }
    }
}

/// File in which a running server says where agents dial.
const AGENT_ADDRESS: &str = "agent-url";

#[expect(clippy::print_stdout, reason = "the command's answer")]
fn print(text: &str) {
    println!("{text}");
}

/// Makes the data directory, for the server's account alone: it holds scripts, output and sources.
fn make_private(folder: &std::path::Path) -> Result<()> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("make {}", folder.display()))?;
    let mode = std::fs::metadata(folder)?.permissions().mode();
    if mode & 0o077 != 0 {
        tracing::warn!(folder = %folder.display(), "other accounts can read the data directory: chmod 700 it");
    }
    Ok(())
}

/// Opens the database and brings it up to date.
async fn open(config: &Config) -> Result<Db> {
    backup::check_whole(&config.data_directory)?;
    make_private(&config.data_directory)?;
    let db = Db::connect(&DbOptions::url(&config.database_url)).await.context("open the database")?;
    db.migrate(&Clock::system()).await.context("bring the database up to date")?;
    Ok(db)
}

/// Keys of stored secrets that the operator keeps outside the data directory. No flag: every account of the machine can
/// read the arguments of a process.
fn secret_key() -> Option<KeyText> {
    std::env::var("DROVER_SECRET_KEY").ok().filter(|text| !text.is_empty()).map(KeyText::from)
}

/// A kernel for work on the database alone.
async fn bare(config: &Config) -> Result<Kernel> {
    let settings = Settings { secret_key: secret_key(), ..Settings::default() };
    bare_kernel(open(config).await?, Clock::system(), settings, &config.data_directory)
}

/// Has as many files open as the operator allows: the usual soft limit, 1,024, is far below the agents that a server takes.
fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most).map(|()| most));
    let needed = link::CONNECTIONS_MAX as u64 + OPEN_BESIDES_AGENTS;
    match raised {
        Ok(most) if most < needed => tracing::warn!(
            most,
            needed,
            "few files may be open: agents beyond that are turned away (`LimitNOFILE=` of systemd, `ulimit -Hn`)"
        ),
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "the limit of open files cannot be raised"),
    }
}

async fn run(config: Config) -> Result<()> {
    raise_open_files();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let db = open(&config).await?;
    let settings = Settings {
        zone: config.zone,
        four_eyes: config.four_eyes,
        secure: config.secure,
        secret_key: secret_key(),
        proxies: config.proxies.clone(),
        disk_reserve_bytes: config.disk_reserve_bytes,
        output_bytes_max: config.output_bytes_max,
        retention: config.retention.clone(),
        ..Settings::default()
    };
    let kernel = kernel(db, Clock::system(), settings, &config.data_directory)?;
    let work = kernel.work();
    let password = std::env::var("DROVER_ADMIN_PASSWORD").ok().filter(|password| !password.is_empty());
    if let Some(password) = drover_identity::ensure_administrator(&work, password).await? {
        print(&format!("The first administrator is `admin` with the password {password}"));
    }
    link::forget_connections(&work).await?;
    let listener = TcpListener::bind(config.listen).await.with_context(|| format!("listen on {}", config.listen))?;
    let agents = link::bind(config.agent_listen).await.with_context(|| format!("listen on {}", config.agent_listen))?;
    let names = certificate_names(&config.dialled_host());
    let agent_tls = kernel.part::<Engine>().keys.server_config(names)?;
    let tls = config.tls.as_ref().map(|(certificate, key)| people_tls(certificate, key)).transpose()?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    print(&format!("Serving {scheme}://{} and agents on {}", listener.local_addr()?, agents.local_addr()?));
    match config.dialled(agents.local_addr()?) {
        Ok(url) => std::fs::write(config.data_directory.join(AGENT_ADDRESS), url)?,
        Err(error) => tracing::warn!(%error, "join tokens cannot be made yet"),
    }
    let mut running = (
        kernel.spawn(serve::serve(kernel.clone(), listener, http(&kernel), tls)),
        kernel.spawn(link::serve(kernel.clone(), agents, agent_tls, link::Patience::default())),
        kernel.spawn(engine::sweep(kernel.clone())),
        kernel.spawn(retention::keep(kernel.clone())),
        kernel.spawn(pulse::beat(kernel.clone())),
        kernel.spawn(jobs().run(kernel.clone())),
    );
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        part = any_ended(&mut running) => {
            // Half a server would look like a whole one: who started this one starts another.
            stop(&kernel).await;
            bail!("{part} ended, which nothing does while the server runs: the log says why");
        }
    }
    tracing::info!("stopping; running hooks go on under their agents");
    stop(&kernel).await;
    Ok(())
}

/// Waits until one of the server's parts has ended, by a panic for instance.
async fn any_ended((requests, agents, sweep, retention, pulse, queue): &mut Parts) -> &'static str {
    tokio::select! {
        _ = requests => "the listener for people",
        _ = agents => "the listener for agents",
        _ = sweep => "the sweep",
        _ = retention => "the removal of what is old",
        _ = pulse => "the trial of the database",
        _ = queue => "the queue of wake-ups",
    }
}

/// What runs for as long as the server does.
type Parts = (JoinHandle<()>, JoinHandle<()>, JoinHandle<()>, JoinHandle<()>, JoinHandle<()>, JoinHandle<()>);

async fn stop(kernel: &Kernel) {
    let engine = kernel.part::<Engine>();
    kernel.stop(STOP).await;
    engine.logs.close().await;
}

fn people_tls(certificate: &std::path::Path, key: &std::path::Path) -> Result<Arc<ServerConfig>> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .with_context(|| format!("read certificates from {}", certificate.display()))?;
    let key = PrivateKeyDer::from_pem_file(key).with_context(|| format!("read the key {}", key.display()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("tls_cert and tls_key")?;
    Ok(Arc::new(config))
}
