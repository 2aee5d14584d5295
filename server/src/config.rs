//! Configuration: flag, then environment, then file, then default. An unknown key is an error.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use drover_kernel::proxies::{Proxies, ProxyHeader, network};
use drover_kernel::retention::Retention;
use drover_kernel::room::RESERVE_BYTES;
use drover_shared::limits::OUTPUT_BYTES_MAX_DEFAULT;
use drover_shared::size::size;
use serde::Deserialize;

use crate::keeping::{self, KeepArgs};

/// What every command needs to find its data.
#[derive(Debug, Clone, Default, Args)]
pub struct DataArgs {
    /// Address of the database: `sqlite:FILE` or `postgres://…` [default: an SQLite file in the data directory]
    #[arg(long, env = "DROVER_DATABASE_URL", global = true)]
    database_url: Option<String>,
    /// Folder of database, output, artifacts and keys [default: ./drover-data]
    #[arg(long, env = "DROVER_DATA_DIR", global = true)]
    data_dir: Option<PathBuf>,
    /// TOML file with these settings, `-` written as `_`
    #[arg(long, env = "DROVER_CONFIG", global = true)]
    config: Option<PathBuf>,
    /// Address that join tokens tell agents to dial [default: from --agent-listen]
    #[arg(long, env = "DROVER_AGENT_URL", global = true)]
    agent_url: Option<String>,
    /// Where agents connect, always with TLS of the server's own CA [default: 127.0.0.1:8441]
    #[arg(long, env = "DROVER_AGENT_LISTEN", global = true)]
    agent_listen: Option<SocketAddr>,
}

/// What serving needs besides.
#[derive(Debug, Clone, Default, Args)]
pub struct ServeArgs {
    /// Where people and pipelines connect [default: 127.0.0.1:8440]
    #[arg(long, env = "DROVER_LISTEN")]
    listen: Option<SocketAddr>,
    /// Certificate chain in PEM for --listen
    #[arg(long, env = "DROVER_TLS_CERT", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Private key in PEM for --listen
    #[arg(long, env = "DROVER_TLS_KEY", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Serve without TLS on an address that is not loopback, because a proxy does it
    #[arg(long, env = "DROVER_INSECURE_HTTP")]
    insecure_http: bool,
    /// Zone in which times are shown, such as Asia/Shanghai [default: UTC]
    #[arg(long, env = "DROVER_TIME_ZONE")]
    time_zone: Option<String>,
    /// Deploy tasks are reviewed by somebody else than their creator, whatever the application says
    #[arg(long, env = "DROVER_FOUR_EYES")]
    four_eyes: bool,
    /// Address or network of a proxy whose word on the client's address is taken, such as 10.0.0.0/8; may be repeated
    #[arg(long, env = "DROVER_TRUSTED_PROXY", value_name = "CIDR", value_delimiter = ',')]
    trusted_proxy: Vec<String>,
    /// Header in which the trusted proxies say it: x-forwarded-for or forwarded [default: x-forwarded-for]
    #[arg(long, env = "DROVER_PROXY_HEADER", value_name = "HEADER")]
    proxy_header: Option<String>,
    /// Space on the disk of the data directory below which nothing new is taken in, such as 512M [default: 64M]
    #[arg(long, env = "DROVER_DISK_RESERVE", value_name = "SIZE")]
    disk_reserve: Option<String>,
    /// Output of one execution that is kept, such as 1G; beyond it a mark is left and hooks go on unheard [default: 4G]
    #[arg(long, env = "DROVER_OUTPUT_LIMIT", value_name = "SIZE")]
    output_limit: Option<String>,
    /// How long what is over is kept.
    #[command(flatten)]
    keep: KeepArgs,
}

impl From<KeepArgs> for ServeArgs {
    /// For a command that serves nobody.
    fn from(keep: KeepArgs) -> Self {
        Self { keep, ..Self::default() }
    }
}

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    database_url: Option<String>,
    data_dir: Option<PathBuf>,
    agent_url: Option<String>,
    agent_listen: Option<SocketAddr>,
    listen: Option<SocketAddr>,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    insecure_http: Option<bool>,
    time_zone: Option<String>,
    four_eyes: Option<bool>,
    trusted_proxy: Option<Vec<String>>,
    proxy_header: Option<String>,
    disk_reserve: Option<String>,
    output_limit: Option<String>,
    keep_output: Option<String>,
    keep_output_size: Option<String>,
    keep_artifacts: Option<String>,
    keep_tasks: Option<String>,
    keep_tasks_least: Option<u32>,
    keep_audit: Option<String>,
}

/// Everything, settled.
#[derive(Debug, Clone)]
pub struct Config {
    /// Address of the database.
    pub database_url: String,
    /// Folder of everything else.
    pub data_directory: PathBuf,
    /// Where people connect.
    pub listen: SocketAddr,
    /// Where agents connect.
    pub agent_listen: SocketAddr,
    /// What join tokens tell agents to dial, if the operator said so.
    pub agent_url: Option<String>,
    /// Certificate and key of the people's listener.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Whether clients come through TLS.
    pub secure: bool,
    /// Zone in which times are shown.
    pub zone: chrono_tz::Tz,
    /// Whether every deploy task needs two persons.
    pub four_eyes: bool,
    /// Whose word on a client's address is taken.
    pub proxies: Proxies,
    /// Space that stays free, in bytes.
    pub disk_reserve_bytes: u64,
    /// Output of one execution that is kept, in bytes.
    pub output_bytes_max: u64,
    /// How long what is over is kept.
    pub retention: Retention,
}

impl Config {
    /// Settles flags, environment, file and defaults.
    ///
    /// # Errors
    /// Names the setting and what is wrong with it.
    pub fn settle(data: DataArgs, serve: ServeArgs) -> Result<Self> {
        let file = match &data.config {
            None => File::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
                toml::from_str(&text).with_context(|| format!("in {}", path.display()))?
            }
        };
        let data_directory = data.data_dir.or(file.data_dir).unwrap_or_else(|| Path::new("drover-data").to_owned());
        let database_url = data
            .database_url
            .or(file.database_url)
            .unwrap_or_else(|| format!("sqlite:{}", data_directory.join("drover.db").display()));
        let listen = serve.listen.or(file.listen).unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8440)));
        let tls = match (serve.tls_cert.or(file.tls_cert), serve.tls_key.or(file.tls_key)) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => bail!("tls_cert and tls_key belong together"),
        };
        let insecure = serve.insecure_http || file.insecure_http.unwrap_or(false);
        if !listen.ip().is_loopback() && tls.is_none() && !insecure {
            bail!(
                "listen: {listen} can be reached from elsewhere: give --tls-cert and --tls-key, \
                 or --insecure-http if a proxy does TLS"
            );
        }
        let given = (!serve.trusted_proxy.is_empty()).then_some(serve.trusted_proxy);
        let proxies = proxies(
            &given.or(file.trusted_proxy).unwrap_or_default(),
            serve.proxy_header.or(file.proxy_header).as_deref(),
        )?;
        let keep = KeepArgs {
            keep_output: file.keep_output,
            keep_output_size: file.keep_output_size,
            keep_artifacts: file.keep_artifacts,
            keep_tasks: file.keep_tasks,
            keep_tasks_least: file.keep_tasks_least,
            keep_audit: file.keep_audit,
        };
        let zone = serve.time_zone.or(file.time_zone).unwrap_or_else(|| "UTC".to_owned());
        Ok(Self {
            database_url,
            data_directory,
            listen,
            agent_listen: data
                .agent_listen
                .or(file.agent_listen)
                .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8441))),
            agent_url: data.agent_url.or(file.agent_url),
            secure: tls.is_some() || (insecure && !listen.ip().is_loopback()),
            tls,
            zone: zone.parse().map_err(|_| anyhow::anyhow!("time_zone: `{zone}` is no zone such as Europe/Berlin"))?,
            four_eyes: serve.four_eyes || file.four_eyes.unwrap_or(false),
            proxies,
            disk_reserve_bytes: match serve.disk_reserve.or(file.disk_reserve) {
                Some(text) => size(&text).with_context(|| format!("disk_reserve: `{text}` is no size such as 512M"))?,
                None => RESERVE_BYTES,
            },
            output_bytes_max: output_limit(serve.output_limit.or(file.output_limit))?,
            retention: keeping::settle(serve.keep, keep)?,
        })
    }

    /// What agents dial, given the address that the listener really has.
    ///
    /// # Errors
    /// When the listener is reachable under every address and the operator did not say which one agents use.
    pub fn dialled(&self, listener: SocketAddr) -> Result<String> {
        match &self.agent_url {
            Some(url) if url.starts_with("wss://") => Ok(url.trim_end_matches('/').to_owned()),
            Some(url) => bail!("agent_url: `{url}` does not begin with wss://"),
            None if listener.ip().is_unspecified() => {
                bail!("agent_url: say which address agents dial, such as wss://drover.example:{}", listener.port())
            }
            None => Ok(format!("wss://{listener}")),
        }
    }

    /// The host that agents dial, which the listener's certificate must name.
    #[must_use]
    pub fn dialled_host(&self) -> String {
        let address = self.agent_url.as_deref().and_then(|url| url.strip_prefix("wss://"));
        match address.map(|rest| rest.split('/').next().unwrap_or(rest)) {
            Some(authority) => match authority.rsplit_once(':') {
                Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host.to_owned(),
                _ => authority.to_owned(),
            },
            None => self.agent_listen.ip().to_string(),
        }
    }
}

/// Least that may be kept of an execution's output: a hook that says little is never cut off.
const OUTPUT_BYTES_MIN: u64 = 64 * 1024;

fn output_limit(given: Option<String>) -> Result<u64> {
    let Some(text) = given else { return Ok(OUTPUT_BYTES_MAX_DEFAULT) };
    let bytes = size(&text).with_context(|| format!("output_limit: `{text}` is no size such as 1G"))?;
    if bytes < OUTPUT_BYTES_MIN {
        bail!("output_limit: `{text}` is less than 64K");
    }
    Ok(bytes)
}

fn proxies(trusted: &[String], header: Option<&str>) -> Result<Proxies> {
    let networks: std::result::Result<Vec<_>, String> = trusted.iter().map(|text| network(text)).collect();
    let networks = networks.map_err(|why| anyhow::anyhow!("trusted_proxy: {why}"))?;
    if networks.iter().any(|network| network.prefix_len() == 0) {
        bail!("trusted_proxy: a network of all addresses would let every client choose its own");
    }
    let header = header.map_or(Ok(ProxyHeader::default()), str::parse);
    Ok(Proxies::new(networks, header.map_err(|why| anyhow::anyhow!("proxy_header: {why}"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_and_an_open_door_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("drover.toml");
        std::fs::write(&file, "listn = \"127.0.0.1:1\"\n").unwrap();
        let data = DataArgs { config: Some(file.clone()), ..DataArgs::default() };
        let error = format!("{:#}", Config::settle(data.clone(), ServeArgs::default()).unwrap_err());
        assert!(error.contains("listn"), "{error}");
        std::fs::write(&file, "listen = \"0.0.0.0:8440\"\n").unwrap();
        let error = Config::settle(data.clone(), ServeArgs::default()).unwrap_err().to_string();
        assert!(error.starts_with("listen: 0.0.0.0:8440"), "{error}");
        let flag = ServeArgs { listen: Some(SocketAddr::from(([127, 0, 0, 1], 7))), ..ServeArgs::default() };
        assert_eq!(Config::settle(data, flag).unwrap().listen.port(), 7);
    }

    #[test]
    fn agents_dial_what_the_operator_says() {
        let dial = |url: &str| {
            let data = DataArgs { agent_url: Some(url.to_owned()), ..DataArgs::default() };
            Config::settle(data, ServeArgs::default()).unwrap()
        };
        assert_eq!(dial("wss://drover.example:9000/").dialled_host(), "drover.example");
        assert_eq!(dial("wss://[::1]:9000").dialled_host(), "[::1]");
        assert!(dial("http://x").dialled(SocketAddr::from(([127, 0, 0, 1], 1))).is_err());
    }

    #[test]
    fn the_output_limit_is_a_size_that_is_worth_keeping() {
        assert_eq!(output_limit(None).expect("a default"), OUTPUT_BYTES_MAX_DEFAULT);
        assert_eq!(output_limit(Some("64K".to_owned())).expect("a size"), 65_536);
        for text in ["63K", "0", "much"] {
            let error = output_limit(Some(text.to_owned())).expect_err("a refusal").to_string();
            assert!(error.contains("output_limit") && error.contains(text), "{error}");
        }
    }

    #[test]
    fn proxies_are_named_exactly() {
        let settle = |trusted: &[&str], header: Option<&str>| {
            let trusted_proxy = trusted.iter().map(|&text| text.to_owned()).collect();
            let serve = ServeArgs { trusted_proxy, proxy_header: header.map(str::to_owned), ..ServeArgs::default() };
            Config::settle(DataArgs::default(), serve).map_err(|error| error.to_string())
        };
        assert!(settle(&["10.0.0.0/8", "::1"], Some("Forwarded")).is_ok());
        for (trusted, header, field) in [
            (&["proxy.example"][..], None, "trusted_proxy: `proxy.example`"),
            (&["0.0.0.0/0"], None, "trusted_proxy: a network of all addresses"),
            (&["::/0"], None, "trusted_proxy: a network of all addresses"),
            (&[], Some("via"), "proxy_header: "),
        ] {
            let error = settle(trusted, header).unwrap_err();
            assert!(error.starts_with(field), "{error}");
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("drover.toml");
        std::fs::write(&file, "trusted_proxy = [\"10.0.0.0/33\"]\n").unwrap();
        let data = DataArgs { config: Some(file), ..DataArgs::default() };
        assert!(Config::settle(data.clone(), ServeArgs::default()).is_err());
        let flag = ServeArgs { trusted_proxy: vec!["10.0.0.0/8".to_owned()], ..ServeArgs::default() };
        assert!(Config::settle(data, flag).is_ok(), "a flag wins over the file");
    }
}
