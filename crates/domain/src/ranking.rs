//! Scores of rankings and of nearest neighbours, by which features are judged on other data than they were learned from.

/// What a ranked image is to the question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relevance {
    /// It belongs to the answer.
    Positive,
    /// It does not.
    Negative,
    /// It does not count: "difficult" of VOC, "junk" of the Oxford and Paris buildings.
    Ignored,
}

/// The class that the nearest neighbours of an image vote for, each with the weight exp(similarity ÷ `temperature`)
/// (Wu, Xiong, Yu, Lin 2018: 20 neighbours by cosine, temperature 0.07).
///
/// Of equal votes the smaller class wins. Neighbours whose class is negative (unknown) or not below `n_classes` have no vote;
/// without any vote it is −1.
pub fn knn_vote(similarities: &[f32], neighbours: &[i32], temperature: f64, n_classes: usize) -> i32 {
    let known = |class: i32| usize::try_from(class).ok().filter(|class| *class < n_classes);
    let voters: Vec<(f64, usize)> = similarities
        .iter()
        .zip(neighbours)
        .filter_map(|(similarity, class)| Some((f64::from(*similarity), known(*class)?)))
        .collect();
    let nearest = voters.iter().map(|(similarity, _)| *similarity).fold(f64::NEG_INFINITY, f64::max);
    let mut votes = vec![0.0_f64; n_classes];
    for (similarity, class) in voters {
        // Relative to the nearest one, so that a low temperature does not overflow.
        votes[class] += ((similarity - nearest) / temperature).exp();
    }
    let (mut winner, mut most) = (-1, 0.0);
    for (class, vote) in (0..).zip(votes) {
        if vote > most {
            (winner, most) = (class, vote);
        }
    }
    winner
}

/// Average precision of a class by the rule of VOC 2007, in [0, 1]: the mean over recalls of 0, 0.1, … 1 of the best precision
/// at that recall or above. 0 without any positive image.
///
/// Images of equal score stay in their order, as in the development kit. Recalls are compared as fractions: in floats, three of
/// ten are less than three times a tenth.
pub fn average_precision_11(scores: &[f32], relevant: &[Relevance]) -> f64 {
    let counted = scores.iter().zip(relevant).filter(|(_, relevance)| **relevance != Relevance::Ignored);
    // Adding zero makes −0 equal to 0.
    let mut ranked: Vec<(f32, bool)> =
        counted.map(|(score, relevance)| (*score + 0.0, *relevance == Relevance::Positive)).collect();
    ranked.sort_by(|x, y| y.0.total_cmp(&x.0));
    let n_positive = ranked.iter().filter(|(_, positive)| *positive).count();
    let mut best = [0.0_f64; 11];
    let mut found = 0;
    for (before, (_, positive)) in ranked.iter().enumerate() {
        found += usize::from(*positive);
        let precision = found as f64 / (before + 1) as f64;
        for (tenths, best) in best.iter_mut().enumerate() {
            if 10 * found >= tenths * n_positive {
                *best = best.max(precision);
            }
        }
    }
    best.iter().map(|precision| precision / 11.0).sum()
}

/// Average precision of a query by the protocol of the Oxford and Paris buildings (`compute_ap` of the authors), in [0, 1]: the
/// area below precision over recall by the trapezoidal rule. 0 without any positive image.
///
/// `ranked` is the whole collection, the most similar image first; ignored ones are as if they were not there.
pub fn average_precision(ranked: &[Relevance]) -> f64 {
    let n_positive = ranked.iter().filter(|relevance| **relevance == Relevance::Positive).count();
    if n_positive == 0 {
        return 0.0;
    }
    let (mut area, mut found, mut old_recall, mut old_precision) = (0.0, 0_usize, 0.0, 1.0);
    let counted = ranked.iter().filter(|relevance| **relevance != Relevance::Ignored);
    for (before, relevance) in counted.enumerate() {
        found += usize::from(*relevance == Relevance::Positive);
        let recall = found as f64 / n_positive as f64;
        let precision = found as f64 / (before + 1) as f64;
        area += (recall - old_recall) * ((old_precision + precision) / 2.0);
        (old_recall, old_precision) = (recall, precision);
    }
    area
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn parity() -> Value {
        serde_json::from_str(include_str!("../../../tests/parity/evaluation.json")).unwrap()
    }

    fn floats(case: &Value, member: &str) -> Vec<f32> {
        case[member].as_array().unwrap().iter().map(|value| value.as_f64().unwrap() as f32).collect()
    }

    fn integers(case: &Value, member: &str) -> Vec<i32> {
        case[member].as_array().unwrap().iter().map(|value| value.as_i64().unwrap() as i32).collect()
    }

    fn truth(case: &Value) -> Vec<Relevance> {
        let relevance = |truth: i32| match truth {
            0 => Relevance::Ignored,
            1.. => Relevance::Positive,
            _ => Relevance::Negative,
        };
        integers(case, "truth").into_iter().map(relevance).collect()
    }

    #[test]
    fn neighbours_vote_as_in_the_reference() {
        let all = parity();
        let (temperature, n_classes) = (all["knn"]["temperature"].as_f64().unwrap(), all["knn"]["n_classes"].as_u64().unwrap());
        let cases = all["knn"]["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 12);
        for case in cases {
            let class = knn_vote(&floats(case, "similarities"), &integers(case, "neighbours"), temperature, n_classes as usize);
            assert_eq!(i64::from(class), case["class"].as_i64().unwrap());
        }
        // Far neighbours decide where the near ones have no class, at any temperature.
        assert_eq!(knn_vote(&[1.0, 0.9, -1.0, -1.0], &[-1, 3, 2, 1], 1e-5, 3), 1);
        assert_eq!(knn_vote(&[1.0], &[-1], 0.07, 3), -1);
        assert_eq!(knn_vote(&[], &[], 0.07, 0), -1);
    }

    #[test]
    fn average_precisions_are_those_of_voc_and_oxford() {
        let all = parity();
        for case in all["voc"].as_array().unwrap() {
            let (found, expected) = (average_precision_11(&floats(case, "scores"), &truth(case)), case["ap"].as_f64().unwrap());
            assert!((found - expected).abs() < 1e-12, "VOC: {found}, not {expected}");
        }
        for case in all["oxford"].as_array().unwrap() {
            let (found, expected) = (average_precision(&truth(case)), case["ap"].as_f64().unwrap());
            assert!((found - expected).abs() < 1e-12, "Oxford: {found}, not {expected}");
        }
        assert_eq!((all["voc"].as_array().unwrap().len(), all["oxford"].as_array().unwrap().len()), (4, 3));
        assert_eq!(average_precision_11(&[1.0, 2.0], &[Relevance::Negative, Relevance::Ignored]), 0.0);
        assert_eq!(average_precision(&[Relevance::Negative, Relevance::Ignored]), 0.0);
        assert_eq!(average_precision(&[Relevance::Ignored, Relevance::Positive]), 1.0);
    }
}
