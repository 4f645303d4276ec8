use super::*;
use crate::sinks::Sink;
use crate::sinks::contract::subjects::plan;
use crate::sinks::memory::MemorySink;

const SHARD: Shard = (0, 0);

fn born() -> BornMarker {
    BornMarker {
        partition: 0,
        nonce: widen(7),
    }
}

/// A generation's task of the shard: does the work and ends. Answers what it said.
async fn generation(
    number: u64,
    sink: &MemorySink,
    left: &Publishers,
    works: Vec<ShardWork>,
) -> Vec<ShardNews> {
    let generation = Generation::new(number);
    let open = left.begin(generation).remove(&(SHARD, 0));
    let stands = open.as_ref().map(Open::stands);
    let publisher = match open {
        Some(open) => open.publisher,
        None => sink.publisher(0, 0).unwrap(),
    };
    let (to, work) = mpsc::unbounded_channel();
    let (news, mut said) = mpsc::unbounded_channel();
    for work in works {
        to.send(work).unwrap();
    }
    drop(to);
    let task = ShardTask {
        shard: SHARD,
        name: "sink out shard 0".to_owned(),
        publisher,
        settings: 0,
        stands,
        newest: Epoch::new(100),
        work,
        news,
    };
    task.run(generation, left.clone()).await;
    let mut all = Vec::new();
    while let Ok(news) = said.try_recv() {
        all.push(news);
    }
    all
}

fn bear() -> ShardWork {
    ShardWork::Bear {
        marker: born(),
        epoch: Epoch::ZERO,
    }
}

fn publish(epoch: u64) -> ShardWork {
    let turn = Turn {
        epoch,
        ..Turn::default()
    };
    let chunks = vec![Bytes::new()];
    ShardWork::Publish { turn, chunks }
}

fn published(news: &[ShardNews]) -> Vec<u64> {
    let of = |n: &ShardNews| match n {
        ShardNews::Published(_, epoch) => Some(epoch.get()),
        _ => None,
    };
    news.iter().filter_map(of).collect()
}

#[tokio::test]
async fn the_next_generation_goes_on_with_the_open_publisher() {
    let (sink, left) = (MemorySink::new(plan(1)), Publishers::default());
    generation(1, &sink, &left, vec![bear(), publish(1)]).await;
    // What another process opens meanwhile shuts it out: that it is refused shows that it was not opened again.
    let mut other = sink.publisher(0, 0).unwrap();
    assert_eq!(other.open().await.unwrap().map(|m| m.epoch), Some(1));
    let works = vec![ShardWork::Born(born()), publish(2)];
    let news = generation(2, &sink, &left, works).await;
    assert!(
        matches!(&news[..], [ShardNews::Failed(e)] if e.kind == ErrorKind::Fenced),
        "{news:?}"
    );
    // What has failed is not left to anybody.
    let works = vec![ShardWork::Born(born()), publish(2), publish(3)];
    let news = generation(3, &sink, &left, works).await;
    assert_eq!(published(&news), [2, 3]);
}

#[tokio::test]
async fn what_was_published_is_known_without_reading_the_marker() {
    let (sink, left) = (MemorySink::new(plan(1)), Publishers::default());
    generation(1, &sink, &left, vec![bear(), publish(1), publish(2)]).await;
    let works = vec![ShardWork::Born(born()), publish(2), publish(3)];
    let news = generation(2, &sink, &left, works).await;
    assert_eq!(published(&news), [2, 3], "each is said to be out");
    let mut other = sink.publisher(0, 0).unwrap();
    assert_eq!(other.open().await.unwrap().map(|m| m.epoch), Some(3));
}

#[tokio::test]
async fn a_publisher_of_an_older_generation_comes_too_late() {
    let (sink, left) = (MemorySink::new(plan(1)), Publishers::default());
    let publisher = sink.publisher(0, 0).unwrap();
    let at = Marker {
        epoch: 1,
        chunk: Marker::ALL,
        nonce: 7,
    };
    left.begin(Generation::new(2));
    let open = Open {
        publisher,
        settings: 0,
        born: born(),
        at,
    };
    left.leave(Generation::new(1), SHARD, open);
    assert!(left.begin(Generation::new(3)).is_empty());
}

#[tokio::test]
async fn a_publisher_is_used_by_the_next_generation_alone_and_with_the_settings_that_it_has() {
    let (sink, left) = (MemorySink::new(plan(1)), Publishers::default());
    generation(1, &sink, &left, vec![bear(), publish(1)]).await;
    assert!(left.begin(Generation::new(3)).is_empty(), "others had it");
    generation(4, &sink, &left, vec![ShardWork::Born(born()), publish(2)]).await;
    let open = left.begin(Generation::new(5)).remove(&(SHARD, 0)).unwrap();
    assert!(open.serves(born(), 0));
    assert!(!open.serves(born(), 1), "a changed Secret");
    let other = BornMarker {
        nonce: widen(8),
        ..born()
    };
    assert!(!open.serves(other, 0), "another history");
}
