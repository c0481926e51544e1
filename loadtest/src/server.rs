//! A real server as a child process: on free ports, on a data directory of its own, killed without mercy on demand.

use std::{
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::{sleep, timeout},
};

use crate::{
    client::{http::Http, token::Signer},
    metrics::Metrics,
};

/// How long a start or an announced end may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What lifts the limits.
const UNLIMITED: [&str; 4] =
    ["--set", "gateway.limits.sends.per_second=0", "--set", "gateway.limits.commands.per_second=0"];

/// How to start a server.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// The binary; `None`: `chappe-node` beside this one.
    pub binary: Option<PathBuf>,
    /// Where its data lives; `None`: a temporary directory that ends with it.
    pub data_dir: Option<PathBuf>,
    /// Lift the limits per user: a load test asks what the server can do, not what one user may.
    pub unlimited: bool,
    /// Further arguments.
    pub args: Vec<String>,
    /// Further environment.
    pub env: Vec<(String, String)>,
    /// A command in front of the binary, for example `strace …`.
    pub wrapper: Vec<String>,
}

/// A running, or killed, server.
#[derive(Debug)]
pub struct Server {
    setup: Setup,
    binary: PathBuf,
    data_dir: PathBuf,
    /// Holds the directory until the end.
    _home: Option<TempDir>,
    log: PathBuf,
    child: Option<Child>,
    listen: String,
    admin: String,
}

impl Server {
    /// Starts a server and waits until it is ready.
    pub async fn start(setup: Setup) -> anyhow::Result<Self> {
        let binary = setup.binary.clone().map_or_else(beside_us, Ok)?;
        let home = match setup.data_dir {
            Some(_) => None,
            None => Some(tempfile::Builder::new().prefix("chappe-").tempdir()?),
        };
        let data_dir = match (&setup.data_dir, &home) {
            (Some(data_dir), _) => data_dir.clone(),
            (None, Some(home)) => home.path().join("data"),
            (None, None) => bail!("no data directory"),
        };
        let log = data_dir.with_extension("log");
        let any = "127.0.0.1:0".to_owned();
        let mut server =
            Self { setup, binary, data_dir, _home: home, log, child: None, listen: any.clone(), admin: any };
        server.run().await?;
        Ok(server)
    }

    /// Starts again what was killed or terminated: same data, same addresses.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        if self.child.is_some() {
            self.kill().await?;
        }
        self.run().await
    }

    async fn run(&mut self) -> anyhow::Result<()> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut words = self.setup.wrapper.iter().map(Into::into).chain([self.binary.clone().into_os_string()]);
        let mut command = Command::new(words.next().context("no command")?);
        command
            .args(words)
            .arg("--data-dir")
            .arg(&self.data_dir)
            .args(["--listen", &self.listen, "--admin", &self.admin])
            .args(if self.setup.unlimited { &UNLIMITED[..] } else { &[] })
            .args(&self.setup.args)
            .envs(self.setup.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("cannot start {}", self.binary.display()))?;
        let stdout = child.stdout.take().context("the server has no stdout")?;
        self.child = Some(child);
        let mut lines = BufReader::new(stdout).lines();
        let ready = async {
            while let Some(line) = lines.next_line().await? {
                if let Some(addresses) = addresses(&line) {
                    return Ok(addresses);
                }
            }
            bail!("the server ended before it was ready:\n{}", self.last_words())
        };
        let (listen, admin) = timeout(PATIENCE, ready)
            .await
            .with_context(|| format!("the server is not ready:\n{}", self.last_words()))??;
        (self.listen, self.admin) = (listen, admin);
        // Whoever does not read what a child prints makes it wait in the end.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        self.wait_ready().await
    }

    async fn wait_ready(&self) -> anyhow::Result<()> {
        let http = Http::new(&self.admin_url());
        let ready = async {
            while http.text("/readyz").await.is_err() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, ready).await.with_context(|| format!("/readyz says no:\n{}", self.last_words()))
    }

    /// The program that runs.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Where clients connect, as `http://host:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.listen)
    }

    /// The admin port, as `http://host:port`.
    pub fn admin_url(&self) -> String {
        format!("http://{}", self.admin)
    }

    /// Its data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Its process id; `None` when it does not run. With a wrapper, the wrapper's.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Signs tokens that it accepts.
    pub fn signer(&self) -> anyhow::Result<Signer> {
        Signer::of_data_dir(&self.data_dir)
    }

    /// Its figures.
    pub async fn metrics(&self) -> anyhow::Result<Metrics> {
        Ok(Metrics::parse(&Http::new(&self.admin_url()).text("/metrics").await?))
    }

    /// The end of its log.
    pub fn last_words(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(4000)..]).into_owned()
    }

    /// Sends a signal to it alone, by its process id.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = self.pid().and_then(|pid| Pid::from_raw(pid as i32)).context("the server does not run")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    pub async fn terminate(&mut self) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.ended().await
    }

    /// Ends it at once (SIGKILL).
    pub async fn kill(&mut self) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::KILL)?;
        self.ended().await
    }

    /// Whether it has ended, by itself or because it was killed.
    pub fn has_ended(&mut self) -> anyhow::Result<bool> {
        if let Some(child) = &mut self.child
            && child.try_wait()?.is_some()
        {
            self.child = None;
        }
        Ok(self.child.is_none())
    }

    /// Waits until it ends by itself.
    pub async fn ended(&mut self) -> anyhow::Result<ExitStatus> {
        let child = self.child.as_mut().context("the server does not run")?;
        let status = timeout(PATIENCE, child.wait()).await.context("the server does not end")??;
        self.child = None;
        Ok(status)
    }
}

/// The addresses in `listening on http://127.0.0.1:8080, admin on http://127.0.0.1:9090`.
fn addresses(line: &str) -> Option<(String, String)> {
    let after = |mark: &str| {
        let rest = &line[line.find(mark)? + mark.len()..];
        Some(rest.split([',', ' ', '/']).next()?.to_owned())
    };
    Some((after("listening on http://")?, after("admin on http://")?))
}

/// The server's binary beside ours, or one folder up when we are a test.
fn beside_us() -> anyhow::Result<PathBuf> {
    let ours = std::env::current_exe()?;
    let folders = ours.ancestors().skip(1).take(2);
    let found = folders.map(|folder| folder.join("chappe-node")).find(|path| path.is_file());
    found.with_context(|| format!("there is no chappe-node beside {}; build it, or say where it is", ours.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_is_read() {
        let line = "chappe: listening on http://127.0.0.1:8080, admin on http://127.0.0.1:9090";
        assert_eq!(addresses(line), Some(("127.0.0.1:8080".into(), "127.0.0.1:9090".into())));
        assert_eq!(addresses("starting"), None);
    }
}
