//! Ends the workers of an edge that no agent runs.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use lb_sidecar::control::{FromWorker, ToWorker, channel};
use tokio::{
    net::UnixStream,
    time::{Instant, sleep, timeout},
};

use super::directory::{Directory, Name};

/// A worker ends at once, or hangs.
const PATIENCE: Duration = Duration::from_secs(3);

/// Ends every worker and waits until it is gone; removes their directory. Returns their number. Doing it twice is
/// harmless.
pub async fn end_all(directory: &Directory) -> Result<usize> {
    let mut ended = 0;
    for name in directory.sockets()? {
        if directory.process(name).is_some() {
            ended += 1;
        }
        end(directory, name).await?;
        directory.forget(name)?;
    }
    directory.remove()?;
    Ok(ended)
}

async fn end(directory: &Directory, name: Name) -> Result<()> {
    // Whoever does not hear is killed; whoever is dead does not hear.
    let _ = timeout(PATIENCE, tell(directory, name)).await;
    if gone(directory, name, Duration::from_millis(500)).await {
        return Ok(());
    }
    directory.kill(name)?;
    match gone(directory, name, PATIENCE).await {
        true => Ok(()),
        false => bail!("{}: its worker does not end", directory.socket(name).display()),
    }
}

/// Says that it is to end, and waits until the connection ends.
async fn tell(directory: &Directory, name: Name) -> Result<()> {
    let path = directory.socket(name);
    let stream = UnixStream::connect(&path).await.with_context(|| format!("{}", path.display()))?;
    let (mut sender, mut receiver) = channel::<ToWorker, FromWorker>(stream);
    sender.send(&ToWorker::Stop, None).await?;
    while receiver.receive().await?.is_some() {}
    Ok(())
}

async fn gone(directory: &Directory, name: Name, patience: Duration) -> bool {
    let end = Instant::now() + patience;
    while directory.process(name).is_some() {
        if Instant::now() >= end {
            return false;
        }
        sleep(Duration::from_millis(5)).await;
    }
    true
}
