//! One campaign, from its setting up to its verdict.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::faults::{self, Fault};
use super::operators::{Deeds, Operators};
use super::stage::{Scale, Stage};
use super::tail::{self, Tail};
use super::evidence;
use crate::harness::Client;
use crate::history::{Evidence, Judgement, judge};

#[derive(Debug, Clone)]
pub struct Campaign {
    pub seed: u64,
    /// How long faults are dealt.
    pub lasts: Duration,
    pub scale: Scale,
    /// Everything has to have ended so long after the last fault.
    pub tail: Duration,
    /// Keep the logs, also if all is well.
    pub keep: bool,
}

/// What a campaign came to.
#[derive(Debug)]
pub struct Outcome {
    pub seed: u64,
    /// How long faults were dealt.
    pub lasted: Duration,
    pub faults: BTreeMap<Fault, u32>,
    pub deeds: Deeds,
    pub tail: Tail,
    pub judgement: Judgement,
    /// How long judging took, and how many lines were judged.
    pub judged: (Duration, usize),
    /// What could not be done here.
    pub skipped: Vec<&'static str>,
    /// Where the logs are, if there is something to look at.
    pub folder: Option<PathBuf>,
}

impl Campaign {
    /// Sets the stage, deals the faults, mends them, waits for the end of all work, and judges.
    ///
    /// # Errors
    /// If it can't go on, also if a process has ended by itself: with where the logs are.
    pub async fn run(&self) -> io::Result<Outcome> {
        let stage = Stage::set(self.seed, &self.scale).await?;
        let out_max = usize::from(stage.out_max);
        let possible = [(stage.disk.is_some(), Fault::DiskFull), (stage.clock.is_some(), Fault::ClockSet)];
        let skipped = possible.iter().filter(|(here, _)| !here).map(|(_, fault)| fault.name()).collect();
        let played = Box::pin(self.play(&stage)).await;
        let site = stage.end().await?;
        let Played { faults, deeds, tail, kept } = match played {
            Ok(played) => played,
            Err(error) => return Err(io::Error::other(format!("{error}; the logs are in {}", site.keep().display()))),
        };
        let history = evidence::gather(site.folder(), kept)?;
        let began = tokio::time::Instant::now();
        let judgement = judge(&Evidence { history: &history, site: &std::fs::read_to_string(&site.log)?, out_max });
        let judged = (began.elapsed(), history.lines().count());
        let folder = (self.keep || !judgement.violations.is_empty()).then(|| site.keep());
        if let Some(folder) = &folder {
            std::fs::write(folder.join("history.jsonl"), &history)?;
        }
        Ok(Outcome { seed: self.seed, lasted: self.lasts, faults, deeds, tail, judgement, judged, skipped, folder })
    }

    /// Until all work has ended, and what Redis holds then.
    async fn play(&self, stage: &Stage) -> io::Result<Played> {
        for socket in stage.sockets() {
            Client::new(&socket)?.until_up().await?;
        }
        let stop = CancellationToken::new();
        let ends = async {
            tokio::time::sleep(self.lasts).await;
            stop.cancel();
            Ok(())
        };
        let operators = Operators::new(stage)?;
        let (faults, deeds, ()) = tokio::try_join!(faults::deal(stage, &stop), operators.work(&stop), ends)?;
        tail::heal(stage).await?;
        let tail = tail::until_all_has_ended(stage, self.tail).await?;
        stage.orders.whole()?;
        stage.faults.whole()?;
        Ok(Played { faults, deeds, tail, kept: evidence::kept(stage).await? })
    }
}

struct Played {
    faults: BTreeMap<Fault, u32>,
    deeds: Deeds,
    tail: Tail,
    kept: String,
}
