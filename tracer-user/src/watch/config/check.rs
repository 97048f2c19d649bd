//! What in a configuration does not go together, and what to do about it.

use std::{path::PathBuf, time::Duration};

use clap::Parser as _;

use super::{Config, Listen, WebConfig};
use crate::{
    cli::Cli,
    target::ProcessId,
    watch::{record::CaptureNumber, run::Order},
};

/// Looks that are kept to see growth by.
const MOST_POINTS: f64 = 2000.0;

impl Config {
    /// What does not go together.
    pub(super) fn problem(&self) -> Option<String> {
        let seconds = |seconds| Duration::from_secs(seconds);
        let (census, growth) = (&self.census, &self.triggers.growth);
        if !(seconds(1)..=seconds(600)).contains(&census.interval) {
            return Some("census.interval is between 1s and 10m".to_owned());
        }
        if census.keep < seconds(3600) {
            return Some("census.keep is at least 1h".to_owned());
        }
        if growth.window.as_secs_f64() / census.interval.as_secs_f64() > MOST_POINTS {
            return Some(format!(
                "triggers.growth.window has more than {MOST_POINTS} looks, which are kept in memory for each process and \
                 context: give a shorter one, or a longer census.interval"
            ));
        }
        if census.max_size < 4 << 20 {
            return Some("census.max_size is at least 4M".to_owned());
        }
        if growth.window < census.interval * 12 || growth.window > seconds(86400) {
            return Some(format!(
                "triggers.growth.window is between twelve times census.interval ({}s now) and 24h",
                (census.interval * 12).as_secs()
            ));
        }
        if growth.process_per_minute == 0 || growth.context_per_minute == 0 {
            return Some(
                "triggers.growth wants rates of at least one byte a minute; `enabled = false` turns it off"
                    .to_owned(),
            );
        }
        if self.triggers.schedule.as_ref().is_some_and(|schedule| schedule.every < seconds(10)) {
            return Some("triggers.schedule.every is at least 10s".to_owned());
        }
        let capture = &self.capture;
        if !(seconds(1)..=seconds(3600)).contains(&capture.duration) {
            return Some("capture.duration is between 1s and 1h".to_owned());
        }
        if !capture.max_slowdown.is_finite() || capture.max_slowdown < 1.0 {
            return Some("capture.max_slowdown is a factor of at least 1".to_owned());
        }
        if let Some(why) = self.refused_by_capture() {
            return Some(format!("[capture]: {why}"));
        }
        let budget = &self.budget;
        if budget.at_once == 0 {
            return Some(
                "budget.at_once is at least 1; without triggers nothing starts by itself".to_owned(),
            );
        }
        let planned = self.capture.planned();
        let budgets = [
            ("probed_per_hour", budget.probed_per_hour),
            ("probed_per_hour_and_process", budget.probed_per_hour_and_process),
        ];
        if let Some((key, _)) = budgets.into_iter().find(|(_, allowed)| planned > *allowed) {
            return Some(format!(
                "one capture has probes for about {} s, which is more than budget.{key} allows: no capture would ever begin",
                planned.as_secs_f64().ceil()
            ));
        }
        if !self.store.directory.is_absolute() {
            return Some("store.directory needs a whole path".to_owned());
        }
        self.web.problem().or_else(|| self.addresses_problem())
    }

    fn addresses_problem(&self) -> Option<String> {
        let webhook = self.notify.webhook.iter().map(|webhook| ("notify.webhook.url", &webhook.url));
        let pushes = self.push.iter().map(|push| ("push.url", &push.url));
        webhook.chain(pushes).find_map(|(key, url)| {
            let is_web = url.starts_with("https://") || url.starts_with("http://");
            (!is_web).then(|| format!("{key} is no address that begins with https:// or http://"))
        })
    }

    /// What `pgleak capture` would say to the options that it would get.
    fn refused_by_capture(&self) -> Option<String> {
        let order = Order {
            number: CaptureNumber(0),
            process: ProcessId { pid: 1, start_ticks: 0 },
            out: PathBuf::from("/"),
            how: self.capture.clone(),
        };
        let asked = std::iter::once("pgleak".to_owned()).chain(order.arguments());
        let error = Cli::try_parse_from(asked).err()?.to_string();
        let first = error.lines().next().unwrap_or_default();
        Some(first.trim_start_matches("error: ").to_owned())
    }
}

impl WebConfig {
    fn problem(&self) -> Option<String> {
        let outside = self.listen.iter().find_map(|listen| match listen {
            Listen::Tcp(address) if !address.ip().is_loopback() => Some(address),
            _ => None,
        });
        match outside {
            Some(address) if self.tls.is_none() => Some(format!(
                "web.listen has {address}, which other hosts can reach: give web.tls a certificate and its key, or \
                 listen at 127.0.0.1 behind a proxy that does"
            )),
            _ => None,
        }
    }
}
