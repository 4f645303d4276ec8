//! The contract of a store, passed by each.

use super::*;
use crate::ids::SeededEntropy;

async fn contract(objects: Arc<dyn Objects>) {
    let store = CheckpointStore::new(objects, "ns/job");
    store
        .prove_create_if_absent(&mut SeededEntropy::new(1))
        .await
        .unwrap();
    assert_eq!(
        store.create("log/2", "two".into()).await.unwrap(),
        Create::Created
    );
    assert_eq!(
        store.create("log/2", "other".into()).await.unwrap(),
        Create::Exists
    );
    assert_eq!(store.get("log/2").await.unwrap().unwrap(), "two");
    assert_eq!(store.get("log/3").await.unwrap(), None);
    store.put("log/1", "one".into()).await.unwrap();
    store.put("log/1", "uno".into()).await.unwrap();
    assert_eq!(store.get("log/1").await.unwrap().unwrap(), "uno");
    assert_eq!(store.get_range("log/2", 1..2).await.unwrap().unwrap(), "w");
    assert_eq!(store.get_range("log/2", 1..9).await.unwrap().unwrap(), "wo");
    assert_eq!(store.get_range("log/3", 1..9).await.unwrap(), None);
    store.put("log-b/1", "no".into()).await.unwrap();
    let keys: Vec<String> = store
        .list("log")
        .await
        .unwrap()
        .into_iter()
        .map(|l| l.key)
        .collect();
    assert_eq!(keys, ["log/1", "log/2"]);
    assert_eq!(store.first("log").await.unwrap().unwrap().key, "log/1");
    assert_eq!(store.first("none").await.unwrap(), None);
    assert_eq!(store.list("none").await.unwrap(), []);
    let other = CheckpointStore::new(store.objects().clone(), "ns/other");
    assert!(other.copy_from(&store, "log/2").await.unwrap());
    assert!(!other.copy_from(&store, "log/3").await.unwrap());
    assert_eq!(other.get("log/2").await.unwrap().unwrap(), "two");
    assert_eq!(other.get("log/3").await.unwrap(), None);
    store.delete("log/1").await.unwrap();
    store.delete("log/1").await.unwrap();
    assert_eq!(store.first("log").await.unwrap().unwrap().key, "log/2");
    let wins = futures::future::join_all((0..32).map(|n| {
        let store = store.clone();
        async move { store.create("race/x", format!("{n}").into()).await.unwrap() }
    }));
    assert_eq!(
        wins.await
            .into_iter()
            .filter(|c| *c == Create::Created)
            .count(),
        1
    );
}

#[tokio::test]
async fn each_store_keeps_the_contract() {
    contract(Arc::new(Memory::new())).await;
    contract(Arc::new(Remote::new(Arc::new(
        object_store::memory::InMemory::new(),
    ))))
    .await;
    let folder = tempfile::tempdir().unwrap();
    contract(Arc::new(LocalFolder::open(folder.path()).unwrap())).await;
    contract(Arc::new(Counting::new(Arc::new(Memory::new())))).await;
    contract(Arc::new(Faulty::new(
        Arc::new(Memory::new()),
        1,
        Faults::default(),
    )))
    .await;
}

/// Parses the header and ignores it.
#[derive(Debug)]
struct Careless(Memory);

#[async_trait]
impl Objects for Careless {
    async fn create(&self, key: &str, body: Bytes) -> Result<Create, StoreError> {
        self.0.put(key, body).await.map(|()| Create::Created)
    }
    async fn put(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
        self.0.put(key, body).await
    }
    async fn get(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        self.0.get(key).await
    }
    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Option<Bytes>, StoreError> {
        self.0.get_range(key, range).await
    }
    async fn list(&self, folder: &str) -> Result<Vec<Listed>, StoreError> {
        self.0.list(folder).await
    }
    async fn first(&self, folder: &str) -> Result<Option<Listed>, StoreError> {
        self.0.first(folder).await
    }
    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.0.delete(key).await
    }
    async fn copy(&self, from: &str, to: &str) -> Result<bool, StoreError> {
        self.0.copy(from, to).await
    }
}

#[tokio::test]
async fn a_store_that_ignores_the_condition_is_refused() {
    let store = CheckpointStore::new(Arc::new(Careless(Memory::new())), "x");
    let e = store
        .prove_create_if_absent(&mut SeededEntropy::new(1))
        .await
        .unwrap_err();
    assert_eq!(e.kind, ErrorKind::Invalid);
}

#[tokio::test]
async fn a_store_that_does_not_let_us_in_may_do_so_with_other_credentials() {
    for (status, kind) in [
        ("403 Forbidden", ErrorKind::Refused),
        ("401 Unauthorized", ErrorKind::Refused),
        ("400 Bad Request", ErrorKind::Retry),
    ] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let options = S3Options {
            bucket: "b".to_owned(),
            region: "r".to_owned(),
            endpoint: format!("http://{}", listener.local_addr().unwrap()),
            path_style: true,
            access_key: Some("k".to_owned()),
            secret_key: Some("s".to_owned()),
            session_token: None,
        };
        std::thread::spawn(move || {
            let (mut asked, _) = listener.accept().unwrap();
            let _ = std::io::Read::read(&mut asked, &mut [0; 4096]);
            let answer =
                format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            std::io::Write::write_all(&mut asked, answer.as_bytes()).unwrap();
        });
        let e = Remote::s3(&options).unwrap().get("x").await.unwrap_err();
        assert_eq!(e.kind, kind, "{status}");
    }
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_fails_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let blocked = folder.path().join("file");
    std::fs::write(&blocked, "x").unwrap();
    let e = LocalFolder::open(blocked.join("below")).unwrap_err();
    assert_eq!(e.kind, ErrorKind::Fail);
    assert!(e.to_string().contains("file"), "{e}");
}
