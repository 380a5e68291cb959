//! The tombstones in the embedded store: in the order in which they were dug, not by their age.

use super::tombstones::MAX_LASTING;
use crate::clock;
use redb::{ReadableTable, StorageError, Table, TableDefinition};
use std::collections::VecDeque;
use std::sync::Arc;

/// UID → its number in the order of all; as large as the Unix milliseconds of the removal, where the clock allows.
pub(super) const TOMBSTONES: TableDefinition<'_, &str, i64> = TableDefinition::new("tombstones-v1");

/// Which are in the table, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Burials {
    order: VecDeque<Arc<str>>,
    last: i64,
}

impl Burials {
    /// As the table has them.
    pub(super) fn read(table: &impl ReadableTable<&'static str, i64>) -> Result<Self, StorageError> {
        let mut rows = Vec::new();
        for row in table.iter()? {
            let (uid, number) = row?;
            rows.push((number.value(), Arc::<str>::from(uid.value())));
        }
        rows.sort();
        let last = rows.last().map_or(0, |(number, _)| *number);
        Ok(Self { order: rows.into_iter().map(|(_, uid)| uid).collect(), last })
    }

    /// All of them, the oldest first.
    pub(super) fn uids(&self) -> Vec<Arc<str>> {
        self.order.iter().cloned().collect()
    }

    /// Remembers a UID, and forgets the oldest where there are too many.
    pub(super) fn bury(
        &mut self,
        table: &mut Table<'_, &'static str, i64>,
        uid: &Arc<str>,
    ) -> Result<(), StorageError> {
        if table.get(&**uid)?.is_some() {
            return Ok(());
        }
        // Larger than any before, however the clock was set meanwhile.
        self.last = clock::now_ms().max(self.last.saturating_add(1));
        table.insert(&**uid, self.last)?;
        self.order.push_back(uid.clone());
        while self.order.len() > MAX_LASTING
            && let Some(oldest) = self.order.pop_front()
        {
            table.remove(&*oldest)?;
        }
        Ok(())
    }
}
