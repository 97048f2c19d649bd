//! `/metrics` in the OpenMetrics format: sums by server, without pids and statements, so that the series are few and stay.

use std::{collections::BTreeMap, fmt, sync::Arc};

use axum::{Router, extract::State, http::header, response::IntoResponse, routing::get};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeGaugeValue, NoLabelSet, text::encode},
    metrics::MetricType,
    registry::{Registry, Unit},
};

use super::Shared;
use crate::watch::{
    labels::database_of,
    record::{Status, Trigger},
    view::{ProcessView, View},
};

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(super) fn routes() -> Router<Shared> {
    Router::new().route("/metrics", get(metrics))
}

async fn metrics(State(shared): State<Shared>) -> impl IntoResponse {
    let view = Arc::clone(&shared.view.borrow());
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], text_of(view))
}

/// All metrics as text.
fn text_of(view: Arc<View>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Metrics { view }));
    let mut text = String::new();
    encode(&mut text, &registry).expect("a string takes everything");
    text
}

#[derive(Debug)]
struct Metrics {
    view: Arc<View>,
}

type Labels<'a> = Vec<(&'static str, &'a str)>;

/// A metric in the making.
struct Sink<'e> {
    encoder: DescriptorEncoder<'e>,
}

impl Sink<'_> {
    fn gauges<'a, V: EncodeGaugeValue>(
        &mut self,
        (name, help, unit): (&str, &str, Option<Unit>),
        values: impl IntoIterator<Item = (Labels<'a>, V)>,
    ) -> fmt::Result {
        let mut metric = self.encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
        values.into_iter().try_for_each(|(labels, value)| metric.encode_family(&labels)?.encode_gauge(&value))
    }

    fn counters<'a>(
        &mut self,
        (name, help, unit): (&str, &str, Option<Unit>),
        values: impl IntoIterator<Item = (Labels<'a>, f64)>,
    ) -> fmt::Result {
        let mut metric = self.encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
        values.into_iter().try_for_each(|(labels, value)| {
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, f64, f64>(&value, None)
        })
    }
}

impl Collector for Metrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut sink = Sink { encoder };
        self.processes(&mut sink)?;
        self.captures(&mut sink)?;
        self.service(&mut sink)
    }
}

/// Processes of one kind in one database of one server.
type Group<'a> = (&'a str, &'a str, &'a str);

impl Metrics {
    fn processes(&self, sink: &mut Sink<'_>) -> fmt::Result {
        let (processes, labels) = (&self.view.processes, &self.view.labels);
        let mut groups: BTreeMap<Group<'_>, Vec<&ProcessView>> = BTreeMap::new();
        let mut contexts: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for process in processes {
            let server = &*process.server;
            let kind = labels.kinds.name(server, &process.kind);
            let database = labels.databases.name(server, database_of(process));
            groups.entry((server, kind, database)).or_default().push(process);
            for context in &process.contexts {
                let name = labels.contexts.name(server, &context.label);
                *contexts.entry((server, name)).or_default() += context.bytes;
            }
        }
        let groups = &groups;
        let values = |of: fn(&[&ProcessView]) -> f64| {
            groups.iter().map(move |((server, kind, database), processes)| {
                let labels = vec![("server", *server), ("backend_type", *kind), ("database", *database)];
                (labels, of(processes))
            })
        };
        sink.gauges(
            ("pgleak_processes", "Server processes", None),
            values(|processes| processes.len() as f64),
        )?;
        sink.gauges(
            ("pgleak_anonymous_memory", "Anonymous resident memory of all of them", Some(Unit::Bytes)),
            values(|processes| processes.iter().map(|process| process.anon as f64).sum()),
        )?;
        sink.gauges(
            ("pgleak_anonymous_memory_max", "The same of the largest of them", Some(Unit::Bytes)),
            values(|processes| processes.iter().map(|process| process.anon as f64).fold(0.0, f64::max)),
        )?;
        sink.gauges(
            (
                "pgleak_growth_max_bytes_per_second",
                "What the fastest growing of them gained in the trigger's window",
                None,
            ),
            values(|processes| {
                let rates = processes.iter().map(|process| process.per_minute.unwrap_or(0.0) / 60.0);
                rates.fold(0.0, f64::max)
            }),
        )?;
        sink.gauges(
            (
                "pgleak_context",
                "Memory contexts of one name, of all processes of a server",
                Some(Unit::Bytes),
            ),
            contexts
                .into_iter()
                .map(|((server, label), bytes)| (vec![("server", server), ("context", label)], bytes as f64)),
        )
    }

    fn captures(&self, sink: &mut Sink<'_>) -> fmt::Result {
        let ended = [Status::Done, Status::Failed];
        let count = |trigger, status| self.view.counts.ended(trigger, status) as f64;
        sink.counters(
            ("pgleak_captures", "Captures that have ended since the service started", None),
            Trigger::ALL.into_iter().flat_map(|trigger| {
                ended.into_iter().map(move |status| {
                    (vec![("trigger", trigger.name()), ("status", status.name())], count(trigger, status))
                })
            }),
        )?;
        sink.counters(
            ("pgleak_verdicts_of_growth", "Captures that found something that grows", None),
            Trigger::ALL
                .into_iter()
                .map(|trigger| (vec![("trigger", trigger.name())], self.view.counts.found(trigger) as f64)),
        )?;
        sink.gauges(
            ("pgleak_captures_running", "Captures that are being made", None),
            [(Vec::new(), self.view.running.len() as f64)],
        )
    }

    fn service(&self, sink: &mut Sink<'_>) -> fmt::Result {
        let figures = &self.view.figures;
        let one = |value: f64| [(Vec::new(), value)];
        sink.counters(
            ("pgleak_cpu", "Processor time of the service itself", Some(Unit::Seconds)),
            one(figures.cpu_seconds),
        )?;
        sink.counters(
            ("pgleak_read", "What the service has read, of files and of memory", Some(Unit::Bytes)),
            one(figures.read_bytes as f64),
        )?;
        sink.gauges(
            ("pgleak_own_memory", "Anonymous memory of the service", Some(Unit::Bytes)),
            one(figures.own_bytes as f64),
        )?;
        sink.gauges(
            ("pgleak_series", "The file with the series", Some(Unit::Bytes)),
            one(figures.series_bytes as f64),
        )?;
        sink.counters(("pgleak_looks", "Looks at all processes", None), one(figures.looks as f64))?;
        let dropped = [
            ("look came too late", figures.looks_left_out),
            ("look not stored", figures.not_stored),
            ("process not readable", figures.unseen),
            ("contexts of an unknown server", figures.unread.unknown),
            ("contexts not readable", figures.unread.failed),
            ("contexts over budget", figures.unread.budget),
            ("capture held back", figures.held_back.count),
            ("not delivered", figures.undelivered.count),
        ];
        sink.counters(
            ("pgleak_dropped", "What could not be done, by reason", None),
            dropped.into_iter().map(|(reason, count)| (vec![("reason", reason)], count as f64)),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::watch::{labels::OTHERS, view::LabelledBytes};

    fn view(processes: Vec<ProcessView>) -> Arc<View> {
        let mut view = View { processes, ..View::default() };
        view.labels.follow(&view.processes);
        Arc::new(view)
    }

    fn process(pid: u32, contexts: usize) -> ProcessView {
        ProcessView {
            row: None,
            pid,
            server: "/data \"x\"\n".to_owned(),
            kind: "client backend".to_owned(),
            database: Some("db".to_owned()),
            user: Some("somebody".to_owned()),
            anon: 1000 * u64::from(pid),
            shmem: 5,
            per_minute: Some(600.0),
            spark: Vec::new(),
            contexts: (0..contexts)
                .map(|index| LabelledBytes { label: format!("Context {index}"), bytes: 100 + index as u64 })
                .collect(),
        }
    }

    #[test]
    fn processes_are_sums_without_pid_or_user() {
        let text = text_of(view(vec![process(4711, 2), process(4712, 2)]));
        let labels = r#"server="/data \"x\"\n",backend_type="client backend",database="db""#;
        for line in [
            format!("pgleak_processes{{{labels}}} 2"),
            format!("pgleak_anonymous_memory_bytes{{{labels}}} 9423000"),
            format!("pgleak_anonymous_memory_max_bytes{{{labels}}} 4712000"),
            format!("pgleak_growth_max_bytes_per_second{{{labels}}} 10"),
            r#"pgleak_context_bytes{server="/data \"x\"\n",context="Context 1"} 202"#.to_owned(),
        ] {
            assert!(text.lines().any(|known| known.starts_with(&line)), "{line} is not in\n{text}");
        }
        assert!(!text.contains("4711\"") && !text.contains("somebody") && !text.contains("pid"), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn databases_and_kinds_are_bounded() {
        let mut processes: Vec<ProcessView> = (1..=400).map(|pid| process(pid, 0)).collect();
        for process in &mut processes {
            process.database = Some(format!("db{}", process.pid));
            process.kind = format!("worker {}", process.pid % 100);
        }
        let text = text_of(view(processes));
        let of = |label: &str| -> HashSet<String> {
            let lines = text.lines().filter(|line| line.starts_with("pgleak_processes{"));
            lines.filter_map(|line| Some(line.split_once(label)?.1.split_once('"')?.0.to_owned())).collect()
        };
        let (databases, kinds) = (of("database=\""), of("backend_type=\""));
        assert_eq!((databases.len(), kinds.len()), (50 + 1, 30 + 1));
        // Those with most memory have their names.
        assert!(databases.contains("db400") && !databases.contains("db1") && databases.contains(OTHERS));
        let lines = text.lines().filter(|line| line.starts_with("pgleak_processes{"));
        let sum: f64 = lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum();
        assert_eq!(sum, 400.0);
    }

    #[test]
    fn contexts_are_bounded() {
        let text = text_of(view(vec![process(1, 50)]));
        let names: HashSet<&str> =
            text.lines().filter(|line| line.starts_with("pgleak_context_bytes{")).collect();
        assert_eq!(names.len(), 20 + 1);
        assert!(text.contains(OTHERS));
    }
}
