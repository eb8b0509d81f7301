//! Buckets of a histogram as TensorBoard makes them (`tensorboard/plugins/histogram/summary_v2.py`): thirty of equal width from
//! the smallest to the largest value.

use crate::messages::Histogram;

/// TensorBoard's number of buckets.
const BUCKETS: usize = 30;

/// The histogram of the finite ones of some values; none when there are none.
///
/// Values that are all the same make one bucket without width, as TensorBoard reads them.
pub fn histogram(values: &[f64]) -> Option<Histogram> {
    let finite: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    let min = finite.iter().copied().reduce(f64::min)?;
    let max = finite.iter().copied().reduce(f64::max)?;
    let num = finite.len() as f64;
    let (bucket_limit, bucket) = if min == max { (vec![max], vec![num]) } else { buckets(&finite, min, max) };
    let sum_squares = finite.iter().map(|value| value * value).sum();
    Some(Histogram { min, max, num, sum: finite.iter().sum(), sum_squares, bucket_limit, bucket })
}

/// Right edges and counts. The last bucket has its right edge too.
fn buckets(values: &[f64], min: f64, max: f64) -> (Vec<f64>, Vec<f64>) {
    // Divided first, and never above the largest: the difference of two large numbers may have no f64.
    let width = max / BUCKETS as f64 - min / BUCKETS as f64;
    let mut limits: Vec<f64> = (1..BUCKETS).map(|edge| (min + edge as f64 * width).min(max)).collect();
    limits.push(max);
    let mut counts = vec![0.0; BUCKETS];
    for value in values {
        let at = ((value - min) / width).floor() as usize;
        counts[at.min(BUCKETS - 1)] += 1.0;
    }
    (limits, counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thirty_buckets_of_equal_width_hold_every_value() {
        let values: Vec<f64> = (0..300).map(|i| f64::from(i) - 100.0).collect();
        let found = histogram(&values).unwrap();
        assert_eq!((found.min, found.max, found.num), (-100.0, 199.0, 300.0));
        assert_eq!((found.sum, found.sum_squares), (14_850.0, 2_985_050.0));
        assert_eq!((found.bucket.len(), found.bucket_limit.len()), (30, 30));
        assert_eq!(found.bucket.iter().sum::<f64>(), 300.0);
        assert_eq!(found.bucket_limit.last(), Some(&199.0));
        assert!((found.bucket_limit[0] - (-100.0 + 299.0 / 30.0)).abs() < 1e-9);
        // The smallest and the largest are in, and their neighbours with them.
        assert_eq!((found.bucket[0], found.bucket[29]), (10.0, 10.0));
    }

    #[test]
    fn odd_values_do_no_harm() {
        assert_eq!(histogram(&[]), None);
        assert_eq!(histogram(&[f64::NAN, f64::INFINITY]), None);
        let same = histogram(&[2.5, 2.5, f64::NAN]).unwrap();
        assert_eq!((same.num, same.bucket_limit, same.bucket), (2.0, vec![2.5], vec![2.0]));
        for extreme in [[-f64::MAX, f64::MAX, 0.0], [0.0, f64::from_bits(1), 0.0]] {
            assert_eq!(histogram(&extreme).unwrap().bucket.iter().sum::<f64>(), 3.0);
        }
    }
}
