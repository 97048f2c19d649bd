//! tmp
use pgleak::{bpf::*, guard, session::*};
use std::time::{Duration, Instant};
#[tokio::main(flavor = "current_thread")]
async fn main() {
    let a: Vec<String> = std::env::args().collect();
    if a[1] == guard::WATCHDOG_SUBCOMMAND {
        guard::run_watchdog(a[2].parse().unwrap()).unwrap();
        return;
    }
    let pid: u32 = a[1].parse().unwrap();
    let t0 = Instant::now();
    let mut p = prepare(pid).unwrap_or_else(|e| panic!("{e}"));
    println!("prepared {:?}", t0.elapsed());
    let (r, pg) = p.mappings.table_sizes();
    let l = Limits::within(64 << 20, r, pg).unwrap();
    println!("{l:?} rows {r} {pg}");
    let mut t = Tracer::load(l, p.plan.layout.context.name).unwrap_or_else(|e| panic!("{e}"));
    println!("loaded {:?}", t0.elapsed());
    let costs = guard::measure_probe_costs(&mut t).unwrap();
    println!("{costs:?} {:?}", t0.elapsed());
    let mut progress = Progress::new();
    let o = RecordOptions {
        duration: Duration::from_secs_f64(a[2].parse().unwrap()),
        settle: Duration::from_secs(2),
        max_slowdown: 15.,
        force: false,
    };
    let base = p.bias.0;
    let rec = Recorder::attach(&mut p, t, costs, Interrupts::listen().unwrap(), &mut progress, o)
        .unwrap_or_else(|e| panic!("{e}"));
    println!("attached {:?}", t0.elapsed());
    let rec = rec.run().await.unwrap_or_else(|e| panic!("{e}"));
    println!(
        "done {:?} {:?} {:?} cpu {} exp {:?}",
        t0.elapsed(),
        rec.recorded_for,
        rec.end,
        rec.cpu_ns,
        rec.expected_slowdown
    );
    for (i, v) in rec.counters.iter() {
        if v > 0 {
            println!("{:>12} {} {:?}", v, i.name, i.class);
        }
    }
    println!("{:?}", &rec.hits[..5]);
    let sl = slices(rec.recorded_for.as_nanos() as u64, 10);
    let prof = assemble(&rec.drained, &sl);
    for g in prof.groups.iter().take(8) {
        println!(
            "{} {:?} rec {:?} slices {:?}",
            g.context,
            g.survived,
            g.recorded.held,
            g.slices.iter().map(|s| s.count).collect::<Vec<_>>()
        );
        let s = &prof.stacks[g.stack.0 as usize];
        println!("   {:?} {:?}", s.end, s.summary);
        let hex: Vec<String> = s
            .frames
            .iter()
            .map(|f| format!("{:#x}", prof.frames[f.0 as usize].address.0.wrapping_sub(base)))
            .collect();
        println!("   {}", hex.join(" "));
    }
    for n in rec.notes.iter().cloned().chain(p.mappings.notes()) {
        println!("note: {n}");
    }
}
