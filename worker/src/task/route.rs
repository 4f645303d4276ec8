//! Where an operator's output goes: forward channels get every batch, hash exchanges get each row at the owner of its key
//! group. Owns the splitting of batches; channels are the network's.

use arrow::array::{Array, ArrayRef, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;

use crate::error::{EngineError, Result};
use crate::keys;
use crate::message::{Batch, Lane, Message, RowKind};
use crate::network::Outlet;
use crate::planted::{Bug, planted};

/// Key columns of a hash exchange, by lane: on the late lane rows have the schema of the sender's input.
#[derive(Debug, Clone)]
pub struct HashBy {
    pub main: Vec<usize>,
    pub late: Vec<usize>,
    pub key_groups: u16,
}

/// One consumer of an operator: one outlet (forward), or one per receiving subtask.
pub struct Route {
    by: Option<HashBy>,
    outlets: Vec<Box<dyn Outlet>>,
}

impl Route {
    pub fn forward(outlet: Box<dyn Outlet>) -> Self {
        Self {
            by: None,
            outlets: vec![outlet],
        }
    }

    pub fn hash(by: HashBy, outlets: Vec<Box<dyn Outlet>>) -> Self {
        Self {
            by: Some(by),
            outlets,
        }
    }

    pub fn has_room(&self) -> bool {
        self.outlets.iter().all(|o| o.has_room())
    }

    pub fn mark(&mut self, message: &Message) {
        for outlet in &mut self.outlets {
            outlet.send(message.clone());
        }
    }

    pub fn batch(&mut self, batch: Batch) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let (Some(by), true) = (&self.by, self.outlets.len() > 1) else {
            self.outlets[0].send(Message::Batch(batch));
            return Ok(());
        };
        let columns = match batch.lane {
            Lane::Main => &by.main,
            Lane::Late => &by.late,
        };
        let keys: Vec<ArrayRef> = columns
            .iter()
            .map(|&c| batch.rows.column(c).clone())
            .collect();
        let hashes = keys::hash_columns(&keys, batch.num_rows());
        let mut picks: Vec<Vec<u32>> = vec![Vec::new(); self.outlets.len()];
        let astray = planted(Bug::TwoOwners) && batch.num_rows().is_multiple_of(2);
        let owners = picks.len() - usize::from(astray);
        for (row, hash) in hashes.iter().enumerate() {
            let group = keys::key_group(*hash, by.key_groups);
            let target = keys::owner(group, by.key_groups, owners);
            picks[target].push(u32::try_from(row).expect("a batch has fewer than 2^32 rows"));
        }
        for (outlet, rows) in self.outlets.iter_mut().zip(picks) {
            if rows.len() == batch.num_rows() {
                outlet.send(Message::Batch(batch));
                return Ok(());
            }
            if !rows.is_empty() {
                outlet.send(Message::Batch(pick(&batch, rows)?));
            }
        }
        Ok(())
    }
}

/// The given rows of a batch, with their kinds.
fn pick(batch: &Batch, rows: Vec<u32>) -> Result<Batch> {
    let kinds = batch.kinds.as_ref().map(|k| {
        rows.iter()
            .map(|&r| k[r as usize])
            .collect::<std::sync::Arc<[RowKind]>>()
    });
    let rows = take(&batch.rows, rows)?;
    Ok(Batch {
        rows,
        kinds,
        lane: batch.lane,
    })
}

fn take(rows: &RecordBatch, picks: Vec<u32>) -> Result<RecordBatch> {
    let picks = UInt32Array::from(picks);
    debug_assert_eq!(picks.null_count(), 0);
    take_record_batch(rows, &picks).map_err(|e| {
        EngineError::fail("PR0304", "exchange", "a batch cannot be split by key").caused_by(e)
    })
}
