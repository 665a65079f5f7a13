//! The story on paper.

use std::{fmt::Display, io::Write as _};

use anyhow::Context as _;

/// Numbers the steps and prints what came back in each.
#[derive(Debug, Default)]
pub(super) struct Report {
    steps: u32,
    title: &'static str,
}

impl Report {
    /// A new step begins.
    pub(super) fn begin(&mut self, title: &'static str) -> anyhow::Result<()> {
        self.steps += 1;
        self.title = title;
        super::say(&format!("\n{:2}. {title}", self.steps))
    }

    /// What came back from a call.
    pub(super) fn saw(&self, call: &str, answer: impl Display) -> anyhow::Result<()> {
        writeln!(std::io::stdout(), "      {call:<33} {answer}")
            .context("the story cannot be written")
    }

    /// The step that is under way, for an error.
    pub(super) fn step(&self) -> String {
        format!("step {} ({})", self.steps, self.title)
    }

    /// How many steps there were.
    pub(super) fn steps(&self) -> u32 {
        self.steps
    }
}
