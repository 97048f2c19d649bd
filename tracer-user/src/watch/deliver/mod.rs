//! Who is told of a capture: a program, an address, stores of profiles. Each is tried some times, and what fails is counted.

mod command;
mod notice;
mod post;
mod profiles;

use std::{io, path::PathBuf, time::Duration};

use tokio::{
    sync::mpsc,
    task::{JoinError, JoinSet, spawn_blocking},
    time::sleep,
};
use tracing::warn;

use notice::Notice;

use super::{
    config::{Config, Notify, NotifyOn, Push},
    record::{CaptureNumber, Record, Status},
    store::artifact_path,
};
use crate::program::ProgramError;

/// Before each further try.
const PAUSES: [Duration; 3] = [Duration::from_secs(5), Duration::from_secs(30), Duration::from_secs(180)];

/// Why somebody was not told.
#[derive(Debug, thiserror::Error)]
enum TellError {
    /// There is none to run.
    #[error("no program is named")]
    NoProgram,
    /// It did not succeed.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// Nobody can be trusted.
    #[error("this system trusts no certificate authority; install ca-certificates")]
    NoAuthorities,
    /// It is not wanted there.
    #[error("it answered with status {0}")]
    Answered(u16),
    /// It does not get there.
    #[error("{0}")]
    Http(Box<ureq::Error>),
    /// What is to be sent.
    #[error("cannot read {}: {source}", path.display())]
    Profile {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A fault of pgleak.
    #[error("it was not told to the end: {0}")]
    Broken(JoinError),
}

/// What became of telling.
#[derive(Debug)]
pub(super) struct Delivered {
    /// Of which capture.
    pub number: CaptureNumber,
    /// What failed for good.
    pub failures: Vec<String>,
}

/// One of those who are told.
#[derive(Clone, Debug)]
enum To {
    Command(Vec<String>),
    Webhook(super::config::Webhook),
    Profiles(Push, PathBuf),
}

impl To {
    fn name(&self) -> String {
        match self {
            Self::Command(command) => format!("the program {}", command.first().map_or("", |name| name)),
            Self::Webhook(webhook) => format!("the webhook {}", post::without_secrets(&webhook.url)),
            Self::Profiles(push, _) => format!("{:?} at {}", push.to, post::without_secrets(&push.url)),
        }
    }

    fn tell(&self, notice: &Notice) -> Result<(), TellError> {
        match self {
            Self::Command(command) => command::run(command, &notice.json()),
            Self::Webhook(webhook) => {
                post::post(&webhook.url, &webhook.headers, "application/json", &notice.json())
            }
            Self::Profiles(push, profile) => profiles::push(push, profile, notice),
        }
    }
}

/// Tells of a capture, in the background; `done` learns of the end.
pub(super) fn deliver(config: &Config, record: Record, done: &mpsc::UnboundedSender<Delivered>) {
    let number = record.number;
    let to = receivers(config, &record);
    let notice = Notice::of(record);
    let done = done.clone();
    tokio::spawn(async move {
        // One that hangs keeps no other waiting.
        let mut telling = JoinSet::new();
        for to in to {
            let notice = notice.clone();
            telling.spawn(
                async move { tell(&to, &notice).await.map_err(|why| format!("{}: {why}", to.name())) },
            );
        }
        let mut failures = Vec::new();
        while let Some(told) = telling.join_next().await {
            if let Err(why) = told.unwrap_or_else(|error| Err(error.to_string())) {
                warn!("capture {number} could not be told: {why}");
                failures.push(why);
            }
        }
        // The service may have ended meanwhile: the next one tells again.
        let _ = done.send(Delivered { number, failures });
    });
}

fn receivers(config: &Config, record: &Record) -> Vec<To> {
    let Notify { on, command, webhook } = &config.notify;
    let is_wanted = match on {
        NotifyOn::Leak => record.found_growth(),
        NotifyOn::Capture => true,
    };
    let mut to = Vec::new();
    if is_wanted {
        to.extend((!command.is_empty()).then(|| To::Command(command.clone())));
        to.extend(webhook.clone().map(To::Webhook));
    }
    if record.status == Status::Done {
        let profile = artifact_path(&config.store.directory, record.number, "profile.pb.gz");
        to.extend(config.push.iter().map(|push| To::Profiles(push.clone(), profile.clone())));
    }
    to
}

async fn tell(to: &To, notice: &Notice) -> Result<(), TellError> {
    let mut pauses = PAUSES.iter();
    loop {
        let (once, notice) = (to.clone(), notice.clone());
        let told = spawn_blocking(move || once.tell(&notice))
            .await
            .unwrap_or_else(|error| Err(TellError::Broken(error)));
        match (told, pauses.next()) {
            (Ok(()), _) => return Ok(()),
            (Err(why), None) => return Err(why),
            (Err(_), Some(pause)) => sleep(*pause).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::{config::PushTo, testing::record};

    #[test]
    fn leaks_are_told_and_the_rest_if_it_is_wanted() {
        let mut config = Config::default();
        config.notify.command = vec!["true".to_owned()];
        let names = |config: &Config, record: &Record| -> Vec<String> {
            receivers(config, record).iter().map(To::name).collect()
        };
        let (leak, nothing) = (record(1, Some("Leaky")), record(2, None));
        assert_eq!(names(&config, &leak), ["the program true"]);
        assert!(names(&config, &nothing).is_empty());
        config.notify.on = NotifyOn::Capture;
        assert_eq!(names(&config, &nothing), ["the program true"]);
        config.push.push(Push {
            to: PushTo::Parca,
            url: "https://user:secret@profiles.example.org".to_owned(),
            headers: Default::default(),
            labels: Default::default(),
        });
        let told = names(&config, &leak);
        assert_eq!(told.len(), 2);
        assert!(!told[1].contains("secret"), "{told:?}");
        let failed = Record { status: Status::Failed, ..nothing };
        assert_eq!(names(&config, &failed), ["the program true"]);
    }
}
