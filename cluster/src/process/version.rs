//! Which build this is.

use serde::Serialize;

/// Who answers: shown on `/version`, in `/health`, in the log at start and as `chappe_build_info`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Version {
    /// The program: `node`, `gateway`, `standalone`.
    pub component: &'static str,
    /// The version of the crate, as in `CARGO_PKG_VERSION`.
    pub version: &'static str,
    /// The commit it was built from, or `unknown`.
    pub revision: &'static str,
    /// The oldest version of the internal protocol this build speaks.
    pub protocol_min: u32,
    /// The newest.
    pub protocol_max: u32,
}

impl Version {
    /// This build, as `component`. The revision is what `CHAPPE_REVISION` said when it was compiled.
    pub const fn of(component: &'static str, protocol_min: u32, protocol_max: u32) -> Self {
        let revision = match option_env!("CHAPPE_REVISION") {
            Some(revision) => revision,
            None => "unknown",
        };
        // All crates of the workspace carry one version.
        Self { component, version: env!("CARGO_PKG_VERSION"), revision, protocol_min, protocol_max }
    }
}
