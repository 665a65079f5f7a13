//! Progress, to standard error and on a terminal alone: into a file or a pipe goes nothing of it.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// How often it moves.
const TICK: Duration = Duration::from_millis(200);

/// A bar that fills up to `total`, with the rate and the time left; `doing` says what is done.
pub(crate) fn progress(total: u64, doing: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(total);
    let template = "{msg} {wide_bar} {human_pos} of {human_len}, {per_sec}, {eta} left";
    show(bar, template, doing)
}

/// A number that grows, where nobody knows how far.
pub(crate) fn counter(doing: &'static str) -> ProgressBar {
    show(
        ProgressBar::new_spinner(),
        "{spinner} {msg} {human_pos}",
        doing,
    )
}

fn show(bar: ProgressBar, template: &str, doing: &'static str) -> ProgressBar {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(doing);
    bar.enable_steady_tick(TICK);
    bar
}

/// `1 message`, `1,200 messages`.
pub(crate) fn counted(number: u64, what: &str) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    let plural = if number == 1 { "" } else { "s" };
    format!("{text} {what}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        for (number, text) in [
            (0, "0 messages"),
            (1, "1 message"),
            (999, "999 messages"),
            (1_200, "1,200 messages"),
            (12_345_678, "12,345,678 messages"),
        ] {
            assert_eq!(counted(number, "message"), text);
        }
    }
}
