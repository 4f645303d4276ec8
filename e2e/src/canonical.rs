//! Owns the canonical text of a row and its checksum, by which outputs of different engines are compared; pure.
//!
//! A row is the values of its JSON object in the order of the keys sorted by name, joined by `|`: null is `\N`, fractions and
//! timestamps lose their trailing zeros, a timestamp has a space between date and time and no zone.

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The canonical text of a JSON object.
pub fn row(json: &[u8]) -> Result<String> {
    let value: Value = serde_json::from_slice(json).with_context(|| {
        format!(
            "not JSON: {}",
            String::from_utf8_lossy(&json[..json.len().min(200)])
        )
    })?;
    let Value::Object(object) = value else {
        bail!("not a JSON object: {value}")
    };
    let mut fields: Vec<(&String, &Value)> = object.iter().collect();
    fields.sort_by_key(|(name, _)| *name);
    let texts: Vec<String> = fields.into_iter().map(|(_, value)| field(value)).collect();
    Ok(texts.join("|"))
}

fn field(value: &Value) -> String {
    match value {
        Value::Null => "\\N".to_owned(),
        Value::Number(number) => trim_fraction(&number.to_string()),
        Value::String(text) => timestamp(text),
        Value::Bool(flag) => flag.to_string(),
        Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

/// `1.500` becomes `1.5`, `2.0` becomes `2`. What has an exponent stays as it is written.
fn trim_fraction(number: &str) -> String {
    if number.contains('.') && !number.contains(['e', 'E']) {
        number
            .trim_end_matches('0')
            .trim_end_matches('.')
            .to_owned()
    } else {
        number.to_owned()
    }
}

/// A text that looks like a timestamp is written in one way, any other stays as it is.
fn timestamp(text: &str) -> String {
    let bytes = text.as_bytes();
    let looks = (19..=30).contains(&bytes.len())
        && bytes[4] == b'-'
        && bytes[7] == b'-'
        && matches!(bytes[10], b' ' | b'T')
        && bytes[13] == b':'
        && bytes[16] == b':';
    if !looks {
        return text.to_owned();
    }
    trim_fraction(text.trim_end_matches('Z')).replacen('T', " ", 1)
}

/// FNV-1a, 64 bits. The sum of it over all rows, modulo 2^64, does not depend on their order.
pub fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stand_in_the_order_of_their_names_whatever_the_order_in_the_object() {
        let text = row(br#"{"b":null,"c":"x","a":1}"#).unwrap();
        assert_eq!(text, "1|\\N|x");
        assert_eq!(text, row(br#"{"c":"x","a":1,"b":null}"#).unwrap());
    }

    #[test]
    fn timestamps_of_all_engines_are_one_text() {
        for written in [
            "2001-01-01 10:00:00",
            "2001-01-01T10:00:00Z",
            "2001-01-01 10:00:00.000",
            "2001-01-01T10:00:00.000000",
        ] {
            assert_eq!(timestamp(written), "2001-01-01 10:00:00");
        }
        assert_eq!(
            timestamp("2001-01-01 10:00:00.120"),
            "2001-01-01 10:00:00.12"
        );
        assert_eq!(timestamp("2001-01-01 something"), "2001-01-01 something");
    }

    #[test]
    fn fractions_lose_their_zeros_and_whole_numbers_keep_theirs() {
        assert_eq!(
            row(br#"{"a":908.000,"b":100,"c":0.50}"#).unwrap(),
            "908|100|0.5"
        );
    }

    #[test]
    fn the_checksum_is_the_published_one() {
        assert_eq!(hash(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash("a"), 0xaf63_dc4c_8601_ec8c);
    }
}
