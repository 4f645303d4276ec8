//! When a file is whole: pure. A shard's files are a function of what the log says: the chunks of its epochs in order, the
//! generation that committed each epoch and the epoch's time. Two publishers that know the same chunks cut the same files, so
//! neither needs to fence the other. Owns the bookkeeping of what is held back; reading and writing are the publisher's.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde::{Deserialize, Serialize};

use crate::sinks::Turn;

/// When a file is whole.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// In bytes; a file ends with the line that reaches it.
    pub size: u64,
    /// Between the epoch of a file's first line and the first epoch that is not in it, by the epochs' times.
    pub interval_ms: i64,
}

/// Names a file: where its first line was staged. `cut`: how many files of this folder began in the chunk before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileName {
    pub epoch: u64,
    pub chunk: u32,
    pub cut: u32,
}

/// Lines that are held back: `len` bytes of the held object of that name, from `from`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece(pub String, pub u64, pub u64);

/// A file that is not whole yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    name: FileName,
    since_ms: i64,
    generation: u64,
    bytes: u64,
    pieces: Vec<Piece>,
}

/// A file that is whole: the pieces, then the tail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whole {
    pub folder: String,
    pub name: FileName,
    pub pieces: Vec<Piece>,
    pub tail: Vec<u8>,
}

impl Whole {
    pub fn len(&self) -> u64 {
        self.pieces.iter().map(|p| p.2).sum::<u64>() + self.tail.len() as u64
    }
}

/// The open files of a shard, by folder.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OpenFiles(BTreeMap<String, Open>);

/// What a chunk does: files that it makes whole, and the bytes that are held back, as the held object begins.
#[derive(Debug, Default)]
pub struct Appended {
    pub whole: Vec<Whole>,
    pub held: Vec<u8>,
}

/// From so many pieces on, the newest are put together again: a shard with little in each epoch would list thousands.
const PIECES: usize = 64;
/// Pieces are put together up to as many bytes.
const MERGED: u64 = 1 << 20;

impl OpenFiles {
    /// Files that are whole at this turn: those of an older generation, and those that are old enough. A file that is
    /// due stays due, so that it does not matter at which of the later turns somebody finds it.
    pub fn turn(&mut self, turn: Turn, rules: Rules) -> Vec<Whole> {
        self.take(|open| {
            open.generation < turn.generation
                || turn.now_ms.saturating_sub(open.since_ms) >= rules.interval_ms
        })
    }

    /// All of them: the log says that nothing more comes in this generation.
    pub fn close(&mut self) -> Vec<Whole> {
        self.take(|_| true)
    }

    fn take(&mut self, whole: impl Fn(&Open) -> bool) -> Vec<Whole> {
        let taken = self.0.extract_if(.., |_, open| whole(open));
        taken
            .map(|(folder, open)| Whole {
                folder,
                name: open.name,
                pieces: open.pieces,
                tail: Vec::new(),
            })
            .collect()
    }

    /// Takes a chunk's lines, by folder. `object`: the name under which what is held back will be kept.
    pub fn append(
        &mut self,
        lines: BTreeMap<String, Vec<u8>>,
        chunk: (u64, u32),
        object: &str,
        turn: Turn,
        rules: Rules,
    ) -> Appended {
        let mut done = Appended::default();
        for (folder, lines) in lines {
            let mut cut = 0;
            let mut rest = lines.as_slice();
            while !rest.is_empty() {
                let name = FileName {
                    epoch: chunk.0,
                    chunk: chunk.1,
                    cut,
                };
                let mut entry = match self.0.entry(folder.clone()) {
                    Entry::Occupied(entry) => entry,
                    Entry::Vacant(entry) => {
                        cut += 1;
                        entry.insert_entry(Open {
                            name,
                            since_ms: turn.now_ms,
                            generation: turn.generation,
                            bytes: 0,
                            pieces: Vec::new(),
                        })
                    }
                };
                let room = rules.size.saturating_sub(entry.get().bytes);
                let Some(end) = line_end(rest, room) else {
                    let from = done.held.len() as u64;
                    done.held.extend_from_slice(rest);
                    let open = entry.get_mut();
                    open.bytes += rest.len() as u64;
                    open.pieces
                        .push(Piece(object.to_owned(), from, rest.len() as u64));
                    break;
                };
                let open = entry.remove();
                done.whole.push(Whole {
                    folder: folder.clone(),
                    name: open.name,
                    pieces: open.pieces,
                    tail: rest[..end].to_vec(),
                });
                rest = &rest[end..];
            }
        }
        done
    }

    /// For each file of many pieces the newest ones that are small together, to be read and held again as one.
    pub fn to_merge(&self) -> Vec<(String, Vec<Piece>)> {
        let many = self.0.iter().filter(|(_, o)| o.pieces.len() >= PIECES);
        many.filter_map(|(folder, open)| {
            let mut bytes = 0;
            let newest = open.pieces.iter().rev().take_while(|p| {
                bytes += p.2;
                bytes <= MERGED
            });
            let from = open.pieces.len() - newest.count();
            (open.pieces.len() - from > 1).then(|| (folder.clone(), open.pieces[from..].to_vec()))
        })
        .collect()
    }

    /// The newest `pieces` of a folder's file are one now.
    pub fn merged(&mut self, folder: &str, pieces: usize, one: Piece) {
        if let Some(open) = self.0.get_mut(folder) {
            open.pieces.truncate(open.pieces.len() - pieces);
            open.pieces.push(one);
        }
    }

    /// Held objects that are still needed.
    pub fn objects(&self) -> impl Iterator<Item = &str> {
        let pieces = self.0.values().flat_map(|open| &open.pieces);
        pieces.map(|piece| piece.0.as_str())
    }
}

/// The end of the first line that reaches `room` bytes; `None`: all lines together do not.
fn line_end(lines: &[u8], room: u64) -> Option<usize> {
    let room = usize::try_from(room).unwrap_or(usize::MAX).max(1);
    let from = lines.get(room - 1..)?;
    let end = from.iter().position(|b| *b == b'\n')?;
    Some(room + end)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules {
        size: 10,
        interval_ms: 1000,
    };

    fn at(epoch: u64, generation: u64, now_ms: i64) -> Turn {
        Turn {
            epoch,
            generation,
            now_ms,
        }
    }

    fn add(files: &mut OpenFiles, text: &str, turn: Turn) -> Vec<(FileName, u64)> {
        let lines = BTreeMap::from([(String::new(), text.as_bytes().to_vec())]);
        let done = files.append(lines, (turn.epoch, 0), "o", turn, RULES);
        done.whole
            .iter()
            .map(|w| (w.name.clone(), w.len()))
            .collect()
    }

    fn name(epoch: u64, cut: u32) -> FileName {
        FileName {
            epoch,
            chunk: 0,
            cut,
        }
    }

    #[test]
    fn a_file_ends_with_the_line_that_reaches_its_size() {
        let mut files = OpenFiles::default();
        assert_eq!(add(&mut files, "abc\n", at(1, 1, 0)), []);
        // 4 held, 6 to go: the line that holds the sixth byte is the last.
        let whole = add(
            &mut files,
            "de\nfghij\n0123456789\n0123\n56789\nx\n",
            at(2, 1, 0),
        );
        assert_eq!(
            whole,
            [(name(1, 0), 13), (name(2, 0), 11), (name(2, 1), 11)]
        );
        let left = files.close();
        assert_eq!((left[0].name.clone(), left[0].len()), (name(2, 2), 2));
    }

    #[test]
    fn a_file_ends_by_age_and_with_its_generation_whoever_looks_and_when() {
        let mut files = OpenFiles::default();
        add(&mut files, "a\n", at(1, 1, 500));
        assert_eq!(files.turn(at(2, 1, 1499), RULES), []);
        let mut late = files.clone();
        assert_eq!(files.turn(at(3, 1, 1500), RULES).len(), 1);
        assert_eq!(late.turn(at(9, 1, 9000), RULES).len(), 1);
        assert_eq!(late, files);
        add(&mut files, "b\n", at(10, 1, 9000));
        assert_eq!(files.turn(at(11, 2, 9000), RULES).len(), 1);
    }

    #[test]
    fn many_small_pieces_become_one() {
        let mut files = OpenFiles::default();
        for epoch in 0..PIECES as u64 {
            assert_eq!(files.to_merge(), []);
            let lines = BTreeMap::from([(String::new(), b"a\n".to_vec())]);
            let rules = Rules {
                size: 1 << 30,
                ..RULES
            };
            files.append(lines, (epoch, 0), "o", at(epoch, 1, 0), rules);
        }
        let merge = files.to_merge();
        assert_eq!(merge[0].1.len(), PIECES);
        files.merged("", PIECES, Piece("new".to_owned(), 0, 128));
        assert_eq!(files.objects().collect::<Vec<_>>(), ["new"]);
        assert_eq!(files.close()[0].len(), 128);
    }
}
