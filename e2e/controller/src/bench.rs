//! x
use std::path::Path;
use anyhow::Result;
use crate::plane::Parts;
#[derive(Debug, Clone, clap::Args)]
pub struct Args {}
pub async fn run(_: &Parts<'_>, _: &Path, _: &Args) -> Result<bool> { Ok(false) }
