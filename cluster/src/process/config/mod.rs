//! Layered configuration: defaults < TOML file < environment < flags.
//!
//! A process describes its settings as plain structs with `serde` and `Default`, and [`load`] fills them. Every
//! setting remembers where it came from, so an error names the key *and* the file, variable or flag that set it, and
//! one run reports everything that is wrong, not the first thing.
//!
//! - [`ByteSize`] and [`Period`] are sizes and durations with units, in both directions
//! - [`SecretFile`] is the only way to give a secret, which is why [`dump`] may be shown to anyone
//!
//! What a settings struct must keep to: every field serialises (no `skip_serializing_if`), because the defaults show
//! [`load`] which keys exist and what kind of value each takes; and choices are separate sections rather than
//! tagged enums, because sections merge.

mod period;
mod secret;
mod size;

pub use period::Period;
pub use secret::{Secret, SecretError, SecretFile};
pub use size::ByteSize;

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;

use figment::error::Kind;
use figment::value::{Dict, Empty, Value};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Environment variables of ours start with this.
pub const ENV_PREFIX: &str = "CHAPPE_";

/// Everything that may set a configuration key, in rising precedence.
#[derive(Clone, Debug)]
pub struct Sources {
    /// A TOML file. One that is named here must exist.
    pub file: Option<PathBuf>,
    /// What our environment variables start with; [`ENV_PREFIX`].
    pub env_prefix: &'static str,
    /// The environment, as names and values. [`Sources::new`] takes that of the process; tests bring their own.
    pub env: Vec<(String, String)>,
    /// Flags, as dotted keys and values; see [`parse_set`].
    pub overrides: Vec<(String, String)>,
}

/// Fills `T` from its sources, or says everything that is wrong with them.
///
/// Environment names are `CHAPPE_SECTION__KEY` for `section.key`. A variable with our prefix but without a double
/// underscore is a setting only if the top level has that key: Kubernetes service links (`CHAPPE_NODE_SERVICE_HOST`)
/// and `CHAPPE_TEST_*` are none of our business.
///
/// ```
/// use chappe_cluster::process::config::{self, Period, Sources};
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// #[serde(default)]
/// struct Settings { idle: Period }
/// impl Default for Settings {
///     fn default() -> Self { Self { idle: Period::secs(60) } }
/// }
///
/// let sources = Sources::new(None, vec![config::parse_set("idle=5m")?]);
/// let settings: Settings = config::load(&sources)?;
/// assert_eq!(settings.idle, Period::minutes(5));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn load<T>(sources: &Sources) -> Result<T, ConfigError>
where
    T: Serialize + DeserializeOwned + Default,
{
    load_checked(sources, |_| Vec::new())
}

/// [`load`], followed by the checks that a single field cannot make (`a` must be below `b`).
///
/// `check` runs on a configuration whose every field is well-formed, and returns all it finds; each problem is then
/// attributed to whatever set its key.
pub fn load_checked<T>(sources: &Sources, check: impl FnOnce(&T) -> Vec<Problem>) -> Result<T, ConfigError>
where
    T: Serialize + DeserializeOwned + Default,
{
    let defaults = match Value::serialize(T::default()) {
        Ok(value) => value,
        Err(error) => return Err(ConfigError::one(Problem::at("", format!("the defaults are unusable: {error}")))),
    };
    let mut problems = Vec::new();
    let mut settings = Vec::new();
    read_file(sources, &mut settings, &mut problems);
    read_environment(sources, &defaults, &mut settings, &mut problems);
    read_overrides(sources, &defaults, &mut settings, &mut problems);

    let config = fill::<T>(&defaults, &mut settings, &mut problems);
    if let Some(config) = config
        && problems.is_empty()
    {
        problems = check(&config);
        for problem in &mut problems {
            problem.origins = origins(&settings, &split(&problem.key));
        }
        if problems.is_empty() {
            return Ok(config);
        }
    }
    Err(ConfigError { problems })
}

/// What a command line wants of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// That it be used.
    Use,
    /// `--check-config`: only to know whether it can be.
    Check,
    /// `--dump-config`: only to see it.
    Dump,
}

impl Wish {
    /// Of the two options; who wants to see it need not have one that can be used.
    #[must_use]
    pub const fn of(check: bool, dump: bool) -> Self {
        if dump {
            Self::Dump
        } else if check {
            Self::Check
        } else {
            Self::Use
        }
    }
}

/// The configuration that a program begins with.
///
/// # Errors
/// With what the program ends with instead: 2, and a sentence for each problem, when it cannot be used; 0 when it was only asked
/// for, and has been printed.
pub fn for_main<T>(
    program: &str,
    sources: &Sources,
    wish: Wish,
    check: impl FnOnce(&T) -> Vec<Problem>,
) -> Result<T, ExitCode>
where
    T: Serialize + DeserializeOwned + Default,
{
    // What is merely dumped may be looked at on another machine, where its files are not.
    let check = |config: &T| if wish == Wish::Dump { Vec::new() } else { check(config) };
    let config = load_checked(sources, check).map_err(|error| {
        eprintln!("{program}: the configuration is not usable:\n{error}");
        ExitCode::from(2)
    })?;
    match wish {
        Wish::Use => return Ok(config),
        Wish::Check => println!("the configuration is usable"),
        Wish::Dump => print!("{}", dump(&config)),
    }
    Err(ExitCode::SUCCESS)
}

/// The configuration as TOML, as `--dump-config` shows it: what is really in force.
///
/// Secrets cannot be in it, because they are given as [`SecretFile`]s: the dump shows the path. As a second lock, the
/// password inside a URL (`redis://user:password@host`) and any text under a key that ends in `password`, `secret` or
/// `token` is replaced by `***`. Options that are not set do not appear.
pub fn dump<T: Serialize>(config: &T) -> String {
    let shown = toml::Table::try_from(config).and_then(|mut table| {
        table.iter_mut().for_each(|(key, value)| redact(key, value));
        toml::to_string_pretty(&table)
    });
    // Only a settings struct that TOML cannot express gets here; that is found by the first test that dumps it.
    shown.unwrap_or_else(|error| format!("# this configuration cannot be shown as TOML: {error}\n"))
}

/// Reads the argument of `--set section.key=value`.
pub fn parse_set(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.to_owned())),
        _ => Err(format!("expected section.key=value, found {text:?}")),
    }
}

/// Why a process will not start: everything that is wrong with its configuration.
#[derive(Debug, thiserror::Error)]
pub struct ConfigError {
    /// At least one.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The dotted key, or nothing when a source as a whole could not be read.
    pub key: String,
    /// What is wrong, in a few words.
    pub message: String,
    /// Who set it; empty when the default stands.
    pub origins: Vec<Origin>,
}

/// Where a setting came from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The TOML file.
    File(PathBuf),
    /// An environment variable, by its full name.
    Env(String),
    /// A flag, by its dotted key.
    Flag(String),
}

// === impl Sources ===

impl Sources {
    /// A file and flags, and the environment of this process. Bytes that are not UTF-8 become `�`, so that a broken
    /// value is reported where it is used instead of vanishing.
    pub fn new(file: Option<PathBuf>, overrides: Vec<(String, String)>) -> Self {
        let env = std::env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
            .collect();
        Self { file, env_prefix: ENV_PREFIX, env, overrides }
    }
}

// === impl ConfigError ===

impl ConfigError {
    fn one(problem: Problem) -> Self {
        Self { problems: vec![problem] }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [problem] = self.problems.as_slice() {
            return write!(f, "configuration: {problem}");
        }
        write!(f, "configuration: {} problems", self.problems.len())?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

// === impl Problem ===

impl Problem {
    /// A problem found by a check; [`load_checked`] adds who set the key.
    pub fn at(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { key: key.into(), message: message.into(), origins: Vec::new() }
    }

    fn from_origin(origin: Origin, message: impl Into<String>) -> Self {
        Self { key: String::new(), message: message.into(), origins: vec![origin] }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origins: Vec<String> = self.origins.iter().map(Origin::to_string).collect();
        let origins = if origins.is_empty() { "default".to_owned() } else { origins.join(" and ") };
        match self.key.as_str() {
            "" => write!(f, "{origins}: {}", self.message),
            key => write!(f, "{key} ({origins}): {}", self.message),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File(path) => write!(f, "file {}", path.display()),
            Origin::Env(name) => write!(f, "environment {name}"),
            Origin::Flag(key) => write!(f, "flag {key}"),
        }
    }
}

// === one setting ===

/// One key that some source has set. Sources are cut down to their leaves, so that sections merge key by key; an
/// array is one leaf and replaces the whole array below it.
struct Setting {
    path: Vec<String>,
    value: Value,
    origin: Origin,
    /// The words of a variable or flag whose value we had to guess the type of: if the guess does not fit, the
    /// plain text may.
    guessed_from: Option<String>,
}

fn split(key: &str) -> Vec<String> {
    key.split('.').filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// One lies inside the other: an error at a section concerns its keys, one at an array's element the whole array.
fn related(one: &[String], other: &[String]) -> bool {
    one.iter().zip(other).all(|(a, b)| a == b)
}

fn origins(settings: &[Setting], path: &[String]) -> Vec<Origin> {
    // The same leaf may be set by several sources: only the last one is in force, so only it can be at fault.
    let mut seen = BTreeSet::new();
    let mut found: Vec<Origin> = Vec::new();
    for setting in settings.iter().rev().filter(|s| related(&s.path, path)) {
        if seen.insert(&setting.path) && !found.contains(&setting.origin) {
            found.push(setting.origin.clone());
        }
    }
    found.sort();
    found
}

// === reading the sources ===

fn read_file(sources: &Sources, settings: &mut Vec<Setting>, problems: &mut Vec<Problem>) {
    let Some(path) = &sources.file else { return };
    let origin = Origin::File(path.clone());
    let table = std::fs::read_to_string(path).map_err(|error| format!("cannot be read: {error}")).and_then(|text| {
        text.parse::<toml::Table>().map_err(|error| format!("is not TOML: {}", error.to_string().trim_end()))
    });
    match table {
        Ok(table) => leaves(from_toml(toml::Value::Table(table)), &mut Vec::new(), &origin, settings),
        Err(message) => problems.push(Problem::from_origin(origin, message)),
    }
}

fn leaves(value: Value, path: &mut Vec<String>, origin: &Origin, settings: &mut Vec<Setting>) {
    match value {
        // An empty section stays a leaf: if nobody knows the section, it must be reported.
        Value::Dict(_, dict) if !dict.is_empty() => {
            for (key, value) in dict {
                path.push(key);
                leaves(value, path, origin, settings);
                path.pop();
            }
        }
        Value::Dict(..) if path.is_empty() => {}
        value => settings.push(Setting { path: path.clone(), value, origin: origin.clone(), guessed_from: None }),
    }
}

fn read_environment(sources: &Sources, defaults: &Value, settings: &mut Vec<Setting>, problems: &mut Vec<Problem>) {
    let mut ours: Vec<(&str, Vec<String>, &str)> = Vec::new();
    for (name, text) in &sources.env {
        let Some(rest) = name.strip_prefix(sources.env_prefix) else { continue };
        let path: Vec<String> = rest.to_lowercase().split("__").map(str::to_owned).collect();
        let setting = match path.as_slice() {
            [key] => defaults.find_ref(key).is_some_and(|value| value.as_dict().is_none()),
            _ => true,
        };
        if setting {
            ours.push((name, path, text));
        }
    }
    // The environment has no order of its own; errors should.
    ours.sort();
    for (name, path, text) in ours {
        let origin = Origin::Env(name.to_owned());
        if path.iter().any(String::is_empty) {
            problems.push(Problem::from_origin(origin, "is not of the form SECTION__KEY"));
        } else {
            settings.push(from_text(path, text, origin, defaults));
        }
    }
}

fn read_overrides(sources: &Sources, defaults: &Value, settings: &mut Vec<Setting>, problems: &mut Vec<Problem>) {
    for (key, text) in &sources.overrides {
        let origin = Origin::Flag(key.clone());
        if key.split('.').any(str::is_empty) {
            problems.push(Problem::from_origin(origin, "is not of the form section.key"));
        } else {
            settings.push(from_text(split(key), text, origin, defaults));
        }
    }
}

/// Variables and flags carry text; the default standing at the same key says what kind of value is meant.
fn from_text(path: Vec<String>, text: &str, origin: Origin, defaults: &Value) -> Setting {
    let plain = || Value::from(text);
    let as_toml = || text.trim().parse::<toml::Value>().ok().map(from_toml);
    let (value, guessed_from) = match find(defaults, &path) {
        Some(Value::String(..) | Value::Char(..)) => (plain(), None),
        Some(Value::Array(..)) if !text.trim_start().starts_with('[') => (listed(text), None),
        // Without a default (an unset option, an entry of a map) the type is not known.
        Some(Value::Empty(..)) | None => (as_toml().unwrap_or_else(plain), Some(text.to_owned())),
        Some(_) => (as_toml().unwrap_or_else(plain), None),
    };
    Setting { path, value, origin, guessed_from }
}

/// `a,b` is a friendlier list than `["a","b"]` in a manifest or on a command line.
fn listed(text: &str) -> Value {
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(Value::from).collect::<Vec<_>>().into()
}

fn from_toml(value: toml::Value) -> Value {
    match value {
        toml::Value::String(text) => Value::from(text),
        toml::Value::Integer(number) => Value::from(number),
        toml::Value::Float(number) => Value::from(number),
        toml::Value::Boolean(flag) => Value::from(flag),
        toml::Value::Datetime(when) => Value::from(when.to_string()),
        toml::Value::Array(items) => Value::from(items.into_iter().map(from_toml).collect::<Vec<_>>()),
        toml::Value::Table(table) => {
            Value::from(table.into_iter().map(|(key, value)| (key, from_toml(value))).collect::<Dict>())
        }
    }
}

// === filling the struct ===

/// Merges and reads. Whatever is at fault is reported, taken away and the rest tried again, until what remains reads:
/// that is how one run finds every error although `serde` stops at its first.
fn fill<T: DeserializeOwned>(defaults: &Value, settings: &mut Vec<Setting>, problems: &mut Vec<Problem>) -> Option<T> {
    loop {
        let merged = merge(defaults.clone(), settings);
        let mut unknown = Vec::new();
        let result: Result<T, figment::Error> = serde_ignored::deserialize(&merged, |path| unknown.push(steps(&path)));
        match result {
            Ok(config) => {
                unknown.iter().for_each(|path| problems.push(report(settings, path, unknown_key(defaults, path))));
                return Some(config);
            }
            Err(error) => {
                let path = error.path.clone();
                if second_guess(settings, &path) {
                    continue;
                }
                let message = match &error.kind {
                    Kind::UnknownField(..) => unknown_key(defaults, &path),
                    kind => kind.to_string(),
                };
                problems.push(report(settings, &path, message));
                let before = settings.len();
                settings.retain(|setting| !related(&setting.path, &path));
                if settings.len() == before {
                    // The defaults themselves do not read, and nothing is left to take away.
                    return None;
                }
            }
        }
    }
}

fn merge(mut onto: Value, settings: &[Setting]) -> Value {
    for setting in settings {
        place(&mut onto, &setting.path, &setting.value);
    }
    onto
}

fn place(onto: &mut Value, path: &[String], value: &Value) {
    let Some((key, rest)) = path.split_first() else {
        // An empty section over one with keys changes nothing.
        if !matches!((&*onto, value), (Value::Dict(..), Value::Dict(_, dict)) if dict.is_empty()) {
            *onto = value.clone();
        }
        return;
    };
    if onto.as_dict().is_none() {
        *onto = Value::from(Dict::new());
    }
    if let Value::Dict(_, dict) = onto {
        place(dict.entry(key.clone()).or_insert_with(|| Value::from(Empty::None)), rest, value);
    }
}

/// Takes a guessed value back to its plain text; `true` if there was one, so that reading is worth another try.
fn second_guess(settings: &mut [Setting], path: &[String]) -> bool {
    let guess = settings.iter_mut().rev().find(|s| related(&s.path, path) && s.guessed_from.is_some());
    let Some(setting) = guess else { return false };
    let Some(text) = setting.guessed_from.take() else { return false };
    let was_text = setting.value.as_str() == Some(&text);
    setting.value = Value::from(text);
    !was_text
}

fn report(settings: &[Setting], path: &[String], message: String) -> Problem {
    Problem { key: path.join("."), message, origins: origins(settings, path) }
}

fn unknown_key(defaults: &Value, path: &[String]) -> String {
    // Up to the section that exists, so that a misspelt section is met with the sections there are.
    let known = (0..path.len()).rev().find_map(|depth| find(defaults, &path[..depth]).and_then(Value::as_dict));
    match known {
        Some(dict) if !dict.is_empty() => {
            format!("unknown key; known here: {}", dict.keys().map(String::as_str).collect::<Vec<_>>().join(", "))
        }
        _ => "unknown key".to_owned(),
    }
}

fn find<'a>(value: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, key| value.as_dict()?.get(key))
}

fn steps(path: &serde_ignored::Path<'_>) -> Vec<String> {
    use serde_ignored::Path;
    match path {
        Path::Root => Vec::new(),
        Path::Seq { parent, index } => [steps(parent), vec![index.to_string()]].concat(),
        Path::Map { parent, key } => [steps(parent), vec![key.clone()]].concat(),
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => steps(parent),
    }
}

// === showing ===

const REDACTED: &str = "***";

fn redact(key: &str, value: &mut toml::Value) {
    match value {
        toml::Value::Table(table) => table.iter_mut().for_each(|(key, value)| redact(key, value)),
        toml::Value::Array(items) => items.iter_mut().for_each(|item| redact(key, item)),
        // An empty one is no secret, and that it is empty may be what the reader looks for.
        toml::Value::String(text) if text.is_empty() => {}
        toml::Value::String(text) if ["password", "secret", "token"].iter().any(|end| key.ends_with(end)) => {
            *text = REDACTED.to_owned();
        }
        toml::Value::String(text) => {
            if let Some(clean) = without_password(text) {
                *text = clean;
            }
        }
        _ => {}
    }
}

/// `scheme://user:password@host` without the password.
fn without_password(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let (user_info, host) = authority.rsplit_once('@')?;
    let (user, _) = user_info.split_once(':')?;
    Some(format!("{scheme}://{user}:{REDACTED}@{host}{}", &rest[authority.len()..]))
}

#[cfg(test)]
mod tests;
