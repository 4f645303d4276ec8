//! Any `object_store` as a store: S3 in the first place. Conditional create goes by `If-None-Match: *`.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::aws::{AmazonS3Builder, S3ConditionalPut};
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path;
use object_store::{
    ClientOptions, Error, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode,
    PutOptions, RetryConfig,
};

use super::{Create, ErrorKind, Listed, Objects, StoreError};
use crate::ids::Micros;

#[derive(Clone)]
pub struct Remote {
    store: Arc<dyn ObjectStore>,
    /// The same store where it lists as few objects at a time as it is asked for.
    pages: Option<Arc<dyn PaginatedListStore>>,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.store.fmt(f)
    }
}

/// Where an S3 bucket is. Credentials left empty come from the environment, as the AWS tools read it.
#[derive(Clone, Debug, Default)]
pub struct S3Options {
    pub bucket: String,
    pub region: String,
    /// Empty: AWS's own.
    pub endpoint: String,
    pub path_style: bool,
    pub access_key: Option<String>,
    pub secret_key: Option<String>,
    pub session_token: Option<String>,
}

impl Remote {
    pub fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self { store, pages: None }
    }

    /// # Errors
    /// Of kind `Invalid` when the options do not make a client. Nothing is asked of the server.
    pub fn s3(options: &S3Options) -> Result<Self, StoreError> {
        let S3Options {
            bucket,
            region,
            endpoint,
            path_style,
            access_key,
            secret_key,
            session_token,
        } = options;
        let client = ClientOptions::new()
            .with_timeout(Duration::from_secs(30))
            .with_connect_timeout(Duration::from_secs(5));
        // Few retries of its own: the log must know of an ambiguous write soon, and reads it back.
        let retry = RetryConfig {
            max_retries: 2,
            retry_timeout: Duration::from_secs(20),
            ..RetryConfig::default()
        };
        let mut builder = AmazonS3Builder::from_env()
            .with_bucket_name(bucket)
            .with_virtual_hosted_style_request(!path_style)
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            .with_client_options(client)
            .with_allow_http(endpoint.starts_with("http://"))
            .with_retry(retry);
        if !region.is_empty() {
            builder = builder.with_region(region);
        }
        if !endpoint.is_empty() {
            builder = builder.with_endpoint(endpoint);
        }
        if let Some(key) = access_key {
            builder = builder.with_access_key_id(key);
        }
        if let Some(key) = secret_key {
            builder = builder.with_secret_access_key(key);
        }
        if let Some(token) = session_token {
            builder = builder.with_token(token);
        }
        let store = builder.build().map_err(|e| {
            StoreError::new(ErrorKind::Invalid, "set up", format!("s3://{bucket}"), e)
        })?;
        let store = Arc::new(store);
        Ok(Self {
            store: store.clone(),
            pages: Some(store),
        })
    }
}

fn failed(operation: &'static str, key: &str, e: Error) -> StoreError {
    let kind = match &e {
        Error::InvalidPath { .. } | Error::UnknownConfigurationKey { .. } => ErrorKind::Invalid,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => ErrorKind::Refused,
        Error::NotSupported { .. } | Error::NotImplemented { .. } | Error::NotFound { .. } => {
            ErrorKind::Fail
        }
        _ => ErrorKind::Retry,
    };
    StoreError::new(kind, operation, key, e)
}

fn listed(meta: ObjectMeta) -> Listed {
    Listed {
        key: meta.location.to_string(),
        length: meta.size,
        modified: Micros::new(meta.last_modified.timestamp_micros()),
    }
}

fn path(key: &str) -> Result<Path, StoreError> {
    Path::parse(key).map_err(|e| StoreError::new(ErrorKind::Invalid, "name", key, e))
}

#[async_trait]
impl Objects for Remote {
    async fn create(&self, key: &str, body: Bytes) -> Result<Create, StoreError> {
        let options = PutOptions {
            mode: PutMode::Create,
            ..PutOptions::default()
        };
        match self.store.put_opts(&path(key)?, body.into(), options).await {
            Ok(_) => Ok(Create::Created),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(Create::Exists),
            Err(e) => Err(failed("create", key, e)),
        }
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
        self.store
            .put(&path(key)?, body.into())
            .await
            .map(|_| ())
            .map_err(|e| failed("write", key, e))
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        match self.store.get(&path(key)?).await {
            Ok(answer) => answer
                .bytes()
                .await
                .map(Some)
                .map_err(|e| failed("read", key, e)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(failed("read", key, e)),
        }
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Option<Bytes>, StoreError> {
        if range.is_empty() {
            return Ok(Some(Bytes::new()));
        }
        let options = GetOptions {
            range: Some(GetRange::Bounded(range)),
            ..GetOptions::default()
        };
        match self.store.get_opts(&path(key)?, options).await {
            Ok(answer) => answer
                .bytes()
                .await
                .map(Some)
                .map_err(|e| failed("read", key, e)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(failed("read", key, e)),
        }
    }

    async fn list(&self, folder: &str) -> Result<Vec<Listed>, StoreError> {
        let prefix = path(folder)?;
        let mut all: Vec<Listed> = self
            .store
            .list((!folder.is_empty()).then_some(&prefix))
            .map_ok(listed)
            .try_collect()
            .await
            .map_err(|e| failed("list", folder, e))?;
        all.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(all)
    }

    /// S3 lists in the order of keys. A whole page would be a thousand objects, for one that is looked at.
    async fn first(&self, folder: &str) -> Result<Option<Listed>, StoreError> {
        let prefix = path(folder)?;
        let Some(pages) = &self.pages else {
            let mut stream = self.store.list(Some(&prefix));
            let first = stream.try_next().await;
            return Ok(first.map_err(|e| failed("list", folder, e))?.map(listed));
        };
        let one = PaginatedListOptions {
            max_keys: Some(1),
            ..PaginatedListOptions::default()
        };
        let page = pages.list_paginated(Some(&format!("{prefix}/")), one).await;
        let objects = page.map_err(|e| failed("list", folder, e))?.result.objects;
        Ok(objects.into_iter().next().map(listed))
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        match self.store.delete(&path(key)?).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(failed("delete", key, e)),
        }
    }

    async fn copy(&self, from: &str, to: &str) -> Result<bool, StoreError> {
        match self.store.copy(&path(from)?, &path(to)?).await {
            Ok(()) => Ok(true),
            Err(Error::NotFound { .. }) => Ok(false),
            Err(e) => Err(failed("copy", from, e)),
        }
    }
}
