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
use crate::checker;
use crate::harness::Client;

#[derive(Debug, Clone)]
pub struct Campaign {
    pub seed: u64,
    /// How long faults are dealt.
    pub lasts: Duration,
    pub scale: Scale,
}

/// What a campaign came to.
#[derive(Debug)]
pub struct Outcome {
    pub faults: BTreeMap<Fault, u32>,
    pub deeds: Deeds,
    pub tail: Tail,
    pub violations: Vec<String>,
    /// Where the logs are, if there is something to look at.
    pub folder: Option<PathBuf>,
}

impl Campaign {
    pub async fn run(&self) -> io::Result<Outcome> {
        let stage = Stage::set(self.seed, &self.scale).await?;
        for socket in stage.sockets() {
            Client::new(&socket)?.until_up().await?;
        }
        let stop = CancellationToken::new();
        let ends = async {
            tokio::time::sleep(self.lasts).await;
            stop.cancel();
            Ok(())
        };
        let operators = Operators::new(&stage)?;
        let (faults, deeds, ()) = tokio::try_join!(faults::deal(&stage, &stop), operators.work(&stop), ends)?;
        tail::heal(&stage).await?;
        let tail = tail::until_all_has_ended(&stage).await?;
        stage.orders.whole()?;
        stage.faults.whole()?;
        let kept = evidence::kept(&stage).await?;
        let out_max = u32::from(stage.out_max);
        let (site, _world) = stage.end().await?;
        let _text = evidence::gather(site.folder(), kept)?;
        let mut violations = checker::check(&std::fs::read_to_string(&site.log)?, out_max);
        violations.extend(tail.open.iter().map(|(id, status, headline)| format!("I7 {id} is {status}: {headline}")));
        let folder = (!violations.is_empty()).then(|| site.keep());
        Ok(Outcome { faults, deeds, tail, violations, folder })
    }
}
