//! Progress, to standard error: a bar on a terminal, and into a file or a pipe a line now and then.

use std::{
    cell::Cell,
    fmt,
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use tokio::time::Instant;

use crate::table::lasting;

/// How often a bar moves.
const TICK: Duration = Duration::from_millis(200);
/// How often a line is written: what is over sooner writes none.
const LINE: Duration = Duration::from_secs(5);

/// How far something is, with the rate and the time left.
pub(crate) struct Progress {
    bar: ProgressBar,
    doing: &'static str,
    /// Where there is no terminal: when the latest line was written.
    told: Option<Cell<Instant>>,
}

impl Progress {
    /// Of `total`, of which `from` were done before; `doing` says what is done.
    pub(crate) fn of(total: u64, from: u64, doing: &'static str) -> Self {
        let template = "{msg} {wide_bar} {human_pos} of {human_len}, {rate}, {eta} left";
        let bar = ProgressBar::new(total);
        // The rate is of what comes after it.
        bar.set_position(from);
        bar.tick();
        bar.reset_eta();
        let bar = show(bar, template, doing);
        let told = (!io::stderr().is_terminal()).then(|| Cell::new(Instant::now()));
        Self { bar, doing, told }
    }

    /// So many more are done.
    pub(crate) fn advance(&self, more: u64) {
        self.bar.inc(more);
        let Some(told) = &self.told else {
            return;
        };
        if told.get().elapsed() < LINE {
            return;
        }
        told.set(Instant::now());
        self.bar.tick();
        self.note(&format!(
            "{} {} of {}, {}, {} left",
            self.doing,
            grouped(self.done()),
            grouped(self.bar.length().unwrap_or_default()),
            a_second(self.bar.per_sec()),
            lasting(self.bar.eta())
        ));
    }

    /// Says something beside it.
    pub(crate) fn note(&self, text: &str) {
        self.bar.suspend(|| note(text));
    }

    pub(crate) fn done(&self) -> u64 {
        self.bar.position()
    }

    /// Takes the bar away.
    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }
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
        let rate = |state: &ProgressState, to: &mut dyn fmt::Write| {
            // Writing to a text does not fail.
            let _ = to.write_str(&a_second(state.per_sec()));
        };
        bar.set_style(style.with_key("rate", rate));
    }
    bar.set_message(doing);
    bar.enable_steady_tick(TICK);
    bar
}

/// Says something to whoever is at the terminal, apart from what the command prints.
pub(crate) fn note(text: &str) {
    // Nobody reads it where it cannot be written.
    let _ = writeln!(io::stderr(), "wxhub: {text}");
}

/// `1 message`, `1,200 messages`.
pub(crate) fn counted(number: u64, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {what}{plural}", grouped(number))
}

/// `1,200`.
pub(crate) fn grouped(number: u64) -> String {
    in_groups(&number.to_string())
}

/// `1,200/s`.
pub(crate) fn a_second(rate: f64) -> String {
    format!("{}/s", in_groups(&format!("{rate:.0}")))
}

fn in_groups(digits: &str) -> String {
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
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
        assert_eq!(a_second(0.4), "0/s");
        assert_eq!(a_second(1_999.6), "2,000/s");
    }

    #[test]
    fn what_was_done_before_is_no_progress() {
        let progress = Progress::of(1_000, 900, "uploading");
        assert_eq!((progress.done(), progress.bar.per_sec()), (900, 0.0));
        progress.advance(50);
        assert_eq!(progress.done(), 950);
    }
}
