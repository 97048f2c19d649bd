//! Lines of plain text, at most [`WIDTH`] columns wide.

/// The widest line.
pub(crate) const WIDTH: usize = 100;

/// A text in the making.
#[derive(Default)]
pub(super) struct Page {
    text: String,
}

impl Page {
    pub(super) fn blank(&mut self) {
        self.text.push('\n');
    }

    /// A line as it is. Names come from other processes and from files, so that control characters
    /// in them must not reach a terminal.
    pub(super) fn line(&mut self, line: &str) {
        let visible = line.trim_end().chars().map(|c| if c.is_control() { '?' } else { c });
        self.text.extend(visible);
        self.text.push('\n');
    }

    /// A section's heading.
    pub(super) fn heading(&mut self, heading: &str) {
        self.blank();
        self.line(heading);
    }

    /// `lead` and then `body`, broken at spaces and aligned with its own beginning.
    pub(super) fn hang(&mut self, lead: &str, body: &str) {
        let indent = lead.chars().count();
        let mut line = lead.to_owned();
        let mut columns = indent;
        for word in body.split_whitespace() {
            let mut word = word;
            let mut length = word.chars().count();
            if columns > indent && columns + 1 + length > WIDTH {
                self.line(&line);
                line = " ".repeat(indent);
                columns = indent;
            }
            if columns > indent {
                line.push(' ');
                columns += 1;
            }
            // A name that is longer than a line, such as a C++ one.
            while columns + length > WIDTH && WIDTH > columns {
                let at = word.char_indices().nth(WIDTH - columns).map_or(word.len(), |(at, _)| at);
                line.push_str(&word[..at]);
                self.line(&line);
                (line, columns) = (" ".repeat(indent), indent);
                word = &word[at..];
                length = word.chars().count();
            }
            line.push_str(word);
            columns += length;
        }
        self.line(&line);
    }

    pub(super) fn into_text(self) -> String {
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_body_hangs_below_its_beginning() {
        let mut page = Page::default();
        page.hang("  why  ", &"word ".repeat(40));
        let text = page.into_text();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.len() == 3 && lines.iter().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(lines[0].starts_with("  why  word word") && lines[1].starts_with("       word"));
    }

    #[test]
    fn a_word_longer_than_a_line_is_cut_and_nothing_is_lost() {
        let mut page = Page::default();
        page.hang("> ", &format!("a {} z", "ü".repeat(250)));
        let text = page.into_text();
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert_eq!(text.matches('ü').count(), 250);
        assert!(text.trim_end().ends_with(" z"));
    }

    #[test]
    fn control_characters_do_not_reach_a_terminal() {
        let mut page = Page::default();
        page.line("a\u{1b}[2Jb\nc");
        assert_eq!(page.into_text(), "a?[2Jb?c\n");
    }
}
