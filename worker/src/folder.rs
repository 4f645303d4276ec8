//! A folder of files, local or in an object store: its URL, its store, and names below it. What the files hold is the
//! sources' and sinks' concern.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path;

use crate::error::{EngineError, Result};

/// Options that a secret may hold, with or without `aws_` in front. What leads to other credentials, to files of the pod or through a
/// proxy is not among them.
const OPTIONS: [&str; 10] = [
    "access_key_id",
    "secret_access_key",
    "session_token",
    "token",
    "region",
    "default_region",
    "endpoint",
    "endpoint_url",
    "virtual_hosted_style_request",
    "allow_http",
];

/// A folder. Clones share the store.
#[derive(Debug, Clone)]
pub struct Folder {
    pub store: Arc<dyn ObjectStore>,
    /// Of everything below the folder; empty: the store's root.
    pub prefix: Path,
    /// As the manifest has it, for messages.
    pub url: String,
    /// The folder itself, if it is local.
    pub local: Option<PathBuf>,
}

impl Folder {
    /// Opens `file:///path/`, `file://./path/` (from where the process runs) or `s3://bucket/prefix/`. `options`: names and
    /// values of object-store options, from a mounted secret; without any, S3 takes its environment variables.
    /// A local folder is not made here.
    pub fn open(url: &str, options: &BTreeMap<String, String>) -> Result<Self> {
        let refuse = |why: &str| EngineError::invalid("PS0041", url, why);
        if let Some(path) = url.strip_prefix("file://") {
            let path = if path.starts_with('/') {
                PathBuf::from(path)
            } else {
                let here = std::env::current_dir()
                    .map_err(|e| refuse("the current folder is unknown").caused_by(e))?;
                here.join(path.strip_prefix("./").unwrap_or(path))
            };
            let prefix =
                Path::from_absolute_path(&path).map_err(|e| refuse("not a path").caused_by(e))?;
            // Rooted at /, so that a folder which is made later is found.
            return Ok(Self {
                store: Arc::new(LocalFileSystem::new()),
                prefix,
                url: url.to_owned(),
                local: Some(path),
            });
        }
        let Some(rest) = url.strip_prefix("s3://") else {
            return Err(refuse("folders are s3://bucket/prefix/ or file:///path/"));
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
        for (name, value) in options {
            let bare = name.strip_prefix("aws_").unwrap_or(name);
            if !OPTIONS.contains(&bare) {
                let why = format!("the secret's option {name} is not on the allow-list");
                return Err(refuse(&why));
            }
            let key: AmazonS3ConfigKey = name
                .parse()
                .map_err(|e: object_store::Error| refuse("unknown option").caused_by(e))?;
            builder = builder.with_config(key, value);
        }
        let store = builder
            .build()
            .map_err(|e| refuse("cannot be opened").caused_by(e))?;
        Ok(Self {
            store: Arc::new(store),
            prefix: Path::parse(prefix.trim_end_matches('/'))
                .map_err(|e| refuse("not a path").caused_by(e))?,
            url: url.to_owned(),
            local: None,
        })
    }

    /// A folder of a given store: for tests.
    pub fn of(store: Arc<dyn ObjectStore>, prefix: &str) -> Self {
        Self {
            store,
            prefix: Path::from(prefix),
            url: format!("memory:{prefix}"),
            local: None,
        }
    }

    /// The object of that name below the folder. Names are taken as they are, so that a listed one is found again.
    pub fn object(&self, name: &str) -> Path {
        let whole = match self.prefix.as_ref() {
            "" => name.to_owned(),
            prefix => format!("{prefix}/{name}"),
        };
        Path::parse(&whole).unwrap_or_else(|_| Path::from(whole))
    }

    /// The name below the folder.
    pub fn name(&self, object: &Path) -> Option<String> {
        let parts: Vec<_> = object.prefix_match(&self.prefix)?.collect();
        let parts: Vec<&str> = parts.iter().map(AsRef::as_ref).collect();
        Some(parts.join("/"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_leads_to_no_other_credentials() {
        for name in [
            "aws_metadata_endpoint",
            "container_credentials_full_uri",
            "web_identity_token_file",
            "proxy_url",
        ] {
            let options = BTreeMap::from([(name.to_owned(), "x".to_owned())]);
            let error = Folder::open("s3://bucket/prefix/", &options).unwrap_err();
            assert!(error.message.contains("allow-list"), "{error}");
        }
    }
}
