//! To what variables and secrets belong. Of several of one name the narrowest counts, in the order given here.

drover_shared::words! {
    /// Whose variables or secrets.
    pub enum Scope {
        /// Everybody's.
        Organisation = "organisation",
        /// Those of an application.
        Application = "application",
        /// Those of the hosts of an environment.
        Environment = "environment",
        /// Those of a host.
        Host = "host",
        /// Those of an application on one host.
        Instance = "instance",
    }
}

/// Id under which the organisation's own are kept.
pub(crate) const NONE: i64 = 0;
