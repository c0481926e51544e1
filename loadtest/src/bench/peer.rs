//! Raw peers as child processes, so that their CPU is counted like the server's.

use std::{process::Stdio, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

use crate::{client::Target, crowd::Person};

/// A running peer; it ends with this value.
#[derive(Debug)]
pub(super) struct RawPeer {
    child: Child,
    address: String,
}

impl RawPeer {
    /// Starts this binary's hidden command.
    pub(super) async fn start(args: &[String]) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(args)
            // Held open: a peer ends when whoever started it has ended, however that came.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start a raw peer")?;
        let stdout = child.stdout.take().context("the raw peer has no stdout")?;
        let mut lines = BufReader::new(stdout).lines();
        let line = timeout(Duration::from_secs(10), lines.next_line()).await.context("the raw peer is not ready")??;
        match line.as_deref().and_then(|line| line.strip_prefix("listening on ")) {
            Some(address) => Ok(Self { child, address: address.to_owned() }),
            None => bail!("the raw peer said {line:?}"),
        }
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// People who connect to it, each into a group of theirs.
    pub(super) async fn people(&self, groups: impl IntoIterator<Item = usize>) -> anyhow::Result<Vec<Person>> {
        let mut people = Vec::new();
        let mut target: Option<(usize, Arc<Target>)> = None;
        for (index, group) in groups.into_iter().enumerate() {
            let target = match &target {
                Some((same, target)) if *same == group => Arc::clone(target),
                _ => {
                    let new = Arc::new(Target::resolve(&format!("http://{}/raw/{group}", self.address)).await?);
                    target = Some((group, Arc::clone(&new)));
                    new
                }
            };
            people.push(Person { user: format!("raw-{index}"), token: "raw".into(), target, speech: None });
        }
        Ok(people)
    }

    pub(super) async fn stop(mut self) {
        // It may have ended by itself.
        let _ = self.child.kill().await;
    }
}
