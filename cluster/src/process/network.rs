//! The section `[cluster]`: how the processes of one cluster find and trust each other. Nodes and gateways have the same.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};

use serde::{Deserialize, Serialize};

use super::config::{Problem, SecretFile};
use crate::{
    consensus::pace::Pace,
    link::quic::{
        Role,
        authority::Authority,
        identity::{Identity, IdentityError},
    },
    swim::{self, seal::Keys},
};

/// See the module's documentation. Without `listen` there is no cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Network {
    /// The first of three neighbouring UDP ports, and the address that they are at: who is there (SWIM), what is decided
    /// (Raft, the map), what is said (messages).
    pub listen: Option<SocketAddr>,
    /// The address at which others reach it, where that is not the one it listens at.
    pub advertise: Option<IpAddr>,
    /// Where others are found: `host:port` of the first port of some nodes, or a name with the addresses of all. Asked again
    /// and again, so that two halves of a cluster find each other.
    pub seeds: Vec<String>,
    /// The key that all processes of the cluster share, 32 bytes as 64 hex digits, and after it, one a line, those that are still
    /// believed.
    pub secret_file: Option<SecretFile>,
    /// The authority that has signed everybody's certificate (PEM).
    pub ca_file: Option<PathBuf>,
    /// This process's certificate (PEM), for the name `node.chappe` or `gateway.chappe`.
    pub certificate_file: Option<PathBuf>,
    /// Its key (PEM).
    pub key_file: Option<SecretFile>,
    /// In place of those four, where all processes are on one machine: a folder that they share. Whoever comes first makes
    /// an authority and a secret there, and whoever starts has a certificate made.
    pub development_dir: Option<PathBuf>,
    /// How fast the cluster beats; the same for all.
    pub pace: Beat,
}

/// How fast a cluster beats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Beat {
    /// For machines that have the CPU they ask for: a dead owner is replaced within three seconds.
    #[default]
    Prompt,
    /// For machines on which processes starve for seconds: it takes longer, and hunger is not taken for death.
    Generous,
}

/// Where a process of a cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// Where it says who it is.
    pub swim: SocketAddr,
    /// Where it decides.
    pub control: SocketAddr,
    /// Where it is told of messages.
    pub data: SocketAddr,
}

impl Places {
    /// The three that begin with the first.
    #[must_use]
    pub fn from(first: SocketAddr) -> Self {
        let next = |number| SocketAddr::new(first.ip(), first.port().saturating_add(number));
        Self { swim: first, control: next(1), data: next(2) }
    }
}

impl Beat {
    /// Intervals and timeouts.
    #[must_use]
    pub const fn pace(self) -> Pace {
        match self {
            Self::Prompt => Pace::PROMPT,
            Self::Generous => Pace::GENEROUS,
        }
    }
}

impl Network {
    /// Where it listens; none where there is no cluster.
    #[must_use]
    pub fn listens(&self) -> Option<Places> {
        self.listen.map(Places::from)
    }

    /// Where others reach it; none where there is no cluster.
    #[must_use]
    pub fn is_at(&self) -> Option<Places> {
        let listen = self.listen?;
        Some(Places::from(SocketAddr::new(self.advertise.unwrap_or(listen.ip()), listen.port())))
    }

    /// A process's certificate and key, and whom it believes.
    ///
    /// # Errors
    /// When a file cannot be read, or does not hold what it should.
    pub fn identity(&self, role: Role, uid: u64) -> Result<Identity, IdentityError> {
        if let Some(folder) = &self.development_dir {
            return Authority::open_or_create(folder)?.issue(role, Some(uid));
        }
        let path = |path: Option<&Path>| path.unwrap_or(Path::new("")).to_owned();
        let (ca, certificate) = (path(self.ca_file.as_deref()), path(self.certificate_file.as_deref()));
        Identity::load(&ca, &certificate, &path(self.key_file.as_ref().map(SecretFile::path)))
    }

    /// What SWIM begins with.
    ///
    /// # Errors
    /// When the cluster's secret cannot be read, or made.
    pub fn swim(&self, me: swim::Me) -> anyhow::Result<swim::Config> {
        let (listens, is_at) = self.listens().zip(self.is_at()).context("cluster.listen is not set")?;
        let file = match (&self.secret_file, &self.development_dir) {
            (Some(file), _) => file.clone(),
            (None, Some(folder)) => development_secret(folder)?,
            (None, None) => bail!("cluster.secret_file is missing"),
        };
        let keys = Keys::read(&file)?;
        let (listen, advertise) = (listens.swim, Some(is_at.swim));
        Ok(swim::Config { listen, advertise, seeds: self.seeds.clone(), me, keys, rhythm: self.pace.pace().swim })
    }

    /// Everything about these settings that would make a start fail.
    #[must_use]
    pub fn check(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let Some(listen) = self.listen else { return problems };
        let mut at = |key: &str, message: String| problems.push(Problem::at(format!("cluster.{key}"), message));
        if !(1..=u16::MAX - 2).contains(&listen.port()) {
            at("listen", format!("{} and the two ports after it are not three ports", listen.port()));
        }
        match self.advertise {
            None if listen.ip().is_unspecified() => {
                at("advertise", format!("others cannot reach it at {}: say where they can", listen.ip()));
            }
            Some(ip) if ip.is_unspecified() || ip.is_multicast() => {
                at("advertise", format!("{ip} is not an address at which others can reach it"));
            }
            _ => {}
        }
        for (number, seed) in self.seeds.iter().enumerate() {
            let port =
                seed.rsplit_once(':').and_then(|(host, port)| port.parse::<u16>().ok().filter(|_| !host.is_empty()));
            if port.is_none_or(|port| port == 0) {
                at(&format!("seeds.{number}"), format!("{seed:?} is not host:port"));
            }
        }
        let files = [
            ("secret_file", self.secret_file.as_ref().map(SecretFile::path)),
            ("ca_file", self.ca_file.as_deref()),
            ("certificate_file", self.certificate_file.as_deref()),
            ("key_file", self.key_file.as_ref().map(SecretFile::path)),
        ];
        for (key, path) in files {
            match (path, &self.development_dir) {
                (Some(_), Some(_)) => at(key, "is not used beside cluster.development_dir".to_owned()),
                (None, None) => at(key, "is missing; on one machine cluster.development_dir makes all four".to_owned()),
                (Some(path), None) => readable(path).into_iter().for_each(|why| at(key, why)),
                (None, Some(_)) => {}
            }
        }
        problems
    }
}

/// The secret of a development folder, which whoever comes first makes.
fn development_secret(folder: &Path) -> anyhow::Result<SecretFile> {
    let path = folder.join("cluster.secret");
    if !path.exists() {
        let mut bytes = [0; 32];
        aws_lc_rs::rand::fill(&mut bytes).context("the system has no random numbers")?;
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let made = folder.join(format!(".{:016x}.draft", rand::random::<u64>()));
        fs::write(&made, text + "\n").with_context(|| format!("cannot write {}", made.display()))?;
        fs::set_permissions(&made, fs::Permissions::from_mode(0o600)).context("cannot protect the cluster's secret")?;
        // Only the first is taken.
        let linked = fs::hard_link(&made, &path);
        fs::remove_file(&made).with_context(|| format!("cannot remove {}", made.display()))?;
        if let Err(error) = linked
            && !path.exists()
        {
            return Err(error).with_context(|| format!("cannot make {}", path.display()));
        }
    }
    Ok(SecretFile::new(path))
}

fn readable(path: &Path) -> Option<String> {
    std::fs::File::open(path).err().map(|error| format!("cannot read {}: {error}", path.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn keys(network: &Network) -> Vec<String> {
        network.check().into_iter().map(|problem| problem.key).collect()
    }

    #[test]
    fn without_an_address_there_is_no_cluster_and_nothing_to_check() {
        assert_eq!(keys(&Network::default()), [""; 0]);
        assert_eq!(Network::default().is_at(), None);
    }

    #[test]
    fn what_would_not_start_is_said_by_its_key() {
        let development_dir = Some(PathBuf::from("somewhere"));
        let good = Network {
            listen: "10.0.0.1:7400".parse().ok(),
            seeds: vec!["node-0.chappe:7400".to_owned(), "[::1]:7400".to_owned()],
            development_dir,
            ..Network::default()
        };
        assert_eq!(keys(&good), [""; 0]);
        let places = good.is_at().unwrap();
        assert_eq!((places.swim.port(), places.control.port(), places.data.port()), (7400, 7401, 7402));
        let everywhere = Network { listen: "0.0.0.0:65534".parse().ok(), ..good.clone() };
        assert_eq!(keys(&everywhere), ["cluster.listen", "cluster.advertise"]);
        let seeds = Network { seeds: vec!["node-0".to_owned(), ":7".to_owned(), "a:0".to_owned()], ..good.clone() };
        assert_eq!(keys(&seeds), ["cluster.seeds.0", "cluster.seeds.1", "cluster.seeds.2"]);
        let bare = Network { development_dir: None, ca_file: Some("/nowhere/ca".into()), ..good };
        let missing = ["secret_file", "ca_file", "certificate_file", "key_file"].map(|key| format!("cluster.{key}"));
        assert_eq!(keys(&bare), missing);
    }
}
