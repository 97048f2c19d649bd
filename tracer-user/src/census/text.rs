//! Statements without their literals.

use std::iter::Peekable;

/// A text in which every literal is a `?`, comments are gone and white space is one blank: an ident,
/// a title or a query may be a statement, and a statement may hold what is nobody's business.
/// What was cut within a literal ends with its `?`. Names, quoted ones too, stay.
pub fn masked(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\'' => {
                // E'…' has escapes; B, X and N do not.
                let is_escaped = out.ends_with(['e', 'E']) && is_prefix(&out);
                skip_string(&mut chars, is_escaped);
                out.push('?');
            }
            '$' if !ends_with_word(&out) => match skip_dollar(&mut chars) {
                Dollar::Parameter(digits) => {
                    out.push('$');
                    out.push_str(&digits);
                }
                Dollar::Quoted => out.push('?'),
            },
            '-' if chars.peek() == Some(&'-') => while chars.next_if(|c| *c != '\n').is_some() {},
            '/' if chars.peek() == Some(&'*') => skip_comment(&mut chars),
            '"' => {
                out.push('"');
                for c in chars.by_ref() {
                    out.push(c);
                    if c == '"' {
                        break;
                    }
                }
            }
            c if c.is_ascii_digit() && !ends_with_word(&out) => {
                let mut before = c;
                // 1e-5, 0x1F, 1_000.5
                while let Some(c) = chars.next_if(|c| {
                    c.is_ascii_alphanumeric()
                        || ['.', '_'].contains(c)
                        || (['+', '-'].contains(c) && ['e', 'E'].contains(&before))
                }) {
                    before = c;
                }
                out.push('?');
            }
            c if c.is_whitespace() => {
                if !out.ends_with(' ') {
                    out.push(' ');
                }
            }
            c => out.push(c),
        }
    }
    out.trim().to_owned()
}

/// Whether the last letter stands alone.
fn is_prefix(out: &str) -> bool {
    let mut before = out.chars().rev().skip(1);
    before.next().is_none_or(|c| !is_word(c))
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$'
}

fn ends_with_word(out: &str) -> bool {
    out.chars().next_back().is_some_and(is_word)
}

/// Up to its end, where a quote is written twice.
fn skip_string(chars: &mut Peekable<impl Iterator<Item = char>>, is_escaped: bool) {
    while let Some(c) = chars.next() {
        if c == '\\' && is_escaped {
            chars.next();
        } else if c == '\'' && chars.next_if_eq(&'\'').is_none() {
            return;
        }
    }
}

enum Dollar {
    /// `$1`
    Parameter(String),
    /// `$$…$$`, `$tag$…$tag$`, or the part of one that is there.
    Quoted,
}

fn skip_dollar(chars: &mut Peekable<impl Iterator<Item = char>>) -> Dollar {
    let mut tag = String::new();
    while let Some(c) = chars.next_if(|c| c.is_alphanumeric() || *c == '_') {
        tag.push(c);
    }
    if !tag.is_empty() && tag.chars().all(|c| c.is_ascii_digit()) {
        return Dollar::Parameter(tag);
    }
    if chars.next_if_eq(&'$').is_some() {
        let end = format!("${tag}$");
        let mut seen = String::new();
        for c in chars.by_ref() {
            seen.push(c);
            if seen.ends_with(&end) {
                break;
            }
        }
    }
    Dollar::Quoted
}

/// Comments nest.
fn skip_comment(chars: &mut Peekable<impl Iterator<Item = char>>) {
    let mut depth = 1;
    chars.next();
    while let Some(c) = chars.next() {
        match c {
            '*' if chars.next_if_eq(&'/').is_some() => depth -= 1,
            '/' if chars.next_if_eq(&'*').is_some() => depth += 1,
            _ => {}
        }
        if depth == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::masked;

    #[test]
    fn literals_go_and_names_stay() {
        let pairs = [
            ("select * from t1 where a = 'secret' and b=42", "select * from t1 where a = ? and b=?"),
            ("select 'it''s' || E'a\\'b' || U&'x', $1", "select ? || E? || U&?, $1"),
            ("select $$ body 'x' $$, $q$ it's $q$ , x$y", "select ?, ? , x$y"),
            ("select 1e-5, 0x1F, -1_000.5, a2", "select ?, ?, -?, a2"),
            ("select /* 'key' /* 1 */ */ 1 -- 4711\n , \"Col 1\"", "select ? , \"Col 1\""),
            ("insert into t values ('cut in the mid", "insert into t values (?"),
            ("do $x$ begin secret", "do ?"),
            ("planted_palloc(integer,bigint)", "planted_palloc(integer,bigint)"),
            ("pg_class_oid_index", "pg_class_oid_index"),
            ("move 'a' 'b'", "move ? ?"),
            ("select date'2026-01-01', name'x'", "select date?, name?"),
        ];
        for (text, expected) in pairs {
            assert_eq!(masked(text), expected, "{text}");
        }
    }

    #[test]
    fn a_name_that_ends_with_e_is_no_prefix_of_a_string_with_escapes() {
        assert_eq!(masked(r"select date'\', secret(1), 'x'"), "select date?, secret(?), ?");
    }
}
