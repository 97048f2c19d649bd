//! Flame graphs that stand alone in a ticket: inferno draws them, and the lines that say what
//! was captured are put above the frames.

use std::io::{self, Write};

use inferno::flamegraph::{Direction, Options, Palette, from_lines};

use super::{
    RenderOptions,
    folded::{Folded, folded},
};
use crate::profile::Capture;

/// Width of the picture; a line of the header holds this many characters of 12-pixel Verdana.
const WIDTH: usize = 1200;
const HEADER_CHARACTERS: usize = 160;
/// Characters of the title that fit between its buttons.
const TITLE_CHARACTERS: usize = 90;
/// Height of a header line.
const LINE_HEIGHT: usize = 16;
/// Where the first header line stands, below the title.
const HEADER_TOP: usize = 46;

/// Writes `flame.svg`.
///
/// # Errors
/// Of the writer.
pub(super) fn write(capture: &Capture, options: &RenderOptions, out: &mut dyn Write) -> io::Result<()> {
    draw(capture, options, options.inverted, options.reverse, out)
}

/// Writes `flame-inverted.svg`: merged from the leaf, drawn from the top down.
///
/// # Errors
/// Of the writer.
pub(super) fn write_inverted(
    capture: &Capture,
    options: &RenderOptions,
    out: &mut dyn Write,
) -> io::Result<()> {
    draw(capture, options, true, true, out)
}

/// Writes `contexts.svg`: the stacks on top of the paths of the contexts.
///
/// # Errors
/// Of the writer.
pub(super) fn write_by_context(
    capture: &Capture,
    options: &RenderOptions,
    out: &mut dyn Write,
) -> io::Result<()> {
    let options = RenderOptions { by_context: true, ..options.clone() };
    draw(capture, &options, options.inverted, options.reverse, out)
}

fn draw(
    capture: &Capture,
    options: &RenderOptions,
    inverted: bool,
    reverse: bool,
    out: &mut dyn Write,
) -> io::Result<()> {
    let options = RenderOptions { reverse, ..options.clone() };
    let Folded { lines, bytes } = folded(capture, &options);
    let header = header(capture, &options, bytes);
    let title = options.title.clone().unwrap_or_else(|| title(capture, &options));
    let picture = Picture {
        title,
        header,
        lines,
        direction: if inverted { Direction::Inverted } else { Direction::Straight },
        palette: options.colours.0,
        count_name: "bytes",
        factor: 1.0,
        is_swapped: false,
    };
    out.write_all(paint(&picture)?.as_bytes())
}

/// What is drawn.
#[derive(Debug)]
pub(super) struct Picture {
    pub(super) title: String,
    /// Lines above the frames.
    pub(super) header: Vec<String>,
    /// Folded stacks with one count, or with two of which the difference is the colour; sorted by frames.
    pub(super) lines: Vec<String>,
    pub(super) direction: Direction,
    pub(super) palette: Palette,
    pub(super) count_name: &'static str,
    /// What counts are multiplied by to be shown.
    pub(super) factor: f64,
    /// Whether the second of two counts is the earlier one.
    pub(super) is_swapped: bool,
}

/// The picture as SVG.
///
/// # Errors
/// If inferno cannot draw it.
pub(super) fn paint(picture: &Picture) -> io::Result<String> {
    let header: Vec<String> = picture.header.iter().flat_map(|line| wrap(line)).collect();
    let title = shorten(&picture.title);
    if picture.lines.is_empty() {
        return Ok(nothing_survived(&title, &header));
    }
    let mut style = Options::default();
    style.title = title;
    style.colors = picture.palette;
    // The same function has the same colour in every picture, and no chance is involved.
    style.deterministic = true;
    style.count_name = picture.count_name.to_owned();
    style.factor = picture.factor;
    style.negate_differentials = picture.is_swapped;
    style.image_width = Some(WIDTH);
    style.direction = picture.direction;
    // The stacks are sorted by frames, and turned round, already. inferno would sort by text and
    // draw `f` twice where `f.part.0` falls between it and what it calls; as for a chart over
    // time it takes them as they come, last one first.
    style.flame_chart = true;
    style.pretty_xml = true;
    let mut drawn = Vec::new();
    from_lines(&mut style, picture.lines.iter().rev().map(String::as_str), &mut drawn)
        .map_err(io::Error::other)?;
    let drawn = String::from_utf8(drawn).map_err(io::Error::other)?;
    with_header(&drawn, &header).ok_or_else(|| io::Error::other("inferno draws differently now"))
}

/// Pictures of one function, in each direction: what is the same in all pictures, the script above all.
///
/// # Errors
/// If inferno cannot draw them.
pub fn plain_pictures() -> io::Result<[String; 2]> {
    let plain = |direction| {
        paint(&Picture {
            title: String::new(),
            header: Vec::new(),
            lines: vec!["f 1".to_owned()],
            direction,
            palette: RenderOptions::default().colours.0,
            count_name: "bytes",
            factor: 1.0,
            is_swapped: false,
        })
    };
    Ok([plain(Direction::Straight)?, plain(Direction::Inverted)?])
}

fn title(capture: &Capture, options: &RenderOptions) -> String {
    let target = &capture.target;
    let by_context = if options.by_context { ", by memory context" } else { "" };
    let by_kind = if options.by_kind { ", by kind of process" } else { "" };
    let (kind, pid, host) = (&target.kind, target.pid, &target.host);
    let who = match options.pid {
        Some(pid) => format!("process {pid}"),
        None if capture.is_of_several() => {
            format!("{} processes of one server", capture.processes.len())
        }
        None => format!("{kind} {pid}"),
    };
    format!("pgleak: memory allocated and not released by {who} on {host}{by_kind}{by_context}")
}

/// How many processes of which kinds.
fn several(capture: &Capture) -> String {
    let mut kinds: std::collections::BTreeMap<&str, usize> = std::collections::BTreeMap::new();
    for process in &capture.processes {
        *kinds.entry(&process.kind).or_default() += 1;
    }
    let kinds: Vec<String> = kinds.into_iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    format!("{} processes ({})", capture.processes.len(), kinds.join(", "))
}

/// What the picture shows, in lines.
fn header(capture: &Capture, options: &RenderOptions, drawn: u64) -> Vec<String> {
    let (target, window) = (&capture.target, &capture.window);
    let seconds = |ns: u64| ns as f64 / 1e9;
    let counter = |name: &str| {
        capture.counters.iter().find(|counter| counter.name == name).map_or(0, |counter| counter.value)
    };
    let of = |what: &str, text: &Option<String>| {
        text.as_ref().map_or(String::new(), |text| format!(", {what} {text}"))
    };
    let build_id = target.build_id.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
    let lost: Vec<String> = capture
        .counters
        .iter()
        .filter(|counter| counter.loss && counter.value > 0)
        .map(|counter| format!("{} {}", counter.value, counter.meaning))
        .collect();
    let mut lines = vec![
        format!(
            "{}{}{}, host {}",
            if capture.is_of_several() {
                several(capture)
            } else {
                format!("pid {}, {}", target.pid, target.kind)
            },
            of("database", &target.database),
            of("user", &target.user),
            target.host
        ),
        format!("{}, build ID {build_id}", target.server),
        format!(
            "recorded {:.1} s from {}, settled {:.1} s, {}; {} allocations, {} bytes still held",
            seconds(window.record_ns),
            window.started,
            seconds(window.settle_ns),
            super::end_words(window.end),
            counter("recorded"),
            drawn
        ),
    ];
    if let Some(context) = &options.context {
        lines.push(format!("only memory context {context}"));
    }
    if options.min_bytes > 0 {
        lines.push(format!("only stacks that hold {} bytes or more", options.min_bytes));
    }
    lines.push(if lost.is_empty() {
        "nothing lost".to_owned()
    } else {
        format!("LOST: {}", lost.join("; "))
    });
    lines
}

/// A title that fits into the picture.
fn shorten(title: &str) -> String {
    if title.chars().count() <= TITLE_CHARACTERS {
        return title.to_owned();
    }
    title.chars().take(TITLE_CHARACTERS - 1).chain(['…']).collect()
}

/// A picture of nothing, which is good news and no error.
fn nothing_survived(title: &str, header: &[String]) -> String {
    let mut picture = format!(
        "<?xml version=\"1.0\" standalone=\"no\"?>\n<svg version=\"1.1\" width=\"{WIDTH}\" height=\"{0}\" viewBox=\"0 0 {WIDTH} {0}\" xmlns=\"http://www.w3.org/2000/svg\" font-family=\"monospace\">\n    <rect width=\"100%\" height=\"100%\" fill=\"#eeffee\"/>\n    <text text-anchor=\"middle\" font-size=\"17\" x=\"50%\" y=\"24\">{1}</text>\n",
        HEADER_TOP + (header.len() + 3) * LINE_HEIGHT,
        escape(title)
    );
    picture.push_str(&header_lines(header));
    let y = HEADER_TOP + (header.len() + 1) * LINE_HEIGHT;
    picture.push_str(&format!("    <text text-anchor=\"middle\" font-size=\"14\" x=\"50%\" y=\"{y}\">nothing that was allocated is left</text>\n</svg>\n"));
    picture
}

/// Lines that fit into the picture.
fn wrap(line: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in line.split_whitespace() {
        let last = lines.last().map_or(0, |last| last.chars().count());
        if last > 0 && last + 1 + word.chars().count() > HEADER_CHARACTERS {
            lines.push(String::new());
        }
        if let Some(last) = lines.last_mut() {
            if !last.is_empty() {
                last.push(' ');
            }
            last.extend(word.chars().take(HEADER_CHARACTERS));
        }
    }
    lines
}

/// Moves the frames down and puts lines above them; `None` if the picture is not as expected.
fn with_header(picture: &str, header: &[String]) -> Option<String> {
    let moved = header.len() * LINE_HEIGHT;
    let height: usize =
        between(picture, "<svg version=\"1.1\" width=\"1200\" height=\"", "\"")?.parse().ok()?;
    let grown = height + moved;
    let mut picture = picture
        .replacen(
            &format!("width=\"1200\" height=\"{height}\""),
            &format!("width=\"1200\" height=\"{grown}\""),
            1,
        )
        .replacen(&format!("viewBox=\"0 0 1200 {height}\""), &format!("viewBox=\"0 0 1200 {grown}\""), 1)
        .replacen(
            &format!("width=\"100%\" height=\"{height}\""),
            &format!("width=\"100%\" height=\"{grown}\""),
            1,
        )
        .replacen("<svg id=\"frames\" ", &format!("<svg id=\"frames\" y=\"{moved}\" "), 1);
    for id in ["details", "matched"] {
        let element = between(&picture, &format!("<text id=\"{id}\" "), ">")?.to_owned();
        let y: f64 = between(&element, " y=\"", "\"")?.parse().ok()?;
        let lower =
            element.replacen(&format!(" y=\"{y:.2}\""), &format!(" y=\"{:.2}\"", y + moved as f64), 1);
        picture = picture.replacen(&element, &lower, 1);
    }
    let frames = picture.find("    <svg id=\"frames\" ")?;
    picture.insert_str(frames, &header_lines(header));
    Some(picture)
}

fn header_lines(header: &[String]) -> String {
    let line = |(number, line): (usize, &String)| {
        let y = HEADER_TOP + number * LINE_HEIGHT;
        format!(
            "    <text class=\"header\" font-size=\"12\" fill=\"rgb(80,80,80)\" x=\"10\" y=\"{y}\">{}</text>\n",
            escape(line)
        )
    };
    header.iter().enumerate().map(line).collect()
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let start = text.find(before)? + before.len();
    let length = text[start..].find(after)?;
    Some(&text[start..start + length])
}

fn escape(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '<' => "&lt;".to_owned(),
            '>' => "&gt;".to_owned(),
            '&' => "&amp;".to_owned(),
            '"' => "&quot;".to_owned(),
            // XML has no way to write these.
            c if c.is_control() => " ".to_owned(),
            c => c.to_string(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_wrapped_and_nothing_is_lost() {
        let line = "word ".repeat(100);
        let wrapped = wrap(&line);
        assert!(wrapped.len() > 1);
        assert!(wrapped.iter().all(|line| line.chars().count() <= HEADER_CHARACTERS));
        assert_eq!(wrapped.join(" ").split_whitespace().count(), 100);
    }

    #[test]
    fn a_picture_that_is_not_infernos_is_refused() {
        assert_eq!(with_header("<svg/>", &[String::from("x")]), None);
    }

    #[test]
    fn xml_is_escaped() {
        assert_eq!(escape("operator<(a&b)\u{1}"), "operator&lt;(a&amp;b) ");
    }
}
