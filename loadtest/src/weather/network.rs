//! A network of its own on one machine, on which any way can be cut: network namespaces around a router.
//!
//! Every host is a namespace with one wire to the router, a namespace too; this process is a host with some addresses in the
//! machine's own. A cut is a rule of the router, "from this address to that one: nowhere": packets vanish without a word to
//! whoever sent them, in one direction or both, between two hosts or all. Nothing but the kernel's routing does it, so no packet
//! filter needs to be there.
//!
//! Needs root and `ip` (iproute2). All of it ends with the value. If a tester is killed its namespaces stay behind; the next
//! network that is made removes them.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write},
    net::Ipv4Addr,
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};

/// How our namespaces are called; whose they are follows.
const NAME: &str = "chappe-";

/// Networks that there are to choose from: 198.18.0.0/15 is kept free for tests of networks (RFC 2544), and has so many with
/// 256 addresses.
const SUBNETS: u32 = 512;

/// The last number of the router's address.
const ROUTER: u8 = 254;

/// The last number of the first host's address, and most hosts.
const FIRST_HOST: u8 = 10;
const HOSTS_MAX: usize = (ROUTER - FIRST_HOST) as usize;

/// Addresses of this process.
const HERE: usize = 4;

/// The preference of all rules that cut: before any that the kernel makes.
const CUTS: &str = "100";

/// See the module's documentation.
#[derive(Debug)]
pub struct Network {
    name: String,
    subnet: u32,
    hosts: usize,
    /// From where nothing comes through, and to where.
    cuts: Mutex<BTreeSet<(Ipv4Addr, Ipv4Addr)>>,
}

impl Network {
    /// Makes a network with so many hosts, and removes what killed testers left.
    ///
    /// # Errors
    /// With what `ip` said.
    pub fn make(hosts: usize) -> io::Result<Self> {
        if hosts > HOSTS_MAX {
            return Err(io::Error::other(format!("a network has at most {HOSTS_MAX} hosts")));
        }
        sweep()?;
        let network = Self::begin(hosts)?;
        network.build()?;
        Ok(network)
    }

    /// The router, and the wire to it, whose name in the machine's own namespace takes the addresses for this process.
    fn begin(hosts: usize) -> io::Result<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{number}-", owner(std::process::id()).unwrap_or_default());
        ip(&format!("netns add {NAME}{name}router"))?;
        let mut network = Self { name, subnet: 0, hosts, cuts: Mutex::default() };
        let first = std::process::id() % SUBNETS;
        let mut why = io::Error::other("all networks of 198.18.0.0/15 are used");
        for subnet in (0..SUBNETS).map(|step| (first + step) % SUBNETS) {
            network.subnet = subnet;
            let used = ip(&format!("-4 route show table all root {}/24", network.address(0)))?;
            if !used.is_empty() {
                continue;
            }
            match ip(&format!("link add name {} type veth peer name home netns {}", network.wire(), network.router())) {
                Ok(_) => return Ok(network),
                // Somebody else has been quicker.
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    fn build(&self) -> io::Result<()> {
        let (router, wire, at) = (self.router(), self.wire(), self.address(ROUTER));
        let mut here = format!("link set {wire} up\n");
        let mut there = format!("link set lo up\naddr add {at}/32 dev home\nlink set home up\n");
        for number in 0..HERE {
            here += &format!("addr add {}/32 dev {wire}\n", self.here(number));
            there += &format!("route add {}/32 dev home\n", self.here(number));
        }
        let (all, first) = (self.address(0), self.here(0));
        here += &format!("route add {at}/32 dev {wire} src {first}\n");
        here += &format!("route add {all}/24 via {at} dev {wire} src {first}\n");
        for number in 0..self.hosts {
            let (host, address) = (self.name_of(number), self.host(number));
            ip(&format!("netns add {host}"))?;
            ip(&format!("-n {router} link add name to{number} type veth peer name eth0 netns {host}"))?;
            there += &format!("addr add {at}/32 dev to{number}\nlink set to{number} up\n");
            there += &format!("route add {address}/32 dev to{number}\n");
            let own = format!(
                "link set lo up\naddr add {address}/32 dev eth0\nlink set eth0 up\nroute add {at}/32 dev eth0\n\
                 route add default via {at} dev eth0\n"
            );
            batch(&["-n", &host], &own)?;
        }
        batch(&["-n", &router], &there)?;
        batch(&[], &here)?;
        let forward = ["netns", "exec", &router, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"];
        said(Command::new("ip").args(forward).output()?).map(drop)
    }

    fn router(&self) -> String {
        format!("{NAME}{}router", self.name)
    }

    fn name_of(&self, host: usize) -> String {
        format!("{NAME}{}{host}", self.name)
    }

    fn wire(&self) -> String {
        format!("chappe{}", self.subnet)
    }

    const fn address(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(198, 18 + (self.subnet >> 8) as u8, self.subnet as u8, last)
    }

    /// A host's address, by its number from 0 on.
    #[must_use]
    pub const fn host(&self, number: usize) -> Ipv4Addr {
        self.address(FIRST_HOST + number as u8)
    }

    /// An address of this process, by its number from 0 to 3. Several, so that what is behind one can be cut off alone.
    #[must_use]
    pub const fn here(&self, number: usize) -> Ipv4Addr {
        self.address(1 + number as u8)
    }

    /// The words that go in front of a command which is to run on a host. The process is the command's own.
    #[must_use]
    pub fn on(&self, host: usize) -> [String; 4] {
        ["ip", "netns", "exec", &self.name_of(host)].map(str::to_owned)
    }

    /// From now on nothing comes from any of these to any of those. The other way stays as it is.
    ///
    /// # Errors
    /// With what `ip` said.
    pub fn cut(&self, from: &[Ipv4Addr], to: &[Ipv4Addr]) -> io::Result<()> {
        let mut cuts = self.cuts.lock();
        let all = from.iter().flat_map(|from| to.iter().map(move |to| (*from, *to)));
        let new: Vec<_> = all.filter(|cut| cut.0 != cut.1 && !cuts.contains(cut)).collect();
        self.rules("add", &new)?;
        cuts.extend(new);
        Ok(())
    }

    /// Nothing comes through between these and those, in either direction.
    ///
    /// # Errors
    /// With what `ip` said.
    pub fn part(&self, these: &[Ipv4Addr], those: &[Ipv4Addr]) -> io::Result<()> {
        self.cut(these, those)?;
        self.cut(those, these)
    }

    /// All ways are open again.
    ///
    /// # Errors
    /// With what `ip` said.
    pub fn heal(&self) -> io::Result<()> {
        let cuts: Vec<_> = std::mem::take(&mut *self.cuts.lock()).into_iter().collect();
        self.rules("del", &cuts)
    }

    fn rules(&self, what: &str, cuts: &[(Ipv4Addr, Ipv4Addr)]) -> io::Result<()> {
        let line =
            |(from, to): &(Ipv4Addr, Ipv4Addr)| format!("rule {what} pref {CUTS} from {from} to {to} blackhole\n");
        batch(&["-n", &self.router()], &cuts.iter().map(line).collect::<String>())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let wire = self.wire();
        if fs::exists(format!("/sys/class/net/{wire}")).unwrap_or(false) {
            // At once; the kernel takes its time with namespaces.
            complain(ip(&format!("link del {wire}")));
        }
        let hosts = (0..self.hosts).map(|host| self.name_of(host));
        for name in hosts.chain([self.router()]) {
            if fs::exists(format!("/run/netns/{name}")).unwrap_or(false) {
                complain(remove(&name));
            }
        }
    }
}

fn complain<T>(result: io::Result<T>) {
    if let Err(error) = result {
        eprintln!("weather: {error}");
    }
}

/// Whether networks can be made; if not, what is to be said.
///
/// # Errors
/// With the sentence.
pub fn available() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("network namespaces need root".to_owned());
    }
    if Command::new("ip").arg("-V").stdout(Stdio::null()).status().is_err() {
        return Err("ip is not installed (iproute2)".to_owned());
    }
    let network = Network::make(1).map_err(|error| format!("a network of namespaces cannot be made: {error}"))?;
    let cut = network.part(&[network.host(0)], &[network.here(0)]);
    cut.map_err(|error| format!("a way between namespaces cannot be cut: {error}"))
}

/// Removes what killed testers left, and the processes that are still in it. Returns how many namespaces there were.
///
/// # Errors
/// With what `ip` said.
pub fn sweep() -> io::Result<usize> {
    let mut swept = 0;
    // `ip` knows them by their files; that there are none yet is no mistake.
    let Ok(names) = fs::read_dir("/run/netns") else { return Ok(0) };
    for name in names {
        let name = name?.file_name().to_string_lossy().into_owned();
        let Some((pid, since)) = name.strip_prefix(NAME).and_then(|rest| rest.split_once('-')) else { continue };
        let Some((pid, (since, _))) = pid.parse::<u32>().ok().zip(since.split_once('-')) else { continue };
        if owner(pid).is_some_and(|alive| alive == format!("{pid}-{since}")) {
            continue;
        }
        // Another tester may be at it as well.
        if remove(&name).is_ok() {
            swept += 1;
        }
    }
    Ok(swept)
}

/// A process in words that no other process ever has: its number, and when it began. None of one that has ended.
fn owner(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // After the name, which may hold anything but this: state, and 18 others.
    let mut after = stat.rsplit_once(") ")?.1.split(' ');
    let is_over = after.next()? == "Z";
    let began = after.nth(18)?;
    (!is_over).then(|| format!("{pid}-{began}"))
}

/// Ends what still runs in a namespace of ours, and removes it.
fn remove(name: &str) -> io::Result<()> {
    for pid in ip(&format!("netns pids {name}"))?.split_whitespace().filter_map(|pid| pid.parse().ok()) {
        // It may end by itself meanwhile.
        let _ = Pid::from_raw(pid).map(|pid| kill_process(pid, Signal::KILL));
    }
    ip(&format!("netns del {name}")).map(drop)
}

/// Runs `ip` with these words; what it prints.
fn ip(words: &str) -> io::Result<String> {
    said(Command::new("ip").args(words.split(' ')).stdin(Stdio::null()).output()?)
}

/// Runs many commands of `ip` at once.
fn batch(options: &[&str], lines: &str) -> io::Result<()> {
    let mut command = Command::new("ip");
    command.args(options).args(["-batch", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(lines.as_bytes())?;
    }
    said(child.wait_with_output()?).map(drop)
}

fn said(output: Output) -> io::Result<String> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(io::Error::other(format!("ip: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;

    /// A host that says something to another, or to this process, over UDP: what arrives.
    struct Ear(std::net::UdpSocket);

    impl Ear {
        fn at(address: Ipv4Addr) -> Self {
            let socket = std::net::UdpSocket::bind((address, 0)).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            Self(socket)
        }

        /// Whether a word from a host arrives here.
        fn hears(&self, network: &Network, host: usize) -> bool {
            let port = self.0.local_addr().unwrap().port();
            let to = match self.0.local_addr().unwrap().ip() {
                std::net::IpAddr::V4(to) => to,
                std::net::IpAddr::V6(_) => unreachable!(),
            };
            let words = network.on(host);
            let script = format!("echo a word >/dev/udp/{to}/{port}");
            assert!(
                Command::new(&words[0]).args(&words[1..]).args(["bash", "-c", &script]).status().unwrap().success()
            );
            let mut bytes = [0; 16];
            self.0.recv(&mut bytes).is_ok()
        }
    }

    #[test]
    fn ways_are_cut_one_by_one_and_without_a_word_and_nothing_is_left_behind() {
        if let Err(why) = available() {
            return println!("SKIPPED: {why}");
        }
        let network = Network::make(2).unwrap();
        let (name, wire) = (network.router(), network.wire());
        let (one, other) = (Ear::at(network.here(0)), Ear::at(network.here(1)));
        assert!(one.hears(&network, 0) && one.hears(&network, 1) && other.hears(&network, 0));
        network.cut(&[network.host(0)], &[network.here(0)]).unwrap();
        assert!(!one.hears(&network, 0), "this way is cut");
        assert!(one.hears(&network, 1), "another host's is not");
        assert!(other.hears(&network, 0), "nor is that to another address");
        // The opposite way alone: what is said still arrives.
        network.heal().unwrap();
        network.cut(&[network.here(0)], &[network.host(0)]).unwrap();
        assert!(one.hears(&network, 0));
        network.part(&[network.host(0)], &[network.here(0), network.here(1)]).unwrap();
        assert!(!one.hears(&network, 0) && !other.hears(&network, 0));
        network.heal().unwrap();
        assert!(one.hears(&network, 0) && other.hears(&network, 0));
        // Two at a time.
        let second = Network::make(1).unwrap();
        assert!(Ear::at(second.here(0)).hears(&second, 0));
        drop((network, second));
        assert!(!fs::exists(format!("/run/netns/{name}")).unwrap());
        assert!(!fs::exists(format!("/sys/class/net/{wire}")).unwrap());
    }

    #[test]
    fn what_a_killed_tester_left_is_removed_with_what_runs_in_it() {
        if let Err(why) = available() {
            return println!("SKIPPED: {why}");
        }
        // A process that has ended, as far as its number says.
        let mut gone = Command::new("true").spawn().unwrap();
        let left = format!("{NAME}{}-1-0-router", gone.id());
        gone.wait().unwrap();
        ip(&format!("netns add {left}")).unwrap();
        let mut orphan = Command::new("ip").args(["netns", "exec", &left, "sleep", "600"]).spawn().unwrap();
        let began = std::time::Instant::now();
        while ip(&format!("netns pids {left}")).unwrap().is_empty() && began.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let network = Network::make(0).unwrap();
        assert!(!fs::exists(format!("/run/netns/{left}")).unwrap());
        assert!(!orphan.wait().unwrap().success(), "it was ended");
        assert!(fs::exists(format!("/run/netns/{}", network.router())).unwrap(), "what is used stays");
    }
}
