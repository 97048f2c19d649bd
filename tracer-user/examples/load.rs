//! tmp
use pgleak::bpf::*;
fn main() {
    let l = Limits::within(64 << 20, 400_000, 30_000).unwrap();
    println!("{l:?} {} MiB", l.bytes() >> 20);
    let t0 = std::time::Instant::now();
    match Tracer::load(l, 56) {
        Ok(t) => {
            println!("loaded {:?}", t0.elapsed());
            for (n, c) in t.verified_instructions() { println!("{n} {c}"); }
            let _ = std::process::Command::new("sh").arg("-c").arg(format!("for f in /proc/{}/fdinfo/*; do cat $f | tr '\\n' ' '; echo; done | grep memlock | grep map_type", std::process::id())).status();
        }
        Err(e) => { let s = format!("{e:#?}"); println!("{}", &s[s.len().saturating_sub(6000)..].replace("\\n","\n")); }
    }
}
