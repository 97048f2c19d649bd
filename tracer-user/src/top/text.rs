//! Text for a terminal.

use crate::render::REPORT_WIDTH;

/// The text of another program as one line that a terminal only shows: control characters, and those that
/// nobody sees or that turn the direction of a line, become `?`.
pub(super) fn harmless(text: &str) -> String {
    let plain = |c: char| match c {
        '\t' => ' ',
        c if c.is_control() || is_invisible(c) => '?',
        c => c,
    };
    text.chars().map(plain).collect()
}

/// Default-ignorable characters and line separators (Unicode's DerivedCoreProperties.txt), as far as they change how
/// others are shown.
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// What changes by less than this part of itself is no hill.
const FLAT: u64 = 64;

/// The values as a line of bars, from the least to the most of them.
pub(super) fn sparkline(values: impl Iterator<Item = u64> + Clone) -> String {
    let least = values.clone().min().unwrap_or(0);
    let most = values.clone().max().unwrap_or(0);
    let span = u128::from((most - least).max(most / FLAT).max(1));
    let top = BARS.len() - 1;
    let bar = |value: u64| {
        let height = u128::from(value - least) * top as u128 / span;
        BARS[usize::try_from(height).unwrap_or(top).min(top)]
    };
    values.map(bar).collect()
}

/// A text as lines for a place that is so wide: what is too long goes on below, further in than it began.
pub(super) fn wrapped(text: &str, width: usize) -> Vec<String> {
    hung(text, indent_of(text) + 2, width)
}

fn indent_of(line: &str) -> usize {
    line.chars().take_while(|c| *c == ' ').count()
}

/// The same, but how far in it goes on is given.
fn hung(text: &str, hang: usize, width: usize) -> Vec<String> {
    let width = width.max(1);
    let mut indent = indent_of(text);
    // Half of each line at least is text, so that this ends.
    let below = hang.min(width / 2);
    let mut lines = Vec::new();
    let mut rest: Vec<char> = text.chars().collect();
    while rest.len() > width {
        let blank = rest[..=width].iter().rposition(|c| *c == ' ').filter(|at| *at > indent);
        let (end, next) = blank.map_or((width, width), |at| (at, at + 1));
        lines.push(rest[..end].iter().collect());
        rest = std::iter::repeat_n(' ', below).chain(rest[next..].iter().copied()).collect();
        indent = below;
    }
    lines.push(rest.into_iter().collect());
    lines
}

/// A report as lines for a place that is so wide. What the report has broken to its own width is broken anew where
/// that is less.
pub(super) fn fitted(report: &[String], width: usize) -> Vec<String> {
    if width >= REPORT_WIDTH {
        return report.to_vec();
    }
    let mut fitted = Vec::new();
    let mut lines = report.iter().peekable();
    while let Some(line) = lines.next() {
        let (mut text, mut hang, mut last) = (line.clone(), indent_of(line) + 2, line);
        while let Some(next) = lines.next_if(|next| goes_on(last, next)) {
            text.push(' ');
            text.push_str(next.trim_start());
            (hang, last) = (indent_of(next), next);
        }
        fitted.extend(hung(&text, hang, width));
    }
    fitted
}

/// Whether a line of a report ended because the first word of the next had no room in it.
fn goes_on(line: &str, next: &str) -> bool {
    let word = next.split_whitespace().next().unwrap_or_default();
    let indent = indent_of(next);
    let needed = line.chars().count() + 1 + word.chars().count();
    !word.is_empty() && indent > 0 && indent >= indent_of(line) && needed > REPORT_WIDTH
}

/// Lines that a report has broken, as the paragraphs they were: what begins further in goes on with the line before.
pub(super) fn joined(lines: &[String]) -> Vec<String> {
    let mut paragraphs: Vec<String> = Vec::new();
    for line in lines {
        match paragraphs.last_mut() {
            Some(last) if line.starts_with(' ') => {
                last.push(' ');
                last.push_str(line.trim_start());
            }
            _ => paragraphs.push(line.clone()),
        }
    }
    paragraphs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_steers_the_terminal() {
        assert_eq!(harmless("a\u{1b}[2Jb\nc\u{9b}d\te"), "a?[2Jb?c?d e");
        assert_eq!(harmless("user\u{202e}gpj\u{200b}, größer 表"), "user?gpj?, größer 表");
    }

    #[test]
    fn bars_show_growth_and_no_noise() {
        let spark = |values: &[u64]| sparkline(values.iter().copied());
        assert_eq!(spark(&[]), "");
        assert_eq!(spark(&[5, 5, 5]), "▁▁▁");
        assert_eq!(spark(&[0, 7, 14, 7]), "▁▄█▄");
        assert_eq!(spark(&[1_000_000, 1_000_500, 1_000_000]), "▁▁▁", "less than a 64th");
        assert_eq!(spark(&[0, u64::MAX]), "▁█");
    }

    fn lines(text: &[&str]) -> Vec<String> {
        text.iter().map(|line| (*line).to_owned()).collect()
    }

    #[test]
    fn long_lines_go_on_below() {
        let text = "  why  a word and another";
        assert_eq!(wrapped(text, 14), lines(&["  why  a word", "    and", "    another"]));
        assert_eq!(wrapped("abcdefghijkl", 8), lines(&["abcdefgh", "  ijkl"]));
        assert_eq!(wrapped("", 8), [""]);
        // Never without end.
        for width in 0..20 {
            assert!(wrapped(text, width).len() < 100, "{width}");
        }
    }

    #[test]
    fn a_report_is_broken_anew_where_it_was_broken() {
        let long = format!("  why   {}", "word ".repeat(18));
        let report = lines(&[long.trim_end(), "        wordy and a", "  next  line", "", "other"]);
        let fitted = fitted(&report, 60);
        let wanted = [
            "  why   word word word word word word word word word word",
            "        word word word word word word word word wordy and a",
            "  next  line",
            "",
            "other",
        ];
        assert_eq!(fitted, lines(&wanted));
        assert_eq!(super::fitted(&report, 100), report);
    }

    #[test]
    fn broken_lines_become_paragraphs() {
        let text = lines(&["LEAK: f leaks in", "      C.", "      g, too.", "The process grew."]);
        assert_eq!(joined(&text), lines(&["LEAK: f leaks in C. g, too.", "The process grew."]));
    }
}
