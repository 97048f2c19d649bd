//! What is shown of which looks.

use super::{
    super::testing::{client, id, process, seen},
    *,
};

fn pids(model: &Model) -> Vec<u32> {
    model.shown().iter().map(|row| row.seen.id.pid).collect()
}

const MIB: u64 = 1 << 20;

#[test]
fn what_grows_stands_first_and_is_selected_as_soon_as_that_is_known() {
    let first = vec![client(1, "a", 50 * MIB), client(2, "b", 9 * MIB), process(3, "checkpointer", MIB)];
    let mut model = seen(std::slice::from_ref(&first));
    assert_eq!((pids(&model), model.selected), (vec![1, 2, 3], Some(id(1))), "by size so far");
    let mut second = first;
    second[1].rss_anon += MIB;
    model.see(Look { at: Duration::from_secs(2), processes: second.clone() });
    assert_eq!((pids(&model), model.selected), (vec![2, 1, 3], Some(id(2))));
    // From then on the selection stays with the process.
    second[2].rss_anon += 90 * MIB;
    model.see(Look { at: Duration::from_secs(4), processes: second });
    assert_eq!((pids(&model), model.selected), (vec![3, 2, 1], Some(id(2))));
}

#[test]
fn orders() {
    let mut model = seen(&[
        vec![client(3, "a", 5), client(1, "b", 900), client(2, "c", 70)],
        vec![client(3, "a", 95), client(1, "b", 100), client(2, "c", 70)],
    ]);
    let mut order = |sort| {
        model.sort = sort;
        model.order();
        pids(&model)
    };
    assert_eq!(order(Sort::Growth), [3, 2, 1]);
    assert_eq!(order(Sort::Size), [1, 3, 2]);
    assert_eq!(order(Sort::Pid), [1, 2, 3]);
}

#[test]
fn a_filter_is_about_all_words_of_a_line() {
    let mut model = seen(&[vec![client(41, "Shop", 3), client(17, "bank", 2), process(4, "walwriter", 1)]]);
    for (filter, wanted) in
        [("shop", vec![41]), ("4", vec![41, 4]), ("CLIENT", vec![41, 17]), ("wal", vec![4]), ("none", vec![])]
    {
        filter.clone_into(&mut model.filter);
        assert_eq!(pids(&model), wanted, "{filter}");
    }
}

#[test]
fn when_the_selected_process_ends_its_line_stays_selected() {
    let look = vec![client(1, "a", 30), client(2, "b", 20), client(3, "c", 10)];
    let mut model = seen(&[look.clone(), look.clone()]);
    (model.selected, model.chosen) = (Some(id(2)), true);
    model.see(Look { at: Duration::from_secs(9), processes: vec![look[0].clone(), look[2].clone()] });
    assert_eq!(model.selected, Some(id(3)));
    model.see(Look { at: Duration::from_secs(11), processes: Vec::new() });
    assert_eq!(model.selected, None);
}

#[test]
fn a_pid_that_is_used_again_is_another_process() {
    let mut model = seen(&[vec![client(1, "a", 30)], vec![client(1, "a", 50)]]);
    assert_eq!(model.all()[0].series.last_rate(), Some(10));
    let other = Seen { id: ProcessId { pid: 1, start_ticks: 99 }, ..client(1, "a", 70) };
    model.see(Look { at: Duration::from_secs(4), processes: vec![other] });
    assert_eq!(model.all()[0].series.last_rate(), None);
}

#[test]
fn contexts_that_come_too_late_are_not_shown() {
    let mut model = seen(&[vec![client(1, "a", 30), client(2, "b", 20)]]);
    model.see_contexts(id(2), Contexts::Later(Duration::ZERO));
    assert_eq!(model.contexts, None);
    model.see_contexts(id(1), Contexts::Unreadable("cannot".to_owned()));
    assert_eq!(model.contexts, Some((id(1), Contexts::Unreadable("cannot".to_owned()))));
}
