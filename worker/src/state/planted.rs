//! Faults that tests switch on to see that they are found. All are off unless a test says otherwise.

use bytes::Bytes;

use crate::error::Result;

use super::TableId;
use super::backend::{Backend, Identity};
use super::layer::{ChangeSink, Changes};

/// Which faults are on.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Planted {
    /// Prefix deletes reach the backend after the puts of their layer.
    pub range_delete_after_put: bool,
    /// Whatever an instance holds is used, without a look at whose it is.
    pub volume_without_identity: bool,
}

impl Planted {
    pub(super) fn apply(
        self,
        backend: &dyn Backend,
        changes: &dyn Changes,
        identity: &Identity,
    ) -> Result<()> {
        let Self {
            range_delete_after_put,
            volume_without_identity: _,
        } = self;
        if range_delete_after_put {
            backend.apply(&RangeDeleteAfterPut(changes), identity)
        } else {
            backend.apply(changes, identity)
        }
    }
}

struct RangeDeleteAfterPut<'a>(&'a dyn Changes);

struct Late<'a> {
    to: &'a mut dyn ChangeSink,
    prefixes: Vec<Bytes>,
}

impl Late<'_> {
    fn end_table(&mut self) -> Result<()> {
        self.prefixes
            .drain(..)
            .try_for_each(|p| self.to.delete_prefix(&p))
    }
}

impl Changes for RangeDeleteAfterPut<'_> {
    fn replay(&self, sink: &mut dyn ChangeSink) -> Result<()> {
        let mut late = Late {
            to: sink,
            prefixes: Vec::new(),
        };
        self.0.replay(&mut late)?;
        late.end_table()
    }
}

impl ChangeSink for Late<'_> {
    fn table(&mut self, table: TableId) -> Result<()> {
        self.end_table()?;
        self.to.table(table)
    }
    fn delete_prefix(&mut self, prefix: &[u8]) -> Result<()> {
        self.prefixes.push(Bytes::copy_from_slice(prefix));
        Ok(())
    }
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.to.put(key, value)
    }
    fn delete(&mut self, key: &[u8]) -> Result<()> {
        self.to.delete(key)
    }
}
