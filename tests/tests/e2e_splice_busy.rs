//! Connections that have hardly a quiet moment are spliced at the first one. Needs root.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tests::pipe::{Dial, Terms};
use tests::privilege::require_root;
use tests::seed::seed;
use tests::spliced::{SplicedPlan, Watch};

const CONNECTIONS: u64 = 40;
/// Longer than the first pauses between two looks, in which both ends acknowledge at once.
const WITHOUT_PAUSE: Duration = Duration::from_secs(2);
/// Shorter than an acknowledgement can be put off: Linux does so for 40 ms.
const PAUSE: Duration = Duration::from_millis(20);
/// Some of the longest pauses between two looks.
const SPLICED: Duration = Duration::from_secs(60);

/// Each end has something to say before it would acknowledge what it has heard.
#[test]
fn who_speaks_before_he_acknowledges_is_spliced_too() {
    require_root();
    let site = SplicedPlan::new(seed("busy")).build().unwrap();
    let watch = Watch::start(site.edge.lister());
    let (seed, listeners) = (site.seed, site.listeners());
    site.clients(0, async move |_| -> Result<()> {
        let talks: Vec<_> = (0..CONNECTIONS)
            .map(|number| {
                let (watch, target) = (watch.clone(), listeners[number as usize % 2]);
                tokio::task::spawn_local(async move {
                    let mut pipe = Dial::new(target, Terms::echo(seed, number)).open().await?;
                    let (local, start) = (pipe.local(), Instant::now());
                    pipe.chatter(100, Duration::ZERO, || start.elapsed() < WITHOUT_PAUSE).await?;
                    let spliced = || watch.has(local, start);
                    pipe.chatter(100, PAUSE, || !spliced() && start.elapsed() < SPLICED).await?;
                    anyhow::ensure!(spliced(), "{local} is not spliced");
                    pipe.finish().await
                })
            })
            .collect();
        for talk in talks {
            talk.await.context("a talk does not panic")??;
        }
        Ok(())
    })
    .unwrap();
    site.wait_empty().unwrap();
}
