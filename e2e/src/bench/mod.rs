//! Measurements that need a real engine but no rival: latency from broker to broker, state far larger than memory, and
//! what lost and changed workers cost, workers with little memory for hours, and the autoscaler on a real load.

pub mod autoscale;
pub mod elasticity;
pub mod latency;
pub mod memory;
pub mod size;

/// The value below which this share of the sorted samples lies.
pub fn percentile(sorted: &[i64], share: f64) -> i64 {
    if sorted.is_empty() {
        return 0;
    }
    // The nearest rank: small, exact for the lengths at hand.
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_sample_of_the_nearest_rank() {
        let samples: Vec<i64> = (1..=100).collect();
        assert_eq!(percentile(&samples, 0.5), 50);
        assert_eq!(percentile(&samples, 0.99), 99);
        assert_eq!(percentile(&samples, 1.0), 100);
        assert_eq!(percentile(&[7], 0.01), 7);
        assert_eq!(percentile(&[], 0.5), 0);
    }
}
