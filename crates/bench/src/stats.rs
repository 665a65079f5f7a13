//! Medians, percentiles, and the table that they end up in.

/// The value below which `share` (0 to 1) of the values lie.
pub(crate) fn percentile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "an index"
    )]
    let index = (last as f64 * share).round() as usize;
    values.get(index).copied().unwrap_or(f64::NAN)
}

/// The middle value.
pub(crate) fn median(values: Vec<f64>) -> f64 {
    percentile(values, 0.5)
}

/// A figure beside its goal.
#[derive(Clone, Copy)]
pub(crate) enum Goal {
    /// No less than this.
    AtLeast(f64),
    /// No more than this.
    AtMost(f64),
}

/// A small number as a figure.
#[expect(
    clippy::cast_precision_loss,
    reason = "counts of a benchmark are small"
)]
pub(crate) fn count(number: usize) -> f64 {
    number as f64
}

/// Prints one line of the table.
#[expect(clippy::print_stdout, reason = "for the person who typed the command")]
pub(crate) fn print(what: &str, value: f64, unit: &str, goal: Option<Goal>) {
    let goal = match goal {
        None => String::new(),
        Some(Goal::AtLeast(goal)) => told(">=", goal, unit, value >= goal),
        Some(Goal::AtMost(goal)) => told("<=", goal, unit, value <= goal),
    };
    println!("{what:<72} {value:>9.3} {unit:<3}{goal}");
}

fn told(sign: &str, goal: f64, unit: &str, met: bool) -> String {
    let verdict = if met { "" } else { "  MISSED" };
    format!(" (goal {sign} {goal} {unit}){verdict}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_of_the_sample() {
        let values: Vec<_> = (0..=100).rev().map(f64::from).collect();
        assert!((median(values.clone()) - 50.0).abs() < f64::EPSILON);
        assert!((percentile(values, 0.99) - 99.0).abs() < f64::EPSILON);
        assert!(median(Vec::new()).is_nan());
    }
}
