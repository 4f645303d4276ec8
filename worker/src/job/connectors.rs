//! Concrete sources and sinks from the manifest's spec and the plan. The one place that knows them by name.
