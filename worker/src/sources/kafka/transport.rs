//! Columns that come from the transport and not from the body: key, timestamp, partition, offset, topic, headers.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryBuilder, Int32Array, Int64Array, MapArray, StringBuilder, StructArray,
    TimestampMicrosecondArray,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, FieldRef};
use penstock_crds::source::TransportField;

use super::ffi::Native;
use crate::error::{EngineError, Result};

/// The column `field` of the given records. A key that is no UTF-8 must have been refused before, if the column is text.
pub(super) fn column(
    what: TransportField,
    field: &FieldRef,
    records: &[&Native],
) -> Result<ArrayRef> {
    let natural: ArrayRef = match what {
        TransportField::Key => {
            let mut out = BinaryBuilder::new();
            records.iter().for_each(|m| out.append_option(m.key()));
            Arc::new(out.finish())
        }
        TransportField::Timestamp => {
            let micros = records
                .iter()
                .map(|m| m.timestamp_ms().map(|ms| ms.saturating_mul(1000)));
            let zone = match field.data_type() {
                DataType::Timestamp(_, zone) => zone.clone(),
                _ => None,
            };
            Arc::new(TimestampMicrosecondArray::from_iter(micros).with_timezone_opt(zone))
        }
        TransportField::Partition => Arc::new(Int32Array::from_iter_values(
            records.iter().map(|m| m.partition()),
        )),
        TransportField::Offset => Arc::new(Int64Array::from_iter_values(
            records.iter().map(|m| m.offset()),
        )),
        TransportField::Topic => {
            let mut out = StringBuilder::new();
            records.iter().for_each(|m| out.append_option(m.topic()));
            Arc::new(out.finish())
        }
        TransportField::Headers => return headers(field, records),
        TransportField::Path => {
            return Err(mismatch(
                field.data_type(),
                "a record of Kafka has no path for",
            ));
        }
    };
    cast(&natural, field.data_type())
}

/// A map of name to value; of a name that comes twice the map holds both, in order.
fn headers(field: &FieldRef, records: &[&Native]) -> Result<ArrayRef> {
    let DataType::Map(entries, sorted) = field.data_type() else {
        return Err(mismatch(field.data_type(), "headers are a map"));
    };
    let DataType::Struct(members) = entries.data_type() else {
        return Err(mismatch(field.data_type(), "a map has entries"));
    };
    let (mut names, mut values) = (StringBuilder::new(), BinaryBuilder::new());
    let mut lengths = Vec::with_capacity(records.len());
    for record in records {
        let mut n = 0;
        record.headers(|name, value| {
            names.append_value(name.to_string_lossy());
            values.append_option(value);
            n += 1;
        });
        lengths.push(n);
    }
    let names: ArrayRef = Arc::new(names.finish());
    let values: ArrayRef = Arc::new(values.finish());
    let columns = vec![
        cast(&names, members[0].data_type())?,
        cast(&values, members[1].data_type())?,
    ];
    let made = StructArray::try_new(members.clone(), columns, None).and_then(|entries_array| {
        let offsets = OffsetBuffer::from_lengths(lengths);
        MapArray::try_new(Arc::clone(entries), offsets, entries_array, None, *sorted)
    });
    match made {
        Ok(map) => Ok(Arc::new(map)),
        Err(e) => Err(mismatch(field.data_type(), "headers do not fit").caused_by(e)),
    }
}

fn cast(array: &ArrayRef, to: &DataType) -> Result<ArrayRef> {
    if array.data_type() == to {
        return Ok(Arc::clone(array));
    }
    arrow::compute::cast(array, to)
        .map_err(|e| mismatch(to, "a transport column does not fit").caused_by(e))
}

fn mismatch(to: &DataType, text: &str) -> EngineError {
    EngineError::invalid("PR0202", "kafka source", format!("{text} the type {to}"))
}
