//! Lines for the journal: the priority in front as `sd-daemon(3)` wants it, no time and no colour, which the journal adds.

use std::fmt;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};

/// Formats a line for the journal.
#[derive(Clone, Copy, Debug)]
pub struct JournalFormat;

impl JournalFormat {
    /// Whether standard error leads to the journal.
    pub fn is_wanted() -> bool {
        std::env::var_os("JOURNAL_STREAM").is_some()
    }
}

impl<S, N> FormatEvent<S, N> for JournalFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        // Of syslog(3).
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        let mut line = String::new();
        context.format_fields(Writer::new(&mut line), event)?;
        // A line of the journal is an entry: what has several stays one of that priority.
        for part in line.lines() {
            writeln!(writer, "<{priority}>{part}")?;
        }
        Ok(())
    }
}
