//! Keys, as a user presses them, and what comes of them.

use super::{
    super::{
        action::Sort,
        capturing::Outcome,
        testing::{client, id, seen},
    },
    *,
};

const PAGES: Pages = Pages { table: 3, report: 2, report_width: 80 };

fn model() -> Model {
    let look: Vec<_> = (1..=9).map(|pid| client(pid, "shop", 1000 - u64::from(pid))).collect();
    seen(&[look.clone(), look])
}

fn act(model: &mut Model, actions: impl IntoIterator<Item = Action>) -> Option<Effect> {
    actions.into_iter().filter_map(|action| model.act(action, PAGES)).last()
}

fn start(overhead: &str) -> Option<Effect> {
    Some(Effect::Start { process: id(1), overhead: overhead.to_owned() })
}

fn capturing() -> Model {
    let mut model = model();
    assert_eq!(act(&mut model, [Action::Capture]), start("full"));
    model.begin(id(1), "full".into(), "pgleak-1-now".into());
    model
}

#[test]
fn the_selection_moves_by_lines_and_pages() {
    let mut model = model();
    let mut after = |step| {
        act(&mut model, [Action::Move(step)]);
        model.selected.map(|process| process.pid)
    };
    assert_eq!(after(Step::Down), Some(2));
    assert_eq!(after(Step::PageDown), Some(5));
    assert_eq!(after(Step::Last), Some(9));
    assert_eq!(after(Step::PageUp), Some(6));
    assert_eq!(after(Step::First), Some(1));
    assert_eq!(after(Step::Up), Some(1));
}

#[test]
fn a_filter_is_typed_and_taken_away() {
    let mut model = model();
    act(&mut model, [Action::Filter, Action::Letter('7'), Action::Letter('x'), Action::Rub]);
    assert_eq!((&*model.filter, model.selected), ("7", Some(id(7))));
    act(&mut model, [Action::Done]);
    assert_eq!((&model.mode, &*model.filter), (&Mode::Table, "7"));
    act(&mut model, [Action::Back]);
    assert_eq!((&*model.filter, model.shown().len(), model.selected), ("", 9, Some(id(7))));
    act(&mut model, [Action::Filter, Action::Letter('z')]);
    assert_eq!(model.selected, None);
    assert_eq!(act(&mut model, [Action::Done, Action::Capture]), None);
    assert!(model.notice.is_some(), "nothing to capture");
}

#[test]
fn a_capture_starts_and_ends_by_the_same_key() {
    let mut model = capturing();
    assert_eq!(act(&mut model, [Action::Capture]), Some(Effect::End));
    assert!(model.is_capturing(), "until it says so itself");
    model.end(Outcome::Report("No leak seen.\n".into()));
    assert_eq!(act(&mut model, [Action::Capture]), start("full"));
}

#[test]
fn a_capture_of_another_process_is_not_ended_by_mistake() {
    let mut model = capturing();
    assert_eq!(act(&mut model, [Action::Move(Step::Down), Action::Capture]), None);
    assert!(model.notice.as_ref().is_some_and(|notice| notice.contains("Esc")));
    assert_eq!(act(&mut model, [Action::Ask]), None);
    assert_eq!(model.mode, Mode::Table);
    assert_eq!(act(&mut model, [Action::Back]), Some(Effect::End));
}

#[test]
fn the_overhead_is_chosen_or_typed() {
    let mut model = model();
    assert_eq!(act(&mut model, [Action::Ask, Action::Choose("low")]), start("low"));
    assert_eq!(act(&mut model, [Action::Ask, Action::Letter('5'), Action::Done]), start("5"));
    assert_eq!(act(&mut model, [Action::Ask, Action::Letter('0'), Action::Done]), None);
    assert!(model.notice.is_some() && matches!(model.mode, Mode::Asking(_)), "0 percent is none");
    assert_eq!(act(&mut model, [Action::Back]), None);
    assert_eq!((&model.mode, model.capture.is_none()), (&Mode::Table, true));
}

#[test]
fn a_report_is_read_to_its_end_and_no_further() {
    let mut model = capturing();
    act(&mut model, [Action::Open]);
    assert_eq!(model.mode, Mode::Table, "there is none yet");
    model.end(Outcome::Report("one\ntwo\nthree\nfour\nfive\n".into()));
    act(&mut model, [Action::Open]);
    assert_eq!(model.mode, Mode::Reading(0));
    act(&mut model, [Action::Move(Step::PageDown)]);
    assert_eq!(model.mode, Mode::Reading(2));
    act(&mut model, [Action::Move(Step::Last)]);
    assert_eq!(model.mode, Mode::Reading(3), "the last two");
    act(&mut model, [Action::Back]);
    assert_eq!(model.mode, Mode::Table);
    act(&mut model, [Action::Back]);
    assert!(model.capture.is_none(), "put away");
}

#[test]
fn leaving_waits_for_a_capture_unless_it_is_asked_for_twice() {
    let mut model = capturing();
    assert_eq!(act(&mut model, [Action::Interrupt]), Some(Effect::Leave));
    assert_eq!(act(&mut model, [Action::Leave, Action::Capture, Action::Back]), None);
    assert_eq!(act(&mut model, [Action::Interrupt]), Some(Effect::LeaveAtOnce));
    // What has ended stays so.
    let mut model = capturing();
    model.end(Outcome::Report(String::new()));
    assert_eq!(act(&mut model, [Action::Leave]), Some(Effect::Leave));
    assert!(!model.is_capturing());
}

#[test]
fn help_opens_and_closes_and_orders_change() {
    let mut model = model();
    act(&mut model, [Action::Help]);
    assert_eq!(model.mode, Mode::Help);
    act(&mut model, [Action::Help, Action::Sort(Sort::Pid)]);
    assert_eq!((&model.mode, model.sort), (&Mode::Table, Sort::Pid));
}
