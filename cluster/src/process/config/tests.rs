//! Goal: an operator is told everything that is wrong, where it stands and who set it, and nothing right is refused.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::*;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Settings {
    data_dir: PathBuf,
    gateway: Gateway,
    limits: BTreeMap<String, u32>,
    // This section refuses unknown keys by itself, as derived structs often do; both ways must be reported alike.
    store: Store,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Gateway {
    listen: String,
    frame_max: ByteSize,
    idle: Period,
    connections_max: u32,
    issuer: Option<String>,
    origins: Vec<String>,
    compress: bool,
    ratio: f64,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Store {
    url: String,
    password_file: Option<SecretFile>,
    kind: StoreKind,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum StoreKind {
    #[default]
    Embedded,
    Scylla,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            data_dir: "chappe-data".into(),
            gateway: Gateway::default(),
            limits: BTreeMap::new(),
            store: Store::default(),
        }
    }
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8080".into(),
            frame_max: ByteSize::kib(64),
            idle: Period::secs(60),
            connections_max: 1000,
            issuer: None,
            origins: vec![],
            compress: false,
            ratio: 0.5,
        }
    }
}

/// A file's text, the environment and flags.
struct Given<'a> {
    file: &'a str,
    env: &'a [(&'a str, &'a str)],
    set: &'a [&'a str],
}

impl Given<'_> {
    fn load(&self) -> Result<Settings, ConfigError> {
        self.checked(|_| Vec::new())
    }

    fn checked(&self, check: impl FnOnce(&Settings) -> Vec<Problem>) -> Result<Settings, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chappe.toml");
        std::fs::write(&path, self.file).unwrap();
        let owned = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
        load_checked(
            &Sources {
                file: Some(path),
                env_prefix: ENV_PREFIX,
                env: self.env.iter().map(owned).collect(),
                overrides: self.set.iter().map(|text| parse_set(text).unwrap()).collect(),
            },
            check,
        )
    }

    /// Every problem as a line, with the temporary directory cut off.
    fn problems(&self) -> Vec<String> {
        self.load().unwrap_err().problems.iter().map(line).collect()
    }
}

fn line(problem: &Problem) -> String {
    let line = problem.to_string();
    match (line.find("file /"), line.find("chappe.toml")) {
        (Some(from), Some(to)) => format!("{}{}", &line[..from + 5], &line[to..]),
        _ => line,
    }
}

fn nothing() -> Given<'static> {
    Given { file: "", env: &[], set: &[] }
}

#[test]
fn without_sources_the_defaults_stand() {
    assert_eq!(nothing().load().unwrap(), Settings::default());
}

#[test]
fn each_layer_covers_the_one_below() {
    let file = "[gateway]\nlisten = 'file'\nconnections_max = 1\nidle = '1s'\n";
    let given = Given {
        file,
        env: &[("CHAPPE_GATEWAY__LISTEN", "env"), ("CHAPPE_GATEWAY__CONNECTIONS_MAX", "2")],
        set: &["gateway.listen=flag"],
    };
    let gateway = given.load().unwrap().gateway;
    assert_eq!(gateway.listen, "flag");
    assert_eq!(gateway.connections_max, 2);
    assert_eq!(gateway.idle, Period::secs(1));
    assert_eq!(gateway.frame_max, ByteSize::kib(64));
}

#[test]
fn text_from_the_environment_becomes_what_the_field_wants() {
    let given = Given {
        env: &[
            ("CHAPPE_DATA_DIR", "12"),
            ("CHAPPE_GATEWAY__LISTEN", "8080"),
            ("CHAPPE_GATEWAY__FRAME_MAX", "1 MiB"),
            ("CHAPPE_GATEWAY__ISSUER", "42"),
            ("CHAPPE_GATEWAY__ORIGINS", "https://a.example, https://b.example"),
            ("CHAPPE_GATEWAY__COMPRESS", "true"),
            ("CHAPPE_GATEWAY__RATIO", "1"),
            ("CHAPPE_LIMITS__SEND", "7"),
            ("CHAPPE_STORE__KIND", "scylla"),
            ("CHAPPE_STORE__PASSWORD_FILE", "/run/secrets/pw"),
        ],
        ..nothing()
    };
    let settings = given.load().unwrap();
    assert_eq!(settings.data_dir, PathBuf::from("12"));
    assert_eq!(settings.gateway.listen, "8080");
    assert_eq!(settings.gateway.frame_max, ByteSize::mib(1));
    assert_eq!(settings.gateway.issuer.as_deref(), Some("42"));
    assert_eq!(settings.gateway.origins, ["https://a.example", "https://b.example"]);
    assert!(settings.gateway.compress);
    assert_eq!(settings.gateway.ratio, 1.0);
    assert_eq!(settings.limits["send"], 7);
    assert_eq!(settings.store.kind, StoreKind::Scylla);
    assert_eq!(settings.store.password_file, Some(SecretFile::new("/run/secrets/pw")));

    let given = Given { set: &[r#"gateway.origins=["x", "y,z"]"#, "gateway.idle=2m"], ..nothing() };
    let gateway = given.load().unwrap().gateway;
    assert_eq!(gateway.origins, ["x", "y,z"]);
    assert_eq!(gateway.idle, Period::minutes(2));
}

#[test]
fn variables_of_others_are_left_alone() {
    let given = Given {
        env: &[
            ("CHAPPE_NODE_SERVICE_HOST", "10.0.0.1"),
            ("CHAPPE_TEST_CQL", "127.0.0.1:9042"),
            ("CHAPPE_GATEWAY", "x"),
            ("PATH", "/bin"),
        ],
        ..nothing()
    };
    assert_eq!(given.load().unwrap(), Settings::default());
}

#[test]
fn every_error_is_reported_at_once_with_its_key_and_source() {
    let given = Given {
        file: "colour = 'red'\n[gateway]\nlissten = 'x'\nidle = 10\nconnections_max = -1\n[store]\nurrl = 'x'\n[empty]\n",
        env: &[
            ("CHAPPE_GATEWAY__FRAME_MAX", "64 potatoes"),
            ("CHAPPE_GATEWEY__LISTEN", "x"),
            ("CHAPPE_STORE__KIND", "mongo"),
            ("CHAPPE_LIMITS__SEND", "many"),
            ("CHAPPE___", "x"),
        ],
        set: &["gateway.compress=maybe", ".a=1"],
    };
    let problems = given.problems();
    let expected = [
        "colour (file chappe.toml): unknown key; known here: data_dir, gateway, limits, store",
        "gateway.lissten (file chappe.toml): unknown key; known here: compress, connections_max",
        "gateway.idle (file chappe.toml): invalid type: found signed int `10`, expected a duration with its unit",
        "gateway.connections_max (file chappe.toml): invalid value signed int `-1`, expected u32",
        "store.urrl (file chappe.toml): unknown key; known here: kind, password_file, url",
        "empty (file chappe.toml): unknown key",
        "gateway.frame_max (environment CHAPPE_GATEWAY__FRAME_MAX): not a size: \"64 potatoes\"",
        "gatewey (environment CHAPPE_GATEWEY__LISTEN): unknown key",
        "store.kind (environment CHAPPE_STORE__KIND): unknown variant: found `mongo`",
        "limits.send (environment CHAPPE_LIMITS__SEND): invalid type: found string \"many\", expected u32",
        "environment CHAPPE___: is not of the form SECTION__KEY",
        "gateway.compress (flag gateway.compress): invalid type: found string \"maybe\", expected a boolean",
        "flag .a: is not of the form section.key",
    ];
    for wanted in expected {
        assert!(problems.iter().any(|p| p.starts_with(wanted)), "{wanted:?} is not among {problems:#?}");
    }
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
}

#[test]
fn a_value_that_is_covered_cannot_be_at_fault() {
    let given = Given { file: "[gateway]\nidle = 'soon'\n", env: &[("CHAPPE_GATEWAY__IDLE", "1s")], set: &[] };
    assert_eq!(given.load().unwrap().gateway.idle, Period::secs(1));
}

#[test]
fn a_broken_file_does_not_hide_a_broken_variable() {
    let given = Given { file: "[gateway\n", env: &[("CHAPPE_GATEWAY__RATIO", "high")], set: &[] };
    let problems = given.problems();
    assert_eq!(problems.len(), 2, "{problems:#?}");
    assert!(problems[0].starts_with("file chappe.toml: is not TOML"), "{problems:#?}");
    assert!(problems[1].starts_with("gateway.ratio"), "{problems:#?}");

    let missing = Sources { file: Some("/nowhere/chappe.toml".into()), ..Sources::new(None, vec![]) };
    let error = load::<Settings>(&missing).unwrap_err().to_string();
    assert!(error.starts_with("configuration: file /nowhere/chappe.toml: cannot be read"), "{error}");
}

#[test]
fn a_section_that_is_no_section_is_reported_once() {
    let given = Given { file: "gateway = 5\n", ..nothing() };
    let problems = given.problems();
    assert_eq!(problems.len(), 1, "{problems:#?}");
    assert!(problems[0].starts_with("gateway (file chappe.toml): invalid type"), "{problems:#?}");
}

#[test]
fn checks_across_fields_are_attributed_to_whoever_set_them() {
    let given = Given { file: "[gateway]\nidle = '1s'\n", ..nothing() };
    let error = given
        .checked(|_| vec![Problem::at("gateway.idle", "must be above 5s"), Problem::at("data_dir", "does not exist")])
        .unwrap_err();
    let lines: Vec<String> = error.problems.iter().map(line).collect();
    assert_eq!(lines, ["gateway.idle (file chappe.toml): must be above 5s", "data_dir (default): does not exist"]);
    assert!(error.to_string().starts_with("configuration: 2 problems\n  gateway.idle ("), "{error}");
}

#[test]
fn a_dump_loads_again_and_shows_no_secret() {
    let given = Given {
        file: "[store]\nurl = 'redis://chappe:hunter2@redis:6379/0?x=1'\npassword_file = '/run/pw'\n[limits]\nsend = 3\n",
        ..nothing()
    };
    let settings = given.load().unwrap();
    let dumped = dump(&settings);
    assert!(!dumped.contains("hunter2"), "{dumped}");
    assert!(dumped.contains("redis://chappe:***@redis:6379/0?x=1"), "{dumped}");
    assert!(dumped.contains("password_file = \"/run/pw\""), "{dumped}");
    assert!(dumped.contains("frame_max = \"64 KiB\""), "{dumped}");

    let mut again = Given { file: &dumped, ..nothing() }.load().unwrap();
    again.store.url.clone_from(&settings.store.url);
    assert_eq!(again, settings);
}

#[test]
fn a_flag_needs_a_key_and_a_value() {
    assert_eq!(parse_set("a.b=c=d"), Ok(("a.b".into(), "c=d".into())));
    assert_eq!(parse_set("a.b="), Ok(("a.b".into(), String::new())));
    assert!(parse_set("a.b").is_err());
    assert!(parse_set("=c").is_err());
}
