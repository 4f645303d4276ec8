//! Whether what is there is what was wanted. The API server adds defaults and other writers add fields of their own, so what is
//! wanted need only be contained.

use serde_json::Value;

/// Whether `live` holds everything that `wanted` says: objects by member, lists by place and length.
pub fn covers(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => wanted
            .iter()
            .all(|(k, w)| live.get(k).map_or_else(|| is_nothing(w), |l| covers(l, w))),
        (Value::Array(live), Value::Array(wanted)) => {
            live.len() == wanted.len() && live.iter().zip(wanted).all(|(l, w)| covers(l, w))
        }
        (live, wanted) => live == wanted,
    }
}

/// The API server leaves empty members out.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(members) => members.values().all(is_nothing),
        Value::Array(items) => items.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::covers;
    use serde_json::json;

    #[test]
    fn defaults_are_no_difference_and_other_values_are() {
        let live = json!({"a": 1, "b": {"c": [ {"name": "x", "port": 1, "protocol": "TCP"} ]}, "added": true});
        assert!(covers(
            &live,
            &json!({"a": 1, "b": {"c": [ {"name": "x", "port": 1} ]}})
        ));
        assert!(covers(
            &live,
            &json!({"a": 1, "empty": {}, "none": null, "list": []})
        ));
        assert!(!covers(&live, &json!({"a": 2})));
        assert!(!covers(&live, &json!({"b": {"c": []}})));
        assert!(!covers(&live, &json!({"missing": "x"})));
    }
}
